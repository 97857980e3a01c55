"""C3D: eight 3x3x3 convolutions, and two fully connected layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.layers.conv import Conv3d

GRID = 4
"""Cells of fc6 in height and width, which frames of 112x112 give."""


class C3D(Backbone):
    """Extracts `64 * width` features, a step every 16 frames and a cell about every 112 pixels, with C3D.

    Source: "Learning Spatiotemporal Features with 3D Convolutional Networks" (Tran et al. 2015). The names in the state
    dict are those of DavideA/c3d-pytorch. The fully connected layers, made for 16 frames of 112x112, see every 16
    frames and every 112 pixels of larger clips alike; what is missing at the end is zero.

    Args:
        fully_connected: Whether the features are those of the fully connected layers fc6 and fc7. Otherwise they are
            the `8 * width` ones of the last convolution, a step every 8 frames and a cell every 16 pixels.
        width: Channels of the first convolution; all others are in proportion. The published weights need 64.
        in_channels: Channels of a frame: 3 for RGB, less the means of mmaction2's C3D. Any other number, such as 2 for
            optical flow, is less 127.5 on the scale of 0 to 255, and pretrained RGB weights are adapted to it.
        weights: Weights that training starts from: a published name, or the path of such a file or of a checkpoint of
            `cnnbert fit`; random ones by default. Published are two files of Sports-1M: `c3d_sports1m`
            (open-mmlab/mmaction2) and `c3d_sports1m_487` (DavideA/c3d-pytorch).
    """

    input_weight = "conv1.weight"
    classifiers: tuple[str, ...] = ("fc8.",)
    published_names = ((r"^conv([12])a\.conv\.", r"conv\1."), (r"^(conv[345][ab])\.conv\.", r"\1."))

    def __init__(
        self,
        fully_connected: bool = True,
        width: int = 64,
        in_channels: int = 3,
        weights: str | None = None,
    ) -> None:
        if width < 1:
            raise InputError(f"width={width} must be at least 1; try 64")
        rgb = in_channels == 3
        super().__init__(
            in_channels=in_channels,
            out_channels=64 * width if fully_connected else 8 * width,
            temporal_stride=16 if fully_connected else 8,
            spatial_stride=112 if fully_connected else 16,
            mean=(104 / 255, 117 / 255, 128 / 255) if rgb else [0.5] * in_channels,
            std=[1 / 255] * in_channels,
            weights=weights,
        )
        self._sizes = f"width={width}"
        self.fully_connected = fully_connected
        self.conv1 = _conv(in_channels, width)
        self.conv2 = _conv(width, 2 * width)
        self.conv3a, self.conv3b = _conv(2 * width, 4 * width), _conv(4 * width, 4 * width)
        self.conv4a, self.conv4b = _conv(4 * width, 8 * width), _conv(8 * width, 8 * width)
        self.conv5a, self.conv5b = _conv(8 * width, 8 * width), _conv(8 * width, 8 * width)
        self.dropout = nn.Dropout(0.5)
        if fully_connected:
            self.fc6 = Conv3d(8 * width, 64 * width, (1, GRID, GRID), stride=(1, GRID, GRID))
            self.fc7 = Conv3d(64 * width, 64 * width, 1)
        else:
            self.classifiers = ("fc6.", "fc7.", "fc8.")
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def architecture(self) -> str:
        """What published weights must be of to fit."""
        return f"C3D({self._sizes})"

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T', H', W') of normalised clips (B, C, T, H, W); sizes are rounded up."""
        x = F.relu(self.conv1(x))  # (B, width, T, H, W)
        x = _pool(x, (1, 2, 2))
        x = F.relu(self.conv2(x))  # (B, 2 * width, T, H / 2, W / 2)
        x = _pool(x)
        x = F.relu(self.conv3b(F.relu(self.conv3a(x))))  # (B, 4 * width, T / 2, H / 4, W / 4)
        x = _pool(x)
        x = F.relu(self.conv4b(F.relu(self.conv4a(x))))  # (B, 8 * width, T / 4, H / 8, W / 8)
        x = _pool(x)
        x = F.relu(self.conv5b(F.relu(self.conv5a(x))))  # (B, 8 * width, T / 8, H / 16, W / 16)
        if not self.fully_connected:
            return x
        x = F.max_pool3d(x, 2, 2, padding=(0, 1, 1), ceil_mode=True)  # (B, 8 * width, T / 16, H / 28, W / 28)
        missing = [-x.shape[-1] % GRID, -x.shape[-2] % GRID]
        x = F.pad(x, (0, missing[0], 0, missing[1]))
        x = self.dropout(F.relu(self.fc6(x)))  # (B, 64 * width, T / 16, H / 112, W / 112)
        return F.relu(self.fc7(x))  # dropped again by the head


def _conv(in_channels: int, out_channels: int) -> Conv3d:
    return Conv3d(in_channels, out_channels, kernel_size=3, padding=1)


def _pool(x: Tensor, size: tuple[int, int, int] = (2, 2, 2)) -> Tensor:
    return F.max_pool3d(x, size, size, ceil_mode=True)
