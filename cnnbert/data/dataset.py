"""Turns a record into a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cnnbert.data.readers import VideoReader
from cnnbert.data.records import VideoRecord
from cnnbert.data.samplers import ClipSampler
from cnnbert.data.video import Video
from cnnbert.errors import VideoReadError


class Sample(TypedDict, total=False):
    """What the dataset gives for a record: its number, its class, and the clips or the reason why there are none."""

    index: int
    label: int
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
    ) -> None:
        self.records = records
        self.reader = reader
        self.sampler = sampler
        self.transform = transform
        self.seed = seed
        self.flip_probability = flip_probability
        numbers = {name: number for number, name in enumerate(class_names)}
        self.labels = [numbers.get(record.label or "", -1) for record in records]
        self.mirrored_labels = {numbers[a]: numbers[b] for a, b in (mirrored or {}).items()}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """Return a video's sample.

        Args:
            item: The record's index, or (epoch, index); epoch 0 where it is not given.

        Returns:
            `index`, `label` (-1 where unknown) and `clip`, uint8 (V, 3, T, H, W) of V views, crops of one clip
            together. For a video that cannot be read, `failure` in place of `clip`.
        """
        epoch, index = item if isinstance(item, tuple) else (0, item)
        label = self.labels[index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
            try:
                clip = self._clip(self.records[index])
            except VideoReadError as failure:
                return {"index": index, "label": label, "failure": failure}
            if torch.rand(()) < self.flip_probability:
                clip, label = clip.flip(-1), self.mirrored_labels.get(label, label)
        return {"index": index, "label": label, "clip": clip}

    def _clip(self, record: VideoRecord) -> Tensor:
        with self.reader.open(record.path) as video:
            first, last = _piece(record, video)
            indices = first + self.sampler(last - first, video.fps)  # (clips, T)
            wanted, places = indices.unique(return_inverse=True)
            frames = video.frames(indices[0] if len(indices) == 1 else wanted)  # (N, 3, H, W)
        clips = (frames[place] for place in places) if len(indices) > 1 else (frames,)
        crops = torch.cat([self.transform(clip) for clip in clips])  # (V, T, 3, H', W')
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


def _mix(*numbers: int) -> int:
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
