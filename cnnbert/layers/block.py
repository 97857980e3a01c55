"""A block whose inside can be computed a second time in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A part of a network that can do without keeping its inside for the backward pass (gradient checkpointing).

    Of such a block only the input is kept; its forward pass is done again in the backward pass, with the same random
    draws, and without counting the batch twice in BatchNorm's running statistics ("Training Deep Nets with Sublinear
    Memory Cost", Chen et al. 2016). Outputs and gradients are the same.

    Attributes:
        is_recomputed: Whether it does so.
    """

    is_recomputed = False

    def __call__(self, *args: Any) -> Any:
        """Return what `forward` gives."""
        if not (self.is_recomputed and torch.is_grad_enabled()):
            return super().__call__(*args)
        return checkpoint(
            super().__call__,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _without_statistics(self)),
        )


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Leave the running statistics of the block's norms as they are."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    known = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    numbers = [None if number is None else number.clone() for _, _, number in known]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for (norm, momentum, number), before in zip(known, numbers, strict=True):
            norm.momentum = momentum
            if number is not None and before is not None:
                number.copy_(before)
