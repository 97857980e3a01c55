"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN
from watched_run import run

MODEL = [
    *TINY_MODEL,
    "--model.head.classifier_dropout=0.5",
    "--model.scheduler=pytorch_lightning.cli.ReduceLROnPlateau",
    "--model.scheduler.monitor=val/loss",
    "--model.scheduler.patience=0",
    "--model.scheduler.threshold=10",  # nothing is ever better, and so it always acts
    "--model.scheduler.factor=0.97",
]
RUN = [
    *TINY_RUN,
    "--trainer.callbacks=watched_run.LossFile",
    "--trainer.logger=false",
    "--trainer.enable_model_summary=false",
]

PLACES = ("/callbacks/", "/loops/", "/datamodule_hyper_parameters/")
"""Parts of a checkpoint that may differ: where files lie, steps done twice, and how it is read."""


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes that need not import everything anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cnnbert.run_cli", "watched_run"])
    return context


def start(processes: Any, folder: Path, args: list[str]) -> Any:
    folder.mkdir(exist_ok=True)
    process = processes.Process(target=run, args=(str(folder), ["fit", *args]))
    process.start()
    return process


def lines(folder: Path) -> list[str]:
    path = folder / "losses.txt"
    return path.read_text().splitlines() if path.is_file() else []


def last_checkpoint(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("runs/*/*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return where two checkpoints differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other}, key=str)
        return [found for key in keys for found in differences(one.get(key), other.get(key), f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for place, (a, b) in pairs for found in differences(a, b, f"{where}/{place}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    return [] if one == other else [f"{where}: {one!r}, {other!r}"]


def killed_run(processes: Any, folder: Path, args: list[str], num_kills: int, seed: int) -> int:
    """Run to the end, killed so many times at random moments; return how many times it was not at its beginning."""
    draw = random.Random(seed)
    num_inside = 0
    for number in range(num_kills + 1):
        resumed = ["--ckpt_path=last"] if list(folder.glob("runs/*/*/checkpoints/last.ckpt")) else []
        num_inside += bool(resumed)
        before = len(lines(folder))
        process = start(processes, folder, [*args, *resumed])
        if number == num_kills:
            break
        while process.is_alive() and len(lines(folder)) == before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.join()
    process.join()
    assert process.exitcode == 0, (folder / "out.txt").read_text()[-3000:]
    return num_inside


def check_same(killed: Path, undisturbed: Path) -> None:
    """Check that each step and validation gave the same however often it was done, and that the end is the same."""
    expected = lines(undisturbed)
    assert len(expected) == len(set(expected))
    assert set(lines(killed)) == set(expected)
    found = differences(last_checkpoint(killed), last_checkpoint(undisturbed))
    found = [where for where in found if not where.startswith(PLACES)]
    assert not found


def arguments(videos: Path) -> list[str]:
    return [*MODEL, *TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", *RUN, "--data.batch_size=2"]


def finish(process: Any, folder: Path) -> str:
    """Return what a process said that ended well."""
    process.join()
    said = (folder / "out.txt").read_text()
    assert process.exitcode == 0, said[-3000:]
    return said


@pytest.mark.slow
@pytest.mark.soak
def test_killed_at_20_random_moments(processes: Any, tmp_path: Path, videos: Path) -> None:
    args = [*arguments(videos), "--trainer.max_epochs=30", "--checkpoint_minutes=0.002"]
    finish(start(processes, tmp_path / "undisturbed", args), tmp_path / "undisturbed")
    assert killed_run(processes, tmp_path / "killed", [*args, "--data.num_workers=1"], 20, 0) >= 15
    check_same(tmp_path / "killed", tmp_path / "undisturbed")


KILLS = [
    ("epoch 1 batch 2", []),
    ("epoch 1 batch 4", ["--trainer.accumulate_grad_batches=3"]),  # in the middle of a step
    ("epoch 1 batch 5", []),  # the last of the epoch: that of before it is the newest
    ("epoch 1 validation", []),
    ("epoch 1 batch 3", ["--data.balanced_sampling=true", "--data.clips_per_video=2"]),
    ("epoch 1 batch 4", ["--trainer.val_check_interval=3"]),
    ("epoch 1 batch 1", ["--trainer.max_epochs=-1", "--trainer.max_steps=15"]),
    ("epoch 1 batch 3", ["--trainer.check_val_every_n_epoch=2"]),
]


@pytest.mark.parametrize(("place", "options"), KILLS)
def test_killed(processes: Any, tmp_path: Path, videos: Path, place: str, options: list[str]) -> None:
    """Where a checkpoint is written after every step that may have one."""
    args = [*arguments(videos), "--trainer.max_epochs=3", "--checkpoint_minutes=0", *options]
    whole, parts = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed = start(processes, whole, args)
    killed = start(processes, parts, [*args, f"--trainer.callbacks.killed_in={place}"])
    killed.join()
    assert killed.exitcode == -9
    begun = last_checkpoint(parts)["global_step"]
    resumed = start(processes, parts, [*args, "--ckpt_path=last"])
    finish(undisturbed, whole)
    finish(resumed, parts)
    assert 0 < begun < last_checkpoint(parts)["global_step"]
    check_same(parts, whole)


@pytest.mark.parametrize("place", ["epoch 1 batch 0", "epoch 1 batch 3", "epoch 1 batch 5", "epoch 1 validation"])
def test_stopped(processes: Any, tmp_path: Path, videos: Path, place: str) -> None:
    """The step is done anew, and so is the validation: the scores of its first videos are gone."""
    args = [*arguments(videos), "--trainer.max_epochs=3", "--data.num_workers=1"]
    whole, parts = tmp_path / "undisturbed", tmp_path / "stopped"
    undisturbed = start(processes, whole, args)
    stopped = start(processes, parts, [*args, f"--trainer.callbacks.stopped_in={place}"])
    stopped.join()
    assert stopped.exitcode == 1
    resumed = start(processes, parts, [*args, "--ckpt_path=last"])
    finish(undisturbed, whole)
    finish(resumed, parts)
    check_same(parts, whole)


def test_a_scheduler_that_watches_nothing(processes: Any, tmp_path: Path, videos: Path) -> None:
    process = start(processes, tmp_path, [*arguments(videos), "--model.scheduler.monitor=val/los"])
    process.join()
    assert process.exitcode == 1
    said = (tmp_path / "out.txt").read_text()
    assert "cnnbert: error: the scheduler watches val/los, which is not logged; give one of " in said
    assert "val/loss" in said and "Traceback" not in said
