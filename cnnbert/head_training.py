"""Trains one head on stored features, as `cnnbert fit` trains it on a frozen backbone."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.cli import instantiate_module
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters_context
from torch import Tensor

from cnnbert.backbones.base import Backbone
from cnnbert.backbones.weights import BACKBONE_DIGEST
from cnnbert.callbacks import BestCheckpoint, PredictionsFile, RunReport
from cnnbert.checkpoint_io import WholeCheckpointIO
from cnnbert.data.features import FeatureDataModule, read_facts
from cnnbert.errors import InputError
from cnnbert.loading import instantiate
from cnnbert.machine import best_device, best_precision
from cnnbert.outputs import write_whole
from cnnbert.runs import CHECKPOINTS
from cnnbert.tensorfile import read_tensors

OWN = ("logger", "callbacks", "default_root_dir", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps")
"""Settings of the trainer that are not taken over."""


class StoredBackbone(Backbone):
    """Stands for the backbone whose features are stored: it passes them on.

    Args:
        backbone: The backbone.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(
            in_channels=backbone.in_channels,
            out_channels=backbone.out_channels,
            temporal_stride=backbone.temporal_stride,
            spatial_stride=backbone.spatial_stride,
            mean=backbone.mean.tolist(),
            std=backbone.std.tolist(),
        )
        self._num_steps = backbone.num_steps

    def num_steps(self, clip_length: int) -> int:
        """Return the time steps that the backbone gives for a clip of `clip_length` frames."""
        return self._num_steps(clip_length)

    def forward(self, clips: Tensor) -> Tensor:
        """Return features (B, C, T', H', W') as they are."""
        return clips

    def forward_features(self, x: Tensor) -> Tensor:
        """Return features as they are."""
        return x


def train_head(features: Path, settings: Mapping[str, Any], seed: int, folder: Path) -> float:
    """Train a network's head on stored features and test its best epoch, by validation, in this process.

    The head starts from the weights, and draws in training what it would draw, in `cnnbert fit` with the same settings
    and `freeze_backbone`. The folder gets `config.yaml`, `predictions.csv` and `results.json` as after `cnnbert test`,
    and `head.ckpt`, the head's weights and the digest of the backbone's, with which loading it completes it.

    Args:
        features: What `cnnbert features` wrote.
        settings: All settings of the run, with the names of the classes.
        seed: Seeds weights, order and dropout.
        folder: Where the run goes.

    Returns:
        The best validation accuracy, that of the epoch which was tested.

    Raises:
        InputError: The settings do not fit the features.
    """
    with _quiet(), _one_thread():
        seed_everything(seed, workers=True, verbose=False)
        model = instantiate({**settings["model"], "freeze_backbone": True})
        model.backbone = StoredBackbone(model.backbone)
        with _given_hyperparameters_context(dict(settings["data"]), "pytorch_lightning.cli.instantiate_module"):
            data = instantiate_module(FeatureDataModule, {"features": str(features), **settings["data"]})
        given = {name: value for name, value in settings["trainer"].items() if name not in OWN}
        odd = [name for name, value in given.items() if isinstance(value, Mapping)]
        if odd:
            raise InputError(f"trainer.{odd[0]} cannot be an object where a head is trained on features; leave it out")
        given["precision"] = given["precision"] or best_precision(best_device(given["accelerator"]))
        best = BestCheckpoint(folder / CHECKPOINTS, f"val/{model.main_metric}")
        best.save_weights_only = True
        trainer = Trainer(
            **given,
            default_root_dir=folder,
            logger=False,
            callbacks=[best, RunReport(folder), PredictionsFile(folder)],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.yaml", yaml.safe_dump({"seed_everything": seed, **settings}, sort_keys=False))
        trainer.fit(model, datamodule=data)
        trainer.test(model, datamodule=data, ckpt_path=best.best_model_path, verbose=False)
    trained = Path(best.best_model_path)
    known = {**read_tensors(trained), BACKBONE_DIGEST: read_facts(features)["key"]["weights"]}
    WholeCheckpointIO().save_checkpoint(known, folder / "head.ckpt")
    trained.unlink()
    (folder / CHECKPOINTS).rmdir()
    return float(best.best_model_score or 0)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread on a CPU: a head's steps are so short that several would mostly wait for each other."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from saying the same of every head."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    environment = os.environ.get("PL_GLOBAL_SEED")
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if environment is None:
            os.environ.pop("PL_GLOBAL_SEED", None)
        else:
            os.environ["PL_GLOBAL_SEED"] = environment
