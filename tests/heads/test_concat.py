"""The concatenation head against its formula, its number of time steps and its size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads import ConcatHead

CHANNELS, CLASSES = 6, 3


def concatenated(features: Tensor, num_steps: int) -> Tensor:
    """Return (B, C * S): the mean over the share of the clip that each step has, step by step within a channel."""
    steps = features.shape[2]
    columns = []
    for channel in range(features.shape[1]):
        for step in range(num_steps):
            share = slice(math.floor(step * steps / num_steps), math.ceil((step + 1) * steps / num_steps))
            columns.append(features[:, channel, share].mean((1, 2, 3)))
    return torch.stack(columns, dim=1)


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    return torch.einsum("bi,oi->bo", x, layer.weight) + layer.bias


@pytest.mark.parametrize("hidden_channels", [7, None])
@pytest.mark.parametrize("steps", [1, 3, 4, 6, 8])
def test_formula(steps: int, hidden_channels: int | None) -> None:
    torch.manual_seed(0)
    head = ConcatHead(CHANNELS, CLASSES, hidden_channels=hidden_channels).double().eval()
    nn.init.normal_(head.classifier.bias)
    features = torch.randn(2, CHANNELS, steps, 3, 5, dtype=torch.float64)
    expected = concatenated(features, 4)
    if hidden_channels is not None:
        expected = linear(expected, head.hidden)
    torch.testing.assert_close(head(features), linear(expected, head.classifier), rtol=1e-10, atol=1e-10)


def test_dropout_stands_before_the_linear_layers() -> None:
    torch.manual_seed(0)
    head = ConcatHead(100, 400, num_steps=4, hidden_channels=400)
    assert isinstance(head.hidden, nn.Linear)
    for layer in (head.hidden, head.classifier):
        nn.init.eye_(layer.weight)
    nn.init.ones_(head.hidden.bias)  # is added after the dropout, and not dropped
    kept = head(torch.ones(10, 100, 4, 2, 1)) - 1
    assert set(kept.unique().tolist()) == {0.0, 5.0}
    assert 0.15 < kept.count_nonzero() / 4000 < 0.25


@pytest.mark.parametrize("hidden_channels", [7, None])
def test_set_num_steps(hidden_channels: int | None) -> None:
    torch.manual_seed(0)
    head = ConcatHead(CHANNELS, CLASSES, hidden_channels=hidden_channels).double()
    before = head.state_dict(keep_vars=True)
    head.set_num_steps(4)
    assert all(tensor is before[name] for name, tensor in head.state_dict(keep_vars=True).items())
    head.set_num_steps(8)
    after = {name: (tuple(value.shape), value.dtype) for name, value in head.named_parameters()}
    wide = {"hidden.weight": (7, 48), "hidden.bias": (7,), "classifier.weight": (CLASSES, 7)}
    narrow = {"classifier.weight": (CLASSES, 48)}
    shapes = {**(narrow if hidden_channels is None else wide), "classifier.bias": (CLASSES,)}
    assert after == {name: (shape, torch.float64) for name, shape in shapes.items()}
    bound = (6 / (head.classifier.in_features + CLASSES)) ** 0.5
    assert 0.8 * bound < head.classifier.weight.abs().max() <= bound
    assert head.classifier.bias.count_nonzero() == 0
    # A step of the wider head is a step of the features, not a mean of two.
    features = torch.randn(2, CHANNELS, 8, 1, 1, dtype=torch.float64)
    expected = head.eval().hidden(concatenated(features, 8))
    torch.testing.assert_close(head(features), head.classifier(expected))
    with pytest.raises(InputError, match="num_steps=0 must be at least 1"):
        head.set_num_steps(0)


def test_explicit_num_steps_stays() -> None:
    head = ConcatHead(CHANNELS, CLASSES, num_steps=3)
    before = head.hidden
    head.set_num_steps(8)
    assert head.hidden is before and before.in_features == 3 * CHANNELS


@pytest.mark.parametrize(("num_classes", "count"), [(13, 47_392_401), (51, 47_451_339), (101, 47_528_889)])
def test_parameter_counts(num_classes: int, count: int) -> None:
    """Source: artest08/LateTemporalModeling3DCNN, rgb_resneXt3D64f101_concatenation; its trunk has 44,196,288."""
    with torch.device("meta"):
        head = ConcatHead(512, num_classes, num_steps=4)
    assert sum(p.numel() for p in head.parameters()) == count - 44_196_288
