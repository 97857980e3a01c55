"""Chooses which frames of a video make its clips: pure index arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cnnbert.errors import InputError


class ClipSampler(ABC):
    """Chooses the frames of V clips of T frames each.

    A clip takes every `stride`-th frame and so spans (T - 1) * stride + 1 frames. In a video with fewer, the stride is
    the largest that fits; a video with fewer than T frames is looped: after its last frame comes its first, as in LTM
    (artest08/LateTemporalModeling3DCNN).

    Args:
        clip_length: Frames of a clip (T).
        stride: Frames from one frame of a clip to the next, at most; 1 takes consecutive frames.

    Raises:
        InputError: An argument is below 1.
    """

    def __init__(self, clip_length: int, stride: int = 1) -> None:
        for name, value in {"clip_length": clip_length, "stride": stride}.items():
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        self.clip_length = clip_length
        self.stride = stride

    def __call__(self, num_frames: int, fps: float) -> Tensor:
        """Return the frames of a video's clips.

        Args:
            num_frames: Frames of the video, at least 1.
            fps: Frames a second.

        Returns:
            int64 (V, T), in [0, num_frames).

        Raises:
            InputError: The video has no frames.
        """
        if num_frames < 1:
            raise InputError(f"num_frames={num_frames}; a video needs at least one frame to take clips from")
        stride = min(self.stride, max((num_frames - 1) // max(self.clip_length - 1, 1), 1))
        span = (self.clip_length - 1) * stride + 1
        starts = self.starts(max(num_frames - span, 0), fps)
        steps = torch.arange(self.clip_length) * stride
        return (starts[:, None] + steps) % num_frames

    @abstractmethod
    def starts(self, last_start: int, fps: float) -> Tensor:
        """Return the first frame of each clip.

        Args:
            last_start: The last frame at which a clip can start; 0 for a video that is too short.
            fps: Frames a second.

        Returns:
            int64 (V,), in [0, last_start].
        """


class RandomClip(ClipSampler):
    """Takes one clip that starts anywhere with equal chance, as in training.

    LTM (artest08/LateTemporalModeling3DCNN) draws the start likewise, but never takes a video's last frame.

    Args:
        clip_length: Frames of a clip (T).
        stride: Frames from one frame of a clip to the next, at most; 1 takes consecutive frames.
    """

    def starts(self, last_start: int, fps: float) -> Tensor:
        """Return one start, uniform in [0, last_start], drawn from torch's global generator."""
        return torch.randint(last_start + 1, (1,))


class CenterClip(ClipSampler):
    """Takes the one clip in the middle of the video, as in validation.

    Args:
        clip_length: Frames of a clip (T).
        stride: Frames from one frame of a clip to the next, at most; 1 takes consecutive frames.
    """

    def starts(self, last_start: int, fps: float) -> Tensor:
        """Return one start, floor(last_start / 2)."""
        return torch.tensor([last_start // 2])


class UniformClips(ClipSampler):
    """Takes clips spread evenly from the beginning of the video to its end, as in testing.

    Args:
        clip_length: Frames of a clip (T).
        stride: Frames from one frame of a clip to the next, at most; 1 takes consecutive frames.
        num_clips: Clips of a video (V); 1 takes the one in the middle.

    Raises:
        InputError: An argument is below 1.
    """

    def __init__(self, clip_length: int, stride: int = 1, num_clips: int = 10) -> None:
        super().__init__(clip_length, stride)
        if num_clips < 1:
            raise InputError(f"num_clips={num_clips} must be at least 1")
        self.num_clips = num_clips

    def starts(self, last_start: int, fps: float) -> Tensor:
        """Return `num_clips` starts from 0 to `last_start`, rounded to the nearest frame."""
        if self.num_clips == 1:
            return torch.tensor([last_start // 2])
        gaps = self.num_clips - 1
        return (torch.arange(self.num_clips) * last_start * 2 + gaps) // (2 * gaps)
