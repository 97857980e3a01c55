"""Keeps the decoded frames of videos in memory that all reading processes share."""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os

import numpy as np
import torch
from torch import Tensor

from cnnbert.errors import InputError

logger = logging.getLogger("cnnbert")

GIB = 2**30


class FrameCache:
    """Decoded frames of videos, shared by the processes that are forked after it was made.

    Args:
        num_videos: Videos that may be kept, by number.
        num_gib: The most memory that their frames may take, in GiB, above 0. It is taken as videos come in.

    Raises:
        InputError: `num_gib` is not above 0, or more than the machine has free.
    """

    def __init__(self, num_videos: int, num_gib: float) -> None:
        check_budget(num_gib)
        # Anonymous, since files for sharing are limited to 64 MB in most containers.
        self._memory = mmap.mmap(-1, int(num_gib * GIB))
        self._frames = torch.frombuffer(self._memory, dtype=torch.uint8)
        # First byte, frames, height, width, the bits of the rate, and channels; frames are 0 until all else is there.
        self._facts = np.frombuffer(mmap.mmap(-1, max(num_videos, 1) * 6 * 8), np.int64).reshape(-1, 6)
        self._used = np.frombuffer(mmap.mmap(-1, 16), np.int64)
        self._lock = multiprocessing.get_context("fork").Lock()

    def get(self, video: int) -> tuple[Tensor, float] | None:
        """Return a video's frames, uint8 (N, C, H, W), and its rate, or None if they are not kept."""
        first, num_frames, height, width, rate, channels = self._facts[video].tolist()
        if not num_frames:
            return None
        flat = self._frames[first : first + num_frames * height * width * channels]
        kept = flat.view(num_frames, height, width, channels).permute(0, 3, 1, 2)
        return kept, float(np.int64(rate).view(np.float64))

    def reserve(self, num_bytes: int) -> int | None:
        """Return where so many bytes may lie, or None if there is no room."""
        with self._lock:
            first = int(self._used[0])
            if first + num_bytes <= len(self._frames):
                self._used[0] = first + num_bytes
                return first
            if not self.is_full:
                self._used[1] = True
                logger.warning(
                    "the cache is full after %d of %d videos, the others are decoded every time; raise cache_gib",
                    len(self),
                    len(self._facts),
                )
            return None

    @property
    def is_full(self) -> bool:
        """Whether a video has found no room."""
        return bool(self._used[1])

    def put(self, video: int, first: int, frames: Tensor, fps: float) -> None:
        """Keep a video.

        Args:
            video: Its number.
            first: What `reserve` gave for its size.
            frames: uint8 (N, C, H, W).
            fps: Its rate.
        """
        num_frames, channels, height, width = frames.shape
        kept = self._frames[first : first + frames.numel()].view(num_frames, height, width, channels)
        kept.copy_(frames.permute(0, 2, 3, 1))
        facts = self._facts[video]
        facts[0], facts[2:] = first, (height, width, np.float64(fps).view(np.int64), channels)
        facts[1] = num_frames

    def __len__(self) -> int:
        """Return how many videos are kept."""
        return int((self._facts[:, 1] > 0).sum())


def default_budget(num_devices: int) -> float:
    """Return what a cache may take, in GiB, where nothing else is said: half of the free memory, 8 GiB at most.

    Args:
        num_devices: Devices of this machine that have a cache each.
    """
    return min(8.0, _free_bytes() / GIB / 2 / num_devices)


def check_budget(num_gib: float) -> None:
    """Refuse a budget that is none.

    Raises:
        InputError: `num_gib` is not above 0, or more than the machine has free.
    """
    free = _free_bytes()
    if not 0 < num_gib * GIB <= free:
        raise InputError(
            f"cache_gib={num_gib:g} must be above 0 and at most the memory that is free, {free / GIB:.1f} GiB"
        )


def _free_bytes() -> int:
    """Return the memory that processes may still take, where the machine tells; else all that a pointer reaches."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**62
