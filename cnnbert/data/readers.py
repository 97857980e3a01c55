"""Reads frames out of video files: exactly the frames asked for, or an error."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnbert.data.deadline import check_timeout, within
from cnnbert.data.packets import MATROSKA, MP4
from cnnbert.data.pyav_video import PyAVVideo
from cnnbert.data.video import Video, unique_frames
from cnnbert.errors import InputError

logger = logging.getLogger("cnnbert")

# Where decord, read in order, gives what today's FFmpeg gives. Not so in MPEG program and transport streams,
# where it starts late, and for other pixel formats and odd sizes, which its old FFmpeg converts otherwise.
DECORD_CONTAINERS = {MP4, MATROSKA, "avi", "flv", "asf"}
DECORD_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}

# Two decoders' frames are the same if no value in [0, 255] differs by more: FFmpeg's versions round unlike.
ROUNDING = 2


class VideoReader(ABC):
    """Opens video files. Holds no file and no state of the process, so that it can be sent to workers.

    Attributes:
        channels: Channels of the frames, 3 for RGB.
        x_flow: The channel that holds motion to the right, which mirroring turns round; None for none.
    """

    channels: int = 3
    x_flow: int | None = None

    @property
    def made_with(self) -> dict[str, Any]:
        """How what it reads was computed of the videos; empty for the videos themselves."""
        return {}

    def prepare(self) -> None:
        """Make sure that it can be used, before processes are started that read; most have nothing to do.

        Raises:
            InputError: It cannot.
        """
        return None

    def streaming(self) -> VideoReader:
        """Return a reader for going through long videos, whose videos have `stream`, without a limit of time."""
        return PyAVReader(read_timeout_seconds=float("inf"))

    @abstractmethod
    def open(self, path: str) -> Video:
        """Open a video file.

        Args:
            path: The file.

        Raises:
            VideoReadError: The file is missing, or no video, or takes too long.
        """


class PyAVReader(VideoReader):
    """Reads videos with PyAV (FFmpeg): every kind of file, and exactly.

    Where a file's packets show that decoding can start at a key frame, as in most MP4 and MKV files and some WebM
    files, frames are decoded from the last such key frame before each, and H.264 frames that no other refers to only
    where they are wanted; elsewhere all frames are decoded from the first one on.

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
    """Reads videos with decord where it is right, in order, and with PyAV elsewhere.

    decord's seeking returns other frames than those asked for in many files (dmlc/decord#195, #252, #365), and it
    patches up damage without a word. So it reads the files of which nothing can be left out, from the first frame on,
    after PyAV has found them whole: AVI, FLV and WMV files that are too long to be kept in memory. PyAV reads those
    that can be sought or kept, and the kinds that decord gets wrong; without decord, everything.

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
        decord = _import_decord() if video.is_read_in_order else None
        return video if decord is None or not _suits_decord(video) else DecordVideo(video, decord)


class TorchCodecReader(VideoReader):
    """Reads videos with TorchCodec where seeking is safe, and with PyAV elsewhere.

    TorchCodec is off by some frames in some files with B-frames (meta-pytorch/torchcodec#1363), so that it reads only
    files of which every key frame is known to be a safe start, and each frame's time stamp is checked. Damage within a
    picture that decoders patch up goes unnoticed. It needs `pip install 'cnnbert[torchcodec]'` and FFmpeg's
    shared libraries.

    Args:
        num_threads: Threads that decode a video; 1 suits loading with several workers.
        read_timeout_seconds: Opening a file, or reading frames from it, is given up with a `VideoReadError` after so
            long; above 0.

    Raises:
        InputError: `num_threads` is below 1, `read_timeout_seconds` not above 0, or TorchCodec is not there.
    """

    def __init__(self, num_threads: int = 1, read_timeout_seconds: float = 60.0) -> None:
        _check_threads(num_threads)
        check_timeout(read_timeout_seconds)
        _import_torchcodec()
        self.num_threads = num_threads
        self.read_timeout_seconds = read_timeout_seconds

    def open(self, path: str) -> Video:
        """Open a video file; see `VideoReader.open`."""
        video = PyAVVideo(path, self.num_threads, self.read_timeout_seconds)
        is_safe = video.index.pts and not video.index.has_open_keys and not video.is_damaged
        return TorchCodecVideo(video, _import_torchcodec()) if is_safe else video


class SecondVideo(Video):
    """A video decoded by another library than PyAV, and by PyAV as soon as that one errs.

    Args:
        video: The same video by PyAV.
        module: The library.
    """

    def __init__(self, video: PyAVVideo, module: ModuleType) -> None:
        self.video = video
        self.module = module
        self.num_frames = video.num_frames
        self.fps = video.fps

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return frames by their places in the order of showing; see `Video.frames`."""
        wanted, places = unique_frames(indices, self.num_frames)
        kept = torch.from_numpy(within(self.video.read_timeout_seconds, self.video.path, partial(self._read, wanted)))
        return (kept if places is None else kept[places]).permute(0, 3, 1, 2)

    def close(self) -> None:
        """Close the file."""
        self.video.close()

    def _read(self, wanted: list[int]) -> np.ndarray:
        """Return the wanted frames, uint8 (N, H, W, 3)."""
        try:
            return self.read(wanted)
        except Exception as error:
            logger.debug("%s: PyAV reads it, since %s fails: %s", self.video.path, self.module.__name__, error)
        return self.video.read(wanted)

    @abstractmethod
    def read(self, wanted: list[int]) -> np.ndarray:
        """Return the wanted frames, uint8 (N, H, W, 3); an exception means that the library cannot be trusted."""


class DecordVideo(SecondVideo):
    """A video decoded by decord; see `SecondVideo`. Its reader is never kept, as an idle one keeps decoding."""

    def read(self, wanted: list[int]) -> np.ndarray:
        """Return the wanted frames, uint8 (N, H, W, 3); see `SecondVideo.read`."""
        # Any fault at all is an error: decord would otherwise repeat the nearest frame that it could decode.
        reader = self.module.VideoReader(f"file:{self.video.path}", num_threads=self.video.num_threads, fault_tol=1e-9)
        kept = np.empty((len(wanted), *self.video.first.shape), np.uint8)
        num_kept = 0
        for index in range(wanted[-1] + 1 if wanted else 0):
            frame = reader.next()  # the only call of decord's that never seeks
            if index and index != wanted[num_kept]:
                continue
            # Another library may have chosen a bridge for this thread.
            pixels = np.asarray(frame.asnumpy() if hasattr(frame, "asnumpy") else frame)
            if index == 0:
                _check_first(pixels, self.video)
            if index == wanted[num_kept]:
                kept[num_kept] = pixels  # raises where the shape is another
                num_kept += 1
        return kept


class TorchCodecVideo(SecondVideo):
    """A video decoded by TorchCodec; see `SecondVideo`."""

    def read(self, wanted: list[int]) -> np.ndarray:
        """Return the wanted frames, uint8 (N, H, W, 3); see `SecondVideo.read`."""
        video = self.video
        decoder = self.module.VideoDecoder(video.path, dimension_order="NHWC", num_ffmpeg_threads=video.num_threads)
        if len(decoder) != video.num_frames:
            raise ValueError(f"it counts {len(decoder)} frames")
        _check_first(decoder.get_frame_at(0).data.numpy(), video)
        if not wanted:
            return np.empty((0, *video.first.shape), np.uint8)
        batch = decoder.get_frames_at(wanted)
        expected = torch.tensor([video.index.pts[number] for number in wanted]) * video.seconds_a_tick
        if (batch.pts_seconds - expected).abs().max() > video.seconds_a_tick / 2 + 1e-6:
            raise ValueError("its frames have other time stamps")
        return batch.data.numpy()


def _suits_decord(video: PyAVVideo) -> bool:
    """Return whether decord is known to decode such files rightly in order."""
    is_known = video.kind[0] in DECORD_CONTAINERS and video.pixel_format in DECORD_PIXEL_FORMATS
    return is_known and video.height % 2 == video.width % 2 == 0 and not video.is_damaged


def _check_first(pixels: np.ndarray, video: PyAVVideo) -> None:
    """Raise a ValueError if this, uint8 (H, W, 3), is not the first frame of the video."""
    if pixels.shape != video.first.shape:
        raise ValueError(f"its frames have the shape {pixels.shape}")
    if np.abs(pixels.astype(np.int16) - video.first).max() > ROUNDING:
        raise ValueError("its first frame is another")


@cache
def _import_decord() -> ModuleType | None:
    """Return decord, or None and one warning where it is not installed or does not load."""
    try:
        import decord
    except (ImportError, OSError) as error:
        logger.warning("decord cannot be imported (%s); PyAV reads all videos", error)
        return None
    return decord


@cache
def _import_torchcodec() -> Any:
    """Return TorchCodec's decoders.

    Raises:
        InputError: TorchCodec is not installed, or does not find FFmpeg.
    """
    remedy = "pip install 'cnnbert[torchcodec]' and install FFmpeg, or use PyAVReader"
    try:
        import torchcodec
        from torchcodec import decoders
    except (ImportError, OSError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise InputError(f"TorchCodecReader needs TorchCodec, which cannot be imported ({why}); {remedy}") from error
    if torchcodec.ffmpeg_major_version is None:
        raise InputError(f"TorchCodecReader needs FFmpeg's shared libraries, which TorchCodec does not find; {remedy}")
    return decoders


def _check_threads(num_threads: int) -> None:
    if num_threads < 1:
        raise InputError(f"num_threads={num_threads} must be at least 1")
