"""Keeps settings from making a network that the memory has no room for, where its tensors are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from cnnbert.errors import InputError

# Parts that are made and replaced count too, torchvision's VGG with 124 million values, and a backbone whose head alone
# is in the checkpoint: two streams of R(2+1)D-34 with 144 million.
SPARE, SPARE_VALUES, SPARE_TENSORS = 4, 2**28, 4000


@contextmanager
def no_larger_than(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop the making of modules that have many more values, or tensors, than a network's state.

    Memory is not yet used when a tensor is registered, so that a width of a million fails at once.

    Args:
        state: The tensors that the network will hold.

    Raises:
        InputError: The modules that are made within have several times as much.
    """
    most = SPARE * sum(tensor.numel() for tensor in state.values()) + SPARE_VALUES
    most_tensors = SPARE * len(state) + SPARE_TENSORS
    num_values = num_tensors = 0

    def count(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal num_values, num_tensors
        num_values += 0 if tensor is None else tensor.numel()
        num_tensors += 1
        if num_values > most or num_tensors > most_tensors:
            raise InputError("the settings describe a far larger network than the tensors beside them; one is damaged")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
