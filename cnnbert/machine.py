"""What a machine computes 3D CNNs best with."""

from __future__ import annotations

import os
import platform
from typing import Literal

import torch

Precision = Literal["bf16-mixed", "16-mixed", "32-true"]


def best_device(accelerator: object = "auto") -> torch.device:
    """Return the device that a Lightning accelerator of this name stands for here."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def best_precision(device: torch.device) -> Precision:
    """Return the fastest precision that trains well: bfloat16 where the hardware has it, float16 on V100s and T4s."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16-mixed" if major >= 8 else "16-mixed" if major == 7 else "32-true"
    if device.type == "cpu" and _cpu_has_bf16():
        return "bf16-mixed"
    return "32-true"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which networks compute in a precision, named as Lightning does; float32 is left alone."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def prefers_channels_last(device: torch.device, precision: str) -> bool:
    """Return whether 3D convolutions are faster with the channels innermost."""
    if device.type == "cuda":
        return precision in ("bf16-mixed", "16-mixed")
    return device.type == "cpu"


def describe(device: torch.device, precision: str, channels_last: bool) -> str:
    """Return one line that says what a run computes with."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type.upper()} {platform.machine()}, {torch.get_num_threads()} threads"
    order = "channels last" if channels_last else "channels first"
    return f"{name} | precision {precision} | {order} | torch {torch.__version__}"


def num_cores() -> int:
    """Return the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_has_bf16() -> bool:
    return any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
