"""Reads frames out of video files: exactly the frames asked for, or an error."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache, partial
from types import ModuleType, TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from cnnbert.data.deadline import check_timeout, within
from cnnbert.data.starts import MATROSKA, MP4, Start, Starts, plan
from cnnbert.errors import InputError, VideoReadError

logger = logging.getLogger("cnnbert")

AVI, FLV, ASF = "avi", "flv", "asf"

# Where every packet holds one shown frame, so that counting packets counts frames. Elsewhere packets may hold
# half a frame (fields), none (AVI with B-frames, VP8's hidden frames) or one that is never shown (at the
# beginning of a transport stream).
PACKET_IS_FRAME = {
    (container, codec) for container in (MP4, MATROSKA) for codec in ("h264", "hevc", "vp9", "av1", "mjpeg")
}

# Where decord, read in order, gives what today's FFmpeg gives. Not so in MPEG program and transport streams,
# where it starts late, and for other pixel formats and odd sizes, which its old FFmpeg converts otherwise.
DECORD_CONTAINERS = {MP4, MATROSKA, AVI, FLV, ASF}
DECORD_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}

# Two decoders' frames are the same if no value in [0, 255] differs by more: FFmpeg's versions round unlike.
ROUNDING = 2


class Video(ABC):
    """An open video; a context manager.

    Attributes:
        num_frames: Frames that can be asked for, at least 1.
        fps: Frames a second, above 0; the average where the rate varies, 25 where the file does not tell.
    """

    num_frames: int
    fps: float

    @abstractmethod
    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return frames by their places in the order of showing.

        Args:
            indices: (N,), in [0, num_frames), in any order, repeats allowed.

        Returns:
            uint8 (N, 3, H, W), RGB, the right way up. Pixels are those stored, also where the file says that they
            are not square: stretching is left to the transforms, which resize anyway.

        Raises:
            IndexError: An index is outside [0, num_frames).
            VideoReadError: A frame cannot be decoded, or only with damage, or not in time.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the video holds."""

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VideoReader(ABC):
    """Opens video files. Holds no file and no state of the process, so that it can be sent to workers."""

    @abstractmethod
    def open(self, path: str) -> Video:
        """Open a video file.

        Args:
            path: The file.

        Raises:
            VideoReadError: The file is missing, or no video, or its first frame cannot be decoded.
        """


class PyAVReader(VideoReader):
    """Reads videos with PyAV (FFmpeg): every kind of file, and exactly.

    Where a file's packets show that decoding can start at a key frame, in most MP4 and MKV files and some WebM files,
    frames are decoded from the last such key frame before each; elsewhere from the first frame on.

    Args:
        num_threads: Threads that decode a video; 1 suits loading with several workers.
        read_timeout_seconds: Opening a file, or reading frames from it, is given up with a `VideoReadError` after so
            long; above 0.

    Raises:
        InputError: `num_threads` is below 1, or `read_timeout_seconds` not above 0.
    """

    def __init__(self, num_threads: int = 1, read_timeout_seconds: float = 60.0) -> None:
        _check_threads(num_threads)
        check_timeout(read_timeout_seconds)
        self.num_threads = num_threads
        self.read_timeout_seconds = read_timeout_seconds

    def open(self, path: str) -> Video:
        """Open a video file; see `VideoReader.open`."""
        return PyAVVideo(path, self.num_threads, self.read_timeout_seconds)


class DecordReader(VideoReader):
    """Reads videos with decord, from the first frame on, and with PyAV what decord gets wrong.

    decord's seeking returns other frames than those asked for in many files (dmlc/decord#195, #252, #365), so nothing
    is sought with it: PyAV reads where starting at a later key frame is known to be right, and those files that decord
    gets wrong. Without decord PyAV reads everything. Damage within a picture that decoders patch up goes unnoticed in
    MP4 and Matroska files; `PyAVReader` notices it.

    Args:
        num_threads: Threads that decode a video; 1 suits loading with several workers.
        read_timeout_seconds: Opening a file, or reading frames from it, is given up with a `VideoReadError` after so
            long; above 0.

    Raises:
        InputError: `num_threads` is below 1, or `read_timeout_seconds` not above 0.
    """

    def __init__(self, num_threads: int = 1, read_timeout_seconds: float = 60.0) -> None:
        _check_threads(num_threads)
        check_timeout(read_timeout_seconds)
        self.num_threads = num_threads
        self.read_timeout_seconds = read_timeout_seconds

    def open(self, path: str) -> Video:
        """Open a video file; see `VideoReader.open`."""
        video = PyAVVideo(path, self.num_threads, self.read_timeout_seconds)
        decord = _import_decord()
        return video if decord is None or not video.suits_decord else DecordVideo(video, decord)


