"""The convolutional LSTM and its attention against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cnnbert.heads import ConvLSTMHead


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Return the 3x3 convolution (B, O, H, W) of x (B, C, H, W) with zeros around, place by place."""
    rows, columns = x.shape[2:]
    out = x.new_zeros(x.shape[0], weight.shape[0], rows, columns)
    for row in range(rows):
        for column in range(columns):
            for i in range(max(0, row - 1), min(rows, row + 2)):
                for j in range(max(0, column - 1), min(columns, column + 2)):
                    out[:, :, row, column] += x[:, :, i, j] @ weight[:, :, 0, i - row + 1, j - column + 1].T
    return out


@pytest.mark.parametrize("steps", [1, 3])
def test_formulas(steps: int) -> None:
    """Source: "VideoLSTM Convolves, Attends and Flows for Action Recognition" (Li et al. 2018), convolutional ALSTM."""
    torch.manual_seed(0)
    head = ConvLSTMHead(6, 3, hidden_channels=5).double().eval().requires_grad_(False)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(2, 6, steps, 3, 2, dtype=torch.float64)
    hidden = cell = torch.zeros(2, 5, 3, 2, dtype=torch.float64)
    maps = []
    for step in range(steps):
        x = features[:, :, step]
        look = convolve(x, head.look.weight[:, :6]) + convolve(hidden, head.look.weight[:, 6:])
        scores = convolve((look + head.look.bias[:, None, None]).tanh(), head.score.weight)[:, 0].exp()
        maps.append(scores / scores.sum((1, 2), keepdim=True))
        gates = convolve(maps[-1][:, None] * x, head.gates.weight[:, :6]) + convolve(hidden, head.gates.weight[:, 6:])
        take, keep, show, candidate = (gates + head.gates.bias[:, None, None]).split(5, dim=1)
        cell = cell / (1 + (-keep).exp()) + candidate.tanh() / (1 + (-take).exp())
        hidden = cell.tanh() / (1 + (-show).exp())
    expected = hidden.mean((2, 3)) @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(features), expected, rtol=1e-10, atol=1e-10)
    attention = head.train().attention(features)
    assert attention.shape == (2, steps, 3, 2)
    torch.testing.assert_close(attention, torch.stack(maps, dim=1), rtol=1e-10, atol=1e-10)
    assert attention.flatten(2).std(2).max() > 0.05  # far from even: the comparison can tell
