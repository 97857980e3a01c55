"""The sizes of the networks that the paper compares."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cnnbert.backbones import Backbone, R2Plus1D, ResNeXt3D
from cnnbert.heads import BERTHead, Head, TGAPHead

FRMB, FRAB = {"last_block_channels": 512}, {"reduce_to": 512}


@pytest.mark.parametrize(
    ("backbone_class", "backbone_arguments", "head_class", "head_arguments", "counts"),
    [
        (ResNeXt3D, {}, TGAPHead, {}, (47_547_853, 47_625_715, 47_728_165)),
        (ResNeXt3D, FRMB, BERTHead, {}, (47_358_413, 47_377_907, 47_403_557)),
        (ResNeXt3D, {}, BERTHead, FRAB, (52_445_645, 52_465_139, 52_490_789)),
        (R2Plus1D, {}, TGAPHead, {}, (63_498_644, 63_518_138, 63_543_788)),
        (R2Plus1D, {}, BERTHead, {}, (66_654_100, 66_673_594, 66_699_244)),
        (R2Plus1D, {}, BERTHead, {"num_steps": 8}, (66_656_148, 66_675_642, 66_701_292)),
        (ResNeXt3D, FRMB, TGAPHead, {}, (44_202_957, 44_222_451, 44_248_101)),
    ],
)
def test_parameter_counts(
    backbone_class: type[Backbone],
    backbone_arguments: dict[str, Any],
    head_class: type[Head],
    head_arguments: dict[str, Any],
    counts: tuple[int, int, int],
) -> None:
    """Source: the networks of artest08/LateTemporalModeling3DCNN for 13, 51 and 101 classes."""
    with torch.device("meta"):
        backbone = backbone_class(**backbone_arguments)
        trunk = sum(p.numel() for p in backbone.parameters())
        for num_classes, count in zip((13, 51, 101), counts, strict=True):
            head = head_class(backbone.out_channels, num_classes, **head_arguments)
            assert trunk + sum(p.numel() for p in head.parameters()) == count
