"""Convolutions whose gradients can be trusted in bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """Convolves as `torch.nn.Conv3d`, but in float32 where a CPU's bfloat16 gives wrong numbers.

    oneDNN 3.13 (in torch 2.15) fills weight gradients with garbage, or writes past its memory, where the kernel is
    larger than what it slides over, such as 3 frames over 2; and its outputs are wrong where strides leave a single
    column (pytorch/pytorch#169688). Such layers are a network's last and smallest, so that float32 costs little.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved x (B, C', T', H', W') of x (B, C, T, H, W)."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and self.is_small(x):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(x)

    def is_small(self, x: Tensor) -> bool:
        """Return whether x (B, C, T, H, W) is smaller than the kernel, or strides leave a single column of it."""
        return _is_small(x, self)


class Conv2d(nn.Conv2d):
    """Convolves as `torch.nn.Conv2d`, but in float32 where a CPU's bfloat16 gives wrong numbers, as `Conv3d` does."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved x (N, C', H', W') of x (N, C, H, W)."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and _is_small(x, self):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(x)


def _is_small(x: Tensor, conv: nn.Conv2d | nn.Conv3d) -> bool:
    width, stride = x.shape[-1], conv.stride[-1]
    return any(size < kernel for size, kernel in zip(x.shape[2:], conv.kernel_size, strict=True)) or (
        stride > 1 and width <= stride
    )


def replace_convolutions(network: nn.Module, in_channels: int) -> str:
    """Make all convolutions of a network ones of this module, and the first of them for inputs of `in_channels`.

    Weights that fit are kept; those of a first convolution for other channels are drawn anew.

    Returns:
        The name of the first convolution.
    """
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    for place, (name, conv) in enumerate(found):
        channels = conv.in_channels if place else in_channels
        kind: Any = Conv2d if isinstance(conv, nn.Conv2d) else Conv3d
        made = kind(
            channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            device=conv.weight.device,
        )
        if channels == conv.in_channels:
            made.weight, made.bias = conv.weight, conv.bias
        network.set_submodule(name, made)
    return found[0][0]
