"""S3D: Inception-v1 that convolves over space first and over time second, with gates (S3D-G) or without."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.layers.bottleneck import reduction_block
from cnnbert.layers.conv import Conv3d
from cnnbert.layers.inception import inception_blocks
from cnnbert.layers.residual import check_last_block


class S3D(Backbone):
    """Extracts `16 * width` features, a step every 8 frames and a cell every 32 pixels, with a separable Inception-v1.

    Source: "Rethinking Spatiotemporal Feature Learning" (Xie et al. 2018). Without gates it is torchvision's s3d, with
    its names in the state dict; where that drops an odd last step, row or column, it is kept here.

    Args:
        gating: Whether each branch of an Inception block weighs its channels by what the whole clip shows (S3D-G), as
            in the authors' code (tensorflow/models, research/slim/nets/s3dg.py).
        width: Channels of the first convolution; all others are in proportion. The published weights need 64.
        last_block_channels: Put a feature reduction block that gives this many channels, a multiple of 64, in place of
            the last Inception block: LTM's FRMB, with 512. The block is never pretrained. None keeps the last block.
        in_channels: Channels of a frame: 3 for RGB. Any other number, such as 2 for optical flow, is normalised by
            mean 0.5 and standard deviation 0.226, and pretrained RGB weights are adapted to it.
        weights: Weights that training starts from: a published name, or the path of such a file or of a checkpoint of
            `cnnbert fit`; random ones by default. Published is torchvision's `s3d_kinetics400`, without gates.
    """

    input_weight = "features.0.0.0.weight"
    classifiers = ("classifier.",)

    def __init__(
        self,
        gating: bool = False,
        width: int = 64,
        last_block_channels: int | None = None,
        in_channels: int = 3,
        weights: str | None = None,
    ) -> None:
        if width < 1:
            raise InputError(f"width={width} must be at least 1; try 64")
        check_last_block(last_block_channels)
        rgb = in_channels == 3
        layers: list[Any] = [
            SeparableUnit(in_channels, width, 7, stride=2),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            _unit(width, width, (1, 1, 1)),
            SeparableUnit(width, 3 * width, 3),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        ]
        layers += inception_blocks(
            width,
            last_block_channels is None,
            (nn.MaxPool3d(3, stride=2, padding=1), nn.MaxPool3d(2, stride=2, ceil_mode=True)),
            partial(_unit, kernel_size=(1, 1, 1)),
            partial(SeparableUnit, kernel_size=3),
            Gate if gating else nn.Identity,
        )
        super().__init__(
            in_channels=in_channels,
            out_channels=last_block_channels or layers[-1].out_channels,
            temporal_stride=8,
            spatial_stride=32,
            mean=(0.43216, 0.394666, 0.37645) if rgb else [0.5] * in_channels,
            std=(0.22803, 0.22145, 0.216989) if rgb else [0.226] * in_channels,
            weights=weights,
        )
        self._sizes = f"gating={gating}, width={width}"
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
        return f"S3D({self._sizes})"

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T / 8, H / 32, W / 32), rounded up, of normalised clips (B, C, T, H, W)."""
        return self.features(x)


class SeparableUnit(nn.Sequential):
    """A convolution over space and one over time, each with batch normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(
            _unit(in_channels, out_channels, (1, kernel_size, kernel_size), (1, stride, stride)),
            _unit(out_channels, out_channels, (kernel_size, 1, 1), (stride, 1, 1)),
        )


class Gate(nn.Module):
    """Weighs each channel by a number in (0, 1) that a linear layer gives of all channels' means over the clip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighed x (B, C, T, H, W)."""
        weights = self.linear(x.mean((2, 3, 4))).sigmoid()  # (B, C)
        return x * weights[..., None, None, None]


def _unit(
    in_channels: int, out_channels: int, kernel_size: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Sequential:
    frames, height, width = kernel_size
    padding = (frames // 2, height // 2, width // 2)
    return nn.Sequential(
        Conv3d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False),
        nn.BatchNorm3d(out_channels, eps=1e-3),
        nn.ReLU(inplace=True),
    )
