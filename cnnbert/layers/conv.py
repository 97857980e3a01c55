"""A 3D convolution whose gradients can be trusted in bfloat16 on a CPU."""

from __future__ import annotations

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
        width, stride = x.shape[-1], self.stride[-1]
        return any(size < kernel for size, kernel in zip(x.shape[2:], self.kernel_size, strict=True)) or (
            stride > 1 and width <= stride
        )
