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
            fps: Frames a second, for samplers that count in seconds.

        Returns:
            int64 (V, T), in [0, num_frames).

        Raises:
            InputError: The video has no frames.
        """
        if num_frames < 1:
            raise InputError(f"num_frames={num_frames}; a video needs at least one frame to take clips from")
        stride = min(self.stride, max((num_frames - 1) // max(self.clip_length - 1, 1), 1))
        span = (self.clip_length - 1) * stride + 1
        starts = self.starts(max(num_frames - span, 0), span)
        steps = torch.arange(self.clip_length) * stride
        return (starts[:, None] + steps) % num_frames

    @abstractmethod
    def starts(self, last_start: int, span: int) -> Tensor:
        """Return the first frame of each clip.

        Args:
            last_start: The last frame at which a clip can start; 0 for a video that is too short.
            span: Frames from a clip's first frame to its last, both included.

        Returns:
            int64 (V,), in [0, last_start].
        """


class RandomClip(ClipSampler):
    """Takes clips that start anywhere with equal chance, as in training.

    Args:
        clip_length: Frames of a clip (T).
        stride: Frames from one frame of a clip to the next, at most; 1 takes consecutive frames.
        skip_last_frame: Whether no clip reaches the last frame of a video that is longer than a clip, as in LTM
            (artest08/LateTemporalModeling3DCNN), which counts a frame too few when it draws the start.
        num_clips: Clips of a video (V).

    Raises:
        InputError: A number is below 1.
    """

    def __init__(self, clip_length: int, stride: int = 1, skip_last_frame: bool = False, num_clips: int = 1) -> None:
        super().__init__(clip_length, stride)
        _check_num_clips(num_clips)
        self.skip_last_frame = skip_last_frame
        self.num_clips = num_clips

    def starts(self, last_start: int, span: int) -> Tensor:
        """Return `num_clips` starts, each uniform in [0, last_start], drawn from torch's global generator."""
        if self.skip_last_frame:
            last_start = max(last_start - 1, 0)
        return torch.randint(last_start + 1, (self.num_clips,))


class CenterClip(ClipSampler):
    """Takes the one clip in the middle of the video, as in validation.

    Args:
        clip_length: Frames of a clip (T).
        stride: Frames from one frame of a clip to the next, at most; 1 takes consecutive frames.
    """

    def starts(self, last_start: int, span: int) -> Tensor:
        """Return one start, floor(last_start / 2)."""
        return torch.tensor([last_start // 2])


class UniformClips(ClipSampler):
    """Takes clips spread evenly from the beginning of the video to its end.

    Args:
        clip_length: Frames of a clip (T).
        stride: Frames from one frame of a clip to the next, at most; 1 takes consecutive frames.
        num_clips: Clips of a video (V); 1 takes the one in the middle.

    Raises:
        InputError: An argument is below 1.
    """

    def __init__(self, clip_length: int, stride: int = 1, num_clips: int = 10) -> None:
        super().__init__(clip_length, stride)
        _check_num_clips(num_clips)
        self.num_clips = num_clips

    def starts(self, last_start: int, span: int) -> Tensor:
        """Return `num_clips` starts from 0 to `last_start`, rounded to the nearest frame."""
        if self.num_clips == 1:
            return torch.tensor([last_start // 2])
        gaps = self.num_clips - 1
        return (torch.arange(self.num_clips) * last_start * 2 + gaps) // (2 * gaps)


class NonOverlappingClips(ClipSampler):
    """Takes as many clips as follow one another without overlap, as much room before them as after.

    These are the clips that LTM (artest08/LateTemporalModeling3DCNN, spatial_demo3D.py) tests. Its first clip starts
    at the second frame or later; a video at most two frames longer than a clip gives the one at its beginning.

    Args:
        clip_length: Frames of a clip (T).
        stride: Frames from one frame of a clip to the next, at most; 1 takes consecutive frames.
    """

    def starts(self, last_start: int, span: int) -> Tensor:
        """Return starts that are `span` apart; 0 alone where `last_start` is below 3."""
        if last_start < 3:
            return torch.tensor([0])
        starts = torch.arange(1, last_start - 1, span)
        return starts + (last_start - 1 - starts[-1]) // 2


def _check_num_clips(num_clips: int) -> None:
    if num_clips < 1:
        raise InputError(f"num_clips={num_clips} must be at least 1")
