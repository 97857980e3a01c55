"""The LSTM head against its formulas, and its size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnbert.heads import LSTMHead


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("steps", [1, 4])
def test_formulas(steps: int, num_layers: int) -> None:
    """Source: "Long Short-Term Memory" with the forget gate of Gers et al. (2000), gates as in torch.nn.LSTM."""
    torch.manual_seed(0)
    head = LSTMHead(6, 3, hidden_channels=5, num_layers=num_layers).double().eval()
    nn.init.normal_(head.classifier.bias)
    weights = dict(head.lstm.named_parameters())
    features = torch.randn(2, 6, steps, 3, 5, dtype=torch.float64)
    inputs = [features[:, :, step].mean((2, 3)) for step in range(steps)]
    for layer in range(num_layers):
        hidden = cell = torch.zeros(2, 5, dtype=torch.float64)
        outputs = []
        for x in inputs:
            gates = x @ weights[f"weight_ih_l{layer}"].T + weights[f"bias_ih_l{layer}"]
            gates = gates + hidden @ weights[f"weight_hh_l{layer}"].T + weights[f"bias_hh_l{layer}"]
            take, keep, candidate, show = gates.split(5, dim=1)
            cell = cell * (1 / (1 + (-keep).exp())) + candidate.tanh() / (1 + (-take).exp())
            hidden = cell.tanh() / (1 + (-show).exp())
            outputs.append(hidden)
        inputs = outputs
    expected = inputs[-1] @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(features), expected, rtol=1e-10, atol=1e-10)


def test_dropout_is_that_of_the_last_state_alone() -> None:
    torch.manual_seed(0)
    head = LSTMHead(4, 2000, hidden_channels=2000)
    nn.init.eye_(head.classifier.weight)
    features = torch.randn(1, 4, 3, 1, 1)
    # The outputs of a layer are near 0, but never 0: what is, was dropped.
    dropped = head(features)
    plain = head.eval()(features)
    kept = dropped != 0
    assert 0.15 < kept.float().mean() < 0.25
    torch.testing.assert_close(dropped[kept], 5 * plain[kept])


@pytest.mark.parametrize(("num_classes", "count"), [(13, 47_560_951), (51, 47_578_089), (101, 47_600_639)])
def test_parameter_counts(num_classes: int, count: int) -> None:
    """Source: artest08/LateTemporalModeling3DCNN, rgb_resneXt3D64f101_FRMB_lstm; its trunk has 44,196,288."""
    with torch.device("meta"):
        head = LSTMHead(512, num_classes)
    assert sum(p.numel() for p in head.parameters()) == count - 44_196_288
