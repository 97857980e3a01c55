"""Work in processes: a hung or crashed one costs its item, and all others come back."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from cnnbert.parallel import WorkerCrash, WorkerTimeout, map_files


def act(word: str) -> str:
    """Do what a word says."""
    if word == "sleep":
        time.sleep(600)
    elif word == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "exit":
        os._exit(3)
    elif word == "raise":
        raise ValueError("told to")
    elif word == "leave":
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return f"{word} by {os.getpid()}"


def test_only_the_item_is_lost() -> None:
    words = ["a", "sleep", "b", "segfault", "c", "raise", "exit", "d"]
    results = dict(map_files(act, words, 2, timeout_seconds=2))
    assert sorted(results) == sorted(words)
    assert all(str(results[word]).startswith(f"{word} by ") for word in "abcd")
    for word, kind, told in [
        ("sleep", WorkerTimeout, "longer than timeout_seconds=2"),
        ("segfault", WorkerCrash, "SIGSEGV"),
        ("exit", WorkerCrash, "status 3"),
        ("raise", ValueError, "told to"),
    ]:
        assert type(results[word]) is kind
        assert told in str(results[word])


def test_processes_are_kept_unless_they_leave_threads() -> None:
    processes = {str(result).split()[-1] for _, result in map_files(act, ["a", "b", "c"], 1)}
    assert len(processes) == 1
    processes = {str(result).split()[-1] for _, result in map_files(act, ["leave", "b", "c"], 1)}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes


def test_closing_early_ends_the_processes() -> None:
    results = map_files(act, ["a", "sleep"], 2)
    (process,) = [str(result).split()[-1] for _, result in [next(results)]]
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)
    assert list(map_files(act, [])) == []
