"""Which videos a command is given, and which files it may write about them."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cnnbert.data.sources import Folder, videos_below
from cnnbert.data.splits import SPLITS
from cnnbert.errors import InputError
from cnnbert.outputs import new_file

Entry = tuple[str, str | None, str | None]
"""A file as it is listed: its path, its split and its label, where they are known."""


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


def entries_of_path(path: Path) -> list[Entry]:
    """Return the videos of a folder or of a list, or a video itself.

    Raises:
        InputError: It does not exist, or lists none.
    """
    if os.path.isdir(path):
        return [_placed(path, record.path) for record in Folder(str(path)).records("predict")]
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; give a folder of videos, a video, or a file that lists videos")
    if path.suffix.lower() == ".csv":
        entries = _entries_of_csv(path)
    elif path.suffix.lower() in (".txt", ".lst", ".list"):
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        entries = [_listed(path.parent, line.strip()) for line in lines if line.strip()]
    else:
        entries = [(str(path), None, None)]
    if not entries:
        raise InputError(f"{path} lists no video")
    return entries


def _placed(root: Path, path: str) -> Entry:
    """Return a video with the split and the label that its folders name, as in root/train/CLASS/VIDEO."""
    folders = list(Path(path).relative_to(root).parts[:-1])
    split = folders.pop(0) if folders and folders[0] in SPLITS and (root / "train").is_dir() else None
    return path, split, folders[0] if folders else None


def _listed(root: Path, line: str) -> Entry:
    """Return the video of a line: a path, or a path and a label behind a space."""
    path, _, label = line.rpartition(" ")
    if not Path(path).suffix or (root / line).is_file():
        return str(root / line), None, None
    return str(root / path), None, label


def _entries_of_csv(path: Path) -> list[Entry]:
    """Return the videos of a CSV file's column path, also those that are not there."""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            rows = list(csv.DictReader(file, strict=True))
        except csv.Error as error:
            raise InputError(f"{path} cannot be read as CSV: {error}") from None
    if rows and "path" not in rows[0]:
        raise InputError(f"{path} has the columns {', '.join(map(str, rows[0]))}; it needs one with the name path")
    named = [row for row in rows if row["path"]]
    return [(str(path.parent / row["path"]), row.get("split") or None, row.get("label") or None) for row in named]
