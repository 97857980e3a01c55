"""Tells how fast clips go through the network, and what that takes of a GPU."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from cnnbert.data.loaders import Batch, TimedLoader

WINDOW = 50
"""Steps that a speed in training is the mean of."""


class Speed(Callback):
    """Logs clips a second, of all devices together, and the GPU's memory.

    In training `train/clips_per_second` is that of the last 50 steps, of every epoch without the first, which waits for
    the reading processes to begin. `val/clips_per_second` and `test/clips_per_second` are those of the whole epoch,
    where each view is a clip, and `val/data_wait` and `test/data_wait` the share of it, in [0, 1], that was spent
    waiting for data.
    `train/gpu_memory_gib`, and so on, is the most memory of this process's GPU that tensors have taken since the run
    began, in GiB; there is none without a GPU.
    """

    def __init__(self) -> None:
        self.steps: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self.step_start: float | None = None
        self.epoch_start = (0.0, 0.0)
        self.num_clips = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time between epochs."""
        self.step_start = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the speed of the last steps."""
        now = time.perf_counter()
        if self.step_start is not None:
            self.steps.append((_num_clips(batch), now - self.step_start))
            clips, seconds = (sum(column) for column in zip(*self.steps, strict=True))
            pl_module.log("train/clips_per_second", trainer.world_size * clips / seconds)
        self.step_start = now
        memory = _gpu_memory_gib(trainer)
        if memory is not None:
            pl_module.log("train/gpu_memory_gib", memory)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time."""
        self.step_start = None  # training does not last while it is validated
        self._start(trainer.val_dataloaders)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time."""
        self._start(trainer.test_dataloaders)

    def _start(self, loader: Any) -> None:
        self.epoch_start = (time.perf_counter(), _seconds_waited(loader))
        self.num_clips = 0

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count the clips."""
        self.num_clips += _num_clips(args[1])

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Count the clips."""
        self.num_clips += _num_clips(args[1])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the speed of the epoch."""
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val", trainer.val_dataloaders)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the speed of the epoch."""
        self._log(trainer, pl_module, "test", trainer.test_dataloaders)

    def _log(self, trainer: Trainer, task: LightningModule, split: str, loader: Any) -> None:
        seconds = time.perf_counter() - self.epoch_start[0]
        values = {"clips_per_second": trainer.world_size * self.num_clips / seconds}
        if isinstance(loader, TimedLoader):
            values["data_wait"] = (loader.seconds_waited - self.epoch_start[1]) / seconds
        memory = _gpu_memory_gib(trainer)
        if memory is not None:
            values["gpu_memory_gib"] = memory
        for name, value in values.items():
            task.log(f"{split}/{name}", value, sync_dist=True)


def _num_clips(batch: Batch) -> int:
    return batch["clip"].shape[:2].numel()


def _seconds_waited(loader: Any) -> float:
    return loader.seconds_waited if isinstance(loader, TimedLoader) else 0.0


def _gpu_memory_gib(trainer: Trainer) -> float | None:
    device = trainer.strategy.root_device
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