class PyAVVideo(Video):
    """A video decoded by PyAV.

    Opening decodes the first frame and counts frames: by packets where each holds one, by decoding elsewhere.

    Args:
        path: The file.
        num_threads: Threads that decode it.
        read_timeout_seconds: The longest that opening and each reading may take.

    Attributes:
        path: The file.
        num_threads: Threads that decode it.
        read_timeout_seconds: The longest that each reading may take.
        first: The first frame, uint8 (H, W, 3), RGB, the right way up.
        starts: Where decoding can start besides the beginning, in the order of showing.
        suits_decord: Whether decord is known to decode such files rightly in order.

    Raises:
        VideoReadError: The file is missing, or no video, or its first frame cannot be decoded, or not in time.
    """

    def __init__(self, path: str, num_threads: int = 1, read_timeout_seconds: float = 60.0) -> None:
        self.path = path
        self.num_threads = num_threads
        self.read_timeout_seconds = read_timeout_seconds
        if not os.path.exists(path):
            raise VideoReadError(path, "there is no such file")
        if not os.path.isfile(path):
            raise VideoReadError(path, "it is not a file")
        if os.path.getsize(path) == 0:
            raise VideoReadError(path, "the file is empty")
        try:
            within(read_timeout_seconds, path, self._look)
        except (av.FFmpegError, UnicodeError, MemoryError) as error:
            raise VideoReadError(path, f"FFmpeg finds no video in it ({_reason(error)})") from error

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return frames by their places in the order of showing; see `Video.frames`."""
        wanted, places = unique_frames(indices, self.num_frames)
        kept = within(self.read_timeout_seconds, self.path, partial(self.read, wanted))
        return torch.from_numpy(kept)[places].permute(0, 3, 1, 2)

    def close(self) -> None:
        """Do nothing: the file is open only while `frames` reads it."""

    def is_sought(self, wanted: list[int]) -> bool:
        """Return whether reading these frames, ascending, starts at a later frame than the first, or jumps."""
        return any(start for start, _ in plan(wanted, self.starts))

    def read(self, wanted: list[int]) -> np.ndarray:
        """Return frames, uint8 (N, H, W, 3), however long it takes.

        Args:
            wanted: Different frames in ascending order.

        Raises:
            VideoReadError: A frame cannot be decoded, or only with damage.
        """
        kept = np.empty((len(wanted), *self.first.shape), np.uint8)
        if self.is_sought(wanted):
            try:
                self._seek_and_read(wanted, kept)
                return kept
            except (av.FFmpegError, SeekError) as error:
                logger.debug("%s: read from its first frame, since seeking fails: %s", self.path, error)
        self._read_in_order(wanted, kept)
        return kept

    def _seek_and_read(self, wanted: list[int], kept: np.ndarray) -> None:
        """Fill in the wanted frames, each decoded from the last start before it and known by its time stamp."""
        to_rgb = VideoReformatter()
        num_kept = 0
        with self._container() as container:
            stream = self._stream(container)
            for start, group in plan(wanted, self.starts):
                for number, frame in enumerate(
                    self._decode_from(container, stream, start), start.number if start else 0
                ):
                    if frame.pts != self.pts[number] or frame.is_corrupt:
                        raise SeekError(f"frame {number} has the time stamp {frame.pts}, not {self.pts[number]}")
                    if number == wanted[num_kept]:
                        kept[num_kept] = self._pixels(frame, to_rgb)
                        num_kept += 1
                        if number == group[-1]:
                            break
                else:
                    raise SeekError(f"frame {wanted[num_kept]} is not reached")

    def _decode_from(self, container: Any, stream: Any, start: Start | None) -> Iterator[Any]:
        """Yield frames from a start on, in the order of showing."""
        if start is None:
            yield from container.decode(stream)
            return
        container.seek(start.seek, stream=stream)
        is_started = False
        for packet in container.demux(stream):
            is_started |= packet.pts == start.pts
            if is_started:
                # Frames that are shown before the start, and come after it, may be damaged.
                yield from (frame for frame in packet.decode() if frame.pts is None or frame.pts >= start.pts)
            elif packet.dts is None or packet.dts > start.pts:
                raise SeekError(f"frame {start.number} is not found")

    def _read_in_order(self, wanted: list[int], kept: np.ndarray) -> None:
        """Fill in the wanted frames, counted from the first."""
        num_kept = num_decoded = 0
        why = ""
        with self._container() as container:
            to_rgb = VideoReformatter()
            try:
                for frame in container.decode(self._stream(container)):
                    if num_kept == len(wanted):
                        break
                    if frame.is_corrupt:
                        why = f"; frame {num_decoded} is damaged"
                        break
                    if num_decoded == wanted[num_kept]:
                        kept[num_kept] = self._pixels(frame, to_rgb)
                        num_kept += 1
                    num_decoded += 1
            except av.FFmpegError as error:
                why = f"; {_reason(error)}"
        if num_kept < len(wanted):
            raise VideoReadError(
                self.path,
                f"only {num_decoded} of its {self.num_frames} frames can be decoded and "
                f"frame {wanted[num_kept]} was asked for{why}",
            )

    def _pixels(self, frame: Any, to_rgb: VideoReformatter) -> np.ndarray:
        pixels = _upright(frame, to_rgb)
        if pixels.shape != self.first.shape:
            sizes = " and ".join(f"{p.shape[1]}x{p.shape[0]}" for p in (self.first, pixels))
            raise VideoReadError(self.path, f"its frames have different sizes, {sizes}; re-encode it")
        return pixels

    def _container(self) -> Any:
        # "file:" keeps a name such as "a:b.mp4" from being taken for a protocol.
        return av.open(f"file:{self.path}", metadata_errors="replace")

    def _stream(self, container: Any) -> Any:
        stream = container.streams.best("video")
        if stream is None:
            raise VideoReadError(self.path, "there is no video in it, only sound or the like")
        stream.codec_context.thread_count = self.num_threads
        return stream

    def _look(self) -> None:
        """Set what is known of the video before frames are asked for."""
        with self._container() as container:
            is_complete = self._scan(container, False)
        if not is_complete:
            with self._container() as container:
                self._scan(container, True)

    def _scan(self, container: Any, must_decode: bool) -> bool:
        """Go through a file; return whether its frames are rightly counted, else it must be decoded for that."""
        stream = self._stream(container)
        codec = stream.codec_context
        kind = (container.format.name, codec.codec.canonical_name)
        starts = Starts(*kind, codec.extradata)
        num_packets = num_decoded = 0
        first_pts = None
        is_damaged = False
        is_counting_packets = kind in PACKET_IS_FRAME and not must_decode
        for packet in container.demux(stream):
            if packet.size:
                starts.add(packet)
            if packet.size and not packet.is_discard:
                num_packets += 1
                is_damaged |= packet.is_corrupt
                if num_packets == 1 and not packet.is_keyframe:
                    is_counting_packets = False
            if is_counting_packets and num_decoded:
                continue
            try:
                for frame in packet.decode():
                    if not num_decoded:
                        self.first = _upright(frame, VideoReformatter())
                        first_pts = frame.pts
                    num_decoded += 1
                    is_damaged |= frame.is_corrupt
            except av.FFmpegError:
                if not num_decoded:
                    raise
                # What follows the damage counts as the file claims; reading it tells how much can be decoded.
                is_damaged = is_counting_packets = True
        if not num_decoded:
            raise VideoReadError(self.path, "there is not one frame in it that can be decoded")
        self.num_frames = num_packets if is_counting_packets else num_decoded
        self.fps = float(stream.average_rate or stream.guessed_rate or 25)
        self.starts = starts.settle(first_pts) if is_counting_packets else []
        self.pts = starts.pts
        self.suits_decord = (
            kind[0] in DECORD_CONTAINERS
            and codec.pix_fmt in DECORD_PIXEL_FORMATS
            and codec.width % 2 == codec.height % 2 == 0
            and not is_damaged
        )
        # Frames shown before the first key frame, as after cutting without re-encoding, may never come out.
        return must_decode or not (is_counting_packets and starts.has_early_frames)


class SeekError(Exception):
    """Seeking led to other frames than a file's packets promise."""


