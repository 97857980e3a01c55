"""CSN: residual networks that convolve each channel alone over space and time."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.layers.bottleneck import reduction_block
from cnnbert.layers.conv import Conv3d
from cnnbert.layers.residual import ResidualBottleneck, Stride, check_last_block, stage

NUM_BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class CSN(Backbone):
    """Extracts `32 * width` features, a step every 8 frames and a cell every 32 pixels, with separated channels.

    Source: "Video Classification with Channel-Separated Convolutional Networks" (Tran et al. 2019). The names in the
    state dict are those of its authors' PyTorch code (facebookresearch/VMZ), and so is BatchNorm's eps of 0.001.

    Args:
        depth: Layers. 152 is the paper's best and the network of most published weights; 26 has two blocks a stage.
        bottleneck: ir (interaction-reduced) has a 3x3x3 convolution of each channel alone in the middle of the
            blocks; ip (interaction-preserved) has one of 1x1x1 before it, through which the channels interact.
        width: Channels of the stem and inside the blocks of the first stage; the next three have twice, four times
            and eight times as many. The published weights need 64.
        last_block_channels: Put a feature reduction block that gives this many channels, a multiple of 64, in place
            of the last block: LTM's FRMB, with 512. The block is never pretrained. None keeps the last block.
        in_channels: Channels of a frame: 3 for RGB. Any other number, such as 2 for optical flow, is normalised by
            mean 0.5 and standard deviation 0.226, and pretrained RGB weights are adapted to it.
        weights: Weights that training starts from: a published name, or the path of such a file or of a checkpoint of
            `cnnbert fit`; random ones by default. Published for depth 152 are `ircsn_ig65m` and `ipcsn_ig65m`, trained
            on IG-65M; `ircsn_ig65m_kinetics400` and `ipcsn_ig65m_kinetics400`, then trained on Kinetics-400;
            `ircsn_kinetics400` and `ipcsn_kinetics400`, on that alone; for depth 50, `ircsn50_ig65m` and
            `ircsn50_ig65m_kinetics400`. All are of clips of 32 frames, every other frame of a video, of 224x224.
    """

    input_weight = "stem.0.weight"
    # open-mmlab/mmaction2 has the convolution and the norm of each layer as conv and bn
    published_names: tuple[tuple[str, str], ...] = (
        (r"^conv1\.conv\.", "stem.0."),
        (r"^conv1\.bn\.", "stem.1."),
        (r"\.conv([13])\.conv\.", r".conv\1.0."),
        (r"\.conv([13])\.bn\.", r".conv\1.1."),
        (r"\.downsample\.conv\.", ".downsample.0."),
        (r"\.downsample\.bn\.", ".downsample.1."),
    )
    ir_names = ((r"\.conv2\.0\.conv\.", ".conv2.0."), (r"\.conv2\.0\.bn\.", ".conv2.1."))
    ip_names = (
        (r"\.conv2\.0\.conv\.", ".conv2.0.0."),
        (r"\.conv2\.0\.bn\.", ".conv2.0.1."),
        (r"\.conv2\.1\.conv\.", ".conv2.0.2."),
        (r"\.conv2\.1\.bn\.", ".conv2.1."),
    )
    classifiers = ("fc.", "cls_head.")

    def __init__(
        self,
        depth: Literal[26, 50, 101, 152] = 152,
        bottleneck: Literal["ir", "ip"] = "ir",
        width: int = 64,
        last_block_channels: int | None = None,
        in_channels: int = 3,
        weights: str | None = None,
    ) -> None:
        if depth not in NUM_BLOCKS:
            raise InputError(f"depth={depth} is not a depth of CSN; choose 26, 50, 101 or 152")
        if bottleneck not in ("ir", "ip"):
            raise InputError(f"bottleneck={bottleneck} is neither ir nor ip")
        if width < 1:
            raise InputError(f"width={width} must be at least 1; try 64")
        check_last_block(last_block_channels)
        rgb = in_channels == 3
        super().__init__(
            in_channels=in_channels,
            out_channels=last_block_channels or 8 * ResidualBottleneck.expansion * width,
            temporal_stride=8,
            spatial_stride=32,
            mean=(0.43216, 0.394666, 0.37645) if rgb else [0.5] * in_channels,
            std=(0.22803, 0.22145, 0.216989) if rgb else [0.226] * in_channels,
            weights=weights,
        )
        self._sizes = f"depth={depth}, bottleneck={bottleneck}, width={width}"
        self.published_names += self.ip_names if bottleneck == "ip" else self.ir_names
        self.stem = nn.Sequential(
            Conv3d(in_channels, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool3d(kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )
        blocks1, blocks2, blocks3, blocks4 = NUM_BLOCKS[depth]
        interacts = bottleneck == "ip"
        self.layer1 = _stage(width, width, blocks1, (1, 1, 1), interacts)
        self.layer2 = _stage(4 * width, 2 * width, blocks2, (2, 2, 2), interacts)
        self.layer3 = _stage(8 * width, 4 * width, blocks3, (2, 2, 2), interacts)
        self.layer4 = _stage(16 * width, 8 * width, blocks4, (2, 2, 2), interacts)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm3d):
                module.eps = 1e-3
        if last_block_channels is not None:
            self.layer4[-1] = reduction_block(32 * width, last_block_channels)
            self.unpretrained = f"layer4.{blocks4 - 1}."

    @property
    def architecture(self) -> str:
        """What published weights must be of to fit."""
        return f"CSN({self._sizes})"

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T / 8, H / 32, W / 32), rounded up, of normalised clips (B, C, T, H, W)."""
        x = self.stem(x)  # (B, width, T, H / 4, W / 4)
        x = self.layer1(x)  # (B, 4 * width, T, H / 4, W / 4)
        x = self.layer2(x)  # (B, 8 * width, T / 2, H / 8, W / 8)
        x = self.layer3(x)  # (B, 16 * width, T / 4, H / 16, W / 16)
        return self.layer4(x)  # (B, out_channels, T / 8, H / 32, W / 32)


def _middle(planes: int, stride: Stride, interacts: bool) -> nn.Module:
    """Return the middle of a block: a 3x3x3 convolution of each channel alone, if need be after one of 1x1x1."""
    alone = Conv3d(planes, planes, kernel_size=3, stride=stride, padding=1, groups=planes, bias=False)
    if not interacts:
        return alone
    return nn.Sequential(Conv3d(planes, planes, kernel_size=1, bias=False), nn.BatchNorm3d(planes), alone)


def _stage(in_channels: int, planes: int, num_blocks: int, stride: Stride, interacts: bool) -> nn.Sequential:
    def make(channels: int, stride: Stride) -> ResidualBottleneck:
        return ResidualBottleneck(channels, planes, _middle(planes, stride, interacts), stride)

    return stage(make, in_channels, ResidualBottleneck.expansion * planes, num_blocks, stride)
