"""Encodes videos anew, so that they are quick to read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, VideoReformatter

from cnnbert.data.pyav_video import open_file
from cnnbert.data.readers import PyAVReader
from cnnbert.errors import InputError, VideoReadError

# FFmpeg's names; the faster, the larger the file.
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")

# Flags of FFmpeg (libswscale/swscale.h), by number since PyAV 17 has no names for the last three.
AREA, FULL_CHR_H_INT, FULL_CHR_H_INP, ACCURATE_RND = 0x20, 0x2000, 0x4000, 0x40000
# Rounded so that the way from YUV to RGB and back leaves the brightness as it was.
TO_RGB = AREA | ACCURATE_RND | FULL_CHR_H_INT
FROM_RGB = AREA | ACCURATE_RND | FULL_CHR_H_INP


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


def encode(
    source: str,
    pieces: Mapping[Path, slice],
    encoding: Encoding,
    comment: str = "",
    draw: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> None:
    """Write pieces of a video, or all of it, anew, decoding it once.

    Every frame is kept, in its order and upright, with square pixels; they follow one another at the rate that readers
    give for the source, the average where it varies. Files are there whole or not at all.

    Args:
        source: The video.
        pieces: The files to write, MP4 files in folders that exist, and for each the first frame and the first after
            the last; slice(None) is all.
        encoding: How.
        comment: Stands in the files' metadata.
        draw: Changes frames: called with each frame's number and pixels, uint8 (H, W, 3), RGB, it returns such pixels.

    Raises:
        VideoReadError: The source cannot be read without damage as far as is needed.
        OSError: A target cannot be written.
    """
    with PyAVReader(read_timeout_seconds=float("inf")).open(source) as video:
        rate = Fraction(video.fps).limit_denominator(100_000)
        wanted = {target: range(*piece.indices(video.num_frames)) for target, piece in pieces.items()}
    writers = [_Writer(target, frames, rate, encoding, comment) for target, frames in wanted.items()]
    try:
        last = max(writer.wanted.stop for writer in writers)
        for number, frame in enumerate(pictures(source, encoding.short_side, last)):
            if draw is not None:
                frame = av.VideoFrame.from_ndarray(draw(number, frame.to_ndarray(format="rgb24")), "rgb24")
            for writer in writers:
                if number in writer.wanted:
                    writer.add(frame, source)
        for writer in writers:
            writer.finish(source)
    except av.FFmpegError as error:  # from writing, as reading raises VideoReadError
        raise OSError(error.errno, error.strerror, str(writers[0].target)) from error
    finally:
        for writer in writers:
            writer.part.unlink(missing_ok=True)


def encode_frames(target: Path, frames: Sequence[np.ndarray], fps: float, encoding: Encoding) -> None:
    """Write frames as a video, there whole or not at all.

    Args:
        target: The file to write, an MP4 file.
        frames: uint8 (H, W, 3) each, RGB, all of one size with even sides.
        fps: Frames a second, above 0.
        encoding: How; its `short_side` does not count.

    Raises:
        OSError: The file cannot be written.
    """
    rate = Fraction(fps).limit_denominator(100_000)
    writer = _Writer(target, range(len(frames)), rate, encoding, "")
    try:
        for frame in frames:
            writer.add(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24"), str(target))
        writer.finish(str(target))
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        writer.part.unlink(missing_ok=True)


def encode_whole(encoding: Encoding, job: tuple[str, str, str]) -> None:
    """Write a whole video anew; `job` is the video, the file to write and its comment. See `encode`."""
    source, target, comment = job
    encode(source, {Path(target): slice(None)}, encoding, comment)


def encode_pieces(encoding: Encoding, job: tuple[str, Mapping[Path, slice]]) -> None:
    """Write pieces of a video anew; `job` is the video and the pieces. See `encode`."""
    source, pieces = job
    encode(source, pieces, encoding)


def remove_parts(folder: Path) -> None:
    """Remove the unfinished files in a folder, and in those below it, of processes that are no more."""
    for part in (*folder.rglob("*.mp4.*.part"), *folder.rglob("*.mkv.*.part")):
        try:
            os.kill(int(part.suffixes[-2][1:]), 0)
        except (ProcessLookupError, ValueError):
            part.unlink(missing_ok=True)


def comment_of(path: Path) -> str:
    """Return the comment in a video's metadata; "" where there is none, or no video."""
    try:
        with open_file(path) as container:
            return str(container.metadata.get("comment", ""))
    except (av.FFmpegError, OSError):
        return ""


