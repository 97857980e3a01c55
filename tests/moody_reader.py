"""A reader that hangs, crashes or errs, by the names of the files."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cnnbert.data.readers import PyAVVideo, Video, VideoReader


class MoodyReader(VideoReader):
    """Reads as PyAV does, unless a file's name says otherwise."""

    def open(self, path: str) -> Video:
        name = Path(path).stem
        if name == "hangs":
            Path(path).with_suffix(".open").touch()
            time.sleep(600)
        if name == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "raises":
            raise RuntimeError("a bug")
        return ShiftedVideo(path) if name == "shifted" else PyAVVideo(path)


class ShiftedVideo(PyAVVideo):
    """Gives the frame before the one that is asked for."""

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        return super().frames([max(0, int(index) - 1) for index in indices])
