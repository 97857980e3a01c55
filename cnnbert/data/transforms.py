"""Resizes and crops the frames of a clip for training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from cnnbert.errors import InputError

# Where a crop may lie, as (down, right) in quarters of the free room.
CORNERS = ((0, 0), (0, 4), (4, 0), (4, 4))
CENTRE = (2, 2)
EDGE_MID_POINTS = ((0, 2), (2, 0), (2, 4), (4, 2))
QUARTER_POINTS = ((1, 1), (1, 3), (3, 1), (3, 3))
POSITIONS = (*CORNERS, CENTRE, *EDGE_MID_POINTS, *QUARTER_POINTS)


class ClipTransform(ABC):
    """Resizes a clip's frames, always alike, and takes crops out of them.

    Frames may have any channels C. The values of optical flow stay as they are, in pixels of the size at which it was
    computed, also where frames or crops are scaled.

    Args:
        frame_size: Height and width of what comes out, in pixels.
        resize: What frames are scaled to before cropping: the short side, keeping the aspect, or
            [height, width]; null leaves them as they are.
        antialias: Whether pixels are averaged when frames shrink; False takes the plain bilinear interpolation of
            OpenCV, as LTM's code does.

    Raises:
        InputError: An argument is out of its range, or the two sizes do not fit.
    """

    def __init__(self, frame_size: int, resize: int | tuple[int, int] | None, antialias: bool) -> None:
        _check_sizes(frame_size, resize)
        self.frame_size = frame_size
        self.resize = resize
        self.antialias = antialias

    def __call__(self, frames: Tensor) -> Tensor:
        """Return crops of a clip.

        Args:
            frames: uint8 (T, C, H, W).

        Returns:
            uint8 (N, T, C, frame_size, frame_size).

        Raises:
            InputError: The frames are smaller than `frame_size`.
        """
        return torch.stack(self.crops(self.resized(frames)))

    def resized(self, frames: Tensor) -> Tensor:
        """Return frames, uint8 (T, C, H, W), resized and at least `frame_size` high and wide.

        Raises:
            InputError: They are smaller than `frame_size`.
        """
        if self.resize is not None:
            size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
            frames = F.resize(frames, size, antialias=self.antialias)
        height, width = frames.shape[-2:]
        if self.frame_size > min(height, width):
            raise InputError(
                f"frame_size={self.frame_size} is larger than the frames of {height}x{width}; "
                f"lower frame_size to at most {min(height, width)} or set resize to at least {self.frame_size}"
            )
        return frames

    @abstractmethod
    def crops(self, frames: Tensor) -> list[Tensor]:
        """Return crops, uint8 (T, C, frame_size, frame_size), of resized frames, uint8 (T, C, H, W)."""


class TrainTransform(ClipTransform):
    """Takes a crop of random size and place out of a clip, the same for all its frames.

    A crop's height and width are each a scale times the frame's short side, their scales at most one step
    apart. It lies at one of 13 places: corners, centre, mid-points of the edges and quarter points. Size and
    place are drawn uniformly from torch's global generator. This is the multi-scale crop of LTM
    (artest08/LateTemporalModeling3DCNN), except that the places follow from the crop's own size unless
    `truncated_crops` is set. Clips are not mirrored here.

    Args:
        frame_size: Height and width of what comes out, in pixels.
        resize: What frames are scaled to before cropping: the short side, keeping the aspect, or
            [height, width]; null leaves them as they are.
        scales: Sides of a crop relative to the frame's short side, in (0, 1], largest first.
        truncated_crops: Whether the places follow from `frame_size` whatever the crop's size, as in LTM's code, so
            that larger crops are cut off at the frame's edge and change their aspect.
        antialias: Whether pixels are averaged when frames shrink; False takes the plain bilinear interpolation of
            OpenCV, as LTM's code does.

    Raises:
        InputError: An argument is out of its range, or the two sizes do not fit.
    """

    def __init__(
        self,
        frame_size: int = 112,
        resize: int | tuple[int, int] | None = (128, 170),
        scales: Sequence[float] = (1, 0.875, 0.75, 0.66),
        truncated_crops: bool = False,
        antialias: bool = True,
    ) -> None:
        super().__init__(frame_size, resize, antialias)
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise InputError(f"scales={list(scales)} must be one or more numbers in (0, 1]")
        self.scales = tuple(scales)
        self.truncated_crops = truncated_crops

    def crops(self, frames: Tensor) -> list[Tensor]:
        """Return one crop, uint8 (T, C, frame_size, frame_size), of resized frames, uint8 (T, C, H, W)."""
        height, width = frames.shape[-2:]
        sides = [max(1, int(scale * min(height, width))) for scale in self.scales]
        sizes = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
        h, w = sizes[int(torch.randint(len(sizes), ()))]
        down, right = POSITIONS[int(torch.randint(len(POSITIONS), ()))]
        if self.truncated_crops:
            y, x = (height - self.frame_size) // 4 * down, (width - self.frame_size) // 4 * right
        else:
            y, x = (height - h) * down // 4, (width - w) * right // 4
        crop = frames[..., y : y + h, x : x + w]
        return [F.resize(crop, [self.frame_size, self.frame_size], antialias=self.antialias)]


class EvalTransform(ClipTransform):
    """Takes fixed crops out of a clip, after resizing its frames once.

    Args:
        frame_size: Height and width of a crop, in pixels.
        resize: What frames are scaled to before cropping: the short side, keeping the aspect, or
            [height, width]; null leaves them as they are.
        num_crops: 1 takes the centre; 3 takes the start, the centre and the end of the longer side; 10 takes
            the centre and the four corners, then the same of the mirrored frames, as LTM
            (artest08/LateTemporalModeling3DCNN) tests.
        antialias: Whether pixels are averaged when frames shrink; False takes the plain bilinear interpolation of
            OpenCV, as LTM's code does.
        x_flow: The channel of motion to the right, which turns round in mirrored crops; None for none.

    Raises:
        InputError: An argument is out of its range, or the two sizes do not fit.
    """

    def __init__(
        self,
        frame_size: int = 112,
        resize: int | tuple[int, int] | None = (128, 170),
        num_crops: Literal[1, 3, 10] = 1,
        antialias: bool = True,
        x_flow: int | None = None,
    ) -> None:
        super().__init__(frame_size, resize, antialias)
        self.x_flow = x_flow
        if num_crops not in (1, 3, 10):
            raise InputError(f"num_crops={num_crops} must be 1, 3 or 10")
        self.num_crops = num_crops

    def crops(self, frames: Tensor) -> list[Tensor]:
        """Return `num_crops` crops, uint8 (T, C, frame_size, frame_size), of resized frames, uint8 (T, C, H, W)."""
        size = self.frame_size
        y_end, x_end = frames.shape[-2] - size, frames.shape[-1] - size
        centre = (y_end // 2, x_end // 2)
        if self.num_crops == 1:
            places = [centre]
        elif self.num_crops == 3:
            if x_end >= y_end:
                places = [(centre[0], 0), centre, (centre[0], x_end)]
            else:
                places = [(0, centre[1]), centre, (y_end, centre[1])]
        else:
            places = [centre, (0, 0), (0, x_end), (y_end, 0), (y_end, x_end)]
        clips = [frames, mirrored(frames, self.x_flow)] if self.num_crops == 10 else [frames]
        return [clip[..., y : y + size, x : x + size] for clip in clips for y, x in places]


def mirrored(frames: Tensor, x_flow: int | None = None) -> Tensor:
    """Return frames as in a mirror.

    Args:
        frames: uint8 (T, C, H, W).
        x_flow: The channel that holds motion to the right, on the 8-bit scale on which none is 127.5: it turns round.
    """
    flipped = frames.flip(-1)
    if x_flow is not None:
        flipped[:, x_flow] = 255 - flipped[:, x_flow]
    return flipped


def _check_sizes(frame_size: int, resize: int | tuple[int, int] | None) -> None:
    if frame_size < 1:
        raise InputError(f"frame_size={frame_size} must be at least 1")
    if resize is None:
        return
    sides = [resize] if isinstance(resize, int) else list(resize)
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise InputError(f"resize={resize} must be the short side or [height, width], each at least 1")
    if frame_size > min(sides):
        raise InputError(
            f"frame_size={frame_size} is larger than resize={resize}; "
            f"lower frame_size to at most {min(sides)} or raise resize to at least {frame_size}"
        )
