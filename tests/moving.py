"""Writes videos in which everything moves by known pixels a frame."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth random picture, uint8 (H, W, 3), whose borders fit each other."""
    noise = np.fft.fft2(np.random.default_rng(seed).standard_normal((3, height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
    smooth = np.fft.ifft2(noise * np.exp(-150 * (x**2 + y**2))).real
    return np.clip(128 + 55 * smooth / smooth.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def write_moving(
    path: Path, right: int, down: int, num_frames: int = 6, size: tuple[int, int] = (96, 120), mirrored: bool = False
) -> Path:
    """Write a lossless video of a picture that moves, in pixels a frame, and comes in again at the other side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = texture(*size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 25)
        stream.height, stream.width = size
        stream.pix_fmt = "bgr0"
        for number in range(num_frames):
            moved = np.roll(picture, (number * down, number * right), (0, 1))
            pixels = np.ascontiguousarray(moved[:, ::-1] if mirrored else moved)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return path
