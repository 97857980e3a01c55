"""What is known of one labelled piece of video."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """A video, or a piece of one, and its class.

    Attributes:
        path: The file.
        label: The class by name, or several of them with a separator between; None where it is not known.
        start_seconds: Where the piece begins, in [0, duration).
        end_seconds: Where it ends (the first moment not in it); None for the end of the file.
        group: What must stay on one side of a split, such as the person or the long video that it was cut from.
    """

    path: str
    label: str | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    group: str | None = None


def split_label(label: str, separator: str | None) -> list[str]:
    """Return the classes that a label names: itself, or with a separator its parts, of which there may be none."""
    if separator is None:
        return [label]
    parts = (part.strip() for part in label.split(separator))
    return list(dict.fromkeys(part for part in parts if part))


class RecordList(Sequence[VideoRecord]):
    """Records packed into tensors, which reading processes share; of a list each would make its own copy.

    Args:
        records: The records.
    """

    def __init__(self, records: Sequence[VideoRecord]) -> None:
        packed, ends = bytearray(), array("q")
        for one in records:
            packed += marshal.dumps((one.path, one.label, one.start_seconds, one.end_seconds, one.group))
            ends.append(len(packed))
        self._bytes = torch.frombuffer(packed or bytearray(1), dtype=torch.uint8)
        self._ends = torch.frombuffer(ends, dtype=torch.int64) if ends else torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> VideoRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[VideoRecord]: ...

    def __getitem__(self, index: int | slice) -> VideoRecord | list[VideoRecord]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        first = int(self._ends[place - 1]) if place else 0
        return VideoRecord(*marshal.loads(self._bytes[first : int(self._ends[place])].numpy().tobytes()))
