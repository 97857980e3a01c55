"""Learned positions in time, fitted to clips of another length."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)


def resize_positions(positions: Tensor, num_steps: int, num_tokens: int = 1) -> Tensor:
    """Interpolate positions linearly over time; those of learned tokens, which come first, stay.

    Both tables span the same clip: a step's position stands at the middle of its share of the clip.

    Args:
        positions: (1, N + S, C), positions of N tokens and of S time steps.
        num_steps: Time steps T' that are wanted.
        num_tokens: Tokens N without a place in time, such as a class token.

    Returns:
        (1, N + T', C).
    """
    if positions.shape[1] == num_tokens + num_steps:
        return positions
    steps = positions[:, num_tokens:].transpose(1, 2)  # (1, C, S)
    steps = F.interpolate(steps, size=num_steps, mode="linear", align_corners=False)  # (1, C, T')
    return torch.cat([positions[:, :num_tokens], steps.transpose(1, 2)], dim=1)  # (1, N + T', C)


def resize_loaded(state_dict: dict[str, Any], name: str, table: Tensor, num_tokens: int = 1) -> None:
    """Fit the positions of a state dictionary to the table that loads them, and warn where their lengths differ.

    Args:
        state_dict: Tensors by name, changed in place.
        name: Name of the positions in it; nothing is done where there are none.
        table: (1, N + S, C), the table that is to hold them.
        num_tokens: Tokens N without a place in time.
    """
    positions = state_dict.get(name)
    if positions is not None and positions.ndim == 3 and positions.shape[1] != table.shape[1]:
        num_steps = table.shape[1] - num_tokens
        logger.warning(
            "loaded positions of %d time steps are interpolated over time to the %d of this head",
            positions.shape[1] - num_tokens,
            num_steps,
        )
        state_dict[name] = resize_positions(positions, num_steps, num_tokens)
