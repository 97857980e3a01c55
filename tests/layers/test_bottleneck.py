"""The ResNeXt bottleneck against plain torch operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.layers.bottleneck import Bottleneck, reduction_block


def batch_norm(x: Tensor, norm: nn.Module) -> Tensor:
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
    return x * scale.view(-1, 1, 1, 1) + (norm.bias - norm.running_mean * scale).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("in_channels", "stride"), [(6, 2), (6, 1), (16, 1)])
def test_formula(in_channels: int, stride: int) -> None:
    torch.manual_seed(0)
    block = Bottleneck(in_channels, planes=8, cardinality=4, stride=stride).double().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(2, in_channels, 5, 6, 7, dtype=torch.float64)
    y = batch_norm(F.conv3d(x, block.conv1.weight), block.bn1).relu()
    y = F.conv3d(y, block.conv2.weight, stride=stride, padding=1, groups=4)
    y = batch_norm(F.conv3d(batch_norm(y, block.bn2).relu(), block.conv3.weight), block.bn3)
    shortcut = x
    if (in_channels, stride) != (16, 1):
        convolution, norm = block.downsample
        shortcut = batch_norm(F.conv3d(x, convolution.weight, stride=stride), norm)
    torch.testing.assert_close(block(x), (y + shortcut).relu(), rtol=1e-10, atol=1e-10)


def test_reduction_block_of_ltm() -> None:
    torch.manual_seed(0)
    block = reduction_block(2048, 512)
    assert sum(p.numel() for p in block.parameters()) == 1_762_304
    for name, module in block.named_modules():
        if isinstance(module, nn.Conv3d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02), name
