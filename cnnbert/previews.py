"""Makes small copies of videos, for looking at them in a browser."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from cnnbert.data.dataset import piece
from cnnbert.data.readers import VideoReader
from cnnbert.data.records import VideoRecord

SECONDS = 4.0
SHORT_SIDE = 128
MOST_FPS = 20.0
MOST_BYTES = 2**27
"""Frames that are read together take at most so many bytes."""


def write_preview(target: Path, record: VideoRecord, reader: VideoReader) -> None:
    """Write the middle of a record's piece of video as a small MP4 file without sound, which browsers play.

    It has at most 4 seconds and 20 frames a second; its short side has at most 128 pixels.

    Args:
        target: The file.
        record: The piece of video.
        reader: Opens its file.

    Raises:
        VideoReadError: The video cannot be read.
        OSError: The target cannot be written.
    """
    with reader.open(record.path) as video, av.open(f"file:{target}", "w", format="mp4") as container:
        first, last = piece(record, video)
        step = math.ceil(video.fps / MOST_FPS)
        num_frames = min(last - first, max(1, round(SECONDS * video.fps)))
        first += (last - first - num_frames) // 2
        wanted = range(first, first + num_frames, step)
        rate = Fraction(video.fps / step).limit_denominator(1000)
        stream = container.add_stream("libx264", rate, options={"crf": "28"})
        stream.pix_fmt = "yuv420p"
        start, at_once = 0, 1
        while start < len(wanted):
            frames = video.frames(wanted[start : start + at_once])  # (N, 3, H, W)
            if start == 0:
                stream.height, stream.width = _small(*frames.shape[-2:])
            start, at_once = start + at_once, max(1, MOST_BYTES // frames[0].numel())
            small = F.resize(frames, [stream.height, stream.width], antialias=True)
            for picture in small.permute(0, 2, 3, 1).contiguous().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def _small(height: int, width: int) -> tuple[int, int]:
    """Return the size of a preview: even, since H.264 has the colours at half the resolution."""
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)
