"""Makes batches of samples, in an order of each epoch's own."""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, default_collate

from cnnbert.data.dataset import Sample, VideoDataset
from cnnbert.errors import InputError

LONGEST_SOCKET_PATH = 107
"""Bytes: what Linux has room for (man 7 unix)."""
SOCKET_NAME = "/pymp-xxxxxxxx/listener-xxxxxxxx"
"""The names that Python gives folder and socket (multiprocessing.connection) under the folder of temporary files."""


class Batch(TypedDict):
    """Samples stacked: B videos of V views each; and the samples of the videos that could not be read."""

    index: Tensor
    label: Tensor
    clip: Tensor
    failures: list[Sample]


class TimedLoader(DataLoader[Any]):
    """A loader that knows how long it was waited for.

    Attributes:
        seconds_waited: Seconds that whoever iterates has waited for batches, in all.
    """

    seconds_waited = 0.0

    def __iter__(self) -> Any:
        """Iterate over the batches of an epoch."""
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class EpochSampler(DistributedSampler[Any]):
    """Gives (epoch, index) in place of the index, so that a sample's random draws can depend on its epoch.

    Attributes:
        done: An epoch that was begun before, and how many samples at its beginning are to be left out.
    """

    done = (0, 0)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over this process's part of the epoch."""
        epoch, num_done = self.done
        return islice(self._items(), num_done if self.epoch == epoch else 0, None)

    def _items(self) -> Iterator[Any]:
        return ((self.epoch, index) for index in super().__iter__())


class BalancedSampler(EpochSampler):
    """Takes each class equally often an epoch, and each video of a class as often as the others, give or take one.

    An epoch has ceil(N / K) of each of K classes, of N videos, and a repeated few where the processes do not divide it.
    In place of the epoch it gives a number that is another for every repeat, so that each repeat is another clip.
    """

    def __init__(self, dataset: VideoDataset, *arguments: Any, **options: Any) -> None:
        super().__init__(dataset, *arguments, **options)
        labels = dataset.labels
        self.classes = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
        self.class_size = math.ceil(len(labels) / len(self.classes))
        self.num_repeats = max(math.ceil(self.class_size / len(videos)) for videos in self.classes)
        self.num_samples = math.ceil(len(self.classes) * self.class_size / self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas

    def _items(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn: list[tuple[int, int]] = []
        for videos in self.classes:
            repeats = range(math.ceil(self.class_size / len(videos)))
            orders = [videos[torch.randperm(len(videos), generator=generator)].tolist() for _ in repeats]
            items = [(self.epoch * self.num_repeats + repeat, index) for repeat in repeats for index in orders[repeat]]
            drawn += items[: self.class_size]
        shuffled = [drawn[place] for place in torch.randperm(len(drawn), generator=generator).tolist()]
        shuffled += shuffled[: self.total_size - len(shuffled)]
        return iter(shuffled[self.rank :: self.num_replicas])


def collate(samples: list[Sample]) -> Batch:
    """Stack samples into a batch; failures set apart.

    Args:
        samples: Samples of the same number of views.

    Returns:
        clip uint8 (B, V, C, T, H, W), with the channels innermost in memory; index int64 (B,); label int64 (B,), or
        (B, K) where a video may have several classes.
    """
    read = [sample for sample in samples if "clip" in sample]
    clips = [sample["clip"].permute(0, 2, 3, 4, 1) for sample in read]  # (V, T, H, W, C)
    return {
        "index": torch.tensor([sample["index"] for sample in read], dtype=torch.int64),
        "label": torch.tensor([sample["label"] for sample in read], dtype=torch.int64),
        # In a reading process it stacks them in the memory that the batch is sent in.
        "clip": default_collate(clips).permute(0, 1, 5, 2, 3, 4) if read else torch.empty(0, dtype=torch.uint8),
        "failures": [sample for sample in samples if "failure" in sample],
    }


def check_socket_path() -> None:
    """Raise `InputError` if the paths of the sockets that clips come through would be too long.

    Without a word of it the batches of reading processes would be lost, and waited for without end.
    """
    folder = tempfile.gettempdir()
    room = LONGEST_SOCKET_PATH - len(SOCKET_NAME)
    if torch.multiprocessing.get_sharing_strategy() == "file_descriptor" and len(os.fsencode(folder)) > room:
        raise InputError(
            f"the folder of temporary files, {folder}, has too long a path for the sockets that reading processes send "
            f"clips through; set TMPDIR to one of at most {room} bytes, such as /tmp, or read with --data.num_workers 0"
        )


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to reading processes too, to the process that they read for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
