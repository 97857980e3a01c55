"""Draws words into a copy of a video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cnnbert.data.encoding import Encoding, encode
from cnnbert.errors import InputError

LARGEST_SIDE = 4320
"""Longer short sides than any video's: the copy is as large as the original."""


def annotate(source: str, target: Path, caption: Callable[[int], str]) -> None:
    """Write a copy of a video, H.264 in MP4 without sound, with a caption on every frame.

    Args:
        source: The video.
        target: The file to write, there whole or not at all.
        caption: Returns the words of a frame by its number, lines parted by newlines; "" for none.

    Raises:
        VideoReadError: The video cannot be read without damage.
        InputError: The copy cannot be written.
    """

    def draw(number: int, pixels: np.ndarray) -> np.ndarray:
        return with_caption(pixels, caption(number))

    try:
        encode(source, {target: slice(None)}, Encoding(LARGEST_SIDE, crf=23, preset="veryfast"), draw=draw)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from error


def with_caption(pixels: np.ndarray, words: str) -> np.ndarray:
    """Return a picture with words in its lower left corner, light on a darkened band, as large as they fit.

    Args:
        pixels: uint8 (H, W, 3), RGB.
        words: Lines parted by newlines; "" changes nothing.

    Returns:
        uint8 (H, W, 3).
    """
    if not words:
        return pixels
    picture = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    size = max(8, height // 14)
    draw = ImageDraw.Draw(picture, "RGBA")
    while True:
        font = ImageFont.load_default(size)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), words, font=font, spacing=size // 4)
        margin = size // 2
        if right - left + 2 * margin <= width or size <= 8:
            break
        size -= 1
    band = int(bottom - top) + 2 * margin
    draw.rectangle((0, height - band, width, height), fill=(0, 0, 0, 160))
    place = (margin - left, height - band + margin - top)
    draw.multiline_text(place, words, font=font, fill=(255, 255, 255, 255), spacing=size // 4)
    return np.asarray(picture)
