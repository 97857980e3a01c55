"""Measures how fast videos are loaded for training, and where the time goes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm

from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.dataset import VideoDataset
from cnnbert.data.readers import VideoReader
from cnnbert.data.transforms import ClipTransform
from cnnbert.data.video import Video
from cnnbert.errors import InputError
from cnnbert.loading import build_data
from cnnbert.machine import num_cores

PARTS = {
    "open": "opening files (going through their packets)",
    "decode": "decoding frames",
    "transform": "resizing and cropping",
    "rest": "choosing and copying frames",
    "collate": "stacking samples to a batch",
    "send": "sending batches to the training process",
}
"""Where time goes, in the order in which it does."""

WARM_UP = 2

# Frames with this many times the pixels that they are scaled to are worth storing smaller.
MUCH_LARGER = 3


@dataclass(frozen=True)
class Throughput:
    """What a loader delivers when nothing waits but for it.

    Attributes:
        clips: Clips that were delivered.
        videos: Videos that they are of.
        failed: Videos that could not be read.
        batches: Batches that they came in.
        warm_up: Batches before those, which are not counted.
        seconds: The time that it took.
        num_workers: Processes that read.
    """

    clips: int
    videos: int
    failed: int
    batches: int
    warm_up: int
    seconds: float
    num_workers: int


@dataclass(frozen=True)
class Breakdown:
    """Where the time goes when one process loads clips.

    Attributes:
        seconds: The time of each of `PARTS`.
        clips: Clips that were loaded in it.
        videos: Videos that they are of.
        height: Of the frames that the reader gives, the largest.
        width: Of the same frames.
    """

    seconds: dict[str, float]
    clips: int
    videos: int
    height: int
    width: int

    @property
    def shares(self) -> dict[str, float]:
        """The share of each part in [0, 1]; their sum is 1."""
        total = sum(self.seconds.values())
        return {name: seconds / total for name, seconds in self.seconds.items()}

    @property
    def clips_per_second(self) -> float:
        """What one process loads."""
        return self.clips / sum(self.seconds.values())


def bench_data(
    *,
    config: str | None = None,
    split: str = "train",
    num_batches: int = 20,
    num_videos: int = 24,
    settings: Sequence[str] = (),
) -> None:
    """Measure how many clips a second are loaded for training, and where the time goes.

    Takes the settings of fit: --config r2plus1d_bert.yaml --data data/folder.yaml --data.source.root my_videos. No
    network is made. One process alone loads some videos, and the time of each part is taken; then the loader runs as in
    training, with its worker processes, as fast as it can. What is read first is not counted, since programs are still
    being loaded then.

    Args:
        config: A run's config: a path, or a shipped one such as r2plus1d_bert.yaml.
        split: What is loaded: train, val or test.
        num_batches: Batches of the loader that are counted.
        num_videos: Videos over which the parts are measured.
        settings: A run's settings, such as --data.num_workers=4.
    """
    for name, value in {"num_batches": num_batches, "num_videos": num_videos}.items():
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    stages = {"train": "fit", "val": "validate", "test": "test"}
    if split not in stages:
        raise InputError(f"split={split!r} is not one of {', '.join(stages)}")
    data = build_data(config, settings)
    data.prepare_data()
    data.setup(stages[split])
    loader = getattr(data, f"{split}_dataloader")()
    parts = measure_parts(data.datasets[split], loader, num_videos)  # before workers run, which read ahead
    speed = measure_loader(loader, num_batches)
    size = f"{data.frame_size}x{data.frame_size}"
    print(f"{split}: {len(data.datasets[split])} videos; clips of {data.clip_length} frames of {size}\n")
    print("\n".join([*_speed_lines(speed, data.clip_length), "", *_part_lines(parts), "", *hints(speed, parts, data)]))


def measure_loader(loader: DataLoader[Any], num_batches: int) -> Throughput:
    """Take batches from a loader as fast as it gives them, over several epochs if one has too few.

    Raises:
        InputError: Not one video can be read.
    """
    # By then each process has delivered one, so that all have started and are at work.
    warm_up = max(1, loader.num_workers)
    clips = videos = failed = 0
    start = 0.0
    batches = islice(_endless(loader), warm_up + num_batches)
    why = ""
    for number, batch in enumerate(tqdm(batches, "loading", warm_up + num_batches, leave=False, disable=None), 1):
        why = why or next((str(failure["failure"]) for failure in batch["failures"]), "")
        if number > warm_up:
            videos += len(batch["index"])
            failed += len(batch["failures"])
            clips += batch["clip"].shape[:2].numel() if len(batch["index"]) else 0
        if number == warm_up:
            start = time.perf_counter()
    seconds = time.perf_counter() - start
    if not clips:
        raise InputError(f"not one of the {failed} videos could be read: {why}")
    return Throughput(clips, videos, failed, num_batches, warm_up, seconds, loader.num_workers)


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    epoch = 0
    while True:
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def measure_parts(dataset: VideoDataset, loader: DataLoader[Any], num_videos: int) -> Breakdown:
    """Load videos, spread evenly over a data set, in this process, and take the time of each part.

    Args:
        dataset: The videos.
        loader: Their loader, for how it makes batches and whether it sends them.
        num_videos: How many videos to load, a few more to warm up not counted.

    Raises:
        InputError: Not one of the videos can be read.
    """
    clock = _Clock()
    timed = copy.copy(dataset)
    timed.reader = _TimedReader(dataset.reader, clock)
    timed.transform = _TimedTransform(dataset.transform, clock)
    load = clock.timed("sample", timed.__getitem__)
    collate = clock.timed("collate", loader.collate_fn)
    send = clock.timed("send", _Sender()) if loader.num_workers else lambda batch: batch  # no other process
    size = min(loader.batch_size or 1, num_videos)
    chosen = [number * len(dataset) // num_videos for number in range(num_videos)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in worker processes
    clips = videos = 0
    why = ""
    try:
        for start in (None, *range(0, num_videos, size)):
            places = chosen[:WARM_UP] if start is None else chosen[start : start + size]
            batch = send(collate([load(place) for place in places]))
            if start is None:
                clock.seconds.clear()
                continue
            why = why or next((str(failure["failure"]) for failure in batch["failures"]), "")
            videos += len(batch["index"])
            clips += batch["clip"].shape[:2].numel() if len(batch["index"]) else 0
    finally:
        torch.set_num_threads(threads)
    if not clips:
        raise InputError(f"not one of {num_videos} videos could be read: {why}")
    taken = clock.seconds
    taken["rest"] = taken["sample"] - sum(taken.get(name, 0.0) for name in ("open", "decode", "transform"))
    seconds = {name: max(0.0, taken.get(name, 0.0)) for name in PARTS}
    return Breakdown(seconds, clips, videos, *clock.size)


class _Clock:
    """Adds up the time of each part, and notes the largest frames."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.size = (0, 0)

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does what another does, and adds its time to a part's."""

        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

        return run


