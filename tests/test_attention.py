"""What a class token looks at over time, in numbers and as a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnnbert.attention import attention_over_time, attention_strip, has_attention_over_time
from cnnbert.heads import BERTHead, ConvLSTMHead, EfficientBERTHead, TGAPHead


@pytest.mark.parametrize(
    "head",
    [
        BERTHead(64, 3, num_heads=4),
        BERTHead(128, 3, num_heads=4, reduce_to=64, num_class_tokens=2, num_layers=2),
        BERTHead(64, 3, num_heads=4, spatial_tokens=True),
        EfficientBERTHead(64, 3),
    ],
    ids=["BERT", "two class tokens", "spatial tokens", "efficient"],
)
def test_every_bert_has_a_share_for_every_step(head):
    torch.manual_seed(0)
    features = torch.randn(2, head.in_channels, 5, 3, 2)
    with torch.no_grad():
        attention = attention_over_time(head, features)
    assert has_attention_over_time(head)
    assert attention.shape == (2, 5)
    assert attention.min() > 0
    torch.testing.assert_close(attention.sum(1), torch.ones(2))


def test_it_is_the_class_tokens_row():
    head = BERTHead(64, 3, num_heads=4)
    features = torch.randn(1, 64, 4, 2, 2)
    with torch.no_grad():
        row = head.attention(features)[0, 0, :, 0, 1:].mean(0)
        torch.testing.assert_close(attention_over_time(head, features)[0], row / row.sum())


def test_where_a_convolutional_lstm_looks_is_something_else():
    assert not has_attention_over_time(ConvLSTMHead(64, 3))
    assert not has_attention_over_time(TGAPHead(64, 3))


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
