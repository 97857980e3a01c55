"""Finds the configs that come with the package."""

from __future__ import annotations

from pathlib import Path

from cnnbert.errors import InputError

SWEEP = "sweep.yaml"
"""A sweep, which is for `wandb sweep` and describes no run."""


def shipped_folder() -> Path:
    """Return the folder of the shipped configs: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def shipped_configs() -> list[str]:
    """Return the names of the shipped configs of runs, such as `resnext_bert.yaml` and `data/folder.yaml`."""
    folder = shipped_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml") if path.name != SWEEP)


def find_config(name: str) -> Path:
    """Return the path of a config: the file of that name, or else the shipped one.

    Raises:
        InputError: There is neither; the message lists the shipped ones.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    shipped = shipped_folder() / name
    if shipped.is_file():
        return shipped
    raise InputError(f"no config {name!r} here; the shipped ones are {', '.join(shipped_configs())}")
