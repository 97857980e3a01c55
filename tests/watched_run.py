"""A run in a process of its own, which writes down its losses."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from cnnbert.cli import main


class LossFile(Callback):
    """Adds a line to a file for each step, and for each validation: its number, and values to the last bit.

    Args:
        killed_in: The beginning of the line after which the process is killed.
        stopped_in: Where Ctrl-C comes: "epoch 1 validation", after its first batch, or "epoch 1 batch 3", before the
            weights are changed.
    """

    def __init__(self, killed_in: str | None = None, stopped_in: str | None = None) -> None:
        self.path = Path("losses.txt")
        self.killed_in = killed_in
        self.stopped_in = stopped_in

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the loss, the learning rate and the videos."""
        videos = ",".join(map(str, batch["index"].tolist()))
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        loss = float(outputs["loss"]).hex()
        self._add(f"epoch {trainer.current_epoch} batch {batch_idx} loss {loss} rate {rate!r} videos {videos}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note where it is."""
        self.place = f"epoch {trainer.current_epoch} batch {batch_idx}"

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        """Stop there."""
        if self.place == self.stopped_in:
            os.killpg(0, signal.SIGINT)  # as a terminal does, to the processes that read videos too

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop there."""
        if not trainer.sanity_checking and f"epoch {trainer.current_epoch} validation" == self.stopped_in:
            raise KeyboardInterrupt

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write how many videos there were, and their loss."""
        if not trainer.sanity_checking:
            scores = pl_module.scores.compute()  # type: ignore[operator, union-attr]
            logits = float(scores.video_logits.sum()).hex()
            self._add(f"epoch {trainer.current_epoch} validation of {len(scores.index)} logits {logits}")

    def _add(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(line + "\n")
        if self.killed_in is not None and line.startswith(self.killed_in + " "):
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: str, args: list[str]) -> None:
    """Run the command line in a folder, its output into `out.txt`, and end the process with its status."""
    # As in a process of its own; of a fork server, reading processes would outlive it.
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(folder)
    os.setpgrp()
    output = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(main(args))
