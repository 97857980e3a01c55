"""Decodes a video with PyAV."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from cnnbert.data.deadline import within
from cnnbert.data.packets import MATROSKA, MP4, PacketIndex, Start
from cnnbert.data.video import Video, unique_frames
from cnnbert.errors import VideoReadError

logger = logging.getLogger("cnnbert")

# Where every packet holds one shown frame, so that counting packets counts frames. Elsewhere packets may hold
# half a frame (fields), none (AVI with B-frames, VP8's hidden frames) or one that is never shown (at the
# beginning of a transport stream).
PACKET_IS_FRAME = {
    (container, codec) for container in (MP4, MATROSKA) for codec in ("h264", "hevc", "vp9", "av1", "mjpeg", "ffv1")
}

# The most that an open video keeps in memory, in bytes: packets, and decoded frames where counting had to decode.
KEPT_PACKETS, KEPT_FRAMES = 2**26, 2**28


# Texts in a file that are no UTF-8 stopped PyAV 18 unless it was told not to; 19 takes them as they are.
ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


def open_file(path: str | Path) -> Any:
    """Return PyAV's input container of a file, whatever its name and its metadata are made of.

    Raises:
        av.FFmpegError: FFmpeg cannot read it.
        OSError: It cannot be opened.
    """
    # "file:" keeps a name such as "a:b.mp4" from being taken for a protocol.
    return av.open(f"file:{path}", **ANY_METADATA)


class SeekError(Exception):
    """Decoding leads to other frames than a file's packets promise."""


