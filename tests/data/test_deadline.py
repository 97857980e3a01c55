"""A reading that takes too long is given up, and nothing else is lost."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from barcode import read_barcode, write_barcodes

from cnnbert.data.deadline import within
from cnnbert.data.pyav_video import PyAVVideo
from cnnbert.data.readers import DecordReader, PyAVReader
from cnnbert.errors import InputError, VideoReadError


def test_results_and_errors_come_through() -> None:
    assert within(5, "x", lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, "x", lambda: 1 // 0)
    assert within(float("inf"), "x", lambda: "done") == "done"


def test_a_call_that_hangs_is_given_up() -> None:
    end = threading.Event()
    with pytest.raises(VideoReadError, match=r"cannot read x.mp4: reading takes longer than read_timeout_seconds=0.05"):
        within(0.05, "x.mp4", end.wait)
    end.set()


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_limit_must_be_one(seconds: float) -> None:
    for reader in (DecordReader, PyAVReader):
        with pytest.raises(InputError, match="must be above 0; inf sets no limit"):
            reader(read_timeout_seconds=seconds)


def test_a_video_that_hangs_is_left_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_barcodes(tmp_path / "clip.mp4"))
    hang, end = threading.Event(), threading.Event()
    decode = PyAVVideo._decode

    def hanging(self: PyAVVideo, *arguments: Any) -> Any:
        hang.set()
        end.wait()
        yield from decode(self, *arguments)

    reader = DecordReader(read_timeout_seconds=0.3)
    with monkeypatch.context() as patch, reader.open(path) as video:
        patch.setattr(PyAVVideo, "_decode", hanging)
        with pytest.raises(VideoReadError, match="takes longer than read_timeout_seconds"):
            video.frames([3])
    assert hang.is_set()
    with reader.open(path) as video:  # others are read meanwhile
        assert read_barcode(video.frames([7])[0]) == 7
    end.set()
    for thread in threading.enumerate():
        if thread.name.startswith("reads "):
            thread.join(10)  # it goes on with a file that was not closed under it


def test_opening_is_limited_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_barcodes(tmp_path / "clip.mp4"))
    monkeypatch.setattr(PyAVVideo, "_scan", lambda self, must_decode: time.sleep(1))
    with pytest.raises(VideoReadError, match="given up"):
        PyAVReader(read_timeout_seconds=0.05).open(path)
