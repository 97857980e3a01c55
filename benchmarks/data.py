"""Compares ways to load clips, side by side in one run, on the same files; prints ratios.

Clips of 32 frames, stride 2, 112x112, of 320x240 H.264 videos of one shot each, which are drawn here and encoded by
x264 with its defaults. Every way runs in one reading process, or with `--workers 0` in the benchmark's own, without
the sending of clips from one process to another. Run `python benchmarks/data.py`; it takes some minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import VideoSource
from cnnbert.prepare import prepare

FPS = 25
AIMS = {
    "default loader": {4: 1.0, 10: 1.0},
    "default loader, prepared files": {4: 4.0, 10: 6.0},
    "cache: ram": {4: 30.0, 10: 30.0},
    "clips_per_video: 2, against 1": {4: 1.8, 10: 1.8},
    "10 clips x 3 crops, against a decode a view": {4: 10.0, 10: 10.0},
}


def draw(path: Path, seconds: int, seed: int) -> None:
    """Write a video of one shot: the camera pans over a grainy picture, in front of which a disc moves."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 12, 16), np.float32))
    picture = torch.nn.functional.interpolate(coarse, size=(480, 640), mode="bicubic")[0].permute(1, 2, 0).numpy()
    picture = picture * 200 + rng.normal(25, 8, picture.shape)
    rows, columns = np.mgrid[:240, :320]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", FPS)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.gop_size = 250  # x264's default, which FFmpeg's 12 would replace
        for number in range(seconds * FPS):
            angle = number / FPS + seed
            y, x = int(120 + 100 * np.sin(angle / 3)), int(160 + 140 * np.cos(angle / 2))
            frame = picture[y : y + 240, x : x + 320] + rng.normal(0, 2, (240, 320, 1))
            is_disc = (rows - 120 - 60 * np.sin(2 * angle)) ** 2 + (columns - 160 - 90 * np.cos(angle)) ** 2 < 900
            frame = np.where(is_disc[..., None], (210, 60, 40), frame).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


class Files(VideoSource):
    """The videos of a folder, for every split."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.mp4"))

    @property
    def class_names(self) -> list[str]:
        """Two classes."""
        return ["a", "b"]

    def records(self, split: str) -> list[VideoRecord]:
        """Return all videos; one for validation."""
        records = [VideoRecord(str(path), "ab"[number % 2]) for number, path in enumerate(self.paths)]
        return records[:1] if split == "val" else records


class PlainDecord(Dataset[torch.Tensor]):
    """Reads clips as decord's documentation shows: built-in scaling, random access; and crops them at random."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.mp4"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        reader = decord.VideoReader(str(self.paths[index]), width=170, height=128, num_threads=1)
        start = random.randrange(len(reader) - 62)
        frames = torch.from_numpy(reader.get_batch(range(start, start + 63, 2)).asnumpy())  # (T, H, W, 3)
        y, x = random.randrange(17), random.randrange(59)
        return frames[:, y : y + 112, x : x + 112].permute(3, 0, 1, 2).contiguous()


class DecodeAView(Dataset[torch.Tensor]):
    """The views of 10 clips x 3 crops, each of which opens and decodes the video for itself."""

    def __init__(self, data: VideoDataModule) -> None:
        self.videos = data.datasets["test"]
        self.num_clips = 10

    def __len__(self) -> int:
        return len(self.videos) * 30

    def __getitem__(self, view: int) -> torch.Tensor:
        video, clip, crop = view // 30, view // 3 % 10, view % 3
        with self.videos.reader.open(self.videos.records[video].path) as opened:
            indices = self.videos.sampler(opened.num_frames, opened.fps)[clip]
            return self.videos.transform(opened.frames(indices))[crop].transpose(0, 1).contiguous()


