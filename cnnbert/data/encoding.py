"""Encodes videos anew, so that they are quick to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from cnnbert.data.readers import PyAVReader
from cnnbert.errors import InputError, VideoReadError

# FFmpeg's names; the faster, the larger the file.
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


@dataclass(frozen=True)
class Encoding:
    """How videos are encoded: H.264 in MP4, without sound.

    Args:
        short_side: Height or width, whichever is less, in pixels; smaller videos are not enlarged.
        gop: Frames from one key frame to the next, of which each can be decoded without those before.
        crf: x264's constant rate factor, in [0, 51]: the higher, the smaller and the worse.
        preset: x264's preset: the slower, the smaller.

    Raises:
        InputError: A setting is out of its range.
    """

    short_side: int = 128
    gop: int = 16
    crf: int = 20
    preset: str = "medium"

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise InputError(f"short_side={self.short_side} must be an even number of pixels, at least 16")
        if self.gop < 1:
            raise InputError(f"gop={self.gop} must be at least 1")
        if not 0 <= self.crf <= 51:
            raise InputError(f"crf={self.crf} must be in [0, 51]")
        if self.preset not in PRESETS:
            raise InputError(f"preset={self.preset!r} is not one of {', '.join(PRESETS)}")

    @property
    def options(self) -> dict[str, str]:
        """The encoder's settings. The same frames give the same bytes: mbtree does not, at some widths."""
        fixed = f"keyint={self.gop}:min-keyint={self.gop}:scenecut=0:open-gop=0:mbtree=0:threads=1"
        return {"crf": str(self.crf), "preset": self.preset, "tune": "fastdecode", "x264-params": fixed}


def encode(source: str, target: Path, encoding: Encoding, comment: str = "", piece: slice = slice(None)) -> int:
    """Write a video, or a piece of it, anew, and return its number of frames.

    Every frame is kept, in its order and upright, with square pixels; they follow one another at the rate that readers
    give for the source, the average where it varies. The file is there whole or not at all.

    Args:
        source: The video.
        target: The file to write, an MP4 file; its folder exists.
        encoding: How.
        comment: Stands in the file's metadata.
        piece: The first frame and the first after the last; all by default.

    Raises:
        VideoReadError: The source cannot be read to its end without damage.
        OSError: The target cannot be written.
    """
    with PyAVReader(read_timeout_seconds=float("inf")).open(source) as video:
        num_frames = len(range(*piece.indices(video.num_frames)))
        rate = Fraction(video.fps).limit_denominator(100_000)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        try:
            num_written = _write(source, part, rate, encoding, comment, piece)
        except av.FFmpegError as error:  # from writing, as reading raises VideoReadError
            raise OSError(error.errno, error.strerror, str(target)) from error
        if num_written != num_frames:
            raise VideoReadError(source, f"it has {num_frames} frames, of which {num_written} could be encoded")
        num_read = _count(part)
        if num_read != num_frames:
            raise VideoReadError(source, f"it has {num_frames} frames, but its copy {num_read}")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return num_frames


def comment_of(path: Path) -> str:
    """Return the comment in a video's metadata; "" where there is none, or no video."""
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            return str(container.metadata.get("comment", ""))
    except (av.FFmpegError, OSError):
        return ""


def _write(source: str, part: Path, rate: Fraction, encoding: Encoding, comment: str, piece: slice) -> int:
    flags = {"movflags": "+faststart", "fflags": "+bitexact"}
    number = 0
    # "file:" keeps a name such as "a:b.mp4" from being taken for a protocol.
    with av.open(f"file:{part}", "w", format="mp4", container_options=flags) as container:
        container.metadata["comment"] = comment
        stream: Any = None
        for frame in _frames(source, encoding, piece):
            if stream is None:
                stream = container.add_stream("libx264", rate, options=encoding.options)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                stream.codec_context.gop_size = encoding.gop
                stream.codec_context.flags |= av.codec.context.Flags.bitexact
            if (frame.width, frame.height) != (stream.width, stream.height):
                raise VideoReadError(source, "its frames have different sizes")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
            number += 1
        if stream is not None:
            container.mux(stream.encode())
    with part.open("rb") as written:
        os.fsync(written.fileno())
    return number


def _frames(source: str, encoding: Encoding, piece: slice) -> Iterator[Any]:
    """Yield the frames of a video in order: upright, with square pixels, in their new size."""
    convert = VideoReformatter()
    try:
        with av.open(f"file:{source}", metadata_errors="replace") as container:
            stream: Any = container.streams.best("video")
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(stream)):
                if piece.stop is not None and number >= piece.stop:
                    return
                if frame.is_corrupt:
                    raise VideoReadError(source, f"frame {number} is damaged")
                if number >= (piece.start or 0):
                    yield _scaled(frame, float(stream.sample_aspect_ratio or 1), encoding.short_side, convert)
    except av.FFmpegError as error:
        raise VideoReadError(source, error.strerror or str(error)) from error


def _scaled(frame: Any, aspect: float, short_side: int, convert: VideoReformatter) -> Any:
    width = frame.width * aspect
    scale = min(1.0, short_side / min(width, frame.height))
    # H.264 with colours at half the resolution has even sides.
    new_width, new_height = (max(2, 2 * round(side * scale / 2)) for side in (width, frame.height))
    turns = round(frame.rotation / 90) % 4
    kind = "rgb24" if turns else "yuv420p"
    scaled = convert.reformat(frame, new_width, new_height, kind, interpolation="AREA", threads=1)
    if not turns:
        return scaled
    turned = np.ascontiguousarray(np.rot90(scaled.to_ndarray(), turns), np.uint8)
    return av.VideoFrame.from_ndarray(turned, "rgb24").reformat(format="yuv420p", threads=1)


def _count(path: Path) -> int:
    """Return the frames of a video by decoding it."""
    with av.open(f"file:{path}") as container:
        return sum(not frame.is_corrupt for frame in container.decode(video=0))
