"""TwoStream: a backbone for colours and one for optical flow, fused inside the network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.layers.conv import Conv3d

CHANNELS = {"rgb": 3, "flow": 2}
"""Channels of each stream, in the order in which clips have them."""


class TwoStream(Backbone):
    """Extracts features of colours and of optical flow with a backbone each, and fuses them into one grid.

    Clips have 5 channels: red, green and blue, then flow to the right and downwards, as `RGBFlowReader` gives them.
    Each stream normalises its own as it does alone. Both must have the same strides, which `concat` keeps; `conv3d`
    doubles that over space.

    Source: "Convolutional Two-Stream Network Fusion for Video Action Recognition" (Feichtenhofer et al. 2016). In its
    `conv3d`, a 3x3x3 convolution with ReLU turns the stacked features, 2D channels, into D. It begins as the sum of
    channels of the same number, smoothed over neighbours by a Gaussian of standard deviation 1, without bias; so does
    the authors' code (feichtenhofer/twostreamfusion, cnn_ucf101_fusion.m), which there weighs colours by 0.25 and flow
    by 0.75 for two VGG-16s, where both weigh 1 here. 3D max pooling follows: there over all
    of 5 time steps; here over 3x3x3 neighbours with a stride of 1 over time and 2 over space, so that heads see every
    step.

    Args:
        rgb: The backbone of colours, with in_channels 3.
        flow: The backbone of optical flow, with in_channels 2.
        fusion: `conv3d` is the paper's, for streams of as many features, and gives as many. `concat` puts the features
            of both side by side, and gives as many as both together.
        weights: Weights of both streams and their fusion that training starts from: the path of a checkpoint of
            `cnnbert fit` of such a network. By default each stream starts from its own `weights`, such as
            `--model.backbone.rgb.weights ig65m_clip32_359`, which are not looked at otherwise.

    Raises:
        InputError: A stream takes other channels, or the streams do not go together.
    """

    def __init__(
        self,
        rgb: Backbone,
        flow: Backbone,
        fusion: Literal["concat", "conv3d"] = "conv3d",
        weights: str | None = None,
    ) -> None:
        streams = {"rgb": rgb, "flow": flow}
        for name, stream in streams.items():
            if stream.in_channels != CHANNELS[name]:
                raise InputError(
                    f"the {name} stream ({type(stream).__name__}) takes {stream.in_channels} channels instead of "
                    f"{CHANNELS[name]}; set in_channels to {CHANNELS[name]} (--model.backbone.{name}.in_channels)"
                )
        if fusion not in ("concat", "conv3d"):
            raise InputError(f"fusion={fusion} is no way to fuse streams; choose concat or conv3d")
        grids = {
            name: f"{type(stream).__name__} with a step every {stream.temporal_stride} frames and a cell every "
            f"{stream.spatial_stride} pixels"
            for name, stream in streams.items()
        }
        if (rgb.temporal_stride, rgb.spatial_stride) != (flow.temporal_stride, flow.spatial_stride):
            raise InputError(
                f"the streams' grids differ: rgb is {grids['rgb']}, flow is {grids['flow']}; take the same network for "
                "both, or others of the same strides"
            )
        pools = fusion == "conv3d"
        if pools and rgb.out_channels != flow.out_channels:
            raise InputError(
                f"fusion=conv3d needs streams of as many features, but rgb ({type(rgb).__name__}) gives "
                f"{rgb.out_channels} and flow ({type(flow).__name__}) {flow.out_channels}; take the same sizes, or "
                "fusion=concat"
            )
        super().__init__(
            in_channels=sum(CHANNELS.values()),
            out_channels=rgb.out_channels if pools else rgb.out_channels + flow.out_channels,
            temporal_stride=rgb.temporal_stride,
            spatial_stride=(2 if pools else 1) * rgb.spatial_stride,
            mean=[0.0] * sum(CHANNELS.values()),  # the streams normalise
            std=[1.0] * sum(CHANNELS.values()),
            weights=weights,
            least_frames=max(rgb.least_frames, flow.least_frames),
            least_pixels=max(rgb.least_pixels, flow.least_pixels),
        )
        self.is_framewise = rgb.is_framewise and flow.is_framewise and not pools
        self.rgb = rgb
        self.flow = flow
        for name, stream in streams.items():
            stream.setting = f"{self.setting}.{name}"
        self.fusion = _convolution_and_pooling(rgb.out_channels) if pools else nn.Identity()

    @property
    def architecture(self) -> str:
        """What weights must be of to fit."""
        return f"TwoStream(rgb={self.rgb.architecture}, flow={self.flow.architecture})"

    @property
    def parts(self) -> tuple[Backbone, ...]:
        """The two streams, unless there are weights for both together."""
        return (self.rgb, self.flow) if self.weights is None else (self,)

    def fetch_pretrained(self) -> None:
        """Fetch the weights of both streams; see `Backbone.fetch_pretrained`."""
        if self.weights is not None:
            super().fetch_pretrained()
            return
        for stream in self.parts:
            stream.fetch_pretrained()

    def load_pretrained(self) -> str:
        """Load the weights of the streams, one after the other; see `Backbone.load_pretrained`."""
        if self.weights is not None:
            return super().load_pretrained()
        loaded = {"rgb": self.rgb.load_pretrained(), "flow": self.flow.load_pretrained()}
        self.was_loaded |= any(loaded.values())
        return "\n".join(f"{name}: {told}" for name, told in loaded.items() if told)

    def check_channels(self, channels: int) -> None:
        """Raise `InputError` if clips have other channels than both streams together."""
        if channels != self.in_channels:
            raise InputError(
                f"clips have {channels} channels, but TwoStream takes {self.in_channels}, those of colours and flow; "
                "--data.reader RGBFlowReader gives them"
            )

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the fused features (B, out_channels, T', H', W') of clips (B, 5, T, H, W) on the [0, 1] scale."""
        rgb, flow = x.split(list(CHANNELS.values()), dim=1)
        x = torch.cat([self.rgb(rgb), self.flow(flow)], dim=1)
        return self.fusion(x).to(x.dtype)  # a CPU's autocast pools bfloat16 into float32


def _convolution_and_pooling(channels: int) -> nn.Sequential:
    """Return what turns (B, 2 * channels, T, H, W) into (B, channels, T, H / 2, W / 2), rounded up."""
    conv = Conv3d(2 * channels, channels, kernel_size=3, padding=1)
    line = torch.exp(-(torch.arange(-1.0, 2.0, device=conv.weight.device) ** 2) / 2)
    cube = line.view(3, 1, 1) * line.view(3, 1) * line
    same = torch.eye(channels, device=conv.weight.device).repeat(1, 2)  # (channels, 2 * channels)
    with torch.no_grad():
        conv.weight.copy_(same[..., None, None, None] * cube / cube.sum())
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.ReLU(inplace=True), nn.MaxPool3d(kernel_size=3, stride=(1, 2, 2), padding=1))
