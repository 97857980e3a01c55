"""Writes lists of videos that `CSVManifest` reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cnnbert.data.records import VideoRecord
from cnnbert.outputs import csv_text

COLUMNS = ("path", "label", "split", "start_seconds", "end_seconds", "group")
"""The columns of a list."""


def manifest(rows: Iterable[tuple[Mapping[str, str | None], VideoRecord]]) -> str:
    """Return a list of videos as CSV text.

    Args:
        rows: The splits of each video by their columns, `split` or `split1` and so on, and the video.
    """
    rows = list(rows)
    columns = sorted({column for splits, _ in rows for column in splits}, key=lambda name: (len(name), name))
    at = COLUMNS.index("split")
    lines: list[list[object]] = [[*COLUMNS[:at], *(columns or ["split"]), *COLUMNS[at + 1 :]]]
    for splits, record in rows:
        end = "" if record.end_seconds is None else record.end_seconds
        named = [splits.get(column) or "" for column in columns or ["split"]]
        lines.append([record.path, record.label or "", *named, record.start_seconds, end, record.group or ""])
    return csv_text(lines)
