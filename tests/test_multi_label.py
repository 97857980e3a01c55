"""Videos of several labels, or of none, have a loss and metrics of their own, from every source to the predictions."""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video
from pytorch_lightning import Trainer
from torch import Tensor
from torch.nn import functional as F

import cnnbert
from cnnbert.cli import main
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.dataset import VideoDataset
from cnnbert.data.loaders import collate
from cnnbert.data.readers import PyAVReader, VideoReader
from cnnbert.data.records import VideoRecord, split_label
from cnnbert.data.samplers import CenterClip
from cnnbert.data.sources import CSVManifest, Folder, VideoSource
from cnnbert.data.splits import split_records
from cnnbert.data.transforms import EvalTransform
from cnnbert.errors import InputError, VideoReadError
from cnnbert.folds import _lines
from cnnbert.tasks.recognition import ActionRecognition

NAMES = ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("label", "separator", "names"),
    [
        ("run|jump", "|", ["run", "jump"]),
        (" run , jump ", ",", ["run", "jump"]),
        ("run||jump|run", "|", ["run", "jump"]),
        ("run", "|", ["run"]),
        ("|", "|", []),
        ("", "|", []),
        ("run|jump", None, ["run|jump"]),
        ("", None, [""]),
    ],
)
def test_labels_are_taken_apart(label: str, separator: str | None, names: list[str]) -> None:
    assert split_label(label, separator) == names


class Listed(VideoSource):
    """Lists videos that nobody opens, by their labels."""

    def __init__(self, *labels: str | None, names: list[str] | None = None) -> None:
        self.labels = labels
        self.names = names

    @property
    def class_names(self) -> list[str]:
        return self.names or sorted({label for label in self.labels if label is not None})

    def records(self, split: str) -> list[VideoRecord]:
        return [VideoRecord(f"{i}.mp4", label) for i, label in enumerate(self.labels)]


class Unreadable(VideoReader):
    def open(self, path: str) -> Any:
        raise VideoReadError(path, "it is broken")


def datamodule(source: VideoSource, separator: str | None = "|", **arguments: Any) -> VideoDataModule:
    sizes: dict[str, Any] = {"clip_length": 8, "frame_size": 32, "resize": 32, "num_workers": 0}
    return VideoDataModule(source, label_separator=separator, **{**sizes, **arguments})


def dataset(*labels: str | None, path: str = "a", reader: VideoReader | None = None, **arguments: Any) -> VideoDataset:
    records = [VideoRecord(path, label) for label in labels]
    reader, transform = reader or Unreadable(), EvalTransform(32, 32)
    return VideoDataset(records, NAMES, reader, CenterClip(8), transform, label_separator="|", **arguments)


def test_samples_say_which_classes_are_there() -> None:
    data = dataset("red|blue", "green", "|", None, "red|pink")
    assert [data[i]["label"] for i in range(5)] == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [-1] * 3, [-1] * 3]


@pytest.mark.parametrize(
    ("label", "expected"),
    [("blue", [0, 0, 1]), ("blue|red", [1, 0, 1]), ("green|red", [1, 1, 0]), ("green", [0, 1, 0]), ("|", [0, 0, 0])],
)
def test_mirroring_renames_every_label(label: str, expected: list[int], tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", (200, 30, 30)))
    mirrored = {"blue": "red", "red": "blue"}
    data = dataset(label, path=path, reader=PyAVReader(), flip_probability=1.0, mirrored=mirrored)
    assert data[0]["label"] == expected
    batch = collate([data[0], data[0]])
    assert (batch["label"].tolist(), batch["label"].dtype) == ([expected] * 2, torch.int64)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (Listed("run|sit", "jump", "|"), ["jump", "run", "sit"]),
        (Listed("run", "jump|run", names=["run", "jump"]), ["run", "jump"]),
        (Listed("10|2", "|", *(f"{i}|0" for i in range(11))), [str(i) for i in range(11)]),
    ],
)
def test_classes_are_the_labels_taken_apart(source: VideoSource, names: list[str]) -> None:
    data = datamodule(source)
    assert data.class_names == names
    data.setup("fit")
    whole = datamodule(Listed(*data.source.labels), None)  # type: ignore[attr-defined]
    assert whole.class_names == whole.source.class_names  # without a separator, labels stay whole


