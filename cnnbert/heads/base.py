"""What every temporal head promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Head(nn.Module, ABC):
    """Turns a grid of features into the logits of the classes.

    A subclass takes `in_channels` and `num_classes` as its first two arguments: the task supplies them, so
    that any backbone meets any head. It computes no loss and no metric and knows nothing of views.

    Attributes:
        undecayed: Names of the head's own parameters, beside norms and biases, that weight decay may spare.
        resizable: Names of its parameters that `load_state_dict` takes in another length and resizes.
    """

    undecayed: tuple[str, ...] = ()
    resizable: tuple[str, ...] = ()

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes

    def set_num_steps(self, num_steps: int) -> None:
        """Size whatever depends on the number of time steps T' of the features; here, nothing.

        The task calls it once, before training and before any checkpoint is loaded.
        """
        return None

    def time_attention(self, features: Tensor) -> Tensor | None:
        """Return how much of its attention what is classified gives to each time step; None for heads without any.

        It does not depend on the mode of the head, and changes nothing.

        Args:
            features: (B, in_channels, T', H', W').

        Returns:
            (B, num_heads, T'), in [0, 1]; the shares of an attention head sum to 1.
        """
        return None

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, num_classes) of features (B, in_channels, T', H', W')."""


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Put a module and all its parts into evaluation, and back at the end into the mode that each of them had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
