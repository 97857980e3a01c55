"""Runs a function over many files, or other items, in processes that may hang or crash without harm to the others."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection, get_all_start_methods, get_context
from typing import Any, TypeVar

from tqdm import tqdm

from cnnbert.machine import num_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerTimeout(Exception):
    """A process took longer than allowed and was killed."""


class WorkerCrash(Exception):
    """A process died."""


def map_files(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int | None = None,
    timeout_seconds: float = 600.0,
    description: str = "",
    unit: str = "file",
) -> Iterator[tuple[Item, Result | Exception]]:
    """Yield each item with what the function returns for it, in the order of finishing, and show a progress bar.

    Native code that hangs cannot be stopped, and one that crashes takes its process along: here that costs its own
    item alone. Closing the iterator early, as Ctrl-C does, kills the processes.

    Args:
        function: Can be pickled; runs in processes that are started anew, without this one's state.
        items: What it is called with.
        num_workers: Processes; by default one a CPU core.
        timeout_seconds: The longest that one item may take; may be infinite.
        description: Stands before the progress bar, which only a terminal gets.
        unit: What an item is, in the progress bar.

    Yields:
        The item, and the result or an exception: one that the function raised, `WorkerTimeout` or `WorkerCrash`.
    """
    waiting = deque(items)
    workers: list[_Worker] = []
    try:
        with tqdm(total=len(items), desc=description, unit=unit, disable=None, dynamic_ncols=True) as progress:
            number = min(len(items), num_cores() if num_workers is None else num_workers)
            workers += [_Worker(function, timeout_seconds) for _ in range(number)]
            while waiting or any(worker.is_busy for worker in workers):
                for place, worker in enumerate(workers):
                    if waiting and not worker.is_busy:
                        if not worker.process.is_alive():
                            workers[place] = worker = _Worker(function, timeout_seconds)
                        worker.give(waiting.popleft())
                for worker in _finished(workers):
                    yield worker.item, worker.take()
                    progress.update()
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """A process that is given one item after another."""

    def __init__(self, function: Callable[[Any], Any], timeout_seconds: float) -> None:
        # Forks of a clean process start at once; a fork of this one would have its locks without its threads.
        context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
        if hasattr(context, "set_forkserver_preload"):
            context.set_forkserver_preload([__name__, getattr(function, "func", function).__module__])
        self.timeout_seconds = timeout_seconds
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_work, args=(function, end), daemon=True)
        self.process.start()
        end.close()
        self.item: Any = None
        self.has_started = self.is_busy = False
        self.deadline = 0.0

    def give(self, item: Any) -> None:
        """Start on an item; the time that the process takes to start does not count."""
        with suppress(EOFError, OSError):  # it died just now: `take` says so
            if not self.has_started:
                self.pipe.recv()
                self.has_started = True
            self.pipe.send(item)
        self.item, self.is_busy, self.deadline = item, True, time.monotonic() + self.timeout_seconds

    def take(self) -> Any:
        """Return the result or the exception of the item that has ended."""
        self.is_busy = False
        if not self.pipe.poll():
            self.kill()
            return WorkerTimeout(f"it took longer than timeout_seconds={self.timeout_seconds:g} and was stopped")
        try:
            answer, goes_on = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            self.kill()
            return WorkerCrash(f"the process died of {signal.Signals(-code).name if code < 0 else f'status {code}'}")
        if not goes_on:
            self.kill()
        return answer

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _finished(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait for the first worker that has a result, has died or is out of time, and return all such."""
    busy = [worker for worker in workers if worker.is_busy]
    first = min(worker.deadline for worker in busy)
    # Not in one go: a timeout of many days is more than the system's call takes.
    ready = connection.wait([worker.pipe for worker in busy], min(3600.0, max(0.0, first - time.monotonic())))
    now = time.monotonic()
    return [worker for worker in busy if worker.pipe in ready or now >= worker.deadline]


def _work(function: Callable[[Any], Any], pipe: connection.Connection) -> None:
    """Answer one item after another until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that kills this one
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # what decoders print about damaged files would tear the progress bar
    pipe.send(None)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            answer = function(item)
        except Exception as error:
            answer = error
        # A thread that was left behind in native code ends only with its process.
        pipe.send((answer, threading.active_count() == 1))
