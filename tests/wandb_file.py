"""Reads back what an offline W&B run has written."""

from __future__ import annotations

import json
import struct
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


def _records(path: Path) -> Iterator[Record]:
    """Yield the records of a log in LevelDB's format: blocks of 32 KiB, a header of 7 bytes a piece."""
    data, position, pieces = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        piece = data[position + 7 : position + 7 + length]
        position += 7 + length
        pieces = piece if kind in (FULL, FIRST) else pieces + piece
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(pieces)
            yield record
