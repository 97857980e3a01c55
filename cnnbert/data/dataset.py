"""Turns a record into a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cnnbert.data.cache import FrameCache
from cnnbert.data.readers import VideoReader
from cnnbert.data.records import RecordList, VideoRecord, split_label
from cnnbert.data.samplers import ClipSampler
from cnnbert.data.transforms import ClipTransform, mirrored
from cnnbert.data.video import Video
from cnnbert.errors import VideoReadError

# A piece of video of more bytes than this is not decoded at once, and so not kept.
LARGEST_KEPT = 2**30


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
        transform: Turns frames, uint8 (T, C, H, W), into N crops, uint8 (N, T, C, H', W').
        seed: Seeds all that is drawn.
        flip_probability: How often a clip is mirrored, in [0, 1].
        mirrored: The class that a class turns into when mirrored, where it is another.
        label_separator: What parts the classes in a label; None where a label is one class.
        cache_gib: The most memory that decoded and resized frames are kept in, for all processes together, in GiB;
            0 keeps none.
        x_flow: The channel of motion to the right, which turns round in mirrored clips; None for none.

    Attributes:
        labels: The class of every record by number, int64 (N,), or with a separator 1 and 0 for every class, int8
            (N, K); -1 where unknown.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        class_names: Sequence[str],
        reader: VideoReader,
        sampler: ClipSampler,
        transform: ClipTransform,
        seed: int = 0,
        flip_probability: float = 0.0,
        mirrored: Mapping[str, str] | None = None,
        label_separator: str | None = None,
        cache_gib: float = 0.0,
        x_flow: int | None = None,
    ) -> None:
        self.records = RecordList(records)
        self.reader = reader
        self.sampler = sampler
        self.transform = transform
        self.seed = seed
        self.flip_probability = flip_probability
        numbers = {name: number for number, name in enumerate(class_names)}
        self.labels = _labels(records, numbers, label_separator)
        self.x_flow = x_flow
        self.mirrored_labels = {numbers[a]: numbers[b] for a, b in (mirrored or {}).items()}
        self.cache = FrameCache(len(records), cache_gib) if cache_gib else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """Return a video's sample.

        Args:
            item: The record's index, or (epoch, index); epoch 0 where it is not given.

        Returns:
            `index`, `label` (-1 where unknown) and `clip`, uint8 (V, C, T, H, W) of V views, crops of one clip
            together, with the channels innermost in memory. For a video that cannot be read, `failure` in place of
            `clip`. With a separator `label` has for every class 1 or 0, or -1.
        """
        epoch, index = item if isinstance(item, tuple) else (0, item)
        label: int | list[int] = self.labels[index].tolist()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
            try:
                views = self._views(index)
            except VideoReadError as failure:
                return {"index": index, "label": label, "failure": failure}
            other_label = self._mirrored(label)
            if other_label != label:  # all clips of a sample have one label
                is_flipped = (torch.rand(1) < self.flip_probability).expand(len(views))
                label = other_label if is_flipped[0] else label
            else:
                is_flipped = torch.rand(len(views)) < self.flip_probability
            flips = zip(views, is_flipped, strict=True)
            views = [mirrored(view, self.x_flow) if is_flipped else view for view, is_flipped in flips]
        views = [view.permute(0, 2, 3, 1) for view in views]  # (T, H', W', C)
        clip = torch.stack(views) if len(views) > 1 else views[0].contiguous()[None]  # (V, T, H', W', C)
        return {"index": index, "label": label, "clip": clip.permute(0, 4, 1, 2, 3)}

    def _mirrored(self, label: int | list[int]) -> int | list[int]:
        if isinstance(label, int):
            return self.mirrored_labels.get(label, label)
        if -1 in label or not self.mirrored_labels:
            return label
        there = {self.mirrored_labels.get(number, number) for number, is_there in enumerate(label) if is_there}
        return [int(number in there) for number in range(len(label))]

    def _views(self, index: int) -> list[Tensor]:
        """Return the crops, (T, C, H', W'), of the clips of a video."""
        kept = None if self.cache is None else self.cache.get(index) or self._keep(index, self.cache)
        if kept is not None:
            resized, fps = kept
            indices = self.sampler(len(resized), fps)  # (clips, T)
            return [crop for clip in indices for crop in self.transform.crops(_select(resized, clip))]
        record = self.records[index]
        with self.reader.open(record.path) as video:
            first, last = piece(record, video)
            indices = self.sampler(last - first, video.fps)
            if len(indices) == 1:
                return self.transform.crops(self.transform.resized(video.frames(first + indices[0])))
            wanted, places = indices.unique(return_inverse=True)
            resized = self.transform.resized(video.frames(first + wanted))
        return [crop for place in places for crop in self.transform.crops(_select(resized, place))]

    def _keep(self, index: int, cache: FrameCache) -> tuple[Tensor, float] | None:
        """Decode a record's whole piece of video into the cache, if there is room, and return it."""
        if cache.is_full:
            return None
        record = self.records[index]
        with self.reader.open(record.path) as video:
            first, last = piece(record, video)
            frame = video.frames([first])
            place = None
            if frame.numel() * (last - first) <= LARGEST_KEPT:
                place = cache.reserve(self.transform.resized(frame).numel() * (last - first))
            if place is None:
                return None
            resized = self.transform.resized(video.frames(range(first, last)))
            cache.put(index, place, resized, video.fps)
        return cache.get(index)


def _select(frames: Tensor, indices: Tensor) -> Tensor:
    """Return frames, (N, ...), by number, (T,): a view where the numbers are evenly spaced."""
    start, last, num = int(indices[0]), int(indices[-1]), len(indices)
    step = (last - start) // max(num - 1, 1)
    if step > 0 and torch.equal(indices, torch.arange(start, start + step * num, step)):
        return frames[start : last + 1 : step]
    return frames[indices]


def piece(record: VideoRecord, video: Video) -> tuple[int, int]:
    """Return the first frame of the record's piece of the video and the first after it.

    Raises:
        VideoReadError: The piece begins after the video's end.
    """
    first = round(record.start_seconds * video.fps)
    last = video.num_frames
    if record.end_seconds is not None:
        last = min(last, round(record.end_seconds * video.fps))
    if first >= video.num_frames:
        seconds = video.num_frames / video.fps
        raise VideoReadError(record.path, f"start_seconds={record.start_seconds:g} is past its end at {seconds:.2f} s")
    return first, max(last, first + 1)


def _labels(records: Sequence[VideoRecord], numbers: Mapping[str, int], separator: str | None) -> Tensor:
    if separator is None:
        return torch.tensor([numbers.get(record.label or "", -1) for record in records], dtype=torch.int64)
    labels = torch.full((len(records), len(numbers)), -1, dtype=torch.int8)
    for row, record in zip(labels, records, strict=True):
        names = None if record.label is None else split_label(record.label, separator)
        if names is not None and numbers.keys() >= set(names):
            row.zero_()
            for name in names:
                row[numbers[name]] = 1
    return labels


def _mix(*numbers: int) -> int:
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