def write_list(path: Path, rows: dict[str, str], header: str = "path,label") -> str:
    lines = []
    for name, fields in rows.items():
        (path.parent / name).touch()
        lines.append(f"{name},{fields}")
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def test_a_csv_of_several_labels(tmp_path: Path) -> None:
    rows = {"a.mp4": "run|sit,train", "b.mp4": "jump,train", "c.mp4": "|,val", "d.mp4": "jump|sit,val"}
    path = write_list(tmp_path / "x.csv", rows, "path,label,split")
    data = datamodule(CSVManifest(path))
    data.setup("fit")
    assert data.class_names == ["jump", "run", "sit"]
    assert data.datasets["train"].labels.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert data.datasets["val"].labels.tolist() == [[0, 0, 0], [1, 0, 1]]
    given = datamodule(CSVManifest(path, class_names=["sit", "run", "jump"]))
    given.setup("fit")
    assert given.class_names == ["sit", "run", "jump"]
    assert given.datasets["train"].labels.tolist() == [[1, 1, 0], [0, 0, 1]]
    with pytest.raises(InputError, match=r"the label 'run\|sit', which is not one of the classes jump, sit"):
        datamodule(CSVManifest(path, class_names=["jump", "sit"])).setup("fit")


def test_videos_that_are_not_there_take_their_classes_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):  # a test of two processes may leave them
        monkeypatch.delenv(name, raising=False)
    path = write_list(tmp_path / "x.csv", {"a.mp4": "run|sit", "b.mp4": "sit|jump", "c.mp4": "fly|sit|run"})
    (tmp_path / "b.mp4").unlink()
    (tmp_path / "c.mp4").unlink()
    assert datamodule(CSVManifest(path, missing="skip")).class_names == ["run", "sit"]
    assert "; 2 of the 4 classes have none to train on and drop out: fly, jump" in caplog.text


def test_a_video_without_label_is_not_one_of_no_class(tmp_path: Path) -> None:
    path = write_list(tmp_path / "x.csv", {"a.mp4": "run|sit,train", "b.mp4": ",val"}, "path,label,split")
    with pytest.raises(
        InputError, match=r"b.mp4; only predict can do without, and a video of no class has the label \|"
    ):
        datamodule(CSVManifest(path)).setup("fit")
    with pytest.raises(InputError, match=r"does not know: None; .*, and a video of no class has the label \|$"):
        datamodule(Listed("run|sit", None)).setup("fit")
    data = datamodule(CSVManifest(path))
    data.setup("predict")
    assert data.datasets["predict"].labels.tolist() == [[1, 1], [-1, -1]]


def test_folders_of_several_labels(tmp_path: Path) -> None:
    """The test videos have classes together that the training videos have apart."""
    for name in ("train/run/1", "train/jump/2", "train/sit|run/3", "val/sit/4", "test/run|jump/5", "test/fly|run/6"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.mp4").touch()
    data = datamodule(Folder(str(tmp_path)))
    data.setup("fit")
    assert data.class_names == ["jump", "run", "sit"]
    with pytest.raises(InputError, match=r"fly\|run is a class that .*train does not have"):
        data.setup("test")
    shutil.rmtree(tmp_path / "test" / "fly|run")
    data.setup("test")
    assert data.datasets["test"].labels.tolist() == [[1, 1, 0]]


def test_every_class_is_divided_in_the_same_shares() -> None:
    """Though nearly every combination of classes is there once only."""
    draw = random.Random(0)
    shares = {"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.3, "e": 0.2, "f": 0.2, "g": 0.1, "h": 0.05}
    labels = ["|".join(name for name, share in shares.items() if draw.random() < share) for _ in range(400)]
    records = [VideoRecord(str(i), label) for i, label in enumerate(labels)]
    splits = split_records(records, {"train": 0.7, "val": 0.2, "test": 0.1}, 0, "|")
    assert sorted(int(record.path) for part in splits.values() for record in part) == list(range(400))
    sizes = {split: Counter(c for r in part for c in split_label(str(r.label), "|")) for split, part in splits.items()}
    for name in shares:
        total = sum(size[name] for size in sizes.values())
        for split, share in {"train": 0.7, "val": 0.2, "test": 0.1}.items():
            assert abs(sizes[split][name] - share * total) <= max(2, 0.06 * total), (name, split)
    assert [round(len(part) / 400, 1) for part in splits.values()] == [0.7, 0.2, 0.1]


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (Listed("a|b"), {"label_separator": ""}, "label_separator='' must be at least one character, or null"),
        (Listed("a|b"), {"balanced_sampling": True}, "balanced_sampling does not go with label_separator, as a video"),
        (Listed("a|b"), {"class_names": ["a", "b", "a|b"]}, r"'\|' would take names in class_names apart: a\|b; list"),
        (Listed("a|b"), {"class_names": ["a", "c"]}, "labels that the model does not know: b; its classes are a, c$"),
        (Listed("a|b"), {"class_names": ["a", "b", "c"]}, "no training video has the class c; add some or drop"),
        (Listed("a", "|"), {}, "the classes must be at least two and all different; given: a"),
        (Listed("1|2", "3"), {}, r"Listed numbers its labels 1 to 3 \(3 of them\); number them 0 to 2"),
    ],
)
def test_mistakes(source: VideoSource, arguments: dict[str, Any], message: str) -> None:
    separator = arguments.pop("label_separator", "|")
    with pytest.raises(InputError, match=message):
        datamodule(source, separator, **arguments).setup("fit")


