"""Lets a run that was stopped at any moment go on as if it had not been."""

from __future__ import annotations

import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor


class RecentCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` inside of epochs too, between two steps.

    Args:
        folder: Where it goes.
        minutes: How often, at least 0.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        interval = timedelta(minutes=minutes)
        super().__init__(folder, "last", train_time_interval=interval, enable_version_counter=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write it where it is time."""
        if not _belongs_to_next(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class RandomState(Callback):
    """Keeps the state of torch's random numbers in checkpoints, as dropout draws from them.

    That of the first process; the others' are the same, as all start from one seed and draw as much.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the CPU and of this process's GPU."""
        state = {"cpu": torch.get_rng_state()}
        return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Remember the state until training begins."""
        self.loaded = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from the state."""
        if "cpu" in self.loaded:
            torch.set_rng_state(self.loaded["cpu"].cpu())
        if "cuda" in self.loaded and trainer.strategy.root_device.type == "cuda":
            torch.cuda.set_rng_state(self.loaded["cuda"].cpu(), trainer.strategy.root_device)
        self.loaded = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have a validation that is interrupted done anew.

        Lightning would leave out as many videos as were done, whose scores are lost.
        """
        if trainer.validating:
            done = dict.fromkeys(("ready", "started", "processed", "completed"), 0)
            begun = done | {"ready": 1, "started": 1}
            progress = {"total": begun, "current": done, "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress


class GracefulStop(Callback):
    """Has Ctrl-C end training between two steps, since half a step can neither be taken back nor gone on with.

    A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        self.is_in_step = False
        self.is_wanted = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._listen)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        if signal.getsignal(signal.SIGINT) == self._listen:
            signal.signal(signal.SIGINT, self.before)

    def _listen(self, number: int, frame: Any) -> None:
        at_once = not self.is_in_step or self.is_wanted
        self.is_wanted = True  # also where what is raised gets lost, as Python has it in destructors
        if at_once:
            raise KeyboardInterrupt
        print("\nstopping after this step; Ctrl-C once more stops at once", flush=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note that a step begins."""
        self.is_in_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, unless this step belongs to what follows."""
        if not _belongs_to_next(trainer, batch_idx):
            self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last step before a validation."""
        self._stop()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last step of an epoch without a validation."""
        self._stop()

    def _stop(self) -> None:
        self.is_in_step = False
        if self.is_wanted:
            raise KeyboardInterrupt


def _belongs_to_next(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether a step is the last of its epoch or before a validation, or has its gradients added to others'.

    Lightning leaves out the validation in a run that goes on from there.
    """
    number = batch_idx + 1
    is_validated = bool(trainer.val_check_batch) and number % trainer.val_check_batch == 0  # type: ignore[operator]
    return trainer.is_last_batch or is_validated or number % trainer.accumulate_grad_batches != 0
