"""The TGAP head against its formula."""

from __future__ import annotations

import torch

from cnnbert.heads import TGAPHead


def test_formula() -> None:
    torch.manual_seed(0)
    head = TGAPHead(6, 3).double().eval()
    torch.nn.init.normal_(head.classifier.bias)
    features = torch.randn(2, 6, 4, 3, 5, dtype=torch.float64)
    mean = features.flatten(2).sum(2) / 60
    expected = torch.einsum("bc,kc->bk", mean, head.classifier.weight) + head.classifier.bias
    torch.testing.assert_close(head(features), expected)


def test_dropout_is_that_of_the_channels() -> None:
    torch.manual_seed(0)
    head = TGAPHead(2000, 1)
    torch.nn.init.eye_(head.classifier.weight)
    kept = head.classifier_dropout(torch.ones(2000))
    assert set(kept.unique().tolist()) == {0.0, 5.0}
    assert 0.15 < kept.count_nonzero() / 2000 < 0.25
