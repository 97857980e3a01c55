"""Writes checkpoints so that they are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.cloud_io import _is_local_file_protocol
from pytorch_lightning import Trainer

from cnnbert.errors import InputError


class CheckpointNotWritten(InputError):
    """A checkpoint could not be written; the message says why, and what is still there."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then puts it there in one step, so that no moment leaves half of one.

    Lightning's own way copies the whole checkpoint in memory and then into the system's temporary folder, which may be
    small and on another disk; from there it is copied a second time, to its place, where a kill or a full disk leaves
    a part of it. Paths that are not of this machine are left to it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint to disk, replacing the one of that name only when all of it is there.

        Raises:
            CheckpointNotWritten: It cannot be written, as when the disk is full; nothing is left of it.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        # Always the same name: what a kill leaves behind is overwritten when the run goes on.
        part = target.with_name(f"{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # else a power failure may leave the name without the content
            os.replace(part, target)
        except BaseException as error:
            with suppress(OSError):
                part.unlink()
            reason = _reason(error)
            if reason is None:
                raise
            raise CheckpointNotWritten(f"{target} cannot be written: {reason}; {_left(target)}") from error


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write whole checkpoints, unless its strategy writes them in a way of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def _reason(error: BaseException | None) -> str | None:
    """Return why the system refused to write; None where it was something else.

    torch says of a failed write only that it failed, and where in its code; the system's reason is the error before.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None


def _left(target: Path) -> str:
    """Return in words which checkpoints are there all the same."""
    if target.is_file():
        return "the one of that name that was there before is whole; free some space, and go on from it"
    others = sorted(target.parent.glob(f"*{target.suffix}"), key=lambda path: path.stat().st_mtime)
    if others:
        return f"{others[-1]} is whole; free some space, and go on from it"
    return "there is no checkpoint beside it yet; free some space, and start again"
