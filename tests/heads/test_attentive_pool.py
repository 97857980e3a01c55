"""Attentive pooling against plain torch operations, and its positions."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from cnnbert.errors import InputError
from cnnbert.heads import AttentivePoolHead


def test_formulas() -> None:
    """Source: V-JEPA's attentive probe; the self-attention blocks are tested in tests/layers/test_transformer.py."""
    torch.manual_seed(0)
    head = AttentivePoolHead(8, 3, num_queries=2, num_layers=1, num_heads=2).double().eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(2, 8, 4, 3, 2, dtype=torch.float64)
    weights = dict(head.named_parameters())

    def normalize(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    steps = [features[:, :, t, i, j] + head.positions[:, t] for t in range(4) for i in range(3) for j in range(2)]
    tokens = normalize(head.blocks[0](torch.stack(steps, dim=1)), "token_norm")
    matrices = weights["cross_attention.in_proj_weight"].split(8)
    biases = weights["cross_attention.in_proj_bias"].split(8)
    q, k, v = (x @ m.T + b for x, m, b in zip((head.queries, tokens, tokens), matrices, biases, strict=True))
    parts = []
    for part in (slice(0, 4), slice(4, 8)):
        shares = (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1)  # (B, Q, N)
        parts.append(shares @ v[..., part])
    found = torch.cat(parts, -1) @ weights["cross_attention.out_proj.weight"].T
    x = head.queries + found + weights["cross_attention.out_proj.bias"]
    hidden = normalize(x, "feedforward.0") @ weights["feedforward.1.weight"].T + weights["feedforward.1.bias"]
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    x = x + hidden @ weights["feedforward.3.weight"].T + weights["feedforward.3.bias"]
    expected = x.flatten(1) @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(features), expected, rtol=1e-10, atol=1e-10)


def test_set_num_steps() -> None:
    head = AttentivePoolHead(8, 3)
    assert head.positions.shape == (1, 4, 8)
    head.set_num_steps(6)
    assert head.positions.shape == (1, 6, 8) and "positions" in dict(head.named_parameters())
    with pytest.raises(InputError, match="num_steps=0 must be at least 1"):
        head.set_num_steps(0)
    given = AttentivePoolHead(8, 3, num_steps=3)
    given.set_num_steps(6)
    assert given.positions.shape == (1, 3, 8)


def test_loading_another_length_interpolates_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    saved, loaded = AttentivePoolHead(8, 3).eval(), AttentivePoolHead(8, 3, num_steps=8).eval()
    with caplog.at_level(logging.WARNING, logger="cnnbert"):
        loaded.load_state_dict(saved.state_dict())
    message = "loaded positions of 4 time steps are interpolated over time to the 8 of this head"
    assert [record.getMessage() for record in caplog.records] == [message]
    features = torch.randn(2, 8, 8, 2, 2)
    torch.testing.assert_close(loaded(features), saved(features))
    # The first and last steps stand outside the middles of the saved ones, and keep their positions.
    torch.testing.assert_close(loaded.positions[:, [0, -1]], saved.positions[:, [0, -1]])
