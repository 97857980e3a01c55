"""SnippetPoolHead against its definition, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cnnbert.errors import InputError
from cnnbert.heads import SnippetPoolHead


def layer(x: Tensor, linear: torch.nn.Linear) -> Tensor:
    return (linear.weight @ x + linear.bias).clamp(min=0)


def expected_logits(head: SnippetPoolHead, features: Tensor, windows: list[tuple[int, int]]) -> Tensor:
    """Return the logits of one clip's features (C, T'), by plain loops over steps and windows [start, end)."""
    steps = list(features.unbind(1))
    largest = [torch.stack(steps[start:end]).amax(0) for start, end in windows]
    if head.pooling == "late":
        found = torch.stack([layer(layer(step, head.fc1), head.fc2) for step in steps]).amax(0)
    elif head.pooling == "slow":
        found = layer(torch.stack([layer(one, head.fc1) for one in largest]).amax(0), head.fc2)
    else:
        found = torch.stack([layer(layer(one, head.fc1), head.fc2) for one in largest], dim=1).flatten()
    return head.classifier.weight @ found + head.classifier.bias


@pytest.mark.parametrize("pooling", ["late", "slow", "local"])
@pytest.mark.parametrize(
    ("steps", "windows"),
    [
        (1, [(0, 1)]),
        (7, [(0, 7)]),
        (10, [(0, 10)]),
        (11, [(0, 10), (5, 11)]),
        (15, [(0, 10), (5, 15)]),
        (23, [(0, 10), (5, 15), (10, 20), (15, 23)]),
    ],
)
def test_the_definition(pooling, steps: int, windows: list[tuple[int, int]]) -> None:
    """Windows of ten with stride five, as in the paper; the last may be shorter."""
    torch.manual_seed(0)
    head = SnippetPoolHead(6, 3, pooling=pooling, hidden_channels=8).eval().double()
    head.set_num_steps(steps)
    assert head.classifier.in_features == (8 * len(windows) if pooling == "local" else 8)
    features = torch.randn(2, 6, steps, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        logits = head(features)
        expected = [expected_logits(head, clip.mean((2, 3)), windows) for clip in features]
    torch.testing.assert_close(logits, torch.stack(expected), rtol=0, atol=1e-12)


def test_set_num_steps() -> None:
    """Other numbers of windows draw another classifier, of the same type; a number that was given stays."""
    head = SnippetPoolHead(6, 3, pooling="local", hidden_channels=8, window=2, stride=2).double()
    first = head.classifier
    assert first.in_features == 16
    head.set_num_steps(3)  # two windows as well
    assert head.classifier is first
    head.set_num_steps(7)
    assert head.classifier.in_features == 32 and head.classifier.weight.dtype == torch.float64
    given = SnippetPoolHead(6, 3, pooling="local", hidden_channels=8, window=2, stride=2, num_steps=2)
    given.set_num_steps(8)
    assert given.classifier.in_features == 8
    with pytest.raises(InputError, match="num_steps=0 must be at least 1"):
        head.set_num_steps(0)


def test_features_of_another_length() -> None:
    """Twice the windows: each pair of neighbours counts as its mean."""
    torch.manual_seed(0)
    head = SnippetPoolHead(6, 3, pooling="local", hidden_channels=8, window=1, stride=1, num_steps=4).eval()
    features = torch.randn(2, 6, 4, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(head(features.repeat_interleave(2, dim=2)), head(features))
