"""Writes videos whose frames show their own number, so that readers can be checked exactly."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor


def barcode(number: int, height: int, width: int) -> np.ndarray:
    """Return `number` in [0, 256) as a picture, uint8 (H, W, 3): eight bars, highest bit left, white 1."""
    bits = np.unpackbits(np.array([number], np.uint8)) * 255
    row = np.repeat(bits, width // 8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def read_barcode(frame: Tensor) -> int:
    """Return the number that a frame, uint8 (3, H, W), shows; lossy coding does not hurt."""
    bars = frame.float().mean((0, 1)).reshape(8, -1).mean(1)  # (8,)
    return int(sum(1 << (7 - n) for n, brightness in enumerate(bars.tolist()) if brightness > 127))


def write_barcodes(
    path: Path,
    codec: str = "libx264",
    num_frames: int = 60,
    b_frames: int = 0,
    gop: int = 12,
    size: tuple[int, int] = (64, 64),
    rate: Fraction | int = 25,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose frame n shows n.

    Args:
        path: The file; its suffix chooses the container.
        codec: FFmpeg's name of the encoder.
        num_frames: Frames, at most 256.
        b_frames: B-frames between two other frames.
        gop: Frames from one key frame to the next.
        size: Height and width; the width is a multiple of 8.
        rate: Frames a second.
        pixel_format: FFmpeg's name of the pixel format.
        options: Further settings of the encoder.

    Returns:
        The path.
    """
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        stream.codec_context.gop_size = gop
        if b_frames:
            stream.codec_context.max_b_frames = b_frames
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(barcode(number, height, width), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
