"""Convolution over time against its sums, written out."""

from __future__ import annotations

import pytest
import torch

from cnnbert.heads import TemporalConvHead


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("steps", [1, 4])
def test_formulas(steps: int, kernel_size: int) -> None:
    torch.manual_seed(0)
    head = TemporalConvHead(6, 3, hidden_channels=7, kernel_size=kernel_size).double().eval()
    torch.nn.init.normal_(head.classifier.bias)
    features = torch.randn(2, 6, steps, 3, 2, dtype=torch.float64)
    x, weight = features.mean((3, 4)), head.conv.weight[:, :, :, 0, 0]
    strongest = torch.zeros(2, 7, dtype=torch.float64)  # what ReLU leaves of anything below
    for step in range(steps):
        response = head.conv.bias.expand(2, -1)
        for tap in range(kernel_size):
            place = step + tap - kernel_size // 2
            if 0 <= place < steps:
                response = response + x[:, :, place] @ weight[:, :, tap].T
        strongest = torch.maximum(strongest, response)
    expected = strongest @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(features), expected, rtol=1e-10, atol=1e-10)
