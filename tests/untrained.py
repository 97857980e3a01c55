"""What a checkpoint holds, of a tiny network that was never trained."""

from __future__ import annotations

from typing import Any

from conftest import TINY_MODEL

import cnnbert
from cnnbert.data.datamodule import VideoDataModule

NAMES = ["blue", "green", "red"]


def untrained() -> dict[str, Any]:
    """Return what `cnnbert fit` saves, without what only going on with the training needs."""
    overrides = [*TINY_MODEL, "--model.backbone.weights=null", "--data.clip_length=8"]
    model = cnnbert.build("r2plus1d_bert.yaml", NAMES, overrides)
    data = VideoDataModule(clip_length=8, resize=32, frame_size=32, num_workers=0)
    return {
        "epoch": 1,
        "global_step": 2,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": model.state_dict(),
        "loops": {},
        "hyper_parameters": dict(model.hparams),
        "datamodule_hyper_parameters": dict(data.hparams),
    }
