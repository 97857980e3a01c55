"""Makes a file of each of many videos, whole or not at all, in processes that may fail alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cnnbert.data.encoding import remove_parts
from cnnbert.errors import InputError
from cnnbert.outputs import csv_text, printable, write_whole
from cnnbert.parallel import map_files

FAILED = "failed.csv"


def check_limits(timeout_seconds: float, num_workers: int | None) -> None:
    """Raise `InputError` if a limit of time is not above 0, or a number of processes below 1."""
    if not timeout_seconds > 0:
        raise InputError(f"timeout_seconds={timeout_seconds:g} must be above 0")
    if num_workers is not None and num_workers < 1:
        raise InputError(f"num_workers={num_workers} must be at least 1")


def common_folder(paths: Iterable[str]) -> str:
    """Return the folder that all of these files lie in or below."""
    return os.path.commonpath(list(map(os.path.dirname, paths)))


def target_paths(paths: Iterable[str], folder: Path, top: str, suffix: str) -> dict[str, Path]:
    """Return where the file made of each different video goes: named as the video is below a folder, with a suffix.

    Args:
        paths: The videos, absolute paths.
        folder: Where the files go.
        top: The folder that the videos lie in or below.
        suffix: How the files' names end, such as .mp4.

    Raises:
        InputError: A file would take the place of a video, or of another video's file.
    """
    names = {path: os.path.relpath(path, top) for path in dict.fromkeys(paths)}
    num_alike = Counter(os.path.splitext(name)[0] for name in names.values())  # a.avi beside a.mp4
    targets: dict[str, Path] = {}
    taken = {os.path.realpath(path): path for path in names}
    for path, name in names.items():
        stem = os.path.splitext(name)[0]
        targets[path] = folder / printable(f"{name if num_alike[stem] > 1 else stem}{suffix}")
        place = os.path.realpath(targets[path])
        if place in taken:
            raise InputError(
                f"the copy of {path} would take the place of an original or of another's copy, {taken[place]}; "
                "give another folder as out, or rename one of the videos"
            )
        taken[place] = str(targets[path])
    return targets


def make_files(
    function: Callable[[Any], Any],
    jobs: Mapping[str, tuple[Path, Any]],
    folder: Path,
    num_workers: int | None,
    timeout_seconds: float,
    description: str,
) -> dict[str, str]:
    """Make the files of videos, and return why not for those of which none could be made.

    Args:
        function: Makes a file, called with (video, file, what else `jobs` has for it).
        jobs: The file of each video, and what else the function needs.
        folder: Where the files go.
        num_workers: Processes; by default one a CPU core.
        timeout_seconds: The longest that one video may take.
        description: Stands before the progress bar.

    Raises:
        InputError: A file cannot be written, or it was stopped by Ctrl-C.
    """
    try:
        for target in {folder, *(target.parent for target, _ in jobs.values())}:
            target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={folder} cannot be written ({error}); give another folder") from error
    failed: dict[str, str] = {}
    items = [(path, str(target), more) for path, (target, more) in jobs.items()]
    try:
        for (path, place, _), got in map_files(function, items, num_workers, timeout_seconds, description):
            if isinstance(got, Exception):
                failed[path] = getattr(got, "why", None) or str(got) or type(got).__name__
                if isinstance(got, OSError):
                    raise InputError(f"{place} cannot be written: {got.strerror or got}")
    except KeyboardInterrupt:
        told = f"stopped; the files in {folder} are whole, and the same command goes on with the rest"
        raise InputError(told) from None
    finally:
        remove_parts(folder)
    return failed


def write_failed(folder: Path, failed: Mapping[str, str]) -> None:
    """Write the list of the videos of which no file could be made, print the first, and remove it where there are none.

    Args:
        folder: Where the files went.
        failed: Why, by the videos' paths.
    """
    if failed:
        lines = [("path", "verdict", "why"), *((path, "unreadable", why) for path, why in failed.items())]
        write_whole(folder / FAILED, csv_text(lines))
    else:
        (folder / FAILED).unlink(missing_ok=True)
    for path, why in list(failed.items())[:10]:
        print(printable(f"cannot read {path}: {why}"), flush=True)
