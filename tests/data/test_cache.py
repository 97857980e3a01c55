"""Frames kept in memory are the same for every process, and within the budget."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from barcode import write_barcodes

from cnnbert.data.cache import GIB, FrameCache, default_budget
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.sources import Folder
from cnnbert.errors import InputError


def frames(number: int, num_frames: int = 4) -> torch.Tensor:
    return torch.full((num_frames, 3, 8, 10), number, dtype=torch.uint8)


def test_what_is_put_comes_back() -> None:
    cache = FrameCache(3, 10_000 / GIB)
    assert cache.get(1) is None
    clip = torch.randint(256, (4, 3, 8, 10), dtype=torch.uint8)
    place = cache.reserve(clip.numel())
    assert place is not None
    cache.put(1, place, clip, 23.976)
    kept = cache.get(1)
    assert kept is not None and torch.equal(kept[0], clip) and kept[1] == 23.976
    assert cache.get(0) is None and len(cache) == 1 and not cache.is_full


def test_the_budget_holds_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    cache = FrameCache(5, 2000 / GIB)  # of 960 bytes each
    with caplog.at_level(logging.WARNING, "cnnbert"):
        for video in range(5):
            place = cache.reserve(frames(video).numel())
            if place is not None:
                cache.put(video, place, frames(video), 25.0)
    assert len(cache) == 2 and cache.is_full
    assert [record.getMessage() for record in caplog.records] == [
        "the cache is full after 2 of 5 videos, the others are decoded every time; raise cache_gib"
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_another_process_sees_it() -> None:
    cache = FrameCache(2, 10_000 / GIB)
    child = os.fork()
    if not child:
        cache.put(1, cache.reserve(960) or 0, frames(7), 25.0)
        os._exit(0)
    os.waitpid(child, 0)
    kept = cache.get(1)
    assert kept is not None and torch.equal(kept[0], frames(7))


@pytest.mark.parametrize("num_gib", [0, -1, 1e9])
def test_a_budget_must_be_there(num_gib: float) -> None:
    with pytest.raises(InputError, match=r"cache_gib=.* must be above 0 and at most the memory that is free"):
        FrameCache(1, num_gib)


@pytest.mark.parametrize(("free_gib", "num_devices", "budget"), [(64, 1, 8), (6, 1, 3), (24, 4, 3), (256, 8, 8)])
def test_it_leaves_half_of_the_free_memory_by_default(
    monkeypatch: pytest.MonkeyPatch, free_gib: int, num_devices: int, budget: float
) -> None:
    monkeypatch.setattr("cnnbert.data.cache._free_bytes", lambda: free_gib * GIB)
    assert default_budget(num_devices) == budget


def test_small_machines_keep_what_they_can(videos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbert.data.cache._free_bytes", lambda: GIB)
    data = VideoDataModule(Folder(videos), cache="ram")
    data.setup("fit")
    caches = [data.datasets[split].cache for split in ("train", "val")]
    assert all(cache is not None for cache in caches)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("videos")
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(5):
            write_barcodes(root / name / f"{number}.mp4", size=(64, 80), num_frames=30 + number, b_frames=2)
    (root / "b" / "short.mp4").write_bytes(write_barcodes(root / "short.mp4", num_frames=5).read_bytes())
    (root / "short.mp4").unlink()
    return str(root)


def batches(videos: str, epochs: int = 2, **options: object) -> list[torch.Tensor]:
    """Return the training and validation clips of some epochs."""
    data = VideoDataModule(
        Folder(videos), clip_length=8, stride=2, frame_size=32, resize=(36, 40), batch_size=2, seed=3, **options
    )
    data.setup("fit")
    loader = data.train_dataloader()
    clips = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        clips += [batch["clip"] for batch in loader]
    return clips + [batch["clip"] for batch in data.val_dataloader()]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cache_gib", [0.1, 4e-4])  # room for all, and for some
def test_clips_are_the_same_with_and_without(videos: str, num_workers: int, cache_gib: float) -> None:
    plain = batches(videos, num_workers=0)
    kept = batches(videos, num_workers=num_workers, cache="ram", cache_gib=cache_gib)
    assert len(plain) == len(kept)
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))


def test_every_video_is_opened_once(videos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    data = VideoDataModule(Folder(videos), clip_length=8, frame_size=32, resize=(36, 40), cache="ram", num_workers=0)
    data.setup("fit")
    reader_open = data.reader.open
    monkeypatch.setattr(data.reader, "open", lambda path: opened.append(Path(path)) or reader_open(path))
    for _ in range(3):
        list(data.train_dataloader())
        list(data.val_dataloader())
    assert len(opened) == len(set(opened)) == len(data.datasets["train"]) + len(data.datasets["val"])


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cache='disk' must be ram or null"):
        VideoDataModule(cache="disk")  # type: ignore[arg-type]
    monkeypatch.delattr(os, "fork")
    with pytest.raises(InputError, match="cache=ram needs processes that share memory by forking"):
        VideoDataModule(cache="ram")
