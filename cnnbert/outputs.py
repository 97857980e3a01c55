"""Writes files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnnbert.errors import InputError


def new_file(path: str | Path, force: bool = False) -> Path:
    """Return the path of a file that can be written; to be called before the work that fills it.

    Args:
        path: The file, in a folder that exists; `~` is the home folder.
        force: Whether a file that is there may be replaced.

    Raises:
        InputError: It is there already and `force` is not given, or it cannot be written.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise InputError(f"{target} is a folder; give the name of a file")
    if target.exists() and not force:
        raise InputError(f"{target} is there already; give another name, or --force to replace it")
    with whole_file(target) as part:
        part.touch()
        part.unlink()
    return target


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to write beside `path`, and put it in its place at the end, unless anything went wrong.

    Nothing is put in place where nothing was written.

    Args:
        path: Where the file goes; its folder exists.

    Raises:
        InputError: It cannot be written, as when the disk is full; what was written is removed.
    """
    part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        if part.exists():
            os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; nothing is left of it") from error
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all; see `whole_file`."""
    with whole_file(path) as part:
        part.write_text(printable(text), encoding="utf-8")


def printable(text: str) -> str:
    """Return a text in which bytes of file names that are no UTF-8 are written as such."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
