"""Tells how much of the training's time is spent waiting for data."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torchmetrics.aggregation import RunningMean

from cnnbert.data.loaders import TimedLoader


class DataWait(Callback):
    """Logs `train/data_wait`, the share of each step spent waiting for its batch, in [0, 1].

    It is the mean of the last 50 steps. Of every epoch the first step is left out, which waits for the reading
    processes to begin. Where the network runs on a GPU, what it still computes while the batch is waited for counts as
    waiting too.
    """

    def __init__(self) -> None:
        self.share = RunningMean(window=50, sync_on_compute=False)
        self.before: tuple[float, float] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time between epochs."""
        self.before = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time of a validation."""
        self.before = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the share since the end of the step before."""
        loader = trainer.train_dataloader
        if not isinstance(loader, TimedLoader):
            return
        now = (time.perf_counter(), loader.seconds_waited)
        if self.before is not None:
            seconds, waited = (a - b for a, b in zip(now, self.before, strict=True))
            self.share.update(waited / seconds)
            pl_module.log("train/data_wait", self.share.compute(), prog_bar=True)
        self.before = now
