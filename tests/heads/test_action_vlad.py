"""ActionVLAD against its sums, written out."""

from __future__ import annotations

import pytest
import torch

from cnnbert.heads import ActionVLADHead


@pytest.mark.parametrize(("reduce_to", "alpha"), [(None, 10.0), (5, 2.0)])
def test_formulas(reduce_to: int | None, alpha: float) -> None:
    """Source: "ActionVLAD" (Girdhar et al. 2017), the soft assignment and the sum over time and space."""
    torch.manual_seed(0)
    head = ActionVLADHead(6, 3, num_clusters=4, reduce_to=reduce_to, alpha=alpha).double().eval()
    torch.nn.init.normal_(head.classifier.bias)
    features = torch.randn(2, 6, 3, 2, 2, dtype=torch.float64)
    videos = []
    for video in features:
        rows = [torch.zeros_like(anchor) for anchor in head.anchors]
        for vector in video.flatten(1).T:
            x = vector if reduce_to is None else head.reduction.weight[:, :, 0, 0, 0] @ vector
            x = x / x.norm()
            near = torch.stack([(-alpha * (x - anchor).norm() ** 2).exp() for anchor in head.anchors])
            for k, anchor in enumerate(head.anchors):
                rows[k] = rows[k] + near[k] / near.sum() * (x - anchor)
        vlad = torch.cat([row / row.norm() for row in rows])
        videos.append(vlad / vlad.norm())
    expected = torch.stack(videos) @ head.classifier.weight.T + head.classifier.bias
    # A constant of 1e-6 keeps the squared lengths from 0.
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "reduce_to", "count"), [(2048, 512, 1_507_341), (512, None, 458_765)])
def test_parameter_counts(channels: int, reduce_to: int | None, count: int) -> None:
    with torch.device("meta"):
        head = ActionVLADHead(channels, 13, reduce_to=reduce_to)
    assert sum(parameter.numel() for parameter in head.parameters()) == count
