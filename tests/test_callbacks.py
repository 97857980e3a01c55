"""The best checkpoint is the last of the best."""

from __future__ import annotations

from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from cnnbert.callbacks import BestCheckpoint


class Scripted(LightningModule):
    """Logs given accuracies, an epoch each."""

    def __init__(self, accuracies: list[float]) -> None:
        super().__init__()
        self.accuracies = accuracies
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/top1", self.accuracies[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_of_equal_checkpoints_the_last_is_kept(tmp_path: Path):
    loader = DataLoader(torch.ones(2, 1))
    kept = BestCheckpoint(tmp_path / "checkpoints")
    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        callbacks=[kept],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Scripted([0.5, 0.75, 0.25, 0.75, 0.5]), loader, loader)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["best.ckpt"]
    assert torch.load(kept.best_model_path, weights_only=True)["epoch"] == 3
    assert kept.best_model_score == 0.75