class DecordVideo(Video):
    """A video decoded by decord, or by PyAV where seeking helps and as soon as decord errs.

    Args:
        video: The same video by PyAV.
        decord: The module.
    """

    def __init__(self, video: PyAVVideo, decord: ModuleType) -> None:
        self.video = video
        self.decord = decord
        self.num_frames = video.num_frames
        self.fps = video.fps

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return frames by their places in the order of showing; see `Video.frames`."""
        wanted, places = unique_frames(indices, self.num_frames)
        kept = within(self.video.read_timeout_seconds, self.video.path, partial(self._read, wanted))
        return torch.from_numpy(kept)[places].permute(0, 3, 1, 2)

    def close(self) -> None:
        """Do nothing: the file is open only while `frames` reads, as an idle decord reader keeps decoding."""

    def _read(self, wanted: list[int]) -> np.ndarray:
        """Return the wanted frames, uint8 (N, H, W, 3)."""
        if not self.video.is_sought(wanted):
            try:
                return self._read_in_order(wanted)
            except Exception as error:
                logger.debug("%s: PyAV reads it, since decord fails: %s", self.video.path, error)
        return self.video.read(wanted)

    def _read_in_order(self, wanted: list[int]) -> np.ndarray:
        """Return the wanted frames, uint8 (N, H, W, 3); an exception means that decord cannot be trusted."""
        # Any fault at all is an error: decord would otherwise repeat the nearest frame that it could decode.
        reader = self.decord.VideoReader(f"file:{self.video.path}", num_threads=self.video.num_threads, fault_tol=1e-9)
        kept = np.empty((len(wanted), *self.video.first.shape), np.uint8)
        num_kept = 0
        for index in range(wanted[-1] + 1 if wanted else 0):
            frame = reader.next()  # the only call of decord's that never seeks
            if index and index != wanted[num_kept]:
                continue
            # Another library may have chosen a bridge for this thread.
            pixels = np.asarray(frame.asnumpy() if hasattr(frame, "asnumpy") else frame)
            if pixels.shape != self.video.first.shape:
                raise ValueError(f"frame {index} has the shape {pixels.shape}")
            if index == 0 and np.abs(pixels.astype(np.int16) - self.video.first).max() > ROUNDING:
                raise ValueError("its first frame is another")
            if index == wanted[num_kept]:
                kept[num_kept] = pixels
                num_kept += 1
        return kept


def unique_frames(indices: Sequence[int] | Tensor, num_frames: int) -> tuple[list[int], Tensor]:
    """Return the different indices in ascending order, and where among them each given index is.

    Args:
        indices: (N,), in any order, repeats allowed.
        num_frames: Frames of the video.

    Returns:
        At most N indices, and int64 (N,).

    Raises:
        IndexError: An index is outside [0, num_frames).
    """
    wanted, places = torch.as_tensor(indices, dtype=torch.int64).unique(return_inverse=True)
    for index in wanted.tolist():
        if not 0 <= index < num_frames:
            raise IndexError(f"frame {index} is outside [0, {num_frames}), the frames of this video")
    return wanted.tolist(), places


@cache
def _import_decord() -> ModuleType | None:
    """Return decord, or None and one warning where it is not installed or does not load."""
    try:
        import decord
    except (ImportError, OSError) as error:
        logger.warning("decord cannot be imported (%s); PyAV reads all videos, which is slower", error)
        return None
    return decord


def _check_threads(num_threads: int) -> None:
    if num_threads < 1:
        raise InputError(f"num_threads={num_threads} must be at least 1")


def _upright(frame: Any, to_rgb: VideoReformatter) -> np.ndarray:
    """Return a frame's pixels, uint8 (H, W, 3), RGB, turned as the file says."""
    pixels = to_rgb.reformat(frame, format="rgb24").to_ndarray()
    return np.rot90(pixels, round(frame.rotation / 90))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
