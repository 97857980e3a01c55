"""Files of tensors are read, and nothing in any file is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnbert.errors import InputError
from cnnbert.tensorfile import read_tensors


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_back(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    weight = torch.randn(3, 4)
    torch.save({"epoch": 3, "state_dict": OrderedDict(w=weight)}, path, _use_new_zipfile_serialization=zipped)
    state = read_tensors(path)
    assert state["epoch"] == 3 and torch.equal(state["state_dict"]["w"], weight)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "beside tensors"])
def test_code_is_refused_and_not_run(tmp_path: Path, where: str, zipped: bool) -> None:
    path, trace = tmp_path / "code.pth", tmp_path / "ran"
    code = Code(f"touch {trace}")
    state = code if where == "alone" else {"w": torch.zeros(1), "arch": code}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"code\.pth is refused: it wants to run code \((posix|nt)\.system\)"):
        read_tensors(path)
    assert not trace.exists()


def test_a_whole_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    message = r"wants to run code \(torch\.nn\.modules\.linear\.Linear\).*save its state_dict alone"
    with pytest.raises(InputError, match=message):
        read_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_cut_files_are_named(tmp_path: Path, kept: float, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.randn(100, 100)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=r"weights\.pth is damaged, or not a file that torch\.save wrote \(.+\)$"):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"hello", b"\x00" * 5000, pickle.dumps([1, 2]), "ключ = 3\n".encode() * 99])
def test_other_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.pth is damaged, or not a file that torch\.save wrote \(.+\)$"):
        read_tensors(path)


def test_absent_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(InputError, match=f"^there is no file {path}$"):
            read_tensors(path)