class PyAVVideo(Video):
    """A video decoded by PyAV.

    Opening goes through the packets and counts frames: by packets where each holds one, by decoding elsewhere. Packets,
    and frames that counting decoded, stay in memory until `close` if they are not many.

    Args:
        path: The file.
        num_threads: Threads that decode it.
        read_timeout_seconds: The longest that opening and each reading may take.

    Attributes:
        path: The file.
        num_threads: Threads that decode it.
        read_timeout_seconds: The longest that each reading may take.
        index: What the packets say.
        kind: FFmpeg's names of the container and the codec.
        pixel_format: FFmpeg's name of it.
        height: Height of the frames as stored, before they are turned upright.
        width: Their width.
        seconds_a_tick: The unit of the index's time stamps.
        is_damaged: Whether damage was met at opening.

    Raises:
        VideoReadError: The file is missing, or no video, or takes too long.
    """

    def __init__(self, path: str, num_threads: int = 1, read_timeout_seconds: float = 60.0) -> None:
        self.path = path
        self.num_threads = num_threads
        self.read_timeout_seconds = read_timeout_seconds
        self._is_read = threading.RLock()
        self._is_telling = False
        self._packets: list[Any] | None = None
        self._decoded: list[Any] | None = None
        if not os.path.exists(path):
            raise VideoReadError(path, "there is no such file")
        if not os.path.isfile(path):
            raise VideoReadError(path, "it is not a file")
        if os.path.getsize(path) == 0:
            raise VideoReadError(path, "the file is empty")
        try:
            within(read_timeout_seconds, path, self._open)
        except (av.FFmpegError, UnicodeError, MemoryError) as error:
            raise VideoReadError(path, f"FFmpeg finds no video in it ({_reason(error)})") from error

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return frames by their places in the order of showing; see `Video.frames`."""
        wanted, places = unique_frames(indices, self.num_frames)
        kept = torch.from_numpy(within(self.read_timeout_seconds, self.path, partial(self.read, wanted)))
        return (kept if places is None else kept[places]).permute(0, 3, 1, 2)

    def close(self) -> None:
        """Close the file, unless a reading that was given up still goes on."""
        self._packets = self._decoded = None
        if self._is_read.acquire(blocking=False):
            self._container.close()

    def stream(self) -> Iterator[np.ndarray]:
        """Yield all frames in the order of showing, uint8 (H, W, 3), each decoded once and none kept.

        Raises:
            VideoReadError: A frame cannot be decoded, or only with damage.
        """
        to_rgb = VideoReformatter()
        shape: tuple[int, ...] | None = None
        for frame in self._in_order(range(self.num_frames)) if self._decoded is None else self._decoded:
            pixels = _upright(frame, to_rgb)
            shape = pixels.shape if shape is None else shape
            if pixels.shape != shape:
                raise self._sizes_differ(shape, pixels.shape)
            yield pixels

    @property
    def is_read_in_order(self) -> bool:
        """Whether every reading decodes the file from its first frame on."""
        return self._decoded is None and not self._is_telling

    def read(self, wanted: list[int]) -> np.ndarray:
        """Return frames, uint8 (N, H, W, 3), however long it takes.

        Args:
            wanted: Different frames in ascending order.

        Raises:
            VideoReadError: A frame cannot be decoded, or only with damage.
        """
        with self._is_read:
            if self._decoded is not None:
                return self._pixels((self._decoded[number] for number in wanted), len(wanted))
            if self._is_telling:
                try:
                    return self._pixels(self._by_time(wanted), len(wanted))
                except (av.FFmpegError, SeekError) as error:
                    logger.debug("%s: read in order, since its time stamps fail: %s", self.path, error)
                    self._is_telling = False
            return self._pixels(self._in_order(wanted), len(wanted))

    @cached_property
    def first(self) -> np.ndarray:
        """The first frame, uint8 (H, W, 3), RGB, the right way up."""
        return self.read([0])[0]

    def _by_time(self, wanted: list[int]) -> Iterator[Any]:
        """Yield the wanted frames, known by their time stamps: each decoded from the last start before it, without the
        frames that nothing refers to."""
        pts = self.index.pts
        for start, group in self.index.plan(wanted):
            left_out = self.index.disposable.difference([pts[number] for number in group])
            frames = self._decode(start, left_out)
            latest = -1 if start is None else start.number - 1
            for number in group:
                while latest < number:
                    frame = next(frames, None)
                    before, latest = latest, -1 if frame is None else self._numbers.get(frame.pts, -1)
                    is_whole = frame is not None and not frame.is_corrupt and before < latest <= number
                    if not is_whole or not left_out.issuperset(pts[before + 1 : latest]):
                        raise SeekError(f"after frame {before} comes damage, or another frame than the next")
                yield frame

    def _in_order(self, wanted: Sequence[int]) -> Iterator[Any]:
        """Yield the wanted frames, counted from the first."""
        num_kept = num_decoded = 0
        why = ""
        try:
            for frame in self._decode(None):
                if num_kept == len(wanted):
                    return
                if frame.is_corrupt:
                    why = f"; frame {num_decoded} is damaged"
                    break
                if num_decoded == wanted[num_kept]:
                    yield frame
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

    def _decode(self, start: Start | None, left_out: frozenset[int] | set[int] = frozenset()) -> Iterator[Any]:
        """Yield frames from a start on, in the order of showing.

        Args:
            start: Where decoding starts; None for the beginning.
            left_out: Time stamps of packets that are not decoded.
        """
        if self._packets is None:
            self._reopen()
            packets = self._sought(start)
        else:
            self._stream.codec_context.flush_buffers()
            packets = iter(self._packets if start is None else self._packets[start.place :])
        for packet in packets:
            if packet.size and packet.pts not in left_out:
                # Frames that are shown before the start, and come after it, may be damaged.
                yield from (f for f in packet.decode() if start is None or f.pts is None or f.pts >= start.pts)
        yield from self._stream.codec_context.decode(None)

    def _sought(self, start: Start | None) -> Iterator[Any]:
        """Yield the packets of the file from a start on, in the order of decoding."""
        if start is not None:
            self._container.seek(start.seek, stream=self._stream)
        is_started = start is None
        for packet in self._container.demux(self._stream):
            is_started = is_started or packet.pts == start.pts  # type: ignore[union-attr]
            if is_started:
                yield packet
            elif packet.pts is None or packet.pts > start.pts:  # type: ignore[union-attr]
                raise SeekError(f"frame {start.number} is not found")  # type: ignore[union-attr]

    def _pixels(self, frames: Iterable[Any], number: int) -> np.ndarray:
        """Return the pixels of a number N of frames, uint8 (N, H, W, 3), RGB, turned as the file says."""
        to_rgb = VideoReformatter()
        kept = None
        for place, frame in enumerate(frames):
            pixels = _upright(frame, to_rgb)
            if kept is None:
                kept = np.empty((number, *pixels.shape), np.uint8)
            if pixels.shape != kept.shape[1:]:
                raise self._sizes_differ(kept.shape[1:], pixels.shape)
            kept[place] = pixels
        return np.empty((0, *self.first.shape), np.uint8) if kept is None else kept

    def _sizes_differ(self, *shapes: tuple[int, ...]) -> VideoReadError:
        sizes = " and ".join(f"{shape[1]}x{shape[0]}" for shape in shapes)
        return VideoReadError(self.path, f"its frames have different sizes, {sizes}; re-encode it")

    def _open(self) -> None:
        """Set what is known of the video before frames are asked for."""
        with self._is_read:
            self._open_file()
            try:
                if not self._scan(False):
                    self._reopen()
                    self._scan(True)
            except BaseException:
                self._container.close()
                raise

    def _open_file(self) -> None:
        self._container: Any = open_file(self.path)
        self._stream: Any = self._container.streams.best("video")
        if self._stream is None:
            self._container.close()
            raise VideoReadError(self.path, "there is no video in it, only sound or the like")
        if self._stream.codec_context is None:
            self._container.close()
            raise VideoReadError(self.path, "its codec is none that FFmpeg decodes")
        self._stream.codec_context.thread_count = self.num_threads
        # Stop at damage: decoders patch it up, in one way with one thread and in another with two.
        self._stream.codec_context.options = {"err_detect": "explode"}

    def _reopen(self) -> None:
        self._container.close()
        self._open_file()

    def _scan(self, must_decode: bool) -> bool:
        """Go through the file; return whether its frames are rightly counted, else it must be decoded for that."""
        stream = self._stream
        codec = stream.codec_context
        self.kind = (self._container.format.name, codec.codec.canonical_name)
        self.index = PacketIndex(*self.kind, codec.extradata)
        self.seconds_a_tick = float(stream.time_base)
        self._packets = [] if os.path.getsize(self.path) <= KEPT_PACKETS else None
        self._decoded = []
        num_packets = num_decoded = num_bytes = 0
        self.is_damaged = False
        is_counting_packets = self.kind in PACKET_IS_FRAME and not must_decode
        for packet in self._container.demux(stream):
            if packet.size:
                self.index.add(packet)
                if self._packets is not None:
                    self._packets.append(packet)
            if packet.size and not packet.is_discard:
                num_packets += 1
                self.is_damaged |= packet.is_corrupt
                if num_packets == 1 and is_counting_packets and not packet.is_keyframe:
                    return False
            if is_counting_packets:
                continue
            try:
                for frame in packet.decode():
                    num_decoded += 1
                    self.is_damaged |= frame.is_corrupt
                    num_bytes += sum(plane.buffer_size for plane in frame.planes)
                    if num_bytes > KEPT_FRAMES:
                        self._decoded = None
                    elif self._decoded is not None:
                        self._decoded.append(frame)
            except av.FFmpegError:
                if not num_decoded:
                    raise
                # What follows the damage counts as the file claims; reading it tells how much can be decoded.
                self.is_damaged = is_counting_packets = True
        self.num_frames = num_packets if is_counting_packets else num_decoded
        if not self.num_frames:
            raise VideoReadError(self.path, "there is not one frame in it that can be decoded")
        if is_counting_packets or self.is_damaged:
            self._decoded = None
        self.fps = float(stream.average_rate or stream.guessed_rate or 25)
        self.pixel_format, self.height, self.width = codec.pix_fmt, codec.height, codec.width
        self.index.settle(is_counting_packets and not num_decoded)
        self._is_telling = bool(self.index.pts)
        self._numbers = {pts: number for number, pts in enumerate(self.index.pts)}
        # Frames shown before the first key frame, as after cutting without re-encoding, may never come out.
        return must_decode or not (is_counting_packets and self.index.has_early_frames)


def _upright(frame: Any, to_rgb: VideoReformatter) -> np.ndarray:
    """Return the pixels of a frame, uint8 (H, W, 3), RGB, turned as the file says."""
    # One thread, as starting more for every video costs more than they save.
    pixels = to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.rot90(pixels, round(frame.rotation / 90))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
