"""Stored features are those that training would compute, are refused when stale, and train heads as fit does."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN

import cnnbert
from cnnbert.cli import main
from cnnbert.data.features import FeatureDataModule, read_facts, read_features
from cnnbert.errors import InputError
from cnnbert.features import CONFIG, check_features
from cnnbert.head_training import train_head
from cnnbert.heads import Head
from cnnbert.loading import build_data, config_settings

SETTINGS = [*TINY_DATA, *TINY_MODEL, "--trainer.precision=32-true", "--trainer.accelerator=cpu"]
RECIPE = ["--trainer.max_epochs=3", "--model.optimizer=AdamW", "--model.optimizer.lr=0.003", "--data.batch_size=4"]


@pytest.fixture(scope="module")
def trained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose backbone has seen the videos."""
    folder = tmp_path_factory.mktemp("trained")
    source = ["--data=data/folder.yaml", f"--data.source.root={videos}", "--trainer.logger=false"]
    arguments = [*source, *SETTINGS, *TINY_RUN, "--trainer.max_epochs=2", f"--trainer.default_root_dir={folder}"]
    assert main(["fit", "--config=r2plus1d_bert.yaml", "--model.backbone.weights=null", *arguments]) == 0
    return next(folder.glob("*/*/checkpoints/last.ckpt"))


@pytest.fixture
def options(trained: Path, videos: Path, workplace: Path) -> list[str]:
    """What both the features and a real training are made with."""
    shutil.copytree(videos, "my_videos")
    source = ["--data=data/folder.yaml", "--data.source.root=my_videos", "--trainer.logger=false"]
    return ["--config=r2plus1d_bert.yaml", *source, *SETTINGS, *RECIPE, f"--model.backbone.weights={trained}"]


def make(options: list[str], *more: str) -> Path:
    assert main(["features", *options, "--out=features", *more]) == 0
    return Path("features")


def settings_of(folder: Path, *more: str) -> dict:
    return config_settings(folder / CONFIG, read_facts(folder)["key"]["classes"], more)


def scores(path: Path) -> np.ndarray:
    with path.open(newline="", encoding="utf-8") as file:
        return np.array([[float(v) for k, v in row.items() if k.startswith("score:")] for row in csv.DictReader(file)])


def test_they_are_what_the_backbone_gives_for_the_clips_of_training(options: list[str]) -> None:
    folder = make(options, "--train-views=2", "--data.test_protocol=10_clips_3_crops", "--data.num_clips=2")
    stored = read_features(folder)
    data = build_data(options[0].partition("=")[2], [word for word in options if word.startswith("--data")])
    data.setup("fit")
    backbone = cnnbert.build(options[0].partition("=")[2], ["a", "b"], [w for w in options[1:] if "data" not in w])
    backbone.backbone.load_pretrained()
    for epoch in (0, 1):
        for index in (0, 7):
            sample = data.datasets["train"][epoch, index]
            with torch.no_grad():
                expected = backbone.backbone(sample["clip"])
            features, label = stored["train"].sample(epoch, index)
            # Half precision keeps 11 bits.
            torch.testing.assert_close(features, expected, rtol=2**-10, atol=1e-4)
            assert label == sample["label"]
            assert torch.equal(stored["train"].sample(epoch + 2, index)[0], features)
    assert isinstance(stored["train"].rows, np.memmap)
    both = [[stored["train"].sample(epoch, index)[0] for index in range(12)] for epoch in (0, 1)]
    assert not all(map(torch.equal, *both))  # each epoch has clips of its own
    assert stored["val"].sample(0, 0)[0].shape[0] == 1
    assert stored["test"].sample(0, 8)[0].shape[0] == 6


