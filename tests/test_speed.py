"""The speeds that are logged are those of a data set whose reading takes a known time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import Dataset

from cnnbert.data.loaders import TimedLoader
from cnnbert.speed import Speed


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that only goes on in `time.sleep`, on however busy a machine."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


class SlowClips(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(0.05)
        return {"clip": torch.ones(3, 1)}  # 3 views


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.layer(batch["clip"]).mean()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        time.sleep(0.05)

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        time.sleep(0.05)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, accelerator: str = "cpu", **options: Any) -> Trainer:
    return Trainer(
        max_epochs=2,
        accelerator=accelerator,
        devices=1,
        callbacks=[Speed()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )


def loader() -> TimedLoader:
    return TimedLoader(SlowClips(), batch_size=2)


def test_training_and_validation(tmp_path: Path) -> None:
    """6 clips take 0.1 s to read, and in validation 0.05 s more."""
    run = trainer(tmp_path)
    run.fit(Module(), loader(), loader())
    logged = run.callback_metrics
    assert logged["train/clips_per_second"] == pytest.approx(60)
    assert logged["val/clips_per_second"] == pytest.approx(40)
    assert logged["val/data_wait"] == pytest.approx(2 / 3)
    assert not any("memory" in key for key in logged)


def test_testing(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.test(Module(), loader(), verbose=False)
    assert run.callback_metrics["test/clips_per_second"] == pytest.approx(40)
    assert run.callback_metrics["test/data_wait"] == pytest.approx(2 / 3)


def test_time_between_epochs_does_not_count(tmp_path: Path) -> None:
    class Waiting(Module):
        def on_train_epoch_start(self) -> None:
            time.sleep(2)

    run = trainer(tmp_path)
    run.fit(Waiting(), loader())
    assert run.callback_metrics["train/clips_per_second"] == pytest.approx(60)


@pytest.mark.gpu
def test_memory(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        (pytest.fail if os.environ.get("REQUIRE_GPU") == "1" else pytest.skip)("no GPU")
    run = trainer(tmp_path, "cuda")
    held = torch.ones(2**28, device="cuda")  # 1 GiB
    run.fit(Module(), loader(), loader())
    for split in ("train", "val"):
        assert 1 <= run.callback_metrics[f"{split}/gpu_memory_gib"] < 1.5
    assert len(held) == 2**28
