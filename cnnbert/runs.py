"""Where a run's files lie, and how a checkpoint of an earlier run is found and read."""

from __future__ import annotations

import glob
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnbert.backbones.weights import BACKBONE_DIGEST
from cnnbert.checkpoint_classes import check_classes
from cnnbert.errors import InputError
from cnnbert.tensorfile import DamagedFile, is_zip, read_tensors

CHECKPOINTS = "checkpoints"

# Settings within settings; more than any config has.
DEEPEST = 32


def new_run_folder(root: Path, name: str, command: str) -> Path:
    """Return a folder that does not exist yet, `root/name/COMMAND-DATE-TIME`; nothing is made."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = root / name / f"{command}-{stamp}"
    number = 2
    while folder.exists():
        folder = root / name / f"{command}-{stamp}-{number}"
        number += 1
    return folder


def run_name(checkpoint: Path) -> str:
    """Return the name of the run that a checkpoint lies in, or the file's own where it lies elsewhere."""
    checkpoint = checkpoint.resolve()
    inside = checkpoint.parent.name == CHECKPOINTS and len(checkpoint.parents) > 2
    return checkpoint.parents[2].name if inside else checkpoint.stem


def find_checkpoint(name: str, root: Path, run: str | None) -> Path:
    """Return the path of a checkpoint: a file, or the newest `last` or `best` one below `root`.

    Args:
        name: A path, `last` or `best`.
        root: The folder of all runs.
        run: The name of the runs to look among; None for all.

    Raises:
        InputError: There is none.
    """
    if name not in ("last", "best"):
        path = Path(name).expanduser()
        if not os.path.isfile(path):
            raise InputError(f"there is no checkpoint {name}; give a file, `last` or `best`")
        return path
    pattern = f"{glob.escape(run) if run else '*'}/*/{CHECKPOINTS}/{name}.ckpt"
    found = sorted(root.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"there is no checkpoint {root / pattern}; run `cnnbert fit` first, or give a file")
    return found[-1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of `cnnbert fit` holds; nothing in it is executed.

    Raises:
        InputError: The file is not such a checkpoint.
        DamagedFile: It is damaged; the message names others that lie beside it.
    """
    try:
        checkpoint = read_tensors(path)
        _check_sums(path)
    except DamagedFile as error:
        others = sorted(str(other) for other in path.parent.glob(f"*{path.suffix}") if other != path)
        advice = "copy it again from where it is whole" + "".join(f", or take {other}" for other in others)
        raise DamagedFile(f"{error}; {advice}") from error
    settings = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(settings, dict) or "_instantiator" not in settings:
        raise InputError(f"{path} is not a checkpoint of `cnnbert fit`: it does not hold the model's settings")
    state = checkpoint.get("state_dict")
    names, length = settings.get("class_names"), settings.get("clip_length")
    data = checkpoint.setdefault("datamodule_hyper_parameters", {})
    faults = {
        "state_dict": not _is_state(state),
        "hyper_parameters": not _is_plain(settings) or not isinstance(settings.get("multi_label", False), bool),
        "class_names": not isinstance(names, list) or not all(isinstance(name, str) for name in names),
        "clip_length": not isinstance(length, int) or not 0 < length < 2**20,
        BACKBONE_DIGEST: not isinstance(checkpoint.get(BACKBONE_DIGEST, ""), str),
        "datamodule_hyper_parameters": not isinstance(data, dict) or not _is_plain(data),
    }
    wrong = [name for name, is_wrong in faults.items() if is_wrong]
    if wrong:
        raise InputError(f"{path} is damaged, or no checkpoint of `cnnbert fit`: its {wrong[0]} cannot be used")
    check_classes(checkpoint_settings(checkpoint), path)
    return checkpoint


def _check_sums(path: Path) -> None:
    """Refuse a file in which bytes have changed since it was written, as torch does not look."""
    if not is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            wrong = file.testzip()
    except Exception as error:  # zipfile raises many kinds for a broken file
        raise DamagedFile(f"{path} is damaged ({error})") from error
    if wrong is not None:
        raise DamagedFile(f"{path} is damaged: what it holds as {wrong} has changed since it was written")


def _is_state(state: Any) -> bool:
    """Return whether this is what a network holds: tensors that have values, by name."""
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_meta
        for name, tensor in state.items()
    )


def _is_plain(settings: Any, depth: int = 0) -> bool:
    """Return whether settings are such as a config can hold."""
    if isinstance(settings, dict):
        return depth < DEEPEST and all(isinstance(k, str) and _is_plain(v, depth + 1) for k, v in settings.items())
    if isinstance(settings, (list, tuple)):
        return depth < DEEPEST and all(_is_plain(one, depth + 1) for one in settings)
    return settings is None or isinstance(settings, (bool, int, float, str))


def checkpoint_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a run's config that a checkpoint knows: its `model`, and its `data` with its classes."""
    model = dict(checkpoint["hyper_parameters"])
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    class_names = model.pop("class_names")
    for settings in (model, data):
        settings.pop("_instantiator", None)
    data["clip_length"] = model.pop("clip_length")
    model.pop("multi_label", None)  # follows from the data's label_separator
    return {"model": model, "data": {**data, "class_names": class_names}}
