"""Any of Lightning's loggers does, and W&B stays out of it where it is not asked for."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_file import read_facts

from cnnbert.cli import main

SCALARS = {"train/loss", "train/clip_top1", "train/clips_per_second", "train/data_wait", "lr/backbone", "lr/head"}
SCALARS |= {"val/loss", "val/top1", "val/clip_top1", "val/clips_per_second", "val/data_wait"}


def options(videos: Path) -> list[str]:
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", "--data.batch_size=4"]
    return [*TINY_MODEL, *data, *TINY_RUN, "--trainer.log_every_n_steps=1"]


def csv_keys(folder: Path) -> set[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return set(csv.DictReader(file).fieldnames or [])


@pytest.mark.parametrize("chosen", [[], ["--trainer.logger=CSVLogger"], ["--trainer.logger", "CSVLogger"]])
def test_csv_goes_into_the_runs_folder(workplace: Path, videos: Path, chosen: list[str]) -> None:
    assert main(["fit", *options(videos), *chosen]) == 0
    (folder,) = workplace.glob("runs/run/fit-*")
    assert csv_keys(folder) >= SCALARS
    assert main(["test", "--ckpt_path=best", *TINY_RUN[1:], *chosen]) == 0
    (folder,) = workplace.glob("runs/run/test-*")
    assert csv_keys(folder) >= {"test/loss", "test/top1", "test/clip_top1", "test/clips_per_second", "test/data_wait"}


@pytest.mark.parametrize("name", ["save_dir", "init_args.save_dir"])
def test_another_folder_may_be_given(workplace: Path, videos: Path, name: str) -> None:
    given = ["--trainer.logger=CSVLogger", f"--trainer.logger.{name}=there", "--trainer.logger.name=mine"]
    assert main(["fit", *options(videos), *given]) == 0
    assert csv_keys(workplace / "there" / "mine" / "version_0") >= SCALARS


def test_without_a_logger(workplace: Path, videos: Path) -> None:
    assert main(["fit", *options(videos), "--trainer.logger=false"]) == 0
    assert not list(workplace.rglob("metrics.csv"))


def test_wandb_is_not_imported_for_others(workplace: Path, videos: Path) -> None:
    script = (
        "import sys; from cnnbert.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(status or [name for name in sys.modules if name.partition('.')[0] in ('wandb', 'tensorboard')])"
    )
    words = ["fit", *options(videos), "--trainer.logger=CSVLogger"]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "[]"), done.stderr
    assert not list(workplace.rglob("wandb"))


def test_tensorboard(workplace: Path, videos: Path) -> None:
    assert main(["fit", *options(videos), "--trainer.logger=TensorBoardLogger"]) == 0
    (folder,) = workplace.glob("runs/run/fit-*")
    assert (folder / "hparams.yaml").is_file()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= SCALARS
    assert events.Tags()["images"] == ["val/confusion_matrix"]
    (image,) = events.Images("val/confusion_matrix")
    assert image.width > 300 and image.encoded_image_string[1:4] == b"PNG"
    assert main(["test", "--ckpt_path=best", *TINY_RUN[1:], "--trainer.logger=TensorBoardLogger"]) == 0
    (folder,) = workplace.glob("runs/run/test-*")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert "test/top1" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["test/confusion_matrix"]


def test_tensorboard_that_is_not_there(
    workplace: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["fit", *options(videos), "--trainer.logger=TensorBoardLogger"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "cnnbert: error: TensorBoardLogger needs the package tensorboard, which is not installed: "
        "pip install tensorboard"
    )


def test_names_in_the_environment_hold(workplace: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"WANDB_NAME": "a", "WANDB_RUN_GROUP": "b", "WANDB_JOB_TYPE": "c", "WANDB_PROJECT": "d"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert main(["fit", *options(videos), "--trainer.logger=WandbLogger"]) == 0
    (path,) = workplace.glob("runs/run/fit-*/wandb/offline-run-*/run-*.wandb")
    facts = read_facts(path)
    assert (facts.display_name, facts.run_group, facts.job_type, facts.project) == ("a", "b", "c", "d")


def test_two_loggers(workplace: Path, videos: Path) -> None:
    both = "[{class_path: CSVLogger, init_args: {save_dir: .}}, {class_path: WandbLogger}]"
    assert main(["fit", *options(videos), f"--trainer.logger={both}"]) == 0
    (folder,) = workplace.glob("runs/run/fit-*")
    assert csv_keys(folder) >= SCALARS
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
