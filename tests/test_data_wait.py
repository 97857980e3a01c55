"""The share of time that is logged as waiting for data is what it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from cnnbert.cli import main
from cnnbert.data.loaders import TimedLoader
from cnnbert.data_wait import DataWait


class SlowDataset(Dataset[torch.Tensor]):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.ones(1)


class SlowModule(LightningModule):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seconds = seconds

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data_wait(tmp_path: Path, loader: DataLoader[Any], step_seconds: float) -> float:
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[DataWait()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(SlowModule(step_seconds), loader)
    return float(trainer.callback_metrics.get("train/data_wait", torch.tensor(-1.0)))


@pytest.mark.parametrize(
    ("read", "step", "lowest", "highest"), [(0.05, 0, 0.6, 1), (0, 0.05, 0, 0.3), (0.05, 0.05, 0.2, 0.7)]
)
def test_the_share_is_that_of_the_loader(
    tmp_path: Path, read: float, step: float, lowest: float, highest: float
) -> None:
    assert lowest <= data_wait(tmp_path, TimedLoader(SlowDataset(read)), step) <= highest


def test_other_loaders_are_left_alone(tmp_path: Path) -> None:
    assert data_wait(tmp_path, DataLoader(SlowDataset(0)), 0) == -1


def test_every_run_logs_it(workplace: Path, videos: Path) -> None:
    source = ["--data.source=Folder", f"--data.source.root={videos}", "--data.clips_per_video=2", "--data.cache=ram"]
    logged = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={workplace}", "--trainer.log_every_n_steps=1"]
    assert main(["fit", *TINY_MODEL, *TINY_DATA, *source, *TINY_RUN, *logged]) == 0
    metrics = next(workplace.glob("**/metrics.csv")).read_text().splitlines()
    place = metrics[0].split(",").index("train/data_wait")
    shares = [float(line.split(",")[place]) for line in metrics[1:] if line.split(",")[place]]
    assert shares and all(0 <= share <= 1 for share in shares)
