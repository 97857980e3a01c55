"""Makes small copies of videos that a page can hold."""

from __future__ import annotations

import base64
import io
from fractions import Fraction

import av
import numpy as np

from cnnbert.data.dataset import piece
from cnnbert.data.readers import PyAVReader
from cnnbert.data.records import VideoRecord
from cnnbert.errors import VideoReadError

SECONDS, MAX_FPS, SHORT_SIDE = 3.0, 12.0, 128
TIMEOUT_SECONDS = 30.0
AT_ONCE = 8

# x264 keeps to `maxrate` over `bufsize`: noise alone takes about 90 kB.
OPTIONS = {"crf": "30", "preset": "medium", "maxrate": "200k", "bufsize": "200k", "x264-params": "threads=1"}


def preview(record: VideoRecord) -> str:
    """Return a small copy of the middle of a record's piece of video, without sound, as a data URI.

    It is H.264 in MP4, of at most 3 seconds, 12 frames a second and 128 pixels of short side; the same video gives the
    same bytes.

    Raises:
        VideoReadError: The video cannot be read.
    """
    with PyAVReader(read_timeout_seconds=TIMEOUT_SECONDS).open(record.path) as video:
        first, end = piece(record, video)
        step = max(1, round(video.fps / MAX_FPS))
        num_frames = min(end - first, max(1, round(SECONDS * video.fps)))
        start = first + (end - first - num_frames) // 2
        wanted = list(range(start, start + num_frames, step))
        rate = Fraction(video.fps / step).limit_denominator(1000)
        small = []
        for place in range(0, len(wanted), AT_ONCE):  # at their full size some frames may take a gigabyte
            small += [
                _scaled(frame) for frame in video.frames(wanted[place : place + AT_ONCE]).permute(0, 2, 3, 1).numpy()
            ]
    try:
        return "data:video/mp4;base64," + base64.b64encode(_encoded(small, rate)).decode()
    except av.FFmpegError as error:
        raise VideoReadError(record.path, f"no preview can be made of it ({error.strerror or error})") from error


def _scaled(pixels: np.ndarray) -> av.VideoFrame:
    """Return pixels, uint8 (H, W, 3), as a small frame with even sides; smaller ones are not enlarged."""
    scale = min(1.0, SHORT_SIDE / min(pixels.shape[:2]))
    height, width = (max(2, round(side * scale) // 2 * 2) for side in pixels.shape[:2])
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
    return frame.reformat(width, height, "yuv420p", interpolation="AREA")


def _encoded(frames: list[av.VideoFrame], rate: Fraction) -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()
