"""Gives up a call into native code that takes too long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from cnnbert.errors import InputError, VideoReadError

T = TypeVar("T")


def check_timeout(read_timeout_seconds: float) -> None:
    """Refuse a limit that is none.

    Raises:
        InputError: `read_timeout_seconds` is not above 0.
    """
    if not read_timeout_seconds > 0:
        raise InputError(f"read_timeout_seconds={read_timeout_seconds:g} must be above 0; inf sets no limit")


def within(seconds: float, path: str, call: Callable[[], T]) -> T:
    """Return what a call returns, or raise what it raises, unless it takes too long.

    The call runs in a thread of its own. One that takes too long is left behind there with all it holds, since nothing
    can end it; it ends with the process. That helps with native code that lets Python go on meanwhile, as FFmpeg under
    PyAV and decord under ctypes do. A process works for this too, but costs a start and a copy of all frames.

    Args:
        seconds: The limit, above 0.
        path: The video that is read.
        call: Reads it.

    Raises:
        VideoReadError: The call takes longer.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    # A daemon: the process does not wait for it at its end.
    thread = threading.Thread(target=run, name=f"reads {path}", daemon=True)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    if errors:
        raise errors.pop()
    if not results:
        raise VideoReadError(
            path,
            f"reading takes longer than read_timeout_seconds={seconds:g} and was given up; re-encode the file, leave "
            "it out, or set a higher limit if the disk or the machine is that slow",
        )
    return results.pop()
