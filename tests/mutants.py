"""Damaged copies of good files, and what reading a damaged video comes to."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from cnnbert.data.inspection import VERDICTS, inspect_video
from cnnbert.data.readers import DecordReader, PyAVReader
from cnnbert.errors import VideoReadError

HEADER = 4096
"""Bytes at either end of a file in which most damage is done: where containers have their tables."""

WORDS = [b"\x00" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00\x00\x00\x01", b"\x01\x00\x00\x00"]


@dataclass(frozen=True)
class Damage:
    """One change of some bytes.

    Attributes:
        kind: What is done.
        place: Where, counted from the beginning, or from the end if it is negative; taken modulo the length.
        content: What is written or put in.
        length: Bytes that are cut out, doubled or zeroed.
    """

    kind: str
    place: int
    content: bytes
    length: int

    def apply(self, data: bytes) -> bytes:
        """Return the bytes with this damage."""
        if not data:
            return self.content
        at = self.place % len(data)
        match self.kind:
            case "flip":
                return data[:at] + bytes([data[at] ^ (1 << self.length % 8)]) + data[at + 1 :]
            case "write":
                return data[:at] + self.content + data[at + len(self.content) :]
            case "insert":
                return data[:at] + self.content + data[at:]
            case "cut":
                return data[:at] + data[at + self.length :]
            case "double":
                return data[: at + self.length] + data[at:]
            case "zero":
                return data[:at] + bytes(self.length) + data[at + self.length :]
            case _:
                return data[:at]


def damages(first: int = HEADER, last: int = HEADER) -> st.SearchStrategy[list[Damage]]:
    """Return lists of damages of the first and the last bytes of a file, and a few anywhere."""
    places = st.one_of(st.integers(0, first), st.integers(-last, -1), st.integers(0, 2**24))
    contents = st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=8))
    kinds = st.sampled_from(["flip", "flip", "write", "write", "write", "insert", "cut", "double", "zero", "truncate"])
    return st.lists(st.builds(Damage, kinds, places, contents, st.integers(1, 64)), min_size=1, max_size=6)


def damaged(data: bytes, damage: Sequence[Damage]) -> bytes:
    """Return bytes after one damage after the other."""
    for one in damage:
        data = one.apply(data)
    return data


def read_damaged(case: tuple[str, list[Damage]]) -> str:
    """Damage a video, read it with both readers and check it, and return in a word what came of reading.

    Runs in a process of its own, as native code may crash or hang.
    """
    path, damage = case
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    source = Path(path)
    target = source.with_name(f"{os.getpid()}-{source.name}")
    target.write_bytes(damaged(source.read_bytes(), damage))
    outcomes = []
    try:
        for reader in (PyAVReader(read_timeout_seconds=20), DecordReader(read_timeout_seconds=20)):
            try:
                with reader.open(str(target)) as video:
                    count = video.num_frames
                    video.frames([count - 1, 0, count // 2, 0])
                    video.frames([])
                    float(video.fps)
                outcomes.append("read")
            except VideoReadError as error:
                outcomes.append("not in time" if "takes longer" in error.why else "refused")
        verdict = inspect_video(str(target), DecordReader()).verdict
    finally:
        target.unlink()
    assert verdict in VERDICTS
    return outcomes[0] if outcomes[0] == outcomes[1] else " by PyAV, ".join(outcomes) + " by decord"