def build(*overrides: str, separator: str | None = "|") -> ActionRecognition:
    torch.manual_seed(0)
    small = ["model.backbone.depth=10", "model.backbone.width=8", "model.backbone.weights=null", "data.clip_length=8"]
    more = [] if separator is None else [f"data.label_separator={separator}"]
    return cnnbert.build("r2plus1d_bert.yaml", NAMES, [*small, "model.scheduler=null", *more, *overrides])


def batch(labels: list[list[int]], num_views: int = 1) -> Any:
    generator = torch.Generator().manual_seed(1)
    clips = torch.randint(256, (len(labels), num_views, 3, 8, 32, 32), dtype=torch.uint8, generator=generator)
    return collate([{"index": i, "label": labels[i], "clip": clip} for i, clip in enumerate(clips)])


def loss_by_hand(logits: Tensor, label: Tensor, smoothing: float, weights: list[float]) -> float:
    """Mean binary cross-entropy, the classes that are there weighted; a share of every target moved towards 1/2."""
    total = 0.0
    for row, there in zip(logits.double(), label.double(), strict=True):
        target = there * (1 - smoothing) + smoothing / 2
        positive = torch.tensor(weights) * target * -row.sigmoid().log()
        total += float((positive + (1 - target) * -(-row).sigmoid().log()).sum())
    return total / logits.numel()


@pytest.mark.parametrize(("smoothing", "weights"), [(0.0, None), (0.2, None), (0.1, [1, 2, 0.5])])
def test_the_loss_is_binary_cross_entropy(smoothing: float, weights: list[float] | None) -> None:
    model = build(f"model.label_smoothing={smoothing}", *([f"model.class_weights={weights}"] if weights else []))
    assert model.multi_label
    data = batch([[1, 0, 1], [0, 0, 0], [1, 1, 1]], num_views=2)
    with torch.no_grad():
        logits = model.view_logits(data["clip"])  # (3, 2, K)
        loss = model.training_step(data, 0)
    expected = [loss_by_hand(view, data["label"], smoothing, weights or [1.0] * 3) for view in logits.unbind(1)]
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-4)  # float32 in another order
    assert not any(name.startswith("loss.") for name in model.state_dict())


def run(**arguments: Any) -> Trainer:
    switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(switches, False)
    return Trainer(accelerator="cpu", max_steps=0, limit_val_batches=0, **quiet, **arguments)


def test_balanced_weights_are_negatives_over_positives() -> None:
    model = build("model.class_weights=balanced")
    data = datamodule(Listed("red|blue", "red", "green|red", "|", "blue"))
    run().fit(model, datamodule=data)
    label = torch.tensor([[1, 0, 1], [0, 1, 0]])
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    expected = loss_by_hand(logits, label, 0, [3 / 2, 4 / 1, 2 / 3])
    assert model.loss(logits, label.float()).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="every training video has the class red, which class_weights=balanced would"):
        run().fit(build("model.class_weights=balanced"), datamodule=datamodule(Listed("red|blue", "red", "green|red")))


def test_model_and_data_agree() -> None:
    data = datamodule(Listed("red|blue", "green"))
    with pytest.raises(InputError, match=r"multi_label=False of the model does not go with label_separator='\|'"):
        run().fit(build(separator=None), datamodule=data)
    with pytest.raises(InputError, match="multi_label=True of the model does not go with label_separator=None"):
        run().fit(build(), datamodule=datamodule(Listed("red", "blue", "green"), None))