class _TimedTransform(ClipTransform):
    """Does what another transform does, and takes the time."""

    def __init__(self, transform: ClipTransform, clock: _Clock) -> None:
        self.steps = (clock.timed("transform", transform.resized), clock.timed("transform", transform.crops))

    def resized(self, frames: Tensor) -> Tensor:
        """Return resized frames; see `ClipTransform.resized`."""
        resized: Tensor = self.steps[0](frames)
        return resized

    def crops(self, frames: Tensor) -> list[Tensor]:
        """Return crops; see `ClipTransform.crops`."""
        crops: list[Tensor] = self.steps[1](frames)
        return crops


class _TimedReader(VideoReader):
    """Opens videos with another reader, and takes the time."""

    def __init__(self, reader: VideoReader, clock: _Clock) -> None:
        self.clock = clock
        self._open = clock.timed("open", reader.open)

    def open(self, path: str) -> Video:
        """Open a video file; see `VideoReader.open`."""
        return _TimedVideo(self._open(path), self.clock)


class _TimedVideo(Video):
    """Gives the frames of another video, and takes the time."""

    def __init__(self, video: Video, clock: _Clock) -> None:
        self.clock = clock
        self.num_frames = video.num_frames
        self.fps = video.fps
        self.close = video.close  # type: ignore[method-assign]
        self._frames = clock.timed("decode", video.frames)

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return frames; see `Video.frames`."""
        frames: Tensor = self._frames(indices)
        self.clock.size = max(self.clock.size, (frames.shape[2], frames.shape[3]), key=math.prod)
        return frames

    def close(self) -> None:
        """Close the other video."""


class _Sender:
    """Sends a batch as a loader's process does, through memory that is shared, and takes it out again."""

    def __init__(self) -> None:
        self.queue = torch.multiprocessing.get_context().SimpleQueue()

    def __call__(self, batch: Any) -> Any:
        self.queue.put(batch)
        return self.queue.get()


