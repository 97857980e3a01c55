"""Convolutions that stand in for bfloat16 units give what torch's own bfloat16 convolutions give."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "precision.py"
spec = importlib.util.spec_from_file_location("precision", SCRIPT)
assert spec is not None and spec.loader is not None
precision = importlib.util.module_from_spec(spec)
spec.loader.exec_module(precision)


def results(convolution: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Return the outputs, and the gradients of inputs, weights and biases of a loss of large and small terms."""
    convolution.zero_grad()
    inputs = inputs.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = convolution(inputs)
    assert outputs.dtype is torch.bfloat16
    (outputs.float() * torch.linspace(-3, 3, outputs.numel()).view_as(outputs)).sum().backward()
    return [outputs.detach().float(), inputs.grad, *(parameter.grad for parameter in convolution.parameters())]


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (nn.Conv3d(8, 6, 3, stride=2, padding=1), (2, 8, 4, 9, 9)),
        (nn.Conv3d(8, 8, 3, groups=4, bias=False), (2, 8, 4, 6, 6)),
        (nn.Conv2d(8, 6, 3, dilation=2), (2, 8, 9, 9)),
    ],
)
def test_they_are_bfloat16_convolutions(convolution: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(shape)
    native = results(convolution, inputs)
    with precision.RoundedConvolutions():
        rounded = results(convolution, inputs)
    with torch.no_grad():
        assert not torch.equal(rounded[0], convolution(inputs))
    for ours, theirs in zip(rounded, native, strict=True):
        # Sums are in another order, and torch rounds parts of some where the CPU has no such units.
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-6 * float(theirs.abs().max()))
