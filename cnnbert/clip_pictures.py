"""Turns clips of any channels into pictures for people."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.utils import flow_to_image  # type: ignore[import-untyped]

LEAST_LEVELS = 8
"""Flow of so many levels has full colours at least, so that what hardly moves stays white."""


def pictures(frames: Tensor) -> Tensor:
    """Return frames as RGB pictures: optical flow as colours, the direction by the hue and the speed by how strong.

    Args:
        frames: uint8 (T, C, H, W): RGB, or x and y of flow (C = 2), or both (C = 5).

    Returns:
        uint8 (T, 3, H, W); with both, (T, 3, 2 * H, W) with the colours of flow below the pictures.
    """
    if frames.shape[1] == 2:
        return flow_colours(frames)
    if frames.shape[1] == 5:
        return torch.cat([frames[:, :3], flow_colours(frames[:, 3:])], 2)
    return frames


def flow_colours(frames: Tensor) -> Tensor:
    """Return the colours, uint8 (T, 3, H, W), of optical flow, uint8 (T, 2, H, W); the fastest has the strongest."""
    flow = frames.float() - 127.5
    flow = flow.sign() * (flow.abs() - 0.5)  # 127 and 128 both stand for no motion
    # The colours follow from the fastest motion: a row of it that is not shown.
    row = torch.zeros_like(flow[:, :, :1])
    row[:, 0] = LEAST_LEVELS
    return flow_to_image(torch.cat([flow, row], 2))[:, :, :-1]