def test_checkpoints_of_the_other_kind_are_refused() -> None:
    one, several = build(separator=None), build()
    assert (one.multi_label, several.multi_label) == (False, True)
    checkpoints = [{"state_dict": m.state_dict(), "hyper_parameters": dict(m.hparams)} for m in (one, several)]
    one.on_load_checkpoint(checkpoints[0])
    several.on_load_checkpoint(checkpoints[1])
    with pytest.raises(InputError, match="gives a video one class; set label_separator to null"):
        several.on_load_checkpoint(checkpoints[0])
    with pytest.raises(InputError, match="gives a video several; set label_separator"):
        one.on_load_checkpoint(checkpoints[1])


def test_means_over_splits_have_the_metrics_of_several_labels() -> None:
    results = {fold: {"num_videos": 9, "map": 0.5, "micro_f1": 0.25, "loss": 1.0} for fold in (1, 2)}
    assert _lines(results)[0] == ["split", "map", "micro_f1", "videos"]


COMBINATIONS = ["|", "red", "green", "blue", "red|green", "red|blue", "green|blue", "blue|red|green"]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of videos of one mixed colour, whose labels are the primary colours in it."""
    root = tmp_path_factory.mktemp("colours")
    lines = ["path,label,split"]
    for split, number in {"train": 2, "val": 1, "test": 1}.items():
        for label in COMBINATIONS:
            for i in range(number):
                colour = [210 if name in label else 30 for name in ("red", "green", "blue")]
                name = f"{split}/{label.replace('|', '_')}{i}.mp4"
                write_video(root / name, colour, num_frames=8 + 4 * i)
                lines.append(f"{name},{label},{split}")
    (root / "videos.csv").write_text("\n".join(lines) + "\n")
    return root


def data_of(root: Path) -> list[str]:
    source = ["--data.source=CSVManifest", f"--data.source.path={root / 'videos.csv'}"]
    return [*TINY_DATA, *source, "--data.label_separator=|"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Path:
    """A working directory with a trained run."""
    root = tmp_path_factory.mktemp("trained")
    options = ["--trainer.max_epochs=14", "--data.batch_size=4", "--trainer.log_every_n_steps=1"]
    options += ["--model.optimizer=AdamW", "--model.optimizer.lr=4e-3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["fit", *TINY_MODEL, *data_of(colours), *TINY_RUN, *options]) == 0
    return root


@pytest.fixture
def checkpoint(trained: Path, workplace: Path) -> Path:
    return next(trained.glob("runs/*/fit-*/checkpoints/best.ckpt"))


def run_folder(root: Path, command: str) -> Path:
    return sorted(root.glob(f"runs/*/{command}-*"), key=lambda path: path.stat().st_mtime)[-1]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_training_chooses_by_map(trained: Path) -> None:
    folder = run_folder(trained, "fit")
    rows = read(folder / "metrics.csv")
    speeds = {"val/clips_per_second", "val/data_wait"}
    assert {name for name in rows[0] if name.startswith("val/")} - speeds == {"val/map", "val/micro_f1", "val/loss"}
    assert "train/loss" in rows[0] and "train/clip_top1" not in rows[0]
    values = [float(row["val/map"]) for row in rows if row["val/map"]]
    assert len(values) == 14
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == max(range(14), key=lambda epoch: (values[epoch], epoch))
    assert best["hyper_parameters"]["multi_label"] is True
    assert best["hyper_parameters"]["class_names"] == NAMES
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["label_separator"] == "|"


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_testing_needs_only_the_checkpoint(
    average: str, checkpoint: Path, workplace: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = ["--data.num_clips=2", f"--data.average={average}"]
    assert main(["test", f"--ckpt_path={checkpoint}", *TINY_RUN[1:], "--trainer.precision=32-true", *views]) == 0
    folder = run_folder(workplace, "test")
    results = json.loads((folder / "results.json").read_text())
    assert set(results) >= {"map", "micro_f1", "loss"} and not {"top1", "clip_top1"} & set(results)
    assert f"\n  mAP                  {results['map']:.4f}\n  micro F1 at 0.5 " in capsys.readouterr().out
    assert results["map"] > 0.9  # chance is 0.5
    rows = read(folder / "predictions.csv")
    assert [row["label"] for row in rows] == COMBINATIONS
    for row in rows:
        assert row["prediction"] == "|".join(name for name in NAMES if float(row[f"score:{name}"]) >= 0.5)
    loss = [
        F.binary_cross_entropy(torch.tensor(float(row[f"score:{name}"])), torch.tensor(float(name in row["label"])))
        for row in rows
        for name in NAMES
    ]
    assert results["loss"] == pytest.approx(float(sum(loss)) / len(loss), rel=1e-3)  # of scores with six digits

    model = cnnbert.load(checkpoint)
    data = datamodule(CSVManifest(str(colours / "videos.csv")), num_clips=2)
    data.setup("test")
    with torch.no_grad():
        logits = torch.cat([model.view_logits(some["clip"]) for some in data.test_dataloader()])  # (N, 2, K)
    expected = logits.mean(1).sigmoid() if average == "logits" else logits.sigmoid().mean(1)
    scores = torch.tensor([[float(row[f"score:{name}"]) for name in NAMES] for row in rows])
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=0)  # six digits, and batches of another size


def test_predicting_videos_without_labels(checkpoint: Path, workplace: Path) -> None:
    """From another source too; what the checkpoint knows of labels holds there."""
    write_video(workplace / "new" / "a.mp4", (210, 30, 210))
    source = ["--data=data/folder.yaml", "--data.source.root=new"]
    assert main(["predict", f"--ckpt_path={checkpoint}", *source, *TINY_RUN[1:]]) == 0
    (row,) = read(run_folder(workplace, "predict") / "predictions.csv")
    found = [name for name in ("blue", "green", "red") if float(row[f"score:{name}"]) >= 0.5]
    assert (row["path"], row["label"], row["prediction"]) == ("new/a.mp4", "", "|".join(found))
    assert "red" in found


def test_going_on_and_forgetting_the_separator(
    checkpoint: Path, workplace: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", "runs")
    assert main(["fit", "--ckpt_path=last", "--trainer.max_epochs=15"]) == 0
    assert "(val/map " in capsys.readouterr().out
    assert main(["predict", f"--ckpt_path={checkpoint}", "--data.label_separator=null", *TINY_RUN[1:]]) == 1
    assert "a model that gives a video several; set label_separator" in capsys.readouterr().err


def test_a_checkpoint_of_the_users_own(workplace: Path, colours: Path) -> None:
    own = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "mine", "monitor": "val/loss", "filename": "own"}}
    options = [f"--trainer.callbacks={json.dumps([own])}", "--model.class_weights=balanced"]
    assert main(["fit", *TINY_MODEL, *data_of(colours), *TINY_RUN, *options]) == 0
    assert [path.name for path in Path("mine").iterdir()] == ["own.ckpt"]
    assert not (run_folder(workplace, "fit") / "checkpoints").exists()


@pytest.mark.slow
def test_two_processes_count_every_video_once(checkpoint: Path, workplace: Path, colours: Path) -> None:
    """Seven videos do not divide by two; the first cannot be read and is the one that is repeated."""
    shutil.copytree(colours, "some")
    lines = Path("some/videos.csv").read_text().splitlines()
    Path("some/videos.csv").write_text("\n".join([lines[0], *lines[-7:]]) + "\n")
    Path("some/test/red0.mp4").write_bytes(b"no video")
    tables = []
    for processes in ([], ["--trainer.devices=2", "--trainer.strategy=ddp"]):
        options = [f"--data.source.path={workplace}/some/videos.csv", *TINY_RUN[1:], "--trainer.precision=32-true"]
        command = [sys.executable, "-m", "cnnbert", "test", f"--ckpt_path={checkpoint}", *options, *processes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout[done.stdout.index("test: 7 videos") : done.stdout.index("run folder")])
    assert tables[0] == tables[1]
    words = "1 of 7 videos could not be read: their classes counted as never found, left out of loss"
    assert words in tables[0]
    results = json.loads((run_folder(workplace, "test") / "results.json").read_text())
    rows = read(run_folder(workplace, "test") / "predictions.csv")
    right = sum(name in row["prediction"] for row in rows for name in row["label"].split("|"))
    sizes = [sum(len(row[column].split("|")) for row in rows if row[column]) for column in ("label", "prediction")]
    assert results["micro_f1"] == pytest.approx(2 * right / sum(sizes))
    assert results["map"] <= (3 / 4 + 1 + 1) / 3 + 1e-6  # one of the four red ones is never found


@pytest.mark.parametrize("count_failed", ["wrong", "left_out"])
def test_there_must_be_a_class_to_judge_by(
    count_failed: str, checkpoint: Path, workplace: Path, colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(colours, "some")
    Path("some/videos.csv").write_text("path,label,split\ntest/_0.mp4,|,test\n")
    options = [f"--data.source.path={workplace}/some/videos.csv", f"--data.count_failed={count_failed}", *TINY_RUN[1:]]
    assert main(["test", f"--ckpt_path={checkpoint}", *options]) == 1
    err = capsys.readouterr().err
    assert "cnnbert: error: there is nothing to judge by: no video has any class" in err
