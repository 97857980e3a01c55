"""What a machine computes 3D CNNs best with."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from typing import Literal

import torch
from torch import nn

# Of glibc's malloc.h: the most blocks that are mapped one by one, and the free memory that is given back; -1 for never.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

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


def lay_out_channels_last(network: nn.Module) -> None:
    """Lay out the weights of a network's convolutions with the channels innermost."""
    for module in network.modules():  # other kinds of weights may not take this layout
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)


def describe(device: torch.device, precision: str, channels_last: bool, compiled: bool = False) -> str:
    """Return one line that says what a run computes with."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type.upper()} {platform.machine()}, {torch.get_num_threads()} threads"
    order = "channels last" if channels_last else "channels first"
    kind = "compiled | " if compiled else ""
    return f"{name} | precision {precision} | {order} | {kind}torch {torch.__version__}"


def known_faults(device: torch.device, precision: str) -> list[str]:
    """Return what is known to be wrong with 3D convolutions here, and what to do, a sentence each.

    torch 2.9.0 does not use cuDNN for those in half precision, and 2.9.1 only from cuDNN 9.15 on (pytorch/pytorch
    issues 166122 and 166643); cuDNN 9.10.2 gives wrong numbers for large ones in bfloat16 (163539).
    """
    if device.type != "cuda" or precision not in ("bf16-mixed", "16-mixed"):
        return []
    release = re.match(r"\d+\.\d+(\.\d+)?", torch.__version__)
    version, cudnn = release[0] if release else "", torch.backends.cudnn.version() or 0
    faults = []
    if version == "2.9.0" or (version.startswith("2.9.") and cudnn < 91500):
        faults.append(
            f"torch {version} computes 3D convolutions in {precision} about 4 times slower than others, and takes "
            "far more memory; install torch 2.10 or newer, or 2.8"
        )
    if precision == "bf16-mixed" and cudnn == 91002:
        faults.append(
            "cuDNN 9.10.2 gives wrong numbers for large 3D convolutions in bf16-mixed; install a newer one, or "
            "take --trainer.precision 16-mixed"
        )
    return faults


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for the next ones, where the C library is glibc.

    Otherwise each large tensor on a CPU is new memory of the system, whose pages are zeroed one by one: a sixth of a
    training step of R(2+1)D-34 in bfloat16, and a third in float32. Forked processes do as this one.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
            libc.mallopt(parameter, value)


def num_cores() -> int:
    """Return the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_has_bf16() -> bool:
    return any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
