"""ResNeXt3D: residual networks of grouped 3x3x3 convolutions."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.layers.bottleneck import Bottleneck, reduction_block
from cnnbert.layers.conv import Conv3d
from cnnbert.layers.residual import check_last_block

NUM_BLOCKS = {14: (1, 1, 1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ResNeXt3D(Backbone):
    """Extracts `16 * width` features, a step every 16 frames and a cell every 32 pixels, with a 3D ResNeXt.

    Source: "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?" (Hara et al. 2018),
    shortcut type B. The names in the state dict are those of kenshohara/video-classification-3d-cnn-pytorch.

    Args:
        depth: Layers. 101 is the network that LTM's authors fine-tune; 14 has one block a stage, for tests
            and small machines.
        width: Channels inside the blocks of the first stage, a multiple of `cardinality`; the next three
            stages have twice, four times and eight times as many. The published weights need 128.
        cardinality: Groups of the 3x3x3 convolutions. The published weights need 32.
        last_block_channels: Put a feature reduction block that gives this many channels, a multiple of 64, in
            place of the last block: LTM's FRMB, with 512. The block is never pretrained. None keeps the last
            block.
        in_channels: Channels of a frame: 3 for RGB. Any other number, such as 2 for optical flow, is normalised as by
            LTM, from 0 to 255 less 127.5, and pretrained RGB weights are adapted to it.
        weights: Weights that training starts from: a published name, or the path of such a file or of a checkpoint of
            `cnnbert fit`; random ones by default. Published for depth 101 is `kinetics400_64f`, trained on
            Kinetics-400 with clips of 64 frames: LTM's choice. No program can fetch its file; the message where it is
            missing says what to put where.
    """

    input_weight = "conv1.weight"

    def __init__(
        self,
        depth: Literal[14, 50, 101, 152] = 101,
        width: int = 128,
        cardinality: int = 32,
        last_block_channels: int | None = None,
        in_channels: int = 3,
        weights: str | None = None,
    ) -> None:
        if depth not in NUM_BLOCKS:
            raise InputError(f"depth={depth} is not a depth of ResNeXt3D; choose 14, 50, 101 or 152")
        if cardinality < 1:
            raise InputError(f"cardinality={cardinality} must be at least 1; try 32")
        if width < 1 or width % cardinality:
            nearest = cardinality * max(1, round(width / cardinality))
            raise InputError(f"width={width} must be a positive multiple of cardinality={cardinality}; try {nearest}")
        check_last_block(last_block_channels)
        rgb = in_channels == 3
        super().__init__(
            in_channels=in_channels,
            out_channels=last_block_channels or 8 * Bottleneck.expansion * width,
            temporal_stride=16,
            spatial_stride=32,
            mean=(114.7748 / 255, 107.7354 / 255, 99.4750 / 255) if rgb else [0.5] * in_channels,
            std=[1 / 255] * in_channels,
            weights=weights,
        )
        blocks1, blocks2, blocks3, blocks4 = NUM_BLOCKS[depth]
        stem_channels = (width + 1) // 2
        self.conv1 = Conv3d(in_channels, stem_channels, kernel_size=7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(stem_channels)
        self.maxpool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(stem_channels, width, blocks1, 1, cardinality)
        self.layer2 = _stage(2 * width, 2 * width, blocks2, 2, cardinality)
        self.layer3 = _stage(4 * width, 4 * width, blocks3, 2, cardinality)
        self.layer4 = _stage(8 * width, 8 * width, blocks4, 2, cardinality)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if last_block_channels is not None:
            # With one block a stage the last block is also the first, which has the stride.
            last_channels, stride = (16 * width, 1) if blocks4 > 1 else (8 * width, 2)
            self.layer4[-1] = reduction_block(last_channels, last_block_channels, stride)
            self.unpretrained = f"layer4.{blocks4 - 1}."

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T / 16, H / 32, W / 32), rounded up, of clips (B, C, T, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, width / 2, T, H / 2, W / 2)
        x = self.maxpool(x)  # (B, width / 2, T / 2, H / 4, W / 4)
        x = self.layer1(x)  # (B, 2 * width, T / 2, H / 4, W / 4)
        x = self.layer2(x)  # (B, 4 * width, T / 4, H / 8, W / 8)
        x = self.layer3(x)  # (B, 8 * width, T / 8, H / 16, W / 16)
        return self.layer4(x)  # (B, out_channels, T / 16, H / 32, W / 32)


def _stage(in_channels: int, planes: int, num_blocks: int, stride: int, cardinality: int) -> nn.Sequential:
    out_channels = Bottleneck.expansion * planes
    first = Bottleneck(in_channels, planes, cardinality, stride)
    return nn.Sequential(first, *(Bottleneck(out_channels, planes, cardinality) for _ in range(num_blocks - 1)))
