"""The Inception block in three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cnnbert.layers.block import Block

# Channels of a block: those of its four branches, with those inside the second and third before their own.
Channels = tuple[int, int, int, int, int, int]

# Those of Inception-v1 ("Going Deeper with Convolutions", Szegedy et al. 2015): blocks 3b and 3c, 4b to 4f, 5b and 5c.
STAGES: tuple[tuple[Channels, ...], ...] = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class Inception(Block):
    """Joins the channels of four branches: 1x1x1; 3x3x3 after 1x1x1, twice; and 1x1x1 after max pooling of 3x3x3.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the branches.
        narrow: Makes a 1x1x1 convolution with norm and ReLU of the numbers of channels before and after it.
        wide: Makes one of 3x3x3 likewise.
        gate: Makes what each branch ends with of the number of its channels.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Channels,
        narrow: Callable[[int, int], nn.Module],
        wide: Callable[[int, int], nn.Module],
        gate: Callable[[int], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        first, mid1, second, mid2, third, fourth = channels
        self.branch0 = narrow(in_channels, first)
        self.branch1 = nn.Sequential(narrow(in_channels, mid1), wide(mid1, second))
        self.branch2 = nn.Sequential(narrow(in_channels, mid2), wide(mid2, third))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, stride=1, padding=1), narrow(in_channels, fourth))
        self.gates = nn.ModuleList(gate(number) for number in (first, second, third, fourth))
        self.out_channels = first + second + third + fourth

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T, H, W) of (B, in_channels, T, H, W)."""
        branches = (self.branch0, self.branch1, self.branch2, self.branch3)
        return torch.cat([gate(branch(x)) for gate, branch in zip(self.gates, branches, strict=True)], 1)


def inception_blocks(
    width: int,
    with_last: bool,
    pools: tuple[nn.Module, nn.Module],
    narrow: Callable[[int, int], nn.Module],
    wide: Callable[[int, int], nn.Module],
    gate: Callable[[int], nn.Module] = nn.Identity,
) -> list[Any]:
    """Return Inception-v1's blocks from 3b to 5c, with pooling after 3c and 4f.

    Args:
        width: Channels of the network's first layer, at least 1: all are in proportion to Inception-v1's, of 64. The
            input has three times as many.
        with_last: Whether 5c is there.
        pools: Pooling after the third stage and after the fourth.
        narrow: Makes convolutions of 1x1x1; see `Inception`.
        wide: Makes those of 3x3x3.
        gate: Makes what branches end with.
    """
    layers: list[Any] = []
    in_channels = 3 * width
    third, fourth, fifth = STAGES
    for stage, pool in ((third, pools[0]), (fourth, pools[1]), (fifth if with_last else fifth[:-1], None)):
        for channels in stage:
            a, b, c, d, e, f = (max(1, number * width // 64) for number in channels)
            block = Inception(in_channels, (a, b, c, d, e, f), narrow, wide, gate)
            layers.append(block)
            in_channels = block.out_channels
        if pool is not None:
            layers.append(pool)
    return layers
