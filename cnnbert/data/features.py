"""Features of the videos of a data set on disk, and loaders that serve them in place of clips."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.dataset import Sample, VideoDataset
from cnnbert.data.splits import SPLITS
from cnnbert.errors import InputError, VideoReadError

FACTS = "features.json"


class StoredSplit:
    """The features of a split's samples: one a video, or in training as many as augmented clips of it were stored.

    Args:
        folder: Where its file lies.
        split: The split's name.
        facts: What `FeatureWriter` noted of it.

    Attributes:
        num_videos: Videos N.
        num_epochs: Samples of each video E.
    """

    def __init__(self, folder: Path, split: str, facts: dict[str, Any]) -> None:
        if split not in SPLITS or not _is_sound(facts):
            raise InputError(
                f"{folder / FACTS} is damaged (what it says of the split {split[:40]!r} does not fit together); make "
                "the features again with cnnbert features"
            )
        self.num_videos: int = facts["num_videos"]
        self.num_epochs: int = facts["num_epochs"]
        self.labels: list[Any] = facts["labels"]
        self.failures: dict[str, str] = facts["failures"]
        self.first_rows = np.concatenate([[0], np.cumsum(facts["num_views"])])
        shape = (int(self.first_rows[-1]), *facts["shape"])
        path = folder / f"{split}.f16"
        if not path.is_file() or path.stat().st_size != 2 * math.prod(shape):
            raise InputError(f"{path} is not there whole; make the features again with cnnbert features")
        self.rows = np.memmap(path, np.float16, "r", shape=shape) if shape[0] else np.empty(shape, np.float16)

    def sample(self, epoch: int, index: int) -> tuple[Tensor, Any]:
        """Return the features of a video, float32 (V, C, T', H', W'), and its label as that epoch has it."""
        place = (epoch % self.num_epochs) * self.num_videos + index
        rows = self.rows[self.first_rows[place] : self.first_rows[place + 1]]
        return torch.from_numpy(rows.astype(np.float32)), self.labels[place]


def _is_sound(facts: Any) -> bool:
    """Return whether what is known of a split is what `SplitWriter` notes of one."""
    if not isinstance(facts, dict) or facts.keys() != SplitWriter(None, 0, 0).facts.keys():
        return False
    num_videos, num_epochs = facts["num_videos"], facts["num_epochs"]
    num_views, labels, failures, shape = (facts[name] for name in ("num_views", "labels", "failures", "shape"))
    for numbers in (num_views, shape):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**24 for n in numbers):
            return False
    if type(num_videos) is not int or type(num_epochs) is not int or num_epochs < 1 or len(shape) != 4:
        return False
    are_labels = isinstance(labels, list) and all(
        type(number) is int and abs(number) < 2**31
        for label in labels
        for number in (label if isinstance(label, list) else [label])
    )
    are_failures = isinstance(failures, dict) and all(isinstance(why, str) for why in failures.values())
    return are_labels and are_failures and len(labels) == len(num_views) == num_videos * num_epochs


class FeatureDataset(Dataset[Sample]):
    """Serves stored features as `VideoDataset` serves clips.

    Args:
        videos: The videos that the features are of.
        stored: Their features.

    Attributes:
        records: The videos' records.
        labels: Their classes.
    """

    cache = None

    def __init__(self, videos: VideoDataset, stored: StoredSplit) -> None:
        self.records = videos.records
        self.labels = videos.labels
        self.stored = stored

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """Return a video's sample; `clip` is its features, float32 (V, C, T', H', W'). See `VideoDataset`."""
        epoch, index = item if isinstance(item, tuple) else (0, item)
        features, label = self.stored.sample(epoch, index)
        why = self.stored.failures.get(str(index))
        if why is not None:
            return {"index": index, "label": label, "failure": VideoReadError(self.records[index].path, why)}
        return {"index": index, "label": label, "clip": features}


class FeatureDataModule(VideoDataModule):
    """Loaders of stored features; all else is as for the videos that they are of.

    Args:
        features: The folder that `cnnbert features` wrote.
        settings: Those of `VideoDataModule`.
    """

    def __init__(self, features: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stored = read_features(Path(features))
        self.num_workers = 0  # reading memory needs no process

    def setup(self, stage: str) -> None:
        """List the videos of a stage and find their features."""
        super().setup(stage)
        for split, videos in self.datasets.items():
            if isinstance(videos, VideoDataset):
                self.datasets[split] = FeatureDataset(videos, self.stored[split])  # type: ignore[assignment]


class FeatureWriter:
    """Writes the features of one split after the other; they are there once `finish` was called.

    Args:
        folder: Where they will lie; written beside it until they are whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.part = folder.with_name(folder.name + ".part")
        self.splits: dict[str, dict[str, Any]] = {}

    @contextmanager
    def split(self, name: str, num_videos: int, num_epochs: int) -> Iterator[SplitWriter]:
        """Open a split for writing.

        Args:
            name: The split's name.
            num_videos: Its videos.
            num_epochs: Samples of each.
        """
        with (self.part / f"{name}.f16").open("wb") as file:
            writer = SplitWriter(file, num_videos, num_epochs)
            yield writer
        self.splits[name] = writer.facts

    def finish(self, facts: dict[str, Any]) -> None:
        """Write what is to be known of them all, and put the folder in its place."""
        text = json.dumps({**facts, "splits": self.splits})
        (self.part / FACTS).write_text(text, encoding="utf-8")
        self.part.rename(self.folder)


class SplitWriter:
    """Appends samples, epoch by epoch and in the order of the videos."""

    def __init__(self, file: Any, num_videos: int, num_epochs: int) -> None:
        self.file = file
        self.facts: dict[str, Any] = {
            "num_videos": num_videos,
            "num_epochs": num_epochs,
            "num_views": [],
            "labels": [],
            "failures": {},
            "shape": [0, 0, 0, 0],
        }

    def add(self, sample: Sample, features: Tensor | None) -> None:
        """Append a sample.

        Args:
            sample: Its index and label, and why it could not be read where it could not.
            features: (V, C, T', H', W') of its views; None where it could not be read.

        Raises:
            InputError: The features are not finite in half precision.
        """
        self.facts["labels"].append(sample["label"])
        self.facts["num_views"].append(0 if features is None else len(features))
        if features is None:
            self.facts["failures"][str(sample["index"])] = sample["failure"].why
            return
        half = features.half()
        if not half.isfinite().all():
            raise InputError(
                f"the features of video {sample['index']} reach {features.abs().max():g}, but half precision ends at "
                "65504; the backbone's weights are damaged or not trained"
            )
        self.facts["shape"] = list(half.shape[1:])
        self.file.write(half.contiguous().numpy().tobytes())


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what is known of stored features.

    Raises:
        InputError: There are none, or they are damaged.
    """
    path = folder / FACTS
    if not path.is_file():
        raise InputError(f"there are no features in {folder}; make them with cnnbert features --out {folder}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {**facts, "splits": {**facts["splits"]}, "key": {**facts["key"]}}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({str(error)[:200]!r}); make the features again with cnnbert features"
        ) from error


def read_features(folder: Path) -> dict[str, StoredSplit]:
    """Return the stored features of each split, mapped into memory and not read.

    Raises:
        InputError: There are none, or they are damaged.
    """
    return {split: StoredSplit(folder, split, facts) for split, facts in read_facts(folder)["splits"].items()}
