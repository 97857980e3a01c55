"""Writes files that are there whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cnnbert.errors import InputError

# Written as escapes, as they would hide, or turn around, what stands beside them.
HIDDEN = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF}


def new_file(path: str | Path, force: bool = False) -> Path:
    """Return the path of a file that can be written; to be called before the work that fills it.

    Args:
        path: The file, in a folder that exists; `~` is the home folder.
        force: Whether a file that is there may be replaced.

    Raises:
        InputError: It is there already and `force` is not given, or it cannot be written.
    """
    target = Path(path).expanduser()
    if os.path.isdir(target):  # unlike Path's, it takes names that are too long
        raise InputError(f"{target} is a folder; give the name of a file")
    if os.path.exists(target) and not force:
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
    stem = os.fsdecode(os.fsencode(path.stem)[:200])  # file systems take names of 255 bytes
    part = path.with_name(f"{stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        if os.path.exists(part):
            os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; nothing is left of it") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all; see `whole_file`."""
    with whole_file(path) as part:
        part.write_text(printable(text), encoding="utf-8")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return CSV text whose lines end with a newline; cells may hold anything, as names of files do."""
    text = io.StringIO(newline="")
    # Python quotes a carriage return only where lines end with one.
    as_needed, always = (
        csv.writer(text, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        (always if any("\r" in str(cell) for cell in row) else as_needed).writerow(row)
    return text.getvalue()


def printable(text: str) -> str:
    """Return a text in which bytes of file names that are no UTF-8 are written as such."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shown(text: str) -> str:
    """Return a text of which every character can be seen: control characters and bytes that are no UTF-8 as escapes."""
    seen = []
    for letter in text:
        code = ord(letter)
        if 0xDC80 <= code <= 0xDCFF:  # Python's sign for such a byte
            seen.append(f"\\x{code - 0xDC00:02x}")
        elif code < 32 or 127 <= code < 160 or 0xD800 <= code <= 0xDFFF or code in HIDDEN:
            seen.append(letter.encode("unicode_escape").decode())
        else:
            seen.append(letter)
    return "".join(seen)