def test_a_head_trains_on_them_as_in_fit_on_a_frozen_backbone(options: list[str]) -> None:
    """As many stored clips as epochs, so that both see the same; with dropout and masks, drawn alike."""
    drop = ["--model.head.classifier_dropout=0.3"]
    folder = make([*options, *drop], "--train-views=3")
    real = [*options, *drop, "--model.freeze_backbone=true", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *real]) == 0
    assert main(["test", *real, "--ckpt_path=best"]) == 0
    (expected,) = Path("runs").glob("*/test-*/predictions.csv")
    known = settings_of(folder)
    train_head(folder, known, 0, Path("head"))
    # Features in half precision are off by up to 0.0005 of their size; three epochs of training carry that on.
    np.testing.assert_allclose(scores(Path("head/predictions.csv")), scores(expected), atol=2e-3)
    results = [json.loads(path.with_name("results.json").read_text()) for path in (Path("head/x"), expected)]
    assert results[0]["top1"] == results[1]["top1"] and results[0]["protocol"] == results[1]["protocol"]

    train_head(folder, known, 1, Path("other"))  # another seed is another training
    assert abs(scores(Path("other/predictions.csv")) - scores(expected)).max() > 0.02
    rows = np.memmap(folder / "train.f16", np.float16, "r+")
    half = len(rows) // 6
    rows[:half], rows[half : 2 * half] = rows[half : 2 * half].copy(), rows[:half].copy()  # clips of other videos
    rows.flush()
    train_head(folder, known, 0, Path("mixed"))
    assert abs(scores(Path("mixed/predictions.csv")) - scores(expected)).max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model.backbone.weights=null"], "weights was "),
        (["--model.backbone.width=16", "--model.backbone.weights=null"], "backbone was {'class_path': "),
        (["--data.clip_length=16"], "data.clip_length was 8 and is 16"),
        (["--data.flip_probability=0"], "data.flip_probability was 0.5 and is 0"),
        (["--data.seed=3"], "data.seed was 0 and is 3"),
        (["--data.test_protocol=10_clips_3_crops"], "data.test_protocol was center_clip and is 10_clips_3_crops"),
    ],
)
def test_stale_features_are_refused(options: list[str], change: list[str], message: str) -> None:
    folder = make(options)
    check_features(folder, settings_of(folder))
    check_features(folder, settings_of(folder, "--data.num_workers=1", "--model.head=TGAPHead", "--data.batch_size=2"))
    with pytest.raises(InputError) as error:
        check_features(folder, settings_of(folder, *change))
    assert f"the features in features are of another kind: {message}" in str(error.value)
    assert str(error.value).endswith("make them again with cnnbert features")


def test_changed_videos_are_noticed(options: list[str]) -> None:
    folder = make(options)
    video = Path("my_videos/train/red/1.mp4")
    whole = video.read_bytes()
    video.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="train videos was 12"):
        check_features(folder, settings_of(folder))
    video.unlink()
    with pytest.raises(InputError, match=r"train videos was 12 \(.*\) and is 11 \("):
        check_features(folder, settings_of(folder))
    video.write_bytes(whole)  # a copy is the same video, whatever its date
    check_features(folder, settings_of(folder))


