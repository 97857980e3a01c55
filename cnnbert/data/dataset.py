"""Turns a record into a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cnnbert.data.readers import Video, VideoReader
from cnnbert.data.records import VideoRecord, split_label
from cnnbert.data.samplers import ClipSampler
from cnnbert.errors import VideoReadError


class Sample(TypedDict, total=False):
    """What the dataset gives for a record: its number, its label, and the clips or the reason why there are none."""

    index: int
    label: int | list[int]
    clip: Tensor
    failure: VideoReadError


class VideoDataset(Dataset[Sample]):
    """Reads, samples and transforms the videos of a list of records.

    Everything drawn at random for a video depends on (seed, epoch, index) alone, and not on the process that reads it
    nor on what was read before.

    Args:
        records: The videos.
        class_names: The classes in the order of their numbers.
        reader: Opens the files.
        sampler: Chooses the frames.
        transform: Turns frames, uint8 (T, 3, H, W), into N crops, uint8 (N, T, 3, H', W').
        seed: Seeds all that is drawn.
        flip_probability: How often a clip is mirrored, in [0, 1].
        mirrored: The class that a class turns into when mirrored, where it is another.
        label_separator: What parts the classes in a label; None where a label is one class.

    Attributes:
        labels: The class of every record by number, -1 where unknown; with a separator, a tuple of its classes or None.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        class_names: Sequence[str],
        reader: VideoReader,
        sampler: ClipSampler,
        transform: Callable[[Tensor], Tensor],
        seed: int = 0,
        flip_probability: float = 0.0,
        mirrored: Mapping[str, str] | None = None,
        label_separator: str | None = None,
    ) -> None:
        self.records = records
        self.reader = reader
        self.sampler = sampler
        self.transform = transform
        self.seed = seed
        self.flip_probability = flip_probability
        numbers = {name: number for number, name in enumerate(class_names)}
        self.num_classes = len(class_names)
        self.labels: list[int] | list[tuple[int, ...] | None]
        if label_separator is None:
            self.labels = [numbers.get(record.label or "", -1) for record in records]
        else:
            self.labels = [_classes(record.label, label_separator, numbers) for record in records]
        self.mirrored_labels = {numbers[a]: numbers[b] for a, b in (mirrored or {}).items()}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """Return a video's sample.

        Args:
            item: The record's index, or (epoch, index); epoch 0 where it is not given.

        Returns:
            `index`, `label` (-1 where unknown) and `clip`, uint8 (V, 3, T, H, W) of V views, crops of one clip
            together. For a video that cannot be read, `failure` in place of `clip`. With a separator `label` has for
            every class 1 or 0, or -1.
        """
        epoch, index = item if isinstance(item, tuple) else (0, item)
        label = self._label(index, {})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
            try:
                clip = self._clip(self.records[index])
            except VideoReadError as failure:
                return {"index": index, "label": label, "failure": failure}
            if torch.rand(()) < self.flip_probability:
                clip, label = clip.flip(-1), self._label(index, self.mirrored_labels)
        return {"index": index, "label": label, "clip": clip}

    def _label(self, index: int, renamed: Mapping[int, int]) -> int | list[int]:
        label = self.labels[index]
        if isinstance(label, int):
            return renamed.get(label, label)
        if label is None:
            return [-1] * self.num_classes
        there = {renamed.get(number, number) for number in label}
        return [int(number in there) for number in range(self.num_classes)]

    def _clip(self, record: VideoRecord) -> Tensor:
        with self.reader.open(record.path) as video:
            first, last = _piece(record, video)
            indices = first + self.sampler(last - first, video.fps)  # (clips, T)
            wanted, places = indices.unique(return_inverse=True)
            frames = video.frames(wanted)  # (N, 3, H, W)
        crops = torch.cat([self.transform(frames[place]) for place in places])  # (V, T, 3, H', W')
        return crops.transpose(1, 2).contiguous()


def _piece(record: VideoRecord, video: Video) -> tuple[int, int]:
    """Return the first frame of the record's piece of the video and the first after it."""
    first = round(record.start_seconds * video.fps)
    last = video.num_frames
    if record.end_seconds is not None:
        last = min(last, round(record.end_seconds * video.fps))
    if first >= video.num_frames:
        seconds = video.num_frames / video.fps
        raise VideoReadError(record.path, f"start_seconds={record.start_seconds:g} is past its end at {seconds:.2f} s")
    return first, max(last, first + 1)


def _classes(label: str | None, separator: str, numbers: Mapping[str, int]) -> tuple[int, ...] | None:
    """Return the numbers of the classes that a label names, or None if it is unknown or one of them is."""
    names = None if label is None else split_label(label, separator)
    return None if names is None or not numbers.keys() >= set(names) else tuple(numbers[name] for name in names)


def _mix(*numbers: int) -> int:
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
