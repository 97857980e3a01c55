"""What every feature extractor promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cnnbert.errors import InputError


class Backbone(nn.Module, ABC):
    """Turns clips into a grid of features over time and space.

    A subclass builds its network in the constructor (cheaply, without reading or fetching anything) and
    implements `forward_features`. Scaling and normalisation happen here, so that they travel with the
    weights.

    Args:
        in_channels: Channels of a frame, 3 for RGB.
        out_channels: Channels of the feature grid.
        temporal_stride: Frames per step of the feature grid; also the least number of frames.
        spatial_stride: Pixels per cell of the feature grid; also the least height and width.
        mean: Mean a channel on the [0, 1] scale, subtracted from the clip.
        std: Standard deviation a channel on the [0, 1] scale, by which the clip is then divided.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temporal_stride: int,
        spatial_stride: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.temporal_stride = temporal_stride
        self.spatial_stride = spatial_stride
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def num_steps(self, clip_length: int) -> int:
        """Return the time steps T' of the features of a clip of `clip_length` frames."""
        return -(-clip_length // self.temporal_stride)

    def check_clip(self, clip_length: int, height: int, width: int) -> None:
        """Raise `InputError` if a clip of these frames and pixels is too small for this backbone."""
        name = type(self).__name__
        if clip_length < self.temporal_stride:
            raise InputError(
                f"clip_length={clip_length} is too short for {name}; it needs at least {self.temporal_stride} frames"
            )
        if min(height, width) < self.spatial_stride:
            raise InputError(
                f"frames of {height}x{width} are too small for {name}; it needs at least "
                f"{self.spatial_stride}x{self.spatial_stride} pixels"
            )

    def normalize(self, clips: Tensor) -> Tensor:
        """Scale uint8 clips to [0, 1], subtract the mean and divide by the standard deviation; never clamp.

        Args:
            clips: (B, C, T, H, W), uint8 in [0, 255] or floating point on the [0, 1] scale.

        Returns:
            (B, C, T, H, W) in the floating-point type of the weights.
        """
        mean, std = self.mean.view(-1, 1, 1, 1), self.std.view(-1, 1, 1, 1)
        if clips.dtype == torch.uint8:
            clips = clips.to(mean.dtype) / 255
        return (clips.to(mean.dtype) - mean) / std

    def forward(self, clips: Tensor) -> Tensor:
        """Return the features of clips.

        Args:
            clips: (B, in_channels, T, H, W), uint8 in [0, 255] or floating point on the [0, 1] scale.

        Returns:
            (B, out_channels, T', H', W').

        Raises:
            InputError: The clips have too few frames or pixels.
        """
        self.check_clip(*clips.shape[2:])
        return self.forward_features(self.normalize(clips))

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features (B, out_channels, T', H', W') of normalised clips (B, in_channels, T, H, W)."""
