"""Opens files of tensors without running anything that is in them."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from cnnbert.errors import InputError


def read_tensors(path: Path) -> Any:
    """Return what a file written by `torch.save` holds, on the CPU: tensors, numbers and text, in lists and dicts.

    Raises:
        InputError: There is no such file, it is damaged or of another kind, or it needs code to be run.
    """
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds for a broken file
        told = str(error).strip()
        code = re.search(r"(?:GLOBAL|class|instantiate) ([\w.]*[\w]\.[\w.]+)", told)
        if code:
            raise InputError(
                f"{path} is refused: it wants to run code ({code[1]}), and only tensors, numbers and text are read; "
                "save its state_dict alone where you trust it"
            ) from None
        reason = told.rpartition("WeightsUnpickler error: ")[2].split("\n")[0]
        if not reason or reason.isdigit():
            reason = type(error).__name__
        raise InputError(f"{path} is damaged, or not a file that torch.save wrote ({reason})") from None
