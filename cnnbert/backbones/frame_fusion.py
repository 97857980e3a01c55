"""FrameFusion: an AlexNet-like network that joins the frames of a clip early, late or slowly."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.layers.conv import Conv3d

Fusion = Literal["single", "early", "late", "slow"]

WINDOWS: dict[Fusion, int] = {"single": 1, "early": 10, "late": 16, "slow": 10}
"""Frames from the first to the last that a time step sees."""

EXTENTS: dict[Fusion, tuple[int, int, int]] = {
    "single": (1, 1, 1),
    "early": (10, 1, 1),
    "late": (1, 1, 1),
    "slow": (4, 2, 2),
}
"""Frames that the first three convolutions span."""

HOP = 8
"""Frames from one window to the next: what the strides of slow fusion make together."""


class FrameFusion(Backbone):
    """Extracts the features of the second fully connected layer, `128 / 3 * width` of them, of windows of frames.

    With fusion `single` a window is a frame. With `early` it is 10 frames, all of which the first convolution spans.
    With `late` it is two frames, 15 apart, which go through the same convolutions and meet in the first fully connected
    layer. With `slow` it is 10 frames, of which the first convolution spans 4 with a stride of 2 in time, the second
    and the third 2 of the steps before, again with a stride of 2.

    Source: "Large-scale Video Classification with Convolutional Neural Networks" (Karpathy et al. 2014), without its
    second stream of another resolution: 117 is subtracted from pixels of 0 to 255. The paper's clips are one window
    long. Of longer ones the windows begin every 8 frames here, as the strides of slow fusion have it, and the last
    window is filled up by repeating the last frame. The fully connected layers, made for frames of 170x170, see every
    `24 * cells` pixels of larger frames alike; what is missing at the end is zero.

    Args:
        fusion: How the frames are joined.
        width: Channels of the first convolution, a multiple of 3; all others are in proportion. The paper has 96.
        cells: Cells of the last convolution, in height and width, that the first fully connected layer sees: 6 for
            frames of 170x170, fewer for smaller ones.
        in_channels: Channels of a frame: 3 for RGB. Any other number, such as 2 for optical flow, is less 127.5 on the
            scale of 0 to 255, and pretrained RGB weights are adapted to it.
        weights: Weights that training starts from: the path of a checkpoint of `cnnbert fit`; random ones by default,
            since none are published.
    """

    input_weight = "conv1.weight"

    def __init__(
        self,
        fusion: Fusion = "slow",
        width: int = 96,
        cells: int = 6,
        in_channels: int = 3,
        weights: str | None = None,
    ) -> None:
        if fusion not in get_args(Fusion):
            raise InputError(f"fusion={fusion!r} must be one of {', '.join(get_args(Fusion))}; try slow")
        if width < 3 or width % 3:
            raise InputError(f"width={width} must be a positive multiple of 3; try {max(3, width // 3 * 3)}")
        if cells < 1:
            raise InputError(f"cells={cells} must be at least 1; try 6")
        out_channels = 128 * width // 3
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            temporal_stride=1 if fusion == "single" else HOP,
            spatial_stride=24 * cells,
            mean=[(117 if in_channels == 3 else 127.5) / 255] * in_channels,
            std=[1 / 255] * in_channels,
            weights=weights,
            least_frames=WINDOWS[fusion],
            least_pixels=32,
        )
        self.is_framewise = fusion == "single"
        self.fusion = fusion
        self.cells = cells
        first, second, third = EXTENTS[fusion]
        stride = HOP if fusion == "early" else 2 if fusion == "slow" else 1
        middle = 2 if fusion == "slow" else 1
        small, large = 8 * width // 3, 4 * width
        self.conv1 = Conv3d(in_channels, width, (first, 11, 11), stride=(stride, 3, 3))
        self.conv2 = Conv3d(width, small, (second, 5, 5), stride=(middle, 1, 1), padding=(0, 2, 2))
        self.conv3 = Conv3d(small, large, (third, 3, 3), stride=(middle, 1, 1), padding=(0, 1, 1))
        self.conv4 = Conv3d(large, large, (1, 3, 3), padding=(0, 1, 1))
        self.conv5 = Conv3d(large, small, (1, 3, 3), padding=(0, 1, 1))
        columns = 2 if fusion == "late" else 1
        self.fc6 = Conv3d(columns * small, out_channels, (1, cells, cells), stride=(1, cells, cells))
        self.fc7 = Conv3d(out_channels, out_channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def num_steps(self, clip_length: int) -> int:
        """Return the windows of a clip of `clip_length` frames."""
        return 1 + max(0, -(-(clip_length - WINDOWS[self.fusion]) // self.temporal_stride))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T', H', W') of normalised clips (B, C, T, H, W): T' windows."""
        windows = self.num_steps(x.shape[2])
        missing = WINDOWS[self.fusion] + (windows - 1) * self.temporal_stride - x.shape[2]
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
        if self.fusion == "late":
            x = torch.cat([x[:, :, ::HOP][:, :, :windows], x[:, :, WINDOWS["late"] - 1 :: HOP]], dim=2)
        x = self.convolve(x)  # (B, 8 / 3 * width, T', H / 24, W / 24); of late fusion 2 * T'
        if self.fusion == "late":
            x = torch.cat([x[:, :, :windows], x[:, :, windows:]], dim=1)  # (B, 16 / 3 * width, T', H / 24, W / 24)
        x = F.pad(x, (0, -x.shape[4] % self.cells, 0, -x.shape[3] % self.cells))
        x = F.relu(self.fc6(x))  # (B, 128 / 3 * width, T', H', W')
        return F.relu(self.fc7(x))

    def convolve(self, x: Tensor) -> Tensor:
        """Return what the five convolutions give for normalised frames (B, C, T, H, W)."""
        x = _pool(_normalize_locally(F.relu(self.conv1(x))))
        x = _pool(_normalize_locally(F.relu(self.conv2(x))))
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        return _pool(F.relu(self.conv5(x)))


def _pool(x: Tensor) -> Tensor:
    return F.max_pool3d(x, (1, 2, 2))


def _normalize_locally(x: Tensor) -> Tensor:
    """Divide x (B, C, T, H, W) by the root of 2 plus 1e-4 times the sum of the squares of five neighbouring channels.

    The constants are the paper's, k=2, n=5, alpha=1e-4, beta=0.5, in the response normalisation of AlexNet (Krizhevsky
    et al. 2012).
    """
    squares = F.pad(x.square(), (0, 0, 0, 0, 0, 0, 2, 2))
    total = squares[:, : x.shape[1]]
    for first in range(1, 5):
        total = total + squares[:, first : first + x.shape[1]]
    return x * (2 + 1e-4 * total).rsqrt()
