"""FrameCNN: torchvision's image networks on every frame of a clip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torchvision.models  # type: ignore[import-untyped]
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from cnnbert.backbones.base import Backbone
from cnnbert.backbones.weights import Published, torchvision_weights
from cnnbert.errors import InputError
from cnnbert.layers.conv import replace_convolutions

WITHOUT_GRID = ("vit_", "maxvit_")
"""What the names of networks begin with that take frames of one size alone."""

NETWORKS = [name for name in list_models(module=torchvision.models) if not name.startswith(WITHOUT_GRID)]
"""The networks that give a grid of features for frames of any size."""

ENDS = ("avgpool", "fc", "classifier", "head")
"""The parts of a network that come after its features."""

SIDE_BRANCHES = ("aux1", "aux2", "AuxLogits")
"""Classifiers in the middle of GoogLeNet and Inception, which only their own training needs."""


class FrameCNN(Backbone):
    """Extracts from each frame alone the features that one of torchvision's image networks has before it pools them.

    A step is one frame. A cell is 16 pixels for SqueezeNet and 32 for all others; AlexNet, SqueezeNet and Inception,
    which do not pad their first layers, give a cell or two less than that. How many features there are depends on the
    network: 2048 of ResNet-50, 512 of ResNet-18 and VGG, 576 of the small MobileNetV3. The fully connected layers of
    AlexNet, VGG and MobileNetV3 are left out with the classifier; the heads have their own.

    With `LSTMHead` it is LRCN ("Long-term Recurrent Convolutional Networks for Visual Recognition and Description",
    Donahue et al. 2015), with `ConvLSTMHead` VideoLSTM, with `ActionVLADHead` ActionVLAD, and with `MaxPoolHead`,
    `SnippetPoolHead` or `TemporalConvHead` the feature pooling of "Beyond Short Snippets" (Ng et al. 2015).

    Source: torchvision.models, all networks for classification but ViT and MaxViT, which take frames of one size. Their
    convolutions on a CPU in bfloat16 are replaced by ones that can be trusted; there is no gradient checkpointing.

    Args:
        network: Its name in torchvision, such as resnet50, mobilenet_v3_small, vgg16, efficientnet_b0 or convnext_tiny.
        in_channels: Channels of a frame: 3 for RGB, with the mean and the standard deviation of torchvision's weights.
            Any other number, such as 2 for optical flow, is normalised by mean 0.5 and standard deviation 0.226, and
            pretrained RGB weights are adapted to it.
        weights: Weights that training starts from: torchvision's name of them, such as `IMAGENET1K_V1`, which all
            networks have, or the path of such a file or of a checkpoint of `cnnbert fit`; random ones by default.
    """

    is_framewise = True
    published_names = (
        (r"^(?!network\.)", "network."),
        (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),  # DenseNet's files are older than its code
    )
    classifiers = tuple(f"{name}." for name in (*ENDS, *SIDE_BRANCHES))

    def __init__(self, network: str = "resnet50", in_channels: int = 3, weights: str | None = None) -> None:
        if network.startswith(WITHOUT_GRID):
            raise InputError(
                f"network={network} takes frames of one size and has no grid of features for others; choose "
                f"{', '.join(NETWORKS)}"
            )
        if network not in NETWORKS:
            raise InputError(f"network={network} is no image network of torchvision; choose {', '.join(NETWORKS)}")
        built = _build(network)
        members: Any = get_model_weights(network)
        member = members.__members__.get(str(weights), members.DEFAULT)
        mean, std = member.transforms().mean, member.transforms().std
        if network in ("googlenet", "inception_v3"):  # their `transform_input`
            mean = std = [0.5] * 3
        spatial_stride = 16 if network.startswith("squeezenet") else 32
        least = 0 if network.startswith("swin") else member.meta["min_size"][0]  # Swin's is what it was trained on
        rgb = in_channels == 3
        super().__init__(
            in_channels=in_channels,
            out_channels=_num_features(built),
            temporal_stride=1,
            spatial_stride=spatial_stride,
            mean=mean if rgb else [0.5] * in_channels,
            std=std if rgb else [0.226] * in_channels,
            weights=weights,
            least_pixels=max(spatial_stride, least),
        )
        self.name = network
        self.network = _trunk(built)
        self.input_weight = f"network.{replace_convolutions(self.network, in_channels)}.weight"

    @property
    def architecture(self) -> str:
        """What published weights must be of to fit."""
        return f"FrameCNN(network={self.name})"

    @property
    def published(self) -> Mapping[str, Published]:
        """Torchvision's weights of this network, by the names that torchvision gives them."""
        return torchvision_weights(self.name, self.architecture)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T, H', W') of normalised clips (B, C, T, H, W)."""
        batch, _, frames = x.shape[:3]
        x = x.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
        x = self.network(x)  # (B * T, out_channels, H', W')
        return x.unflatten(0, (batch, frames)).transpose(1, 2)


def _build(network: str) -> nn.Module:
    """Return a network of torchvision with random weights, on the default device."""
    if network.startswith("regnet"):  # reckons its sizes with tensors, which have no values on the device `meta`
        with torch.device("cpu"):
            built = get_model(network)
        return built.to(torch.get_default_device())
    more = {"init_weights": True} if network in ("googlenet", "inception_v3") else {}
    return get_model(network, **more)


def _num_features(built: nn.Module) -> int:
    """Return how many features a whole network of torchvision pools and classifies."""
    ends = [child for name, child in built.named_children() if name in ENDS]
    layers = [module for end in ends for module in end.modules()]
    first: Any = next(layer for layer in layers if isinstance(layer, (nn.Linear, nn.Conv2d)))
    if isinstance(first, nn.Conv2d):
        return first.in_channels
    pool: Any = getattr(built, "avgpool", None)
    size = 1 if pool is None else pool.output_size
    return first.in_features // (size**2 if isinstance(size, int) else math.prod(size))


def _trunk(built: nn.Module) -> nn.Sequential:
    """Return the parts of a network of torchvision before it pools, under their names."""
    parts = nn.Sequential()
    for name, part in built.named_children():
        if name in ENDS:
            break
        if name not in SIDE_BRANCHES:
            parts.add_module(name, part)
    if isinstance(built, torchvision.models.DenseNet):
        parts.add_module("relu", nn.ReLU(inplace=True))  # a function there
    return parts
