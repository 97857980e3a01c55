"""TorchvisionVideo: torchvision's video networks as feature extractors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights  # type: ignore[import-untyped]
from torchvision.models.video import S3D, MViT, SwinTransformer3d  # type: ignore[import-untyped]
from torchvision.models.video.mvit import PositionalEncoding  # type: ignore[import-untyped]
from torchvision.models.video.resnet import VideoResNet  # type: ignore[import-untyped]

from cnnbert.backbones.base import Backbone
from cnnbert.backbones.weights import Published, torchvision_weights
from cnnbert.errors import InputError
from cnnbert.layers.conv import replace_convolutions

Network = Literal[
    "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"
]

STRIDES: dict[str, tuple[int, int]] = {
    "r3d_18": (8, 16),
    "mc3_18": (1, 16),
    "r2plus1d_18": (8, 16),
    "s3d": (8, 32),
    "mvit_v1_b": (2, 32),
    "mvit_v2_s": (2, 32),
    "swin3d_t": (2, 32),
    "swin3d_s": (2, 32),
    "swin3d_b": (2, 32),
}
"""Frames a step, and pixels a cell."""


class TorchvisionVideo(Backbone):
    """Extracts the features that one of torchvision's video networks has before it pools and classifies.

    The residual networks and S3D give 512 and 1024 features. Of MViT (768) they are the normalised tokens of the
    patches, without the class token; of Swin3D (768, 768 and 1024 for t, s and b) the normalised tokens. A step is 8
    frames and a cell 16 pixels for r3d_18 and r2plus1d_18, 1 and 16 for mc3_18, 8 and 32 for s3d, 2 and 32 for MViT
    and Swin3D.

    Any number of frames and pixels from one step and one cell on will do. MViT's tables of positions are for 16 frames
    of 224x224 and interpolated for others; Swin3D and S3D, made for 32 and 128 frames of 224x224, pad theirs, and where
    torchvision's S3D would drop an odd last step, row or column, it is kept. Attention within all of a clip makes MViT
    slow for long clips or large frames.

    Source: torchvision.models.video. Its convolutions on a CPU in bfloat16 are replaced by ones that can be trusted;
    there is no gradient checkpointing.

    Args:
        network: Its name in torchvision.
        in_channels: Channels of a frame: 3 for RGB, with the mean and the standard deviation of torchvision's weights.
            Any other number, such as 2 for optical flow, is normalised by mean 0.5 and standard deviation 0.226, and
            pretrained RGB weights are adapted to it.
        weights: Weights that training starts from: torchvision's name of them, which is `KINETICS400_V1` for all and
            for swin3d_b also `KINETICS400_IMAGENET22K_V1`, or the path of such a file or of a checkpoint of
            `cnnbert fit`; random ones by default.
    """

    published_names = ((r"^(?!network\.)", "network."),)
    classifiers = ("fc.", "classifier.", "head.")

    def __init__(self, network: Network = "swin3d_t", in_channels: int = 3, weights: str | None = None) -> None:
        if network not in get_args(Network):
            raise InputError(f"network={network} is no video network of torchvision; choose {', '.join(STRIDES)}")
        built = get_model(network)
        transforms = get_model_weights(network).DEFAULT.transforms()
        temporal_stride, spatial_stride = STRIDES[network]
        rgb = in_channels == 3
        super().__init__(
            in_channels=in_channels,
            out_channels=_cut(built),
            temporal_stride=temporal_stride,
            spatial_stride=spatial_stride,
            mean=transforms.mean if rgb else [0.5] * in_channels,
            std=transforms.std if rgb else [0.226] * in_channels,
            weights=weights,
        )
        self.name = network
        self.network = built
        self.input_weight = f"network.{replace_convolutions(built, in_channels)}.weight"
        for module in built.modules():
            if isinstance(module, nn.MaxPool3d):  # none may drop a last step
                module.ceil_mode = module.ceil_mode or module.padding in (0, (0, 0, 0))

    @property
    def architecture(self) -> str:
        """What published weights must be of to fit."""
        return f"TorchvisionVideo(network={self.name})"

    @property
    def published(self) -> Mapping[str, Published]:
        """Torchvision's weights of this network, by the names that torchvision gives them."""
        return torchvision_weights(self.name, self.architecture)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T', H', W') of normalised clips (B, C, T, H, W): over the strides, rounded up."""
        network = self.network
        if isinstance(network, VideoResNet):
            for part in (network.stem, network.layer1, network.layer2, network.layer3, network.layer4):
                x = part(x)
            return x
        if isinstance(network, S3D):
            return network.features(x)
        if isinstance(network, SwinTransformer3d):
            x = network.features(network.pos_drop(network.patch_embed(x)))  # (B, T', H', W', C)
            return network.norm(x).permute(0, 4, 1, 2, 3)
        return _mvit_features(network, x)


def _cut(network: nn.Module) -> int:
    """Take the classifier off a network, and return how many features it took."""
    for name in ("fc", "classifier", "head"):
        classifier = getattr(network, name, None)
        if classifier is not None:
            setattr(network, name, nn.Identity())
            last: Any = classifier[-1] if isinstance(classifier, nn.Sequential) else classifier
            return last.in_channels if isinstance(last, nn.Conv3d) else last.in_features
    raise TypeError(f"{type(network).__name__} has no classifier that is known")


def _mvit_features(network: MViT, x: Tensor) -> Tensor:
    """Return the tokens of the patches (B, C, T / 2, H / 32, W / 32), rounded up, of clips (B, C', T, H, W)."""
    x = network.conv_proj(x)  # (B, C', T / 2, H / 4, W / 4)
    batch, _, *sizes = x.shape
    grid: tuple[int, int, int] = (sizes[0], sizes[1], sizes[2])
    x = x.flatten(2).transpose(1, 2)  # (B, N, C'), a token a patch
    encoding = network.pos_encoding
    x = torch.cat([encoding.class_token.expand(batch, 1, -1), x], dim=1)  # (B, 1 + N, C')
    if encoding.spatial_pos is not None:
        x = x + _positions(encoding, grid)
    for block in network.blocks:
        x, grid = block(x, grid)
    x = network.norm(x)[:, 1:]  # (B, N', C)
    return x.transpose(1, 2).unflatten(2, grid)  # (B, C, T', H', W')


def _positions(encoding: PositionalEncoding, grid: tuple[int, int, int]) -> Tensor:
    """Return what MViT v1 adds to its tokens, (1 + N, C), for a grid of any size."""
    time, space, first = encoding.temporal_pos, encoding.spatial_pos, encoding.class_pos  # (T, C), (H * W, C), (C)
    assert time is not None and space is not None and first is not None
    if len(time) != grid[0]:
        time = F.interpolate(time.T[None], size=grid[0], mode="linear")[0].T
    if tuple(encoding.spatial_size) != grid[1:]:
        space = F.interpolate(space.T.unflatten(1, encoding.spatial_size)[None], size=grid[1:], mode="bilinear")
        space = space[0].flatten(1).T
    tokens = time[:, None] + space  # (T, H * W, C)
    return torch.cat([first[None], tokens.flatten(0, 1)])
