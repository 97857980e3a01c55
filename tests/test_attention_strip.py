"""A picture of what a class token looks at over time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnnbert.attention_strip import attention_strip


@pytest.mark.parametrize(("num_frames", "num_steps"), [(16, 2), (64, 8), (5, 5), (1, 1), (64, 64)])
def test_strip(num_frames, num_steps):
    """Dark frames that get lighter, so that the picture's first row does too; the bar of the moment seen is highest."""
    clip = torch.arange(num_frames, dtype=torch.uint8)[None, :, None, None].expand(3, num_frames, 24, 32) * 3
    attention = torch.full((num_steps,), 0.5 / num_steps)
    attention[-1] += 0.5
    picture = attention_strip(clip, attention)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3 and picture.shape[1] == 1000 and picture.shape[0] < 1000
    shades = picture[6, 60:980, 0].astype(int)
    assert np.all(np.diff(shades) >= -1) and shades[-1] - shades[0] >= 3 * (num_frames - 1) * 0.8
    is_blue = (picture[..., 2] > 150) & (picture[..., 0] < 60)
    heights = is_blue.sum(0)
    assert heights[900:].max() >= heights[:900].max()
    assert heights.max() > 20