def _speed_lines(speed: Throughput, clip_length: int) -> list[str]:
    workers = "1 worker" if speed.num_workers == 1 else f"{speed.num_workers or 'no'} workers"
    rates = {"clips/s": speed.clips, "videos/s": speed.videos, "frames/s": speed.clips * clip_length}
    told = ", ".join(f"{_number(amount / speed.seconds)} {unit}" for unit, amount in rates.items())
    lines = [f"the loader, {workers}: {told}"]
    lines += [f"  {speed.batches} batches in {speed.seconds:.1f} s, after {speed.warm_up} that are not counted"]
    lines += [f"  {speed.failed} videos could not be read; `cnnbert check` names them"] if speed.failed else []
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _part_lines(parts: Breakdown) -> list[str]:
    """Return a table of the parts, with percentages that add up to 100 as they are written."""
    sums = [round(100 * share, 1) for share in accumulate(parts.shares.values(), initial=0.0)]
    percent = dict(zip(PARTS, (later - earlier for earlier, later in pairwise(sums)), strict=True))
    title = f"one process, {parts.videos} videos after {WARM_UP} not counted"
    lines = [f"{title:<48}{'ms a clip':>10}{'share':>10}"]
    for name, words in PARTS.items():
        lines.append(f"{words:<48}{1000 * parts.seconds[name] / parts.clips:>10.2f}{percent[name]:>8.1f} %")
    return [*lines, f"{'all':<48}{1000 / parts.clips_per_second:>10.2f}{100:>8.1f} %"]


def hints(speed: Throughput, parts: Breakdown, data: VideoDataModule) -> list[str]:
    """Return what would help, in words, as the measurements say.

    Args:
        speed: What the loader delivers.
        parts: Where the time goes in one process.
        data: What was measured.
    """
    shares = parts.shares
    worst = max(shares, key=lambda name: shares[name])
    height, width = parts.height, parts.width
    resize = data.resize if isinstance(data.resize, int) else min(data.resize)
    told = [f"Most of the time, {shares[worst]:.0%}, goes into {PARTS[worst]}:"]
    if worst == "decode" and min(height, width) ** 2 >= MUCH_LARGER * resize**2:
        told += [
            f"frames have up to {width}x{height} pixels and are then made smaller (data.resize); store them in the"
        ]
        told += ["size that is needed, once, with `cnnbert prepare`."]
    elif worst == "decode":
        told += [
            "files with more key frames need fewer frames decoded for a clip; `cnnbert prepare` writes such files."
        ]
    elif worst == "open":
        told += [
            "long files take long to go through, and some kinds must be decoded to count their frames; cut them into"
        ]
        told += ["clips, or write them anew with `cnnbert prepare`."]
    elif worst == "transform":
        told += [
            "frames that are stored in the size that is needed, as `cnnbert prepare` does, have less to be resized."
        ]
    elif worst in ("collate", "send"):
        told += ["reading is not what takes long; fewer clips or frames a batch have less to be copied."]
    else:
        told += ["smaller frames, as `cnnbert prepare` stores them, and clips of fewer frames have less of it."]
    cores, workers = num_cores(), speed.num_workers
    rate = speed.clips / speed.seconds
    alone = parts.clips_per_second
    told += [f"A network that takes more than {_number(rate)} clips/s waits for the loader."]
    if workers < cores:
        told += [f"It has {workers} workers on {cores} cores: data.num_workers={cores} would load more."]
    else:
        told += [f"It has {workers} workers on {cores} cores: more workers would not help."]
    if workers and rate < 0.5 * alone * min(workers, cores):
        expected = _number(alone * min(workers, cores))
        told += [
            f"The workers should reach {expected} clips/s by what one process does alone: something else holds them"
        ]
        told += ["up, such as the disk, or other programs on this machine."]
    return told
