"""Writes lists of videos that `CSVManifest` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from cnnbert.data.records import VideoRecord

COLUMNS = ("path", "label", "split", "start_seconds", "end_seconds", "group")
"""The columns of a list."""


def manifest(rows: Iterable[tuple[str | None, VideoRecord]]) -> str:
    """Return a list of videos as CSV text.

    Args:
        rows: The split of each video, or None if it has none, and the video.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for split, record in rows:
        end = "" if record.end_seconds is None else record.end_seconds
        writer.writerow([record.path, record.label or "", split or "", record.start_seconds, end, record.group or ""])
    return text.getvalue()
