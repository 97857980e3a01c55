"""Makes small copies of videos, for looking at them in a browser."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from cnnbert.clip_pictures import pictures
from cnnbert.data.dataset import piece
from cnnbert.data.encoding import Encoding, encode_frames
from cnnbert.data.readers import PyAVReader, VideoReader
from cnnbert.data.records import VideoRecord
from cnnbert.errors import VideoReadError
from cnnbert.pages import data_uri

SECONDS, MOST_FPS, SHORT_SIDE = 3.0, 12.0, 128
TIMEOUT_SECONDS = 30.0
AT_ONCE = 8
"""Frames that are read together: at their full size some take a gigabyte."""


def write_preview(target: Path, record: VideoRecord, reader: VideoReader) -> None:
    """Write the middle of a record's piece of video as a small MP4 file without sound, which browsers play.

    It has at most 3 seconds, 12 frames a second and 128 pixels of short side.

    Args:
        target: The file.
        record: The piece of video.
        reader: Opens its file.

    Raises:
        VideoReadError: The video cannot be read.
        OSError: The target cannot be written.
    """
    small: list[np.ndarray] = []
    with reader.open(record.path) as video:
        first, end = piece(record, video)
        step = max(1, round(video.fps / MOST_FPS))
        num_frames = min(end - first, max(1, round(SECONDS * video.fps)))
        first += (end - first - num_frames) // 2
        wanted = range(first, first + num_frames, step)
        for place in range(0, len(wanted), AT_ONCE):
            frames = pictures(video.frames(wanted[place : place + AT_ONCE]))  # (N, 3, H, W)
            resized = F.resize(frames, _small(*frames.shape[-2:]), antialias=True)
            small += list(resized.permute(0, 2, 3, 1).numpy())
    encode_frames(target, small, video.fps / step, Encoding(crf=30, gop=250))


def preview(record: VideoRecord) -> str:
    """Return a preview, as `write_preview` makes it, as a data URI.

    Raises:
        VideoReadError: The video cannot be read, or not within 30 seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "preview.mp4")
        try:
            write_preview(target, record, PyAVReader(read_timeout_seconds=TIMEOUT_SECONDS))
        except OSError as error:
            raise VideoReadError(record.path, f"no preview can be made of it ({error.strerror or error})") from error
        return data_uri(target.read_bytes(), "video/mp4")


def _small(height: int, width: int) -> list[int]:
    """Return the size of a preview: even, since H.264 has the colours at half the resolution."""
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return [max(2, round(side * scale / 2) * 2) for side in (height, width)]
