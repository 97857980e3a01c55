"""Opens files of tensors without running anything that is in them."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from cnnbert.errors import InputError

ZIP_START = b"PK\x03\x04"


class DamagedFile(InputError):
    """A file is not what it was, or never was what it should be."""


def read_tensors(path: Path) -> Any:
    """Return what a file written by `torch.save` holds, on the CPU: tensors, numbers and text, in lists and dicts.

    Raises:
        DamagedFile: It is damaged, or of another kind.
        InputError: There is no such file, or it needs code to be run.
    """
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except Exception as error:  # torch raises many kinds for a broken file
        told = str(error).strip()
        code = re.search(r"(?:GLOBAL|class|instantiate) ([\w.]*[\w]\.[\w.]+)", told)
        if code:
            raise InputError(
                f"{path} is refused: it wants to run code ({code[1]}), and only tensors, numbers and text are read; "
                "save its state_dict alone where you trust it"
            ) from None
        reason = _cut_off(path) or told.rpartition("WeightsUnpickler error: ")[2].split("\n")[0]
        if not reason or reason.isdigit():
            reason = type(error).__name__
        raise DamagedFile(f"{path} is damaged, or not a file that torch.save wrote ({reason})") from None


def _cut_off(path: Path) -> str:
    """Return in words that a file lacks its end, where that can be told; else nothing."""
    with path.open("rb") as file:
        start = file.read(len(ZIP_START))
    if not start:
        return "it is empty"
    is_cut = start == ZIP_START and not is_zip(path)
    return f"it is cut off: only its first {path.stat().st_size} bytes are there" if is_cut else ""


def is_zip(path: Path) -> bool:
    """Return whether a file has what a zip file ends with."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of a changed end
        return False
