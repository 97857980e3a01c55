"""A backbone that goes wrong when told to, for tests of what is said then."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cnnbert.backbones import R2Plus1D


class MoodyNetwork(R2Plus1D):
    """A tiny R(2+1)D that goes wrong from some training step on, or whenever it is used.

    Args:
        mood: What it gives or does: `nan` features, `nan_weights` after a whole step, infinite gradients (`inf_grad`)
            in that step alone, or the error of a `full` GPU.
        step: The first training step, from 0, at which it does so; -1 for always, evaluation included.
        rank: The process that it does so in.
    """

    def __init__(
        self,
        mood: Literal["nan", "nan_weights", "inf_grad", "full"] = "nan",
        step: int = -1,
        rank: int = 0,
        weights: str | None = None,
    ) -> None:
        super().__init__(depth=10, width=8, weights=weights)
        self.mood = mood
        self.step = step
        self.rank = rank
        self.num_steps_done = -1

    def forward(self, clips: Tensor) -> Tensor:
        """Return the features, or what the mood is."""
        features = super().forward(clips)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_rank() != self.rank:
            return features
        self.num_steps_done += self.training
        if not (self.step < 0 or (self.training and self.num_steps_done >= self.step)):
            return features
        if self.mood == "full":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.mood == "nan":
            return features * float("nan")
        if self.mood == "inf_grad" and self.num_steps_done == self.step:
            features.register_hook(lambda gradient: gradient * float("inf"))
        if self.mood == "nan_weights":
            features.register_hook(lambda gradient: gradient * float("nan"))
        return features
