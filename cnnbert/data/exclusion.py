"""Leaves out the videos that a check has found to be unusable."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError
from cnnbert.outputs import printable


class Exclusion:
    """A CSV file with columns `path` (relative to the file's folder) and `verdict`; whatever is not `ok` is left out.

    Args:
        path: The file.

    Attributes:
        num_left_out: Videos left out so far, by split.
        num_known: Videos so far that the file has a line for, `ok` or not.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        self.num_left_out: dict[str, int] = {}
        self.num_known = 0

    def kept(self, split: str, records: Sequence[VideoRecord]) -> list[VideoRecord]:
        """Return the records of a split whose file is not to be left out; links are followed to compare files."""
        verdicts = [self._verdicts.get(printable(real_path(record.path))) for record in records]
        kept = [record for record, verdict in zip(records, verdicts, strict=True) if verdict in (None, "ok")]
        self.num_left_out[split] = len(records) - len(kept)
        self.num_known += len(records) - verdicts.count(None)
        return kept

    @cached_property
    def _verdicts(self) -> dict[str, str]:
        if not self.path.is_file():
            raise InputError(f"exclude={self.path} does not exist or is not a file; give a CSV file of cnnbert check")
        with self.path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"path", "verdict"} <= {*(reader.fieldnames or [])}:
                columns = ", ".join(reader.fieldnames or ["(none)"])
                raise InputError(f"exclude={self.path} has the columns {columns}; it needs path and verdict")
            return {printable(real_path(str(self.path.parent / row["path"]))): row["verdict"] for row in reader}


def real_path(path: str) -> str:
    """Return a path without links in it, as `os.path.realpath` does; folders are looked up once."""
    folder, name = os.path.split(os.path.abspath(path))  # absolute, as what is remembered outlives a working directory
    place = os.path.join(_real_folder(folder), name)
    return os.path.realpath(place) if os.path.islink(place) else place


@cache
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
