"""Videos and sources without files, for tests that are not about reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnbert.data.readers import VideoReader
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import VideoSource
from cnnbert.data.video import Video
from cnnbert.errors import VideoReadError


class MemoryVideo(Video):
    """A video whose frame n has the value n, and a lighter right half."""

    fps = 25.0

    def __init__(self, num_frames: int, size: tuple[int, int]) -> None:
        self.num_frames = num_frames
        self.size = size

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        numbers = torch.as_tensor(indices).to(torch.uint8).view(-1, 1, 1, 1)
        frames = numbers.expand(-1, 3, *self.size).clone()
        frames[..., self.size[1] // 2 :] += 100
        return frames

    def close(self) -> None:
        pass


class MemoryReader(VideoReader):
    """Gives a made-up video for any path, fails for those that begin with `broken`, and counts what it opens."""

    def __init__(self, num_frames: int = 40, size: tuple[int, int] = (32, 40)) -> None:
        self.num_frames = num_frames
        self.size = size
        self.opened: list[str] = []

    def open(self, path: str) -> Video:
        self.opened.append(path)
        if path.startswith("broken"):
            raise VideoReadError(path, "it is broken")
        return MemoryVideo(self.num_frames, self.size)


class ListedSource(VideoSource):
    """Lists what it is given: for each split, path -> label."""

    def __init__(
        self, splits: Mapping[str, Mapping[str, str | None]], class_names: list[str], mirrored: Any = None
    ) -> None:
        self.splits = splits
        self.names = class_names
        self.given_mirrored = mirrored or {}

    @property
    def mirrored(self) -> Mapping[str, str]:
        return self.given_mirrored

    @property
    def class_names(self) -> list[str]:
        return self.names

    def records(self, split: str) -> list[VideoRecord]:
        return [VideoRecord(path, label) for path, label in self.splits.get(split, {}).items()]
