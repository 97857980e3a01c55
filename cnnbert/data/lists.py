"""Videos that text files list, a file a split."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from cnnbert.data.listing import Listing, Missing, check_fractions, check_missing
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import VideoSource, sorted_labels
from cnnbert.errors import InputError


class VideoList(VideoSource):
    """Text files with a line `path label` per video, one file each for training, validation and testing.

    The label is what follows the last blank, so that paths may have blanks; there is no header. Labels are all names,
    or all numbers: places in `class_names` from 0 on, or without these 0 to K-1.

    Args:
        train: The list of training videos; needed to train.
        val: The list of validation videos; taken from the training videos by default.
        test: The list of test videos; needed to test.
        root: The folder that paths are relative to; that of each list by default.
        class_names: The classes in order, or a text file with the name of one in each line; by default the labels,
            sorted.
        val_fraction: Share of the training videos for validation where there is no list of these, in [0, 1).
        split_seed: Chooses among equally good divisions.
        missing: What happens where videos are not there: an `error`, or `skip` leaves them out and says so. Classes
            that then have no training video drop out, with their other videos.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        root: str | None = None,
        class_names: list[str] | str | None = None,
        val_fraction: float = 0.15,
        split_seed: int = 0,
        missing: Missing = "error",
    ) -> None:
        check_fractions(val_fraction)
        check_missing(missing)
        lists = {"train": train, "val": val, "test": test}
        self.lists = {split: Path(path).expanduser() for split, path in lists.items() if path is not None}
        if not self.lists:
            raise InputError("no list of videos is given; set train, val or test")
        self.root = None if root is None else Path(root).expanduser()
        self.given_class_names = class_names
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.missing = missing

    @cached_property
    def class_names(self) -> list[str]:
        """The classes given, or the labels of all lists, sorted (by value where they are numbers)."""
        return self._listing.classes_used(self._every_class)

    def records(self, split: str) -> list[VideoRecord]:
        """Return the videos of a split, in the list's order; `predict` has those of all lists."""
        asked = "train" if split == "val" else split
        if split not in self.lists and asked not in self.lists and split != "predict":
            raise InputError(f"there is no list of {asked} videos; set {asked} beside {', '.join(self.lists)}")
        return self._listing.records(split)

    @cached_property
    def _listing(self) -> Listing:
        names = self._every_class
        by_place = self.given_class_names is not None and self._lines[0].label.isdecimal()
        known = {str(i) if by_place else name: name for i, name in enumerate(names)}
        rows = []
        for line in self._lines:
            if line.label not in known:
                classes = f"places 0 to {len(names) - 1} of the classes" if by_place else f"classes {', '.join(names)}"
                raise InputError(f"{line.place}: the label {line.label} is not one of the {classes}")
            root = self.lists[line.split].parent if self.root is None else self.root
            rows.append((line.split, VideoRecord(str(root / line.path), known[line.label])))
        remedy = "correct the paths or set root"
        return Listing(rows, self._names_of_lists, remedy, self.missing, self.val_fraction, split_seed=self.split_seed)

    @cached_property
    def _every_class(self) -> list[str]:
        """The classes, whether they have videos that are there or not."""
        given = self.given_class_names
        if given is None:
            return sorted_labels({line.label for line in self._lines}, self._names_of_lists)
        return _read_names(Path(given).expanduser()) if isinstance(given, str) else list(given)

    @cached_property
    def _lines(self) -> list[Line]:
        lines = [line for split, path in self.lists.items() for line in _read_lines(split, path)]
        kinds = {line.label.isdecimal(): f"{line.label} ({line.place})" for line in reversed(lines)}
        if len(kinds) > 1:
            raise InputError(f"some labels are names, such as {kinds[False]}, some numbers, such as {kinds[True]}")
        return lines

    @property
    def _names_of_lists(self) -> str:
        return " and ".join(map(str, self.lists.values()))


class Line(NamedTuple):
    """What a line of a list says, and where it is, as messages call it."""

    split: str
    path: str
    label: str
    place: str


def _read_lines(split: str, path: Path) -> list[Line]:
    lines = []
    for i, text in enumerate(_text(path, "a list of videos").split("\n"), 1):
        match text.strip().rsplit(maxsplit=1):
            case [place, label]:
                lines.append(Line(split, place, label, f"{path}, line {i}"))
            case [word]:
                raise InputError(f"{path}, line {i}: {word!r} is no path and label with a blank between")
    if not lines:
        raise InputError(f"{path} lists no video")
    return lines


def _read_names(path: Path) -> list[str]:
    names = [line.strip() for line in _text(path, "a file with the name of a class in each line").split("\n")]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        raise InputError(f"{path} has {'an empty line' if names else 'no line'}; expected the name of a class in each")
    return names


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} does not exist or is not a file; give {what}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give {what}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); give {what}") from None