class _Writer:
    """Writes one file, beside its place until it is whole."""

    def __init__(self, target: Path, wanted: range, rate: Fraction, encoding: Encoding, comment: str) -> None:
        self.target = target
        stem = os.fsdecode(os.fsencode(target.stem)[:200])  # file systems take names of 255 bytes
        self.part = target.with_name(f"{stem}{target.suffix}.{os.getpid()}.part")
        self.wanted = wanted
        self.rate = rate
        self.encoding = encoding
        self.comment = comment
        self.num_written = 0
        self._convert = VideoReformatter()
        self._container: Any = None
        self._stream: Any = None

    def add(self, frame: Any, source: str) -> None:
        """Write the next frame, and after the last close the file."""
        frame = self._convert.reformat(frame, format="yuv420p", interpolation=FROM_RGB, threads=1)
        if self._container is None:
            self._open(frame)
        if (frame.width, frame.height) != (self._stream.width, self._stream.height):
            raise VideoReadError(source, "its frames have different sizes")
        frame.pts, frame.time_base = self.num_written, 1 / self.rate
        frame.pict_type = PictureType.NONE  # else the original's key frames become key frames
        self._container.mux(self._stream.encode(frame))
        self.num_written += 1
        if self.num_written == len(self.wanted):
            self._container.mux(self._stream.encode())
            self._container.close()
            with self.part.open("rb") as written:
                os.fsync(written.fileno())
            self._container = self._stream = None  # an encoder takes many megabytes

    def finish(self, source: str) -> None:
        """Count the frames of the file by decoding it, and put it in its place."""
        if self.num_written != len(self.wanted):
            raise VideoReadError(
                source, f"only {self.num_written} of the {len(self.wanted)} frames wanted of it can be decoded"
            )
        with av.open(f"file:{self.part}") as container:
            num_read = sum(not frame.is_corrupt for frame in container.decode(video=0))
        if num_read != self.num_written:
            raise VideoReadError(source, f"of its {self.num_written} frames a copy has {num_read}")
        os.replace(self.part, self.target)

    def _open(self, frame: Any) -> None:
        flags = {"movflags": "+faststart", "fflags": "+bitexact"}
        self._container = av.open(f"file:{self.part}", "w", format="mp4", container_options=flags)
        self._container.metadata["comment"] = self.comment
        self._stream = self._container.add_stream("libx264", self.rate, options=self.encoding.options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = frame.width, frame.height, "yuv420p"
        codec = self._stream.codec_context
        codec.gop_size = self.encoding.gop
        codec.flags |= av.codec.context.Flags.bitexact
        codec.colorspace, codec.color_range = frame.colorspace, frame.color_range


def pictures(path: str, short_side: int, end: int | None = None) -> Iterator[av.VideoFrame]:
    """Yield the first frames of a video in order, in yuv420p or rgb24: upright, with square pixels and even sides.

    Args:
        path: The video.
        short_side: Height or width, whichever is less, in pixels; smaller videos are not enlarged.
        end: How many frames; None for all.

    Raises:
        VideoReadError: A frame cannot be decoded, or only with damage.
    """
    convert = VideoReformatter()
    number = 0
    try:
        with open_file(path) as container:
            stream: Any = container.streams.best("video")
            stream.codec_context.thread_count = 1
            aspect = float(stream.sample_aspect_ratio or 1)
            for frame in islice(container.decode(stream), end):
                if frame.is_corrupt:
                    raise VideoReadError(path, f"frame {number} is damaged")
                yield _scaled(frame, aspect, short_side, convert)
                number += 1
    except av.FFmpegError as error:
        raise VideoReadError(path, f"frame {number} cannot be decoded ({error.strerror or error})") from error


def _scaled(frame: Any, aspect: float, short_side: int, convert: VideoReformatter) -> Any:
    width = frame.width * aspect
    scale = min(1.0, short_side / min(width, frame.height))
    # H.264 with colours at half the resolution has even sides.
    new_width, new_height = (max(2, round(side * scale) // 2 * 2) for side in (width, frame.height))
    turns = round(frame.rotation / 90) % 4
    if frame.format.name == "yuv420p" and frame.color_range != ColorRange.JPEG and not turns:
        return convert.reformat(frame, new_width, new_height, interpolation=AREA, threads=1)
    # Through RGB, as readers know every kind of YUV, and without the marks that say which it was.
    scaled = convert.reformat(frame, new_width, new_height, "rgb24", interpolation=TO_RGB, threads=1)
    turned = np.ascontiguousarray(np.rot90(scaled.to_ndarray(), turns), np.uint8)
    return av.VideoFrame.from_ndarray(turned, "rgb24")
