"""R(2+1)D: residual networks that convolve over space first and over time second."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.layers.block import Block
from cnnbert.layers.conv import Conv3d

NUM_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class R2Plus1D(Backbone):
    """Extracts `8 * width` features, a step every 8 frames and a cell every 16 pixels, with R(2+1)D.

    Source: "A Closer Look at Spatiotemporal Convolutions for Action Recognition" (Tran et al. 2018). The
    names in the state dict are those of torchvision's VideoResNet.

    Args:
        depth: Layers. 34 is the network of the IG-65M weights (moabitcoin/ig65m-pytorch), which LTM's
            authors fine-tune; 18 is torchvision's r2plus1d_18; 10 has one block a stage, for tests and small
            machines.
        width: Channels of the first stage; the next three have twice, four times and eight times as many. The
            published weights need 64.
        in_channels: Channels of a frame: 3 for RGB. Any other number, such as 2 for optical flow, is normalised by
            LTM's mean 0.5 and standard deviation 0.226, and pretrained RGB weights are adapted to it.
        batchnorm_momentum: Share of the newest batch in BatchNorm's running statistics, in (0, 1]. 0.9 is what LTM's
            numbers were trained with: IG-65M's public code took Caffe2's 0.9 over, which is 0.1 in PyTorch.
        weights: Weights that training starts from: a published name, or the path of such a file or of a checkpoint of
            `cnnbert fit`; random ones by default. Published for depth 34 are `ig65m_clip32_359` (LTM's choice) and
            `ig65m_clip8_487`, trained on IG-65M with clips of 32 and 8 frames, and `ig65m_kinetics_clip32_400` and
            `ig65m_kinetics_clip8_400`, then trained on Kinetics-400; for depth 18, `r2plus1d_18_kinetics400`.
    """

    input_weight = "stem.0.weight"

    def __init__(
        self,
        depth: Literal[10, 18, 34] = 34,
        width: int = 64,
        in_channels: int = 3,
        batchnorm_momentum: float = 0.1,
        weights: str | None = None,
    ) -> None:
        if depth not in NUM_BLOCKS:
            raise InputError(f"depth={depth} is not a depth of R2Plus1D; choose 10, 18 or 34")
        if width < 1:
            raise InputError(f"width={width} must be at least 1; try 64")
        if not 0 < batchnorm_momentum <= 1:
            raise InputError(f"batchnorm_momentum={batchnorm_momentum} must be in (0, 1]; try 0.1")
        rgb = in_channels == 3
        super().__init__(
            in_channels=in_channels,
            out_channels=8 * width,
            temporal_stride=8,
            spatial_stride=16,
            mean=(0.43216, 0.394666, 0.37645) if rgb else [0.5] * in_channels,
            std=(0.22803, 0.22145, 0.216989) if rgb else [0.226] * in_channels,
            weights=weights,
        )
        ig65m = depth == 34
        blocks1, blocks2, blocks3, blocks4 = NUM_BLOCKS[depth]
        stem_channels = max(1, round(45 * width / 64))
        self.stem = nn.Sequential(
            Conv3d(in_channels, stem_channels, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(stem_channels),
            nn.ReLU(inplace=True),
            Conv3d(stem_channels, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.layer1 = _stage(width, width, blocks1, 1, ig65m)
        self.layer2 = _stage(width, 2 * width, blocks2, 2, ig65m)
        self.layer3 = _stage(2 * width, 4 * width, blocks3, 2, ig65m)
        self.layer4 = _stage(4 * width, 8 * width, blocks4, 2, ig65m)
        self._initialize(ig65m, batchnorm_momentum)

    def _initialize(self, ig65m: bool, batchnorm_momentum: float) -> None:
        # IG-65M's code swaps these three in after initialising, so that they keep PyTorch's default.
        swapped = tuple(f"layer{stage}.0.conv2.0" for stage in (2, 3, 4)) if ig65m else ()
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv3d) and not name.startswith(swapped):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm3d):
                module.momentum = batchnorm_momentum
                if ig65m:
                    module.eps = 1e-3

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, 8 * width, T / 8, H / 16, W / 16), rounded up, of normalised clips (B, C, T, H, W)."""
        x = self.stem(x)  # (B, width, T, H / 2, W / 2)
        x = self.layer1(x)  # (B, width, T, H / 2, W / 2)
        x = self.layer2(x)  # (B, 2 * width, T / 2, H / 4, W / 4)
        x = self.layer3(x)  # (B, 4 * width, T / 4, H / 8, W / 8)
        return self.layer4(x)  # (B, 8 * width, T / 8, H / 16, W / 16)


class BasicBlock(Block):
    """Adds two (2+1)D convolutions to a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut over time, height and width alike.
        ig65m: Size the middle of the second convolution by its own channels, as the IG-65M weights have it,
            instead of by those of the first convolution, as torchvision does.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, ig65m: bool) -> None:
        super().__init__()
        mid_channels = _mid_channels(in_channels, out_channels)
        self.conv1 = nn.Sequential(
            _conv2plus1d(in_channels, mid_channels, out_channels, stride),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )
        if ig65m:
            mid_channels = _mid_channels(out_channels, out_channels)
        self.conv2 = nn.Sequential(
            _conv2plus1d(out_channels, mid_channels, out_channels, stride=1),
            nn.BatchNorm3d(out_channels),
        )
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                Conv3d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm3d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T', H', W') of (B, in_channels, T, H, W); T' is T / stride, rounded up."""
        return F.relu(self.conv2(self.conv1(x)) + self.downsample(x), inplace=True)


def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int, ig65m: bool) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, ig65m)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, ig65m) for _ in range(num_blocks - 1)))


def _mid_channels(in_channels: int, out_channels: int) -> int:
    """Return the channels that give a (2+1)D convolution about as many weights as a 3x3x3 one has."""
    return 27 * in_channels * out_channels // (9 * in_channels + 3 * out_channels)


def _conv2plus1d(in_channels: int, mid_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Conv3d(in_channels, mid_channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(mid_channels),
        nn.ReLU(inplace=True),
        Conv3d(mid_channels, out_channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
    )
