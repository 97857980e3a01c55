"""What every feature extractor promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnbert.backbones.weights import PUBLISHED, Published, architecture, fetch, load
from cnnbert.errors import InputError


class Backbone(nn.Module, ABC):
    """Turns clips into a grid of features over time and space.

    A subclass builds its network in the constructor (cheaply, without reading or fetching anything) and
    implements `forward_features`. Scaling and normalisation happen here, so that they travel with the
    weights.

    Args:
        in_channels: Channels of a frame, 3 for RGB, 2 for optical flow.
        out_channels: Channels of the feature grid.
        temporal_stride: Frames per step of the feature grid.
        spatial_stride: Pixels per cell of the feature grid.
        mean: Mean a channel on the [0, 1] scale, subtracted from the clip.
        std: Standard deviation a channel on the [0, 1] scale, by which the clip is then divided.
        weights: Pretrained weights for `load_pretrained`, a published name or a file; None for random weights.
        least_frames: The least number of frames; None for `temporal_stride`.
        least_pixels: The least height and width; None for `spatial_stride`.

    Attributes:
        published_names: Patterns of tensors' names in published files, and what they are called here.
        classifiers: What the names of the published networks' own classifiers begin with, which are not loaded.
        input_weight: Name of the convolution weight (out, in_channels, ...) that the clips meet first, so that
            pretrained weights for other channels can be adapted; "" for none.
        unpretrained: Prefix of the block that pretrained weights may have in another form, in which case it keeps
            its random weights; "" for none.
        is_framewise: Whether the features of a time step depend on one frame alone (with a temporal stride of 1), so
            that clips that overlap can share them.
        was_loaded: Whether any weights have been loaded since the constructor, pretrained ones or a checkpoint's.
        setting: Where a run's settings have this backbone, as messages name it.
    """

    mean: Tensor
    std: Tensor
    published_names: tuple[tuple[str, str], ...] = ()
    classifiers: tuple[str, ...] = ("fc.",)
    input_weight: str = ""
    unpretrained: str = ""
    is_framewise: bool = False
    setting: str = "model.backbone"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temporal_stride: int,
        spatial_stride: int,
        mean: Sequence[float],
        std: Sequence[float],
        weights: str | None = None,
        least_frames: int | None = None,
        least_pixels: int | None = None,
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise InputError(f"in_channels={in_channels} must be at least 1; try 3 for RGB, 2 for optical flow")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.temporal_stride = temporal_stride
        self.spatial_stride = spatial_stride
        self.least_frames = temporal_stride if least_frames is None else least_frames
        self.least_pixels = spatial_stride if least_pixels is None else least_pixels
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.weights = weights
        self.was_loaded = False
        self.register_load_state_dict_post_hook(_note_loading)

    @property
    def architecture(self) -> str:
        """What published weights must be of to fit, as Python would make it: class and sizes."""
        return architecture(self.state_dict()) or type(self).__name__

    @property
    def published(self) -> Mapping[str, Published]:
        """The weights that have a name, for this network and others."""
        return PUBLISHED

    @property
    def parts(self) -> tuple[Backbone, ...]:
        """The backbones by whose `weights` training starts: this one, unless it is made of others."""
        return (self,)

    def fetch_pretrained(self) -> None:
        """Fetch the file of `weights` if it is a published one that is not on this machine yet.

        Raises:
            InputError: There is no such file or name, it is for another network, or it cannot be fetched.
        """
        if self.weights is not None:
            fetch(self)

    def load_pretrained(self) -> str:
        """Load `weights`, fetched first where need be, and return what was done, in a sentence; "" without weights.

        Raises:
            InputError: As for `fetch_pretrained`; or the file is damaged or does not fit, and nothing was changed.
        """
        return "" if self.weights is None else load(self)

    def num_steps(self, clip_length: int) -> int:
        """Return the time steps T' of the features of a clip of `clip_length` frames."""
        return -(-clip_length // self.temporal_stride)

    def check_channels(self, channels: int) -> None:
        """Raise `InputError` if clips of so many channels are not what this backbone takes."""
        if channels != self.in_channels:
            raise InputError(
                f"clips have {channels} channels, but {type(self).__name__} takes {self.in_channels}; "
                f"in_channels={channels} makes one that fits, or another data.reader gives other clips: FlowReader has "
                "2 channels, RGBFlowReader 5, the others 3"
            )

    def check_clip(self, clip_length: int, height: int, width: int) -> None:
        """Raise `InputError` if a clip of these frames and pixels is too small for this backbone."""
        name = type(self).__name__
        if clip_length < self.least_frames:
            raise InputError(
                f"clip_length={clip_length} is too short for {name}; it needs at least {self.least_frames} frames"
            )
        if min(height, width) < self.least_pixels:
            raise InputError(
                f"frames of {height}x{width} are too small for {name}; it needs at least "
                f"{self.least_pixels}x{self.least_pixels} pixels"
            )

    def normalize(self, clips: Tensor) -> Tensor:
        """Scale uint8 clips to [0, 1], subtract the mean and divide by the standard deviation; never clamp.

        Args:
            clips: (B, C, T, H, W), uint8 in [0, 255] or floating point on the [0, 1] scale.

        Returns:
            (B, C, T, H, W) in the floating-point type of the weights, and laid out in memory as those of the
            convolutions are.
        """
        mean, std = self.mean.view(-1, 1, 1, 1), self.std.view(-1, 1, 1, 1)
        is_uint8 = clips.dtype == torch.uint8
        clips = clips.to(mean.dtype, memory_format=self._memory_format())
        return ((clips / 255 if is_uint8 else clips) - mean) / std

    def _memory_format(self) -> torch.memory_format:
        """Return how the weights of the convolutions lie in memory."""
        convolved = (weight for weight in self.parameters() if weight.ndim in (4, 5))
        is_contiguous = all(weight.is_contiguous() for weight in convolved)
        return torch.contiguous_format if is_contiguous else torch.channels_last_3d

    def forward(self, clips: Tensor) -> Tensor:
        """Return the features of clips.

        Args:
            clips: (B, in_channels, T, H, W), uint8 in [0, 255] or floating point on the [0, 1] scale.

        Returns:
            (B, out_channels, T', H', W').

        Raises:
            InputError: The clips have too few frames or pixels, or other channels.
        """
        self.check_channels(clips.shape[1])
        self.check_clip(*clips.shape[2:])
        return self.forward_features(self.normalize(clips))

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features (B, out_channels, T', H', W') of normalised clips (B, in_channels, T, H, W)."""


def _note_loading(backbone: Backbone, _: Any) -> None:
    backbone.was_loaded = True
