"""The bottleneck of 3D residual networks, their shortcuts and stages."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.layers.block import Block
from cnnbert.layers.conv import Conv3d

Stride = tuple[int, int, int]


class ResidualBottleneck(Block):
    """Narrows the channels, convolves them over space and time, and widens them to `4 * planes`.

    The block of "Deep Residual Learning for Image Recognition" (He et al. 2016) with the stride in the middle. Its
    names are those of torchvision's VideoResNet.

    Args:
        in_channels: Channels of the input.
        planes: Channels inside the block; the output has four times as many.
        middle: The convolution of `planes` channels in the middle, without bias, which has the stride.
        stride: Stride of the middle over time, height and width.
    """

    expansion = 4

    def __init__(self, in_channels: int, planes: int, middle: nn.Module, stride: Stride = (1, 1, 1)) -> None:
        super().__init__()
        out_channels = self.expansion * planes
        self.conv1 = nn.Sequential(
            Conv3d(in_channels, planes, kernel_size=1, bias=False), nn.BatchNorm3d(planes), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(middle, nn.BatchNorm3d(planes), nn.ReLU(inplace=True))
        self.conv3 = nn.Sequential(
            Conv3d(planes, out_channels, kernel_size=1, bias=False), nn.BatchNorm3d(out_channels)
        )
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 4 * planes, T', H', W') of (B, in_channels, T, H, W); sizes are divided by strides, rounded up."""
        out = self.conv1(x)  # (B, planes, T, H, W)
        out = self.conv2(out)  # (B, planes, T', H', W')
        return F.relu(self.conv3(out) + self.downsample(x), inplace=True)  # (B, 4 * planes, T', H', W')


def shortcut(in_channels: int, out_channels: int, stride: Stride) -> nn.Module:
    """Return what brings a block's input to its output's channels and size: nothing where they are the same."""
    if stride == (1, 1, 1) and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        Conv3d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm3d(out_channels)
    )


def stage(
    make: Callable[[int, Stride], nn.Module], in_channels: int, out_channels: int, num_blocks: int, stride: Stride
) -> nn.Sequential:
    """Return blocks in a row, made by `make(in_channels, stride)`; only the first of them has the stride."""
    first = make(in_channels, stride)
    return nn.Sequential(first, *(make(out_channels, (1, 1, 1)) for _ in range(num_blocks - 1)))


def check_last_block(last_block_channels: int | None) -> None:
    """Raise `InputError` if a feature reduction block cannot give this many channels; None stands for no block."""
    if last_block_channels is not None and (last_block_channels < 1 or last_block_channels % 64):
        nearest = 64 * max(1, round(last_block_channels / 64))
        raise InputError(f"last_block_channels={last_block_channels} must be a positive multiple of 64; try {nearest}")
