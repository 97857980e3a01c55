"""The transformer's layers against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.layers.transformer import SelfAttention, TransformerBlock, UnbiasedLayerNorm


def test_norm_is_ltms_and_not_torchs() -> None:
    torch.manual_seed(0)
    norm = UnbiasedLayerNorm(16).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    centred = x - x.sum(-1, keepdim=True) / 16
    std = ((centred**2).sum(-1, keepdim=True) / 15).sqrt()
    torch.testing.assert_close(norm(x), norm.weight * centred / (std + 1e-6) + norm.bias)
    other = nn.functional.layer_norm(x, (16,), norm.weight, norm.bias)
    assert (norm(x) - other).abs().max() > 0.01


def test_norm_of_equal_channels_is_finite() -> None:
    norm = UnbiasedLayerNorm(4)
    x = torch.ones(1, 4, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_masked_tokens_are_not_attended_to() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, num_heads=2, dropout=0.0).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    torch.testing.assert_close(attention(x, mask)[0, [0, 1, 3]], attention(x[:1, [0, 1, 3]])[0])
    torch.testing.assert_close(attention(x, mask)[1], attention(x)[1])


def test_default_initialization() -> None:
    torch.manual_seed(0)
    for name, parameter in TransformerBlock(512, 8, 2048, 0.1).named_parameters():
        if "norm" not in name:
            bound = 2048**-0.5 if name.startswith("feedforward.3") else 512**-0.5
            assert 0.98 * bound < parameter.abs().max() <= bound, name


def test_dropout_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropout that scales by 0.5 instead of drawing shows where each dropout stands."""
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, 16, dropout=0.1).double()
    attention_dropouts = []

    def attend(*tensors: Tensor, dropout_p: float, attn_mask: Tensor | None) -> Tensor:
        attention_dropouts.append(dropout_p)
        return plain_attention(*tensors, attn_mask=attn_mask)

    plain_attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: 0.5 * x)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    found = block(x)
    first, _, _, second = block.feedforward
    expected = x + 0.5 * block.attention(block.attention_norm(x))
    hidden = F.gelu(first(block.feedforward_norm(expected)), approximate="tanh")
    expected = 0.5 * (expected + 0.5 * second(0.5 * hidden))
    torch.testing.assert_close(found, expected)
    block.eval()(x)
    assert attention_dropouts == [0.1, 0.1, 0.0]
