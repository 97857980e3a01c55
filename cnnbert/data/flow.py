"""Reads optical flow that `cnnbert flow` has made of videos, alone or with the videos themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

from cnnbert.data.deadline import check_timeout
from cnnbert.data.exclusion import real_path
from cnnbert.data.flow_files import FlowFacts, read_table
from cnnbert.data.pyav_video import PyAVVideo
from cnnbert.data.readers import DecordReader, PyAVReader, VideoReader
from cnnbert.data.video import Video
from cnnbert.errors import VideoReadError
from cnnbert.outputs import printable


class FlowReader(VideoReader):
    """Reads the optical flow of videos in place of their pictures, for networks with in_channels 2.

    Frames are uint8 (N, 2, H, W): motion to the right and downwards from each frame to the next, 127.5 for none, 0 and
    255 for the bound that `cnnbert flow` was given. Resizing and cropping leave these values as they are, in pixels of
    the size that flow was computed at; mirroring turns x into 255 - x.

    Args:
        folder: The folder that `cnnbert flow` made; its table says which file is whose.
        read_timeout_seconds: Opening a file, or reading frames from it, is given up with a `VideoReadError` after so
            long; above 0.

    Raises:
        InputError: `read_timeout_seconds` is not above 0.
    """

    channels = 2
    x_flow = 0

    def __init__(self, folder: str = "flow", read_timeout_seconds: float = 60.0) -> None:
        check_timeout(read_timeout_seconds)
        self.folder = folder
        self.read_timeout_seconds = read_timeout_seconds
        self._rows: dict[str, tuple[Path, FlowFacts]] | None = None

    @property
    def made_with(self) -> dict[str, Any]:
        """The method of the flow, its weights, its size and its bound."""
        self.prepare()
        return next((facts.settings for _, facts in (self._rows or {}).values()), {})

    def prepare(self) -> None:
        """Read the table.

        Raises:
            InputError: There is none, or it is damaged.
        """
        if self._rows is None:
            self._rows = read_table(Path(self.folder).expanduser())

    def open(self, path: str) -> FlowVideo:
        """Open the flow of a video file; see `VideoReader.open`.

        Raises:
            VideoReadError: There is no flow of this video, or of another number of frames.
        """
        flow = self.flow(path)
        if flow.is_of_another_file:
            with DecordReader(read_timeout_seconds=self.read_timeout_seconds).open(path) as video:
                flow.check(video.num_frames)
        return flow

    def flow(self, path: str) -> FlowVideo:
        """Open the flow of a video file, without looking whether the video is still the same."""
        self.prepare()
        assert self._rows is not None
        found = self._rows.get(printable(real_path(path)))
        if found is None:
            raise VideoReadError(
                path,
                f"there is no optical flow of it in {self.folder}; cnnbert flow VIDEOS --out {self.folder} makes it",
            )
        return FlowVideo(path, *found, self.read_timeout_seconds)

    def streaming(self) -> FlowReader:
        """Return a reader whose videos have `stream`, without a limit of time."""
        reader = FlowReader(self.folder, float("inf"))
        reader._rows = self._rows
        return reader


class RGBFlowReader(VideoReader):
    """Reads videos with their optical flow, for networks of two streams.

    Frames are uint8 (N, 5, H, W): red, green and blue, then what `FlowReader` gives of the same frames, resized to the
    video's size; the values of flow stay in pixels of the size that it was computed at.

    Args:
        folder: The folder that `cnnbert flow` made; its table says which file is whose.
        read_timeout_seconds: Opening a file, or reading frames from it, is given up with a `VideoReadError` after so
            long; above 0.

    Raises:
        InputError: `read_timeout_seconds` is not above 0.
    """

    channels = 5
    x_flow = 3

    def __init__(self, folder: str = "flow", read_timeout_seconds: float = 60.0) -> None:
        self.folder = folder
        self.read_timeout_seconds = read_timeout_seconds
        self._flow = FlowReader(folder, read_timeout_seconds)
        self._rgb: VideoReader = DecordReader(read_timeout_seconds=read_timeout_seconds)

    @property
    def made_with(self) -> dict[str, Any]:
        """The method of the flow, its weights, its size and its bound."""
        return self._flow.made_with

    def prepare(self) -> None:
        """Read the table; see `FlowReader.prepare`."""
        self._flow.prepare()

    def open(self, path: str) -> RGBFlowVideo:
        """Open a video file and its flow; see `FlowReader.open`."""
        flow = self._flow.flow(path)
        try:
            rgb = self._rgb.open(path)
        except BaseException:
            flow.close()
            raise
        return RGBFlowVideo(rgb, flow)

    def streaming(self) -> RGBFlowReader:
        """Return a reader whose videos have `stream`, without a limit of time."""
        reader = RGBFlowReader(self.folder, float("inf"))
        reader._flow = self._flow.streaming()
        reader._rgb = PyAVReader(read_timeout_seconds=float("inf"))
        return reader


class FlowVideo(Video):
    """The optical flow of a video.

    Args:
        path: The video.
        file: Its flow.
        facts: What the table says of that.
        read_timeout_seconds: The longest that opening and each reading may take.

    Raises:
        VideoReadError: The flow cannot be read, or has another number of frames than the table says.
    """

    def __init__(self, path: str, file: Path, facts: FlowFacts, read_timeout_seconds: float) -> None:
        self.path = path
        self.file = file
        self.facts = facts
        try:
            self._video = PyAVVideo(str(file), read_timeout_seconds=read_timeout_seconds)
        except VideoReadError as error:
            raise self._unreadable(error) from error
        self.num_frames = self._video.num_frames
        self.fps = facts.fps
        self.check(facts.num_frames)

    @property
    def is_of_another_file(self) -> bool:
        """Whether the video's file is another than the one that the flow was computed of, by its size and time."""
        try:
            status = Path(self.path).stat()
        except OSError:
            return True
        return (status.st_size, status.st_mtime_ns) != (self.facts.bytes, self.facts.mtime_ns)

    def check(self, num_frames: int) -> None:
        """Close it and raise `VideoReadError` if the video has another number of frames than this flow."""
        if num_frames != self.num_frames:
            self.close()
            raise VideoReadError(
                self.path,
                f"it has {num_frames} frames, but its optical flow {self.file} has {self.num_frames}; delete that file "
                "and make it again with cnnbert flow",
            )

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return frames, uint8 (N, 2, H, W), by their places in the order of showing; see `Video.frames`."""
        try:
            return _parted(self._video.frames(indices)[:, 0])
        except VideoReadError as error:
            raise self._unreadable(error) from error

    def stream(self) -> Iterator[np.ndarray]:
        """Yield all frames in the order of showing, uint8 (H, W, 2)."""
        try:
            for pixels in self._video.stream():
                yield _parted(torch.from_numpy(pixels)[None, ..., 0])[0].permute(1, 2, 0).numpy()
        except VideoReadError as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._video.close()

    def _unreadable(self, error: VideoReadError) -> VideoReadError:
        return VideoReadError(
            self.path,
            f"its optical flow {self.file} cannot be read ({error.why}); delete that file and make it again with "
            "cnnbert flow",
        )


class RGBFlowVideo(Video):
    """A video with its optical flow.

    Args:
        rgb: The video.
        flow: Its flow.

    Raises:
        VideoReadError: They have different numbers of frames; both are closed then.
    """

    def __init__(self, rgb: Video, flow: FlowVideo) -> None:
        self.rgb = rgb
        self.flow = flow
        self.num_frames = rgb.num_frames
        self.fps = rgb.fps
        try:
            flow.check(rgb.num_frames)
        except VideoReadError:
            rgb.close()
            raise

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return frames, uint8 (N, 5, H, W), by their places in the order of showing; see `Video.frames`."""
        return _joined(self.rgb.frames(indices), self.flow.frames(indices))

    def stream(self) -> Iterator[np.ndarray]:
        """Yield all frames in the order of showing, uint8 (H, W, 5)."""
        for rgb, flow in zip(self.rgb.stream(), self.flow.stream(), strict=True):  # type: ignore[attr-defined]
            one, other = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] for pixels in (rgb, flow))
            yield _joined(one, other)[0].permute(1, 2, 0).numpy()

    def close(self) -> None:
        """Close both files."""
        self.rgb.close()
        self.flow.close()


def _parted(grey: Tensor) -> Tensor:
    """Return uint8 (N, 2, H, W) of uint8 (N, 2 * H, W), in which x lies above y."""
    return grey.reshape(len(grey), 2, -1, grey.shape[-1])


def _joined(rgb: Tensor, flow: Tensor) -> Tensor:
    """Return uint8 (N, 5, H, W) of (N, 3, H, W) and (N, 2, h, w)."""
    return torch.cat([rgb, F.resize(flow, list(rgb.shape[-2:]), antialias=True)], 1)
