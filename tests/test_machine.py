"""The precision suits the hardware."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from cnnbert import machine

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        ((9, 0), "bf16-mixed"),
        ((8, 0), "bf16-mixed"),
        ((7, 5), "16-mixed"),
        ((7, 0), "16-mixed"),
        ((6, 1), "32-true"),
    ],
)
def test_best_precision_of_gpus(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: machine.Precision
) -> None:
    """The V100s of the paper are of capability (7, 0); the first with bfloat16 is (8, 0)."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.best_precision(torch.device("cuda")) == precision


@pytest.mark.parametrize(
    ("has_avx512", "has_amx", "precision"),
    [(True, False, "bf16-mixed"), (False, True, "bf16-mixed"), (False, False, "32-true")],
)
def test_best_precision_of_cpus(
    monkeypatch: pytest.MonkeyPatch, has_avx512: bool, has_amx: bool, precision: machine.Precision
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    assert machine.best_precision(CPU) == precision


def test_a_torch_without_these_checks_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert machine.best_precision(CPU) == "32-true"


def test_best_precision_elsewhere() -> None:
    assert machine.best_precision(torch.device("mps")) == "32-true"


@pytest.mark.parametrize(
    ("device", "precision", "preferred"),
    [
        ("cuda", "bf16-mixed", True),
        ("cuda", "16-mixed", True),
        ("cuda", "32-true", False),
        ("cpu", "32-true", True),
        ("mps", "32-true", False),
    ],
)
def test_channels_last(device: str, precision: str, preferred: bool) -> None:
    assert machine.prefers_channels_last(torch.device(device), precision) is preferred


def test_description() -> None:
    text = machine.describe(CPU, "32-true", True)
    assert text.startswith("CPU ")
    assert text.endswith(f" threads | precision 32-true | channels last | torch {torch.__version__}")
    assert "channels first" in machine.describe(CPU, "32-true", False)
    assert " | compiled | " in machine.describe(CPU, "32-true", True, compiled=True)


def test_at_least_one_core() -> None:
    assert machine.num_cores() >= 1


@pytest.mark.parametrize(
    ("version", "cudnn", "precision", "told"),
    [
        (
            "2.9.0+cu128",
            91600,
            "bf16-mixed",
            ["torch 2.9.0 computes 3D convolutions in bf16-mixed about 4 times slower"],
        ),
        ("2.9.1", 91300, "16-mixed", ["torch 2.9.1 computes 3D convolutions in 16-mixed about 4 times slower"]),
        ("2.9.1", 91500, "16-mixed", []),
        ("2.8.0+cu126", 91002, "bf16-mixed", ["cuDNN 9.10.2 gives wrong numbers for large 3D convolutions"]),
        ("2.8.0+cu126", 91002, "16-mixed", []),
        ("2.9.0", 91002, "32-true", []),
        ("2.10.0", 91501, "bf16-mixed", []),
    ],
)
def test_bad_versions(
    monkeypatch: pytest.MonkeyPatch, version: str, cudnn: int, precision: str, told: list[str]
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    found = machine.known_faults(torch.device("cuda"), precision)
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True))
    assert machine.known_faults(CPU, precision) == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_freed_tensors_is_kept() -> None:
    """A tensor of 64 MiB takes the pages of a larger one before it; by default each has pages of its own."""
    code = (
        "import resource, sys, torch; from cnnbert.machine import keep_freed_memory\n"
        "if sys.argv[1] == 'kept': keep_freed_memory()\n"
        "fresh = lambda size: torch.ones(size) is None or resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "first = fresh(2**25); print(fresh(2**24) - first)"
    )
    faults = [
        int(subprocess.run([sys.executable, "-c", code, way], capture_output=True, text=True, check=True).stdout)
        for way in ("kept", "usual")
    ]
    assert faults[0] < 100 < faults[1]
