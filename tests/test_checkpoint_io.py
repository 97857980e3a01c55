"""Checkpoints are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import FSDPStrategy

from cnnbert.checkpoint_io import CheckpointNotWritten, WholeCheckpointIO, write_whole_checkpoints
from cnnbert.cli import main
from cnnbert.runs import read_checkpoint

NUM_KILLS = 20


def save_for_ever(last: Path) -> None:
    """Save 40 MB again and again, as a training does that has nothing else to do."""
    for epoch in range(10**6):
        WholeCheckpointIO().save_checkpoint({"epoch": epoch, "state_dict": {"weight": torch.ones(10**7)}}, last)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start at once")
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    part = last.with_name("last.ckpt.part")
    rng = random.Random(0)
    num_caught = 0
    for _ in range(NUM_KILLS):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(last,))
        process.start()
        while not last.exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        num_caught += part.exists()
        weight = torch.load(last, weights_only=True)["state_dict"]["weight"]
        assert torch.equal(weight, torch.ones(10**7))
    assert num_caught > 0  # else nothing was tried
    WholeCheckpointIO().save_checkpoint({"epoch": -1}, last)
    assert files(last.parent) == ["last.ckpt"]  # what the kills left is gone


def limited(command: list[str], num_bytes: int, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command that cannot write a file larger than so many bytes; the system refuses it really."""
    resource = pytest.importorskip("resource")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120, **options)  # type: ignore[call-overload]


def fit(videos: Path, *options: str) -> list[str]:
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", "--data.batch_size=4"]
    return ["fit", *TINY_MODEL, *data, *TINY_RUN, "--trainer.logger=false", *options]


def test_a_full_disk_leaves_the_checkpoint_before(workplace: Path, videos: Path) -> None:
    assert main(fit(videos)) == 0
    (last,) = workplace.glob("runs/*/*/checkpoints/last.ckpt")
    before = last.read_bytes()
    going_on = [sys.executable, "-m", "cnnbert", "fit", f"--ckpt_path={last}", "--trainer.max_epochs=3"]
    done = limited(going_on, len(before) // 2)
    assert done.returncode == 1
    best = last.with_name("best.ckpt")
    wrong = next(path for path in (best, last) if f"{path} cannot be written" in done.stderr)
    reason = "File too large; the one of that name that was there before is whole; free some space, and go on from it"
    assert f"cnnbert: error: {wrong} cannot be written: {reason}\n" in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert last.read_bytes() == before and read_checkpoint(best)["epoch"] == 0
    assert files(last.parent) == ["best.ckpt", "last.ckpt"]
    assert main(["fit", f"--ckpt_path={last}", "--trainer.max_epochs=3"]) == 0  # there is space again
    assert read_checkpoint(last)["epoch"] == 2


def test_no_old_checkpoint_is_removed_for_one_that_could_not_be_written(workplace: Path, videos: Path) -> None:
    keep = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=kept"]
    name = ["--trainer.callbacks.filename={epoch}", "--trainer.callbacks.save_top_k=1"]
    assert main(fit(videos, *keep, *name)) == 0
    (old,) = Path("kept").iterdir()
    command = [sys.executable, "-m", "cnnbert", "fit", f"--ckpt_path={old}", *fit(videos, *keep, *name)[1:]]
    done = limited([*command, "--trainer.max_epochs=3"], 2**16)
    assert done.returncode == 1
    assert f"epoch=1.ckpt cannot be written: File too large; {old.absolute()} is whole" in done.stderr
    assert files(Path("kept")) == ["epoch=0.ckpt"]
    assert read_checkpoint(old)["epoch"] == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        last = disk / "checkpoints" / "last.ckpt"
        WholeCheckpointIO().save_checkpoint({"weight": torch.ones(100_000)}, last)
        with pytest.raises(CheckpointNotWritten) as caught:  # room for one more, not for one that is twice as large
            WholeCheckpointIO().save_checkpoint({"weight": torch.ones(200_000)}, last)
        assert f"{last} cannot be written: No space left on device; the one of that name" in str(caught.value)
        assert files(last.parent) == ["last.ckpt"]
        assert torch.equal(torch.load(last, weights_only=True)["weight"], torch.ones(100_000))
        with pytest.raises(CheckpointNotWritten, match="there is no checkpoint beside it yet; free some space"):
            WholeCheckpointIO().save_checkpoint({"weight": torch.ones(300_000)}, disk / "new" / "best.ckpt")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointNotWritten, match=r"last\.ckpt cannot be written: File exists; there is no"):
        WholeCheckpointIO().save_checkpoint({}, tmp_path / "file" / "last.ckpt")


def test_other_mistakes_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    with pytest.raises(AttributeError):
        WholeCheckpointIO().save_checkpoint({"function": lambda: 0}, last)
    assert files(tmp_path) == []


def test_only_lightnings_own_way_of_writing_is_replaced() -> None:
    class Other(WholeCheckpointIO):
        pass

    trainer = Trainer(accelerator="cpu", logger=False)
    write_whole_checkpoints(trainer)
    assert type(trainer.strategy.checkpoint_io) is WholeCheckpointIO
    trainer = Trainer(accelerator="cpu", logger=False, plugins=[Other()])
    write_whole_checkpoints(trainer)
    assert type(trainer.strategy.checkpoint_io) is Other
    assert FSDPStrategy().checkpoint_io is not None  # of whole checkpoints; sharded ones it writes itself
