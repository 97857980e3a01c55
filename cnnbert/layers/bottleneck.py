"""The ResNeXt bottleneck in three dimensions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.layers.block import Block
from cnnbert.layers.conv import Conv3d


class Bottleneck(Block):
    """Narrows the channels, convolves them in groups over space and time, and widens them to `2 * planes`.

    The block of 3D ResNeXt ("Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?", Hara
    et al. 2018, shortcut type B). It is the network's building block and, with fewer planes than the
    network's own, the feature reduction block of LTM ("Late Temporal Modeling in 3D CNN Architectures with
    BERT for Action Recognition", Kalfaoglu et al. 2020).

    Args:
        in_channels: Channels of the input.
        planes: Channels inside the block, a multiple of `cardinality`; the output has twice as many.
        cardinality: Groups of the 3x3x3 convolution.
        stride: Stride over time, height and width alike.
    """

    expansion = 2

    def __init__(self, in_channels: int, planes: int, cardinality: int = 32, stride: int = 1) -> None:
        super().__init__()
        out_channels = self.expansion * planes
        self.conv1 = Conv3d(in_channels, planes, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = Conv3d(planes, planes, kernel_size=3, stride=stride, padding=1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = Conv3d(planes, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                Conv3d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm3d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2 * planes, T', H', W') of (B, in_channels, T, H, W); T' is T / stride, rounded up."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, planes, T, H, W)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)  # (B, planes, T', H', W')
        out = self.bn3(self.conv3(out))  # (B, 2 * planes, T', H', W')
        return F.relu(out + self.downsample(x), inplace=True)  # (B, 2 * planes, T', H', W')


def reduction_block(in_channels: int, out_channels: int, stride: int = 1) -> Bottleneck:
    """Return LTM's feature reduction block: a bottleneck of cardinality 32 with its own initialisation.

    LTM appends it after a ResNeXt (FRAB) or puts it in place of the last block (FRMB) to bring 2048 channels
    to 512. Its convolutions start from the Kaiming normal distribution of the fan-in
    (artest08/LateTemporalModeling3DCNN).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, a multiple of 64.
        stride: Stride over time, height and width alike.
    """
    block = Bottleneck(in_channels, out_channels // Bottleneck.expansion, stride=stride)
    for module in block.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    return block
