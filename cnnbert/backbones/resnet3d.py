"""ResNet3D: residual networks of 3D convolutions, or of 2D and 3D ones."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.layers.block import Block
from cnnbert.layers.bottleneck import reduction_block
from cnnbert.layers.conv import Conv3d
from cnnbert.layers.residual import ResidualBottleneck, Stride, check_last_block, shortcut, stage

NUM_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

Convolutions = Literal["3d", "mc2", "mc3", "mc4", "mc5", "rmc2", "rmc3", "rmc4", "rmc5"]


class ResNet3D(Backbone):
    """Extracts features with a 3D residual network, or with one that mixes 2D and 3D convolutions.

    With 3D convolutions alone there is a step every 8 frames and a cell every 16 pixels, every 16 and 32 with Hara's
    stem. Groups of 2D convolutions leave time as it is: there is a step every 1, 2, 4 and 8 frames with mc3, mc4, mc5
    and 3d.

    Sources: "A Closer Look at Spatiotemporal Convolutions for Action Recognition" (Tran et al. 2018), as torchvision
    has it, whose names the state dict has; "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?"
    (Hara et al. 2018), shortcut type B.

    Args:
        depth: Layers: 18 and 34 have basic blocks and `8 * width` features, 50 and 101 bottlenecks and four times as
            many; 10 has one basic block a stage, for tests and small machines.
        width: Channels of the stem and inside the blocks of the first stage; the next three have twice, four times
            and eight times as many. The published weights need 64.
        convolutions: Which of the five groups of layers, the stem being the first, have 3D convolutions: all of them
            (3d); those before the second, third, fourth or fifth (mc2 to mc5, torchvision's mc3_18 being mc3); or
            that one and those after it (rmc2 to rmc5). The others convolve each frame alone.
        stem: tran is a convolution of 3x7x7; hara one of 7x7x7 and max pooling that halves time and space.
        last_block_channels: Put a feature reduction block that gives this many channels, a multiple of 64, in place
            of the last block: LTM's FRMB, with 512, for depths of 50 and more. The block is never pretrained. None
            keeps the last block.
        in_channels: Channels of a frame: 3 for RGB. Any other number, such as 2 for optical flow, is normalised by
            mean 0.5 and standard deviation 0.226, and pretrained RGB weights are adapted to it.
        weights: Weights that training starts from: a published name, or the path of such a file or of a checkpoint of
            `cnnbert fit`; random ones by default. Published are torchvision's `r3d_18_kinetics400` for depth 18, and
            `mc3_18_kinetics400` for depth 18 with mc3. With Hara's stem: `r3d18_kinetics700`, `r3d34_kinetics700`,
            `r3d50_kinetics700`, `r3d101_kinetics700`, and those that were trained on Moments in Time as well:
            `r3d18_kinetics700_moments`, `r3d34_kinetics700_moments`, `r3d50_kinetics700_moments` and
            `r3d101_kinetics700_moments`. No program can fetch Hara's files; the message where one is missing says what
            to put where.
    """

    input_weight = "stem.0.weight"
    published_names = (
        (r"^conv1\.", "stem.0."),
        (r"^bn1\.", "stem.1."),
        (r"\.conv([123])\.weight$", r".conv\1.0.weight"),
        (r"\.bn([123])\.", r".conv\1.1."),
    )

    def __init__(
        self,
        depth: Literal[10, 18, 34, 50, 101] = 18,
        width: int = 64,
        convolutions: Convolutions = "3d",
        stem: Literal["tran", "hara"] = "tran",
        last_block_channels: int | None = None,
        in_channels: int = 3,
        weights: str | None = None,
    ) -> None:
        if depth not in NUM_BLOCKS:
            raise InputError(f"depth={depth} is not a depth of ResNet3D; choose 10, 18, 34, 50 or 101")
        if width < 1:
            raise InputError(f"width={width} must be at least 1; try 64")
        if convolutions not in get_args(Convolutions):
            raise InputError(f"convolutions={convolutions} is none of {', '.join(get_args(Convolutions))}")
        if stem not in ("tran", "hara"):
            raise InputError(f"stem={stem} is neither tran nor hara")
        has_bottlenecks = depth >= 50
        check_last_block(last_block_channels)
        if last_block_channels is not None and not has_bottlenecks:
            raise InputError(
                f"last_block_channels={last_block_channels} is for a depth of 50 or more; depth={depth} gives "
                f"{8 * width} channels as it is"
            )
        expansion = ResidualBottleneck.expansion if has_bottlenecks else 1
        are_3d = [_is_3d(convolutions, group) for group in (1, 2, 3, 4, 5)]
        pools = stem == "hara"
        rgb = in_channels == 3
        hara = (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)
        mean, std = hara if pools else ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
        super().__init__(
            in_channels=in_channels,
            out_channels=last_block_channels or 8 * expansion * width,
            temporal_stride=2 ** (pools + sum(are_3d[2:])),
            spatial_stride=32 if pools else 16,
            mean=mean if rgb else [0.5] * in_channels,
            std=std if rgb else [0.226] * in_channels,
            weights=weights,
        )
        self._sizes = f"depth={depth}, width={width}, convolutions={convolutions}, stem={stem}"
        frames = (7 if pools else 3) if are_3d[0] else 1
        self.stem = nn.Sequential(
            Conv3d(in_channels, width, (frames, 7, 7), stride=(1, 2, 2), padding=(frames // 2, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            *([nn.MaxPool3d(kernel_size=3, stride=2, padding=1)] if pools else []),
        )
        stages, channels = [], width
        for index, (num_blocks, is_3d) in enumerate(zip(NUM_BLOCKS[depth], are_3d[1:], strict=True)):
            planes = 2**index * width
            stride = (1, 1, 1) if index == 0 else (2 if is_3d else 1, 2, 2)
            stages.append(_stage(channels, planes, num_blocks, stride, is_3d, has_bottlenecks))
            channels = expansion * planes
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if last_block_channels is not None:
            self.layer4[-1] = reduction_block(channels, last_block_channels)
            self.unpretrained = f"layer4.{len(self.layer4) - 1}."

    @property
    def architecture(self) -> str:
        """What published weights must be of to fit."""
        return f"ResNet3D({self._sizes})"

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T', H', W') of normalised clips (B, C, T, H, W): divided by the strides, rounded up.

        The comments have the sizes of 3D convolutions with Tran's stem and basic blocks.
        """
        x = self.stem(x)  # (B, width, T, H / 2, W / 2)
        x = self.layer1(x)  # (B, width, T, H / 2, W / 2)
        x = self.layer2(x)  # (B, 2 * width, T / 2, H / 4, W / 4)
        x = self.layer3(x)  # (B, 4 * width, T / 4, H / 8, W / 8)
        return self.layer4(x)  # (B, 8 * width, T / 8, H / 16, W / 16)


class ResidualBlock(Block):
    """Adds two convolutions to a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut over time, height and width.
        is_3d: Whether the convolutions are of 3x3x3, else of 1x3x3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Stride, is_3d: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            _conv(in_channels, out_channels, stride, is_3d), nn.BatchNorm3d(out_channels), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(_conv(out_channels, out_channels, (1, 1, 1), is_3d), nn.BatchNorm3d(out_channels))
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T', H', W') of (B, in_channels, T, H, W): divided by the stride, rounded up."""
        return F.relu(self.conv2(self.conv1(x)) + self.downsample(x), inplace=True)


def _is_3d(convolutions: str, group: int) -> bool:
    """Return whether a group of layers, 1 to 5, has 3D convolutions."""
    if convolutions == "3d":
        return True
    border = int(convolutions[-1])
    return group >= border if convolutions.startswith("r") else group < border


def _conv(in_channels: int, out_channels: int, stride: Stride, is_3d: bool) -> Conv3d:
    kernel_size, padding = ((3, 3, 3), (1, 1, 1)) if is_3d else ((1, 3, 3), (0, 1, 1))
    return Conv3d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)


def _stage(
    in_channels: int, planes: int, num_blocks: int, stride: Stride, is_3d: bool, has_bottlenecks: bool
) -> nn.Sequential:
    def make(channels: int, stride: Stride) -> Block:
        if has_bottlenecks:
            return ResidualBottleneck(channels, planes, _conv(planes, planes, stride, is_3d), stride)
        return ResidualBlock(channels, planes, stride, is_3d)

    out_channels = (ResidualBottleneck.expansion if has_bottlenecks else 1) * planes
    return stage(make, in_channels, out_channels, num_blocks, stride)
