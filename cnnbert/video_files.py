"""Which videos a command is given, and which files it may write about them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cnnbert.data.sources import videos_below
from cnnbert.errors import InputError
from cnnbert.outputs import new_file


def list_videos(given: Sequence[str]) -> list[str]:
    """Return the videos that are meant, each once: those given, and those anywhere below the folders given.

    Raises:
        InputError: One does not exist, or a folder holds no video.
    """
    paths: list[str] = []
    for name in given:
        path = Path(name).expanduser()
        if os.path.isdir(path):
            below = [str(video) for video in videos_below(path)]
            if not below:
                raise InputError(f"there is no video in the folder {path}")
            paths += below
        elif os.path.exists(path):
            paths.append(str(path))
        else:
            raise InputError(f"{path} does not exist; give videos, or folders of videos")
    return list(dict.fromkeys(paths))


def new_files(folder: Path, videos: Sequence[str], ending: str, force: bool) -> dict[str, Path]:
    """Return a file to write in a folder for each video: its name with another ending, and a number where names repeat.

    Raises:
        InputError: One of them cannot be written, or is there already and `force` is not given.
    """
    targets: dict[str, Path] = {}
    seen: Counter[str] = Counter()
    for video in videos:
        stem = Path(video).stem
        seen[stem] += 1
        number = f"-{seen[stem]}" if seen[stem] > 1 else ""
        targets[video] = new_file(folder / f"{stem}{number}{ending}", force)
    return targets


def new_table(path: str, force: bool) -> Path:
    """Return the path of a table that can be written, a .csv or .json file; see `new_file`.

    Raises:
        InputError: It ends otherwise, cannot be written, or is there already and `force` is not given.
    """
    if Path(path).suffix.lower() not in (".csv", ".json"):
        raise InputError(f"out={path} must end in .csv or .json")
    return new_file(path, force)