def module(folder: Path, workers: int, **options: Any) -> VideoDataModule:
    """Return the data module with the settings of the comparison."""
    data = VideoDataModule(Files(folder), clip_length=32, stride=2, batch_size=8, num_workers=workers, **options)
    data.setup("test" if "test_protocol" in options else "fit")
    return data


def endless(loader: Iterable[Any]) -> Iterable[Any]:
    """Yield the batches of one epoch after another."""
    epoch = 0
    while True:
        if hasattr(getattr(loader, "sampler", None), "set_epoch"):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader
        epoch += 1


def clips_a_second(batches: Any, num_batches: int, clips: Callable[[Any], int]) -> float:
    """Return the rate over some batches, after those that were read ahead while other ways had their turn."""
    for _ in range(4):
        next(batches)
    start = time.perf_counter()
    num_clips = sum(clips(batch) for batch in islice(batches, num_batches))
    return num_clips / (time.perf_counter() - start)


def ours(batch: Any) -> int:
    """Return the clips of a batch of the package."""
    return batch["clip"].shape[0] * batch["clip"].shape[1]


def compare(folder: Path, seconds: int, num_videos: int, rounds: int, workers: int) -> list[tuple[str, list[float]]]:
    """Return the ratios of every comparison, one a round."""
    originals = folder / f"{seconds}s"
    originals.mkdir()
    for number in range(num_videos):
        draw(originals / f"{number:03}.mp4", seconds, number)
    prepare(str(originals), out=str(folder / f"prepared_{seconds}s"))
    views = module(originals, workers, test_protocol="10_clips_3_crops")
    cached = endless(module(originals, workers, cache="ram").train_dataloader())
    for _ in range(num_videos // 8 + 1):
        next(cached)  # every video is decoded once
    options = {"batch_size": 8, "num_workers": workers, "persistent_workers": workers > 0}
    plain = DataLoader(PlainDecord(originals), shuffle=True, **options)
    loaders: dict[str, tuple[Any, int, Callable[[Any], int]]] = {
        "plain": (endless(plain), 8, len),
        "default loader": (endless(module(originals, workers).train_dataloader()), 8, ours),
        "prepared": (endless(module(folder / f"prepared_{seconds}s", workers).train_dataloader()), 20, ours),
        "cache": (cached, 60, ours),
        "two clips": (endless(module(originals, workers, clips_per_video=2).train_dataloader()), 8, ours),
        "views together": (endless(views.test_dataloader()), 6, ours),
        "views one by one": (endless(DataLoader(DecodeAView(views), **options)), 8, len),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds):
        for name, (batches, num_batches, clips) in loaders.items():
            rates[name].append(clips_a_second(batches, num_batches, clips))
    pairs = [
        ("default loader", "default loader", "plain"),
        ("default loader, prepared files", "prepared", "plain"),
        ("cache: ram", "cache", "plain"),
        ("clips_per_video: 2, against 1", "two clips", "default loader"),
        ("10 clips x 3 crops, against a decode a view", "views together", "views one by one"),
    ]
    return [(what, [a / b for a, b in zip(rates[x], rates[y], strict=True)]) for what, x, y in pairs]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, nargs="+", default=[4, 10], help="lengths of the videos")
    parser.add_argument("--videos", type=int, default=32, help="videos of each length")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, in which every way runs in turn")
    parser.add_argument("--workers", type=int, default=1, help="reading processes")
    given = parser.parse_args()
    random.seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = {s: dict(compare(Path(folder), s, given.videos, given.rounds, given.workers)) for s in given.seconds}
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "av", "decord"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}")
    print(f"reading processes: {given.workers}")
    print("Median of the ratios of clips a second (lowest to highest):\n")
    print("| way | " + " | ".join(f"{s} s | aim" for s in given.seconds) + " |")
    print("|---|" + "---|---|" * len(given.seconds))
    for what, aims in AIMS.items():
        cells = []
        for s in given.seconds:
            ratios = results[s][what]
            cells += [f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", f"{aims.get(s, '')}"]
        print(f"| {what} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
