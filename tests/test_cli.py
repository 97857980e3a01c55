"""The command line does its job, and says what is wrong in one message."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video
from wandb_file import read_run

import cnnbert
from cnnbert.cli import main
from cnnbert.commands import COMMANDS
from cnnbert.shipped import shipped_configs


def tiny(videos: Path) -> list[str]:
    return [*TINY_MODEL, *TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}"]


def run_folder(root: Path, command: str) -> Path:
    return sorted(root.glob(f"runs/*/{command}-*"), key=lambda path: path.stat().st_mtime)[-1]


def predictions(root: Path, command: str) -> list[dict[str, str]]:
    with (run_folder(root, command) / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A working directory with a trained run."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        options = ["--trainer.max_epochs=12", "--data.batch_size=4", "--model.optimizer=AdamW"]
        assert main(["fit", *tiny(videos), *TINY_RUN, *options, "--model.optimizer.lr=3e-3"]) == 0
    return root


@pytest.fixture
def checkpoint(trained: Path, workplace: Path) -> Path:
    return next(trained.glob("runs/*/fit-*/checkpoints/best.ckpt"))


def test_a_run_leaves_config_and_checkpoints(trained, videos):
    folder = run_folder(trained, "fit")
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "videos.csv", "checkpoints", "metrics.csv"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["head"]["init_args"]["num_heads"] == 4
    assert config["data"]["source"]["init_args"]["root"] == str(videos)
    with (folder / "metrics.csv").open(newline="") as file:
        columns = csv.DictReader(file).fieldnames or []
    assert {"val/top1", "val/mean_class_accuracy", "val/clip_top1", "val/loss"} <= set(columns)


def test_test_needs_only_the_checkpoint(checkpoint, workplace, videos, capsys):
    assert main(["test", f"--ckpt_path={checkpoint}", *TINY_RUN[1:]]) == 0
    out = capsys.readouterr().out
    assert "test: 9 videos, protocol center_clip: centre clip x centre crop, 8 frames, stride 1\n  video top-1" in out
    assert "  video top-1          1.0000\n" in out and "  clip top-1           1.0000\n" in out
    rows = predictions(workplace, "test")
    assert [Path(row["path"]).relative_to(videos).as_posix() for row in rows] == [
        f"test/{label}/{i}.mp4" for label in ("blue", "green", "red") for i in range(3)
    ]
    assert all(row["label"] == row["prediction"] for row in rows)
    scores = [[float(row[f"score:{name}"]) for name in ("blue", "green", "red")] for row in rows]
    assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in scores)


def test_options_win_over_the_checkpoint(checkpoint, workplace, videos, capsys):
    views = ["--data.num_clips=2", "--data.num_crops=3", "--data.resize=[32,44]"]
    assert main(["test", f"--ckpt_path={checkpoint}", *TINY_RUN[1:], *views]) == 0
    assert "9 videos, protocol custom: 2 clips x 3 crops, 8 frames, stride 1, mean of logits" in capsys.readouterr().out


def test_predict_takes_any_videos(checkpoint, workplace):
    write_video(workplace / "new" / "a.mp4", (220, 30, 30))
    write_video(workplace / "new" / "b.mp4", (30, 30, 220))
    assert main(["predict", f"--ckpt_path={checkpoint}", *TINY_RUN[1:], "--data.source.root=new"]) == 0
    rows = predictions(workplace, "predict")
    assert [(row["path"], row["label"], row["prediction"]) for row in rows] == [
        ("new/a.mp4", "", "red"),
        ("new/b.mp4", "", "blue"),
    ]


def test_fit_test_fit_again(workplace, videos, capsys):
    config = {"model": {"backbone": {"class_path": "R2Plus1D", "init_args": {"depth": 10, "width": 8}}}}
    config["model"]["head"] = {"class_path": "TGAPHead"}
    config["data"] = {"clip_length": 8, "frame_size": 32, "resize": 32, "num_workers": 0}
    config["data"]["source"] = {"class_path": "Folder", "init_args": {"root": str(videos)}}
    config["trainer"] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    for logger in (None, False, {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}):
        config["trainer"]["logger"] = logger
        Path("mine.yaml").write_text(yaml.safe_dump(config))
        for _ in range(2):
            assert main(["fit", "--config=mine.yaml"]) == 0
            assert main(["test", "--config=mine.yaml", "--ckpt_path=best"]) == 0
            assert main(["validate", "--ckpt_path=last"]) == 0
    assert len(list(workplace.glob("runs/mine/fit-*"))) == 6
    assert "val: 6 videos, protocol center_clip: centre clip x centre crop" in capsys.readouterr().out
    judged = {row["path"]: row["label"] for row in predictions(workplace, "validate")}
    assert judged == {str(path): path.parent.name for path in (videos / "val").rglob("*.mp4")}
    assert not list(workplace.glob("runs/mine/fit-*/predictions.csv"))
    again = run_folder(workplace, "fit") / "config.yaml"
    assert main(["fit", f"--config={again}"]) == 0  # a resolved config runs again
    assert len(list(workplace.glob("runs/config/fit-*"))) == 1


def test_precision_is_the_machine_s_unless_it_or_a_plugin_is_given(workplace, videos, caplog, monkeypatch):
    monkeypatch.setattr("cnnbert.run_cli.best_precision", lambda device: "64-true")
    double = "--trainer.plugins=DoublePrecision"
    for given, taken in (([], "64-true"), (["--trainer.precision=32-true"], "32-true"), ([double], "64-true")):
        caplog.clear()
        assert main(["fit", *tiny(videos), *TINY_RUN, "--trainer.limit_train_batches=1", *given]) == 0
        assert f" | precision {taken} | " in caplog.text


def test_fit_goes_on_from_last(workplace, videos):
    assert main(["fit", *tiny(videos), *TINY_RUN]) == 0
    assert main(["fit", "--ckpt_path=last", "--trainer.max_epochs=3"]) == 0
    (folder,) = workplace.glob("runs/run/fit-*")
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"]["enable_progress_bar"] is False
    assert config["ckpt_path"] is None  # run again, it trains anew
    assert (folder / "metrics.csv").is_file() and (folder / "resumed-2" / "metrics.csv").is_file()


def test_going_on_keeps_the_classes_apart(workplace, videos, capsys):
    """A class that has another name since would otherwise be trained as the one that took its number."""
    shutil.copytree(videos, "changing")
    data = [*TINY_DATA, "--data.source=Folder", "--data.source.root=changing"]
    assert main(["fit", *TINY_MODEL, *data, *TINY_RUN]) == 0
    for split in ("train", "val", "test"):
        Path("changing", split, "blue").rename(Path("changing", split, "pink"))
    assert main(["fit", "--ckpt_path=last", "--trainer.max_epochs=2"]) == 1
    assert "labels that the model does not know: pink; its classes are blue, green, red" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_run(workplace, videos):
    losses = []
    for workers in (0, 0, 2):
        options = [*tiny(videos), *TINY_RUN, "--trainer.precision=32-true", f"--data.num_workers={workers}"]
        assert main(["fit", *options, "--trainer.max_epochs=2", "--data.batch_size=4"]) == 0
        with (run_folder(workplace, "fit") / "metrics.csv").open(newline="") as file:
            losses.append([row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]])
    assert len(losses[0]) == 2
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("option", ["--model.class_weights=balanced", "--data.balanced_sampling=true"])
def test_small_classes_are_not_passed_over(option, workplace, videos):
    shutil.copytree(videos, "mine")
    Path("mine/train/blue/3.mp4").unlink()
    assert main(["fit", *tiny(Path("mine")), *TINY_RUN, option]) == 0
    assert main(["test", "--ckpt_path=last", *TINY_RUN[1:]]) == 0
    name, value = option.removeprefix("--").split("=")
    part, key = name.split(".")
    config = yaml.safe_load((run_folder(workplace, "fit") / "config.yaml").read_text())
    assert config[part][key] == yaml.safe_load(value)


def test_checkpoint_reloads_without_executing_anything(checkpoint, videos):
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["class_names"] == ["blue", "green", "red"]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", "Attribute .* is an instance of `nn.Module`"
        )  # would be pickled when saved again
        model = cnnbert.load(checkpoint)
    assert (model.class_names, model.training) == (["blue", "green", "red"], False)
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, 8, 32, 32, dtype=torch.uint8))
    assert logits.shape == (2, 3)
    assert torch.equal(logits[0], logits[1])


def test_wandb_run_offline(workplace, videos, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(workplace))  # no .netrc
    logger = ["--trainer.logger=WandbLogger", "--trainer.logger.project=tiny", "--trainer.log_every_n_steps=1"]
    assert main(["fit", *tiny(videos), *TINY_RUN, *logger]) == 0
    folder = run_folder(workplace, "fit")
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    name, config, history = read_run(file)
    assert name == f"run/{folder.name}"
    assert {"train/loss", "train/clip_top1", "val/loss", "val/top1", "val/clip_top1"} <= set().union(*history)
    assert config["model"]["backbone"]["init_args"]["width"] == 8


def test_two_processes_count_every_video_once(checkpoint, workplace, videos):
    """Seven test videos do not divide by two; the metrics must be those of one process."""
    some = workplace / "some"
    shutil.copytree(videos, some)
    for name in ("blue", "red"):
        (some / "test" / name / "2.mp4").unlink()
    (some / "test" / "green" / "0.mp4").replace(some / "test" / "red" / "0_green.mp4")  # one error, to be counted once
    options = [f"--ckpt_path={checkpoint}", f"--data.source.root={some}", *TINY_RUN[1:], "--trainer.precision=32-true"]
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    tables = []
    for extra in ([], ddp):
        command = [sys.executable, "-m", "cnnbert", "test", *options, *extra]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        tables.append(out[out.index("test: 7 videos") : out.index("run folder")])
    assert tables[0] == tables[1]
    assert "video top-1          0.8571" in tables[0]
    assert len(predictions(workplace, "test")) == 7


def test_two_processes_train(workplace, videos):
    command = [sys.executable, "-m", "cnnbert", "fit", *tiny(videos), *TINY_RUN]
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2"]
    out = subprocess.run([*command, *ddp], capture_output=True, text=True, check=True).stdout
    assert "val: 6 videos" in out
    assert (run_folder(workplace, "fit") / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["fit", "--config=nothing.yaml"], 1, "no config 'nothing.yaml' here; the shipped ones are "),
        (["fit", "--model.head.num_headz=3"], 2, "num_headz"),
        (["fit", "--model.head.num_heads=3"], 1, "num_heads=3 must divide the width 64; try 2"),
        (["fit", "--model.head.dropout=1.5"], 1, "dropout=1.5 must be in [0, 1)"),
        (["fit", "--modle.head=BERTHead"], 2, "--modle.head"),
        (["fit", "--data.clip_length=4"], 1, "clip_length=4 is too short for R2Plus1D; it needs at least 8 frames"),
        (["fit", "--data.frame_size=8"], 1, "frames of 8x8 are too small for R2Plus1D; it needs at least 16x16"),
        (["fit", "--data.frame_size=0"], 1, "frame_size=0 must be at least 1"),
        (["fit", "--data.batch_size=0"], 1, "batch_size=0 must be at least 1"),
        (["fit", "--data.test_protocol=all_clips"], 2, "all_clips_10_crops"),
        (["fit", "--data.flip_probability=2"], 1, "flip_probability=2.0 must be in [0, 1]"),
        (["fit", "--data.max_failed_share=2"], 1, "max_failed_share=2.0 must be in [0, 1]"),
        (["test", "--data.count_failed=right"], 2, "count_failed"),
        (["fit", "--data.source.root=nowhere"], 1, "nowhere does not exist"),
        (["fit", "--data.source.val_fraction=2"], 1, "val_fraction=2.0 and test_fraction=0.15 must be in [0, 1)"),
        (["fit", "--data.reader=PyAVReader", "--data.reader.num_threads=0"], 1, "num_threads=0 must be at least 1"),
        (["fit", "--data.clips_per_video=3"], 1, "batch_size=8 must be a multiple of clips_per_video=3"),
        (["fit", "--data.cache=ram", "--data.cache_gib=1e6"], 1, "cache_gib=1e+06 must be above 0 and at most"),
        (["fit", "--data.mirrored={up: down}"], 1, "mirrored names down, up; classes are blue, green, red"),
        (["fit", "--data.class_names=[blue]"], 1, "the classes must be at least two and all different"),
        (["fit", "--data.class_names=[blue,green]"], 1, "have labels that the model does not know: red"),
        (["fit", "--data.class_names=[blue,green,pink,red]"], 1, "no training video has the class pink"),
        (["fit", "--model.class_weights=[1,2]"], 1, "class_weights has 2 numbers; give one for each of the 3"),
        (["fit", "--model.class_weights=even"], 2, "class_weights"),
        (["fit", "--model.class_weights=balanced", "--data.balanced_sampling=true"], 1, "favour small classes twice"),
        (["fit", "--model.label_smoothing=1"], 1, "label_smoothing=1.0 must be in [0, 1)"),
        (["fit", "--model.backbone_lr_factor=0"], 1, "backbone_lr_factor=0.0 must be above 0"),
        (["fit", "--ckpt_path=last"], 1, "run `cnnbert fit` first"),
        (["test", "--ckpt_path=nothing.ckpt"], 1, "there is no checkpoint nothing.ckpt"),
        (["test"], 1, "needs a trained model"),
    ],
)
def test_mistakes_get_one_message(workplace, videos, capsys, args, status, message):
    options = [args[0], *tiny(videos), *TINY_RUN, *args[1:]]
    try:
        got = main(options)
    except SystemExit as stop:
        got = stop.code
    captured = capsys.readouterr()
    assert got == status
    assert message in captured.err
    assert len([line for line in captured.err.splitlines() if "rror:" in line]) == 1
    assert "Traceback" not in captured.err + captured.out


@pytest.mark.parametrize("damage", ["truncated", "text", "weights only"])
def test_broken_checkpoints_are_named(checkpoint, workplace, capsys, damage):
    broken = workplace / "broken.ckpt"
    whole = checkpoint.read_bytes()
    if damage == "weights only":
        torch.save({"state_dict": {}}, broken)
    else:
        broken.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"hello")
    assert main(["test", f"--ckpt_path={broken}"]) == 1
    err = capsys.readouterr().err
    assert "cnnbert: error: broken.ckpt" in err.replace(f"{workplace}/", "")
    assert "checkpoint" in err and "Traceback" not in err


def test_checkpoint_of_another_model(checkpoint, workplace, capsys):
    assert main(["test", f"--ckpt_path={checkpoint}", "--model.head=TGAPHead", *TINY_RUN[1:]]) == 1
    err = capsys.readouterr().err
    assert "the checkpoint is of another model than R2Plus1D with TGAPHead: with head.cls" in err


def test_longer_clips_interpolate_the_positions(checkpoint, workplace, capsys, caplog):
    assert main(["test", f"--ckpt_path={checkpoint}", "--data.clip_length=16", *TINY_RUN[1:]]) == 0
    assert "positions of 1 time steps are interpolated over time to the 2" in caplog.text


def test_file_here_wins_over_the_shipped_config(workplace, capsys):
    Path("quickstart.yaml").write_text("trainer: {max_epochs: 77}")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config=quickstart.yaml", *TINY_MODEL, "--print_config"])
    assert stop.value.code == 0
    assert "max_epochs: 77" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in shipped_configs() if not name.startswith("data/")])
def test_every_shipped_config_parses(workplace, capsys, name):
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={name}", "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["backbone"]["class_path"].startswith("cnnbert.backbones.")


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("data/")])
def test_every_data_block_parses(workplace, capsys, name):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config=resnext_bert.yaml", f"--data={name}", "--print_config"])
    assert stop.value.code == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data["source"]["class_path"].startswith("cnnbert.data.")
    assert data["clip_length"] == 64


def test_interrupted_run_keeps_its_last_checkpoint(workplace, videos):
    """Ctrl-C in the middle of training; `--ckpt_path last` goes on from there."""
    import signal
    import time

    command = [sys.executable, "-u", "-m", "cnnbert", "fit", *tiny(videos), *TINY_RUN, "--trainer.max_epochs=1000"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        while not list(workplace.glob("runs/*/*/checkpoints/last.ckpt")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in out
    (last,) = workplace.glob("runs/*/*/checkpoints/last.ckpt")
    epoch = torch.load(last, weights_only=True)["epoch"]
    assert main(["fit", "--ckpt_path=last", f"--trainer.max_epochs={epoch + 2}"]) == 0
    assert torch.load(last, weights_only=True)["epoch"] == epoch + 1


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_overview_names_every_command_and_config(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    told = capsys.readouterr().out
    for name in ("fit", "validate", "test", "predict", *COMMANDS):
        assert f"\n  {name} " in told
    assert all(name in told for name in shipped_configs())


def test_overview_needs_nothing_heavy() -> None:
    code = "import sys; from cnnbert.cli import main; main(['--help']); assert not {'torch', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
