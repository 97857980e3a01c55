"""bfloat16 on the CPU gives float32's numbers, in layers of every size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnbert.layers.conv import Conv2d, Conv3d, replace_convolutions

CASES = [
    # kernel, stride, clip length, frame size
    ((3, 1, 1), (1, 1, 1), 2, 4),
    ((3, 1, 1), (1, 1, 1), 4, 4),
    ((3, 1, 1), (2, 1, 1), 2, 4),
    ((3, 3, 3), (1, 1, 1), 2, 7),
    ((3, 3, 3), (2, 2, 2), 2, 2),
    ((3, 3, 3), (2, 2, 2), 4, 1),
    ((1, 3, 3), (1, 2, 2), 4, 1),
    ((1, 1, 1), (2, 2, 2), 4, 2),
    ((7, 7, 7), (1, 2, 2), 4, 4),
]


IMAGE_CASES = [
    # kernel, stride, frame size
    (5, 2, 1),
    (7, 2, 1),
    (3, 1, 2),
    (3, 2, 2),
    (1, 2, 2),
    (3, 1, 7),
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("kernel", "stride", "length", "size"), CASES)
def test_bfloat16_is_float32_rounded(kernel, stride, length, size, memory_format):
    torch.manual_seed(0)
    conv = Conv3d(16, 32, kernel, stride, tuple(k // 2 for k in kernel), bias=False).to(memory_format=memory_format)
    x = torch.randn(4, 16, length, size, size).to(memory_format=memory_format).requires_grad_()
    check(conv, x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride", "size"), IMAGE_CASES)
def test_bfloat16_is_float32_rounded_on_images(kernel, stride, size, memory_format):
    torch.manual_seed(0)
    conv = Conv2d(16, 32, kernel, stride, kernel // 2, bias=False).to(memory_format=memory_format)
    x = torch.randn(8, 16, size, size).to(memory_format=memory_format).requires_grad_()
    check(conv, x)


def check(conv, x):
    results = []
    for bfloat16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = conv(x)
        gradient = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append((y.detach().float(), *torch.autograd.grad(y, (x, conv.weight), gradient.to(y.dtype))))
    for exact, rounded in zip(*results, strict=True):
        # bfloat16 keeps 8 bits, and rounds inputs, weights and results; garbage is off by many powers of ten.
        assert (rounded - exact).abs().max() <= 0.03 * exact.abs().max()


@pytest.mark.parametrize(("kind", "ours", "size"), [(nn.Conv2d, Conv2d, (9, 9)), (nn.Conv3d, Conv3d, (5, 9, 9))])
def test_replaced_convolutions_give_the_same(kind, ours, size):
    """Whatever their settings; only the first is for other channels."""
    torch.manual_seed(0)
    first = nn.Sequential(kind(3, 8, 3, 2, padding=1, bias=False), nn.ReLU())
    network = nn.Sequential(first, kind(8, 8, 3, padding=2, dilation=2, groups=4))
    x = torch.randn(2, 3, *size)
    expected = network(x)
    assert replace_convolutions(network, 3) == "0.0"
    assert {type(module) for module in network.modules()} == {nn.Sequential, nn.ReLU, ours}
    assert torch.equal(network(x), expected)
    other = nn.Sequential(kind(3, 8, 3), kind(8, 8, 3))
    replace_convolutions(other, 2)
    assert [conv.in_channels for conv in other] == [2, 8]
