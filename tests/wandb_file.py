"""Reads back what an offline W&B run has written."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 2**15
FULL, FIRST, LAST = 1, 2, 4


def read_run(path: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Return the name, the config and the history of a run's `.wandb` file."""
    name, config, history = "", {}, []
    for record in _records(path):
        if record.HasField("run"):
            name = record.run.display_name or name
        for item in (*record.run.config.update, *record.config.update):
            config["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            items = record.history.item
            history.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return name, config, history


def read_facts(path: Path) -> Any:
    """Return what a run's `.wandb` file says of the run itself: project, run_group, job_type, git.commit and more."""
    return next(record.run for record in _records(path) if record.HasField("run"))


def read_artifacts(path: Path, kind: str) -> list[tuple[str, dict[str, Path]]]:
    """Return the artifacts of a kind, in their order: their names, and the files in them by their places there."""
    artifacts = [record.artifact for record in _records(path) if record.HasField("artifact")]
    return [
        (artifact.name, {content.path: Path(content.local_path) for content in artifact.manifest.contents})
        for artifact in artifacts
        if artifact.type == kind
    ]


def read_tables(path: Path, key: str) -> list[list[dict[str, Any]]]:
    """Return the tables of a run that were logged under a key, in their order, each a list of rows by title.

    Videos and pictures are the paths of their files, which wait to be sent.
    """
    tables = []
    for _, files in read_artifacts(path, "run_table"):
        if f"{key}.table.json" in files:
            table = json.loads(files[f"{key}.table.json"].read_text())
            cells = [[files[c["path"]] if isinstance(c, dict) else c for c in row] for row in table["data"]]
            tables.append([dict(zip(table["columns"], row, strict=True)) for row in cells])
    return tables


def _records(path: Path) -> list[Record]:
    """Return the records of a run that has ended; W&B's process may still be writing the last of them."""
    deadline = time.monotonic() + 60
    while True:
        records = list(_parse(path.read_bytes()))
        if records and records[-1].HasField("exit"):
            return records
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.1)


def _parse(data: bytes) -> Iterator[Record]:
    """Yield the records of a log in LevelDB's format: blocks of 32 KiB, a header of 7 bytes a piece."""
    position, pieces = 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        piece = data[position + 7 : position + 7 + length]
        position += 7 + length
        pieces = piece if kind in (FULL, FIRST) else pieces + piece
        if len(piece) < length:
            return
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(pieces)
            yield record
