"""The efficient BERT head starts as TGAP and departs from it where time tells more."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnbert.errors import InputError
from cnnbert.heads import BERTHead, EfficientBERTHead, TGAPHead


def random_features(batch: int = 3, channels: int = 128, steps: int = 4) -> Tensor:
    return torch.randn(batch, channels, steps, 2, 3, generator=torch.Generator().manual_seed(1)).relu()


def test_it_starts_as_tgap_to_the_last_digit() -> None:
    head, tgap = EfficientBERTHead(128, 13).eval(), TGAPHead(128, 13).eval()
    tgap.load_state_dict(head.average.state_dict())
    assert torch.equal(head(random_features()), tgap(random_features()))


def test_its_first_step_is_that_of_tgap_for_the_average() -> None:
    head, tgap = EfficientBERTHead(128, 13, classifier_dropout=0), TGAPHead(128, 13, classifier_dropout=0)
    tgap.load_state_dict(head.average.state_dict())
    for network in (head, tgap):
        F.cross_entropy(network(random_features()), torch.tensor([0, 5, 12])).backward()
    assert tgap.classifier.weight.grad is not None
    assert torch.equal(head.average.classifier.weight.grad, tgap.classifier.weight.grad)
    assert head.bert.classifier.weight.grad.abs().sum() > 1e-3  # so it will depart from zero
    assert head.reduction.weight.grad.abs().sum() == 0


@pytest.mark.parametrize(("channels", "width", "parameters"), [(2048, 256, 1_412_378), (512, 64, 107_354), (64, 64, 0)])
def test_size(channels: int, width: int, parameters: int) -> None:
    head = EfficientBERTHead(channels, 13)
    assert head.bert.in_channels == width
    if parameters:
        assert sum(parameter.numel() for parameter in head.parameters()) == parameters
    reduced = sum(parameter.numel() for parameter in BERTHead(2048, 13, reduce_to=512).parameters())
    if channels == 2048:
        assert (parameters < 2_000_000, reduced) == (True, 4_924_429)


def test_it_learns_an_order_that_the_average_cannot_tell() -> None:
    """Two moments in one order or in the other: their mean is the same."""
    torch.manual_seed(0)
    first, second = torch.randn(2, 64).relu()
    clips = torch.stack([torch.stack(pair, dim=1) for pair in ((first, second), (second, first))])[..., None, None]
    label = torch.tensor([0, 1])
    losses = {}
    for head in (
        TGAPHead(64, 2, classifier_dropout=0),
        EfficientBERTHead(64, 2, classifier_dropout=0, mask_probability=0, dropout=0),
    ):
        optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
        for _ in range(150):
            loss = F.cross_entropy(head(clips), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[type(head)] = F.cross_entropy(head.eval()(clips), label).item()
    assert losses[TGAPHead] > 0.69  # a coin's: log 2
    assert losses[EfficientBERTHead] < 0.01


def test_attention_is_that_of_its_bert() -> None:
    head = EfficientBERTHead(128, 13, num_heads=2, num_layers=3).eval()
    weights = head.attention(random_features())
    assert weights.shape == (3, 3, 2, 4 + 24, 4 + 24)  # four class tokens, and 2x3 places at 4 time steps
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 3, 2, 28))


def test_positions_follow_the_clips(caplog: pytest.LogCaptureFixture) -> None:
    head, longer = EfficientBERTHead(128, 13), EfficientBERTHead(128, 13)
    longer.set_num_steps(8)
    assert longer.bert.positions.shape == (1, 9, 64)
    with caplog.at_level(logging.WARNING):
        longer.load_state_dict(head.state_dict())
    assert "loaded positions of 4 time steps are interpolated over time to the 8 of this head" in caplog.text


def test_wrong_width() -> None:
    with pytest.raises(InputError, match="inner_channels=0 must be a positive multiple of 8; try 256"):
        EfficientBERTHead(2048, 13, inner_channels=0)
    with pytest.raises(InputError, match="inner_channels=12 must be a positive multiple of 8; try 64"):
        EfficientBERTHead(128, 13, inner_channels=12)
    with pytest.raises(InputError, match="num_heads=3 must divide the width 64; try 2"):
        EfficientBERTHead(128, 13, num_heads=3)