def test_videos_that_cannot_be_read(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("my_videos/train/red/0.mp4", "my_videos/test/blue/2.mp4"):
        Path(path).write_text("no video")
    folder = make(options, "--data.max_failed_share=0.5")
    assert "2 videos could not be read: left out of training" in capsys.readouterr().out
    train_head(folder, settings_of(folder), 0, Path("head"))
    results = json.loads(Path("head/results.json").read_text())
    assert (results["num_videos"], results["num_failed"]) == (9, 1)
    with Path("head/predictions.csv").open(newline="") as file:
        errors = {row["path"]: row["error"] for row in csv.DictReader(file) if row["error"]}
    (path,) = errors
    assert path.endswith("test/blue/2.mp4") and errors[path]
    data = FeatureDataModule(str(folder), source=build_data(None, options[1:3]).source, clip_length=8)
    data.setup("fit")
    failed = [sample["index"] for sample in map(data.datasets["train"].__getitem__, range(12)) if "failure" in sample]
    assert len(failed) == 1


def test_an_interrupted_start_leaves_nothing(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnbert.data.features import SplitWriter

    add, number = SplitWriter.add, 0

    def stop(self: SplitWriter, *arguments: object) -> None:
        nonlocal number
        number += 1
        if number == 20:
            raise KeyboardInterrupt
        add(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "add", stop)
        assert main(["features", *options, "--out=features"]) == 130
    assert not list(Path().glob("features*"))
    Path("features.part").mkdir()  # of a start that was killed
    Path("features.part/train.f16").write_text("half")
    assert sorted(path.name for path in make(options).iterdir()) == [
        CONFIG,
        "features.json",
        "test.f16",
        "train.f16",
        "val.f16",
    ]


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_what_half_precision_cannot_hold(
    options: list[str], value: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cnnbert.backbones import R2Plus1D

    monkeypatch.setattr(R2Plus1D, "forward", lambda self, clips: torch.full((len(clips), 64, 1, 2, 2), value))
    assert main(["features", *options, "--out=features"]) == 1
    assert f"the features of video 0 reach {value:g}, but half precision ends at 65504" in capsys.readouterr().err
    assert not list(Path().glob("features*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train-views=0"], "train_views=0 must be at least 1; try 4"),
        (["--out=my_videos"], "my_videos is there already; remove it, or give --out another folder"),
    ],
)
def test_bad_input(options: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", *options, "--out=features", *more]) == 1
    assert f"cnnbert: error: {message}" in capsys.readouterr().err


def test_damaged_features(options: list[str]) -> None:
    with pytest.raises(
        InputError, match="there are no features in nowhere; make them with cnnbert features --out nowhere"
    ):
        read_features(Path("nowhere"))
    folder = make(options)
    with (folder / "val.f16").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"val\.f16 is not there whole"):
        read_features(folder)
    (folder / "features.json").write_text("{")
    with pytest.raises(InputError, match=r"features\.json is damaged"):
        read_features(folder)


class BrokenHead(Head):
    """A head that cannot be trained."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits, in evaluation alone."""
        if self.training:
            raise RuntimeError("out of luck")
        return self.scale * features.mean((2, 3, 4))[:, : self.num_classes]


def test_heads_side_by_side(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    make(options, "--train-views=2")
    Path("wide.yaml").write_text("class_path: BERTHead\ninit_args: {num_heads: 4, feedforward_channels: 300}\n")
    Path("fast.yaml").write_text("model: {head: EfficientBERTHead, optimizer: {init_args: {lr: 0.5}}}\n")
    heads = ["--heads", "TGAPHead", "wide.yaml", "fast.yaml", f"{__name__}.BrokenHead"]
    assert main(["ablate", "--features=features", *heads, "--seeds=2"]) == 1  # one failed
    with Path("ablation/table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["network"] for row in table] == ["TGAPHead", "wide", "fast", "BrokenHead"]
    assert [row["baseline"] for row in table] == ["", "TGAPHead", "TGAPHead", "TGAPHead"]
    assert [row["failed_runs"] for row in table] == ["0", "0", "0", "2"]
    assert "BrokenHead, seed 1: RuntimeError: out of luck" in Path("ablation/table.md").read_text()
    assert float(table[1]["difference"]) == pytest.approx(float(table[1]["mean"]) - float(table[0]["mean"]))
    assert sorted(path.name for path in Path("ablation/seed1/wide").iterdir()) == [
        "config.yaml",
        "head.ckpt",
        "predictions.csv",
        "results.json",
        "run.json",
    ]
    for name, rate in {"wide": 0.003, "fast": 0.5}.items():
        known = yaml.safe_load(Path(f"ablation/seed1/{name}/config.yaml").read_text())
        assert known["model"]["optimizer"]["init_args"]["lr"] == rate
    capsys.readouterr()
    assert main(["ablate", "--features=features", *heads[:4], "--seeds=2"]) == 0
    assert "seed" not in capsys.readouterr().out.split("|")[0].replace("--seeds", "")  # nothing is trained again


def test_a_trained_head_finds_its_backbone(
    options: list[str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(options, "--train-views=1")
    assert main(["ablate", "--features=features", "--heads", "BERTHead", "--seeds=1"]) == 0
    head = Path("ablation/seed0/BERTHead/head.ckpt")
    assert not [name for name in torch.load(head, weights_only=True)["state_dict"] if name.startswith("backbone.")]
    assert main(["test", f"--ckpt_path={head}", "--trainer.logger=false"]) == 0, capsys.readouterr().err
    (found,) = Path("runs").glob("*/test-*/predictions.csv")
    expected = scores(head.with_name("predictions.csv"))  # on features in half precision
    np.testing.assert_allclose(scores(found), expected, atol=2e-3)
    video = "my_videos/test/blue/0.mp4"
    named = cnnbert.load(head).classify(video, num_clips=1)
    assert [named[name] for name in ("blue", "green", "red")] == pytest.approx(expected[0], abs=2e-3)

    other = torch.load(trained, weights_only=True)
    other["state_dict"]["backbone.stem.0.weight"] += 1e-3
    torch.save(other, "other.ckpt")
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={head}", "--model.backbone.weights=other.ckpt", "--trainer.logger=false"]) == 1
    assert "other.ckpt has other weights now than those that its features were made with" in capsys.readouterr().err
    known = torch.load(head, weights_only=True)
    known["hyper_parameters"]["backbone"]["init_args"]["weights"] = None
    torch.save(known, "random.ckpt")
    assert main(["classify", "random.ckpt", video]) == 1
    assert "random.ckpt: the checkpoint holds a head without its backbone, whose weights" in capsys.readouterr().err


def test_a_stopped_ablation_goes_on(options: list[str]) -> None:
    """Ctrl-C in a training: Lightning turns it into an exit."""
    make(options, "--train-views=1")
    words = [
        "ablate",
        "--features=features",
        "--heads",
        "TGAPHead",
        "BERTHead",
        "--seeds=1",
        "--trainer.max_epochs=4000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "cnnbert", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not list(Path("ablation").rglob("best.ckpt")):  # until an epoch has been trained
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error.endswith("cnnbert: error: stopped after 0 of 2 runs; the same command goes on\n")
    assert "to go on: cnnbert fit" not in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--heads", "LSTMHed"],
            "heads=LSTMHed is no head; the package has ActionVLADHead, AttentivePoolHead, BERTHead",
        ),
        (["--heads", "my_videos/train.yaml"], "no config 'my_videos/train.yaml' here; the shipped ones are "),
        (["--heads", "TGAPHead", "small.yaml"], "the features in features are of another kind: data.frame_size was 32"),
        (["--heads", "odd.yaml"], "odd.yaml describes no head; it needs class_path, and init_args, or is a config"),
        (["--heads", "torn.yaml"], "torn.yaml is no YAML file: while parsing"),
        (["--configs=quickstart.yaml"], "configs=quickstart.yaml do not go with features; give --heads"),
        (["--data.clip_length=16"], "the features in features are of another kind: data.clip_length was 8 and is 16"),
    ],
)
def test_wrong_ablations(options: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(options)
    Path("odd.yaml").write_text("BERTHead")
    Path("small.yaml").write_text("{model: {head: BERTHead}, data: {frame_size: 16}}")
    Path("torn.yaml").write_text("class_path: [")
    capsys.readouterr()
    assert main(["ablate", "--features=features", *more]) == 1
    assert f"cnnbert: error: {message}" in capsys.readouterr().err
    assert not Path("ablation").exists()


def test_heads_need_features(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--heads=BERTHead"]) == 1
    assert "heads=BERTHead are trained on --features; without, give --configs" in capsys.readouterr().err
