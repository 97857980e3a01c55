"""bfloat16 on the CPU gives float32's numbers, in layers of every size."""

from __future__ import annotations

import pytest
import torch

from cnnbert.layers.conv import Conv3d

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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("kernel", "stride", "length", "size"), CASES)
def test_bfloat16_is_float32_rounded(kernel, stride, length, size, memory_format):
    torch.manual_seed(0)
    conv = Conv3d(16, 32, kernel, stride, tuple(k // 2 for k in kernel), bias=False).to(memory_format=memory_format)
    x = torch.randn(4, 16, length, size, size).to(memory_format=memory_format).requires_grad_()
    results = []
    for bfloat16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = conv(x)
        gradient = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append((y.detach().float(), *torch.autograd.grad(y, (x, conv.weight), gradient.to(y.dtype))))
    for exact, rounded in zip(*results, strict=True):
        # bfloat16 keeps 8 bits, and rounds inputs, weights and results; garbage is off by many powers of ten.
        assert (rounded - exact).abs().max() <= 0.03 * exact.abs().max()
