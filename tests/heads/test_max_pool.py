"""Max pooling against plain torch operations."""

from __future__ import annotations

import pytest
import torch

from cnnbert.heads import MaxPoolHead


@pytest.mark.parametrize("pooling", ["max", "min", "mean_max"])
def test_formulas(pooling: str) -> None:
    torch.manual_seed(0)
    head = MaxPoolHead(6, 3, pooling=pooling).double().eval()
    torch.nn.init.normal_(head.classifier.bias)
    features = torch.randn(2, 6, 5, 3, 2, dtype=torch.float64)
    rows = []
    for video in features:
        steps = [[channel[step].mean().item() for step in range(5)] for channel in video]
        kept = [min(values) if pooling == "min" else max(values) for values in steps]
        rows.append([sum(values) / 5 for values in steps] + kept if pooling == "mean_max" else kept)
    expected = torch.tensor(rows, dtype=torch.float64) @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(features), expected, rtol=1e-10, atol=1e-10)
