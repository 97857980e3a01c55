"""The videos that a list names: which of them are there, and which are of a split."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

from cnnbert.data.records import VideoRecord, split_label
from cnnbert.data.splits import SPLITS, split_records
from cnnbert.errors import InputError

logger = logging.getLogger(__name__)

Missing = Literal["error", "skip"]
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


class Listing:
    """Videos with their splits, as files list them.

    Args:
        rows: The split of each video, or None if it has none, and the video.
        listed_in: The files, as messages call them.
        remedy: What helps where videos are not there, such as "correct root".
        missing: `error` raises if a video that is asked for is not there; `skip` leaves all such videos out, and says
            so once. A class that then has no training video drops out, with its other videos.
        val_fraction: Share of the videos for validation where no row has the split `val`.
        test_fraction: Share of the videos for testing where no row has any split.
        split_seed: Chooses among equally good divisions.
        label_separator: What parts the classes in a label; None where a label is one class.
    """

    def __init__(
        self,
        rows: Sequence[tuple[str | None, VideoRecord]],
        listed_in: str,
        remedy: str,
        missing: Missing,
        val_fraction: float,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        label_separator: str | None = None,
    ) -> None:
        self.rows = rows
        self.listed_in = listed_in
        self.remedy = remedy
        self.missing = missing
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.label_separator = label_separator

    @cached_property
    def there(self) -> Sequence[tuple[str | None, VideoRecord]]:
        """All rows, or under `skip` those whose video is there."""
        if self.missing == "error":
            return self.rows
        there = [row for row in self.rows if row[1].path not in self._absent_paths]
        if not there and self.rows:
            raise InputError(
                f"none of the {len(self.rows)} videos listed in {self.listed_in} is there, the first of them "
                f"{self.rows[0][1].path}; {self.remedy}"
            )
        return there

    @cached_property
    def used(self) -> Sequence[tuple[str | None, VideoRecord]]:
        """The rows to train, validate and test on: all, or under `skip` those there of classes that can be learned."""
        training = self._classes(row for row in self.there if row[0] == "train")
        if self.missing == "error" or not training:  # none: no row has a split, or only test videos are there
            used = self.there
        else:
            used = [row for row in self.there if training.issuperset(self._classes([row]))]
        if len(self.there) < len(self.rows) and _first_process():
            logger.warning("%s", self._told_of_skipped(used))
        return used

    def _told_of_skipped(self, used: Sequence[tuple[str | None, VideoRecord]]) -> str:
        absent = self._absent([record for _, record in self.rows])
        num_absent = len(self.rows) - len(self.there)
        told = (
            f"skipped {num_absent} of the {len(self.rows)} videos listed in {self.listed_in}, which are not there, "
            f"the first of them {', '.join(absent[:3])}"
        )
        classes = self._classes(self.rows)
        lost = sorted(classes - self._classes(used))
        if lost:
            others = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            told += f"; {len(lost)} of the {len(classes)} classes have none to train on and drop out: "
            told += ", ".join(lost[:3]) + others
        if len(used) < len(self.there):
            told += f", with {len(self.there) - len(used)} videos that are there"
        return told

    def classes_used(self, names: Sequence[str]) -> list[str]:
        """Return those of the classes that the rows in use have, in the order given; under `error` all."""
        if self.missing == "error":
            return list(names)
        used = self._classes(self.used)
        return [name for name in names if used.issuperset(split_label(name, self.label_separator))]

    def _classes(self, rows: Iterable[tuple[str | None, VideoRecord]]) -> set[str]:
        labels = {record.label for _, record in rows if record.label is not None}
        return {name for label in labels for name in split_label(label, self.label_separator)}

    def records(self, split: str) -> list[VideoRecord]:
        """Return the videos of a split in the order of the rows; `predict` has them all.

        Where no row has any split, the videos are divided here; where none has `val`, validation is taken from the
        training videos. Under `skip`, what is divided are the videos that are there.

        Raises:
            InputError: Videos of the split are not there; under `skip`, not one of them is.
        """
        if split == "predict":
            return self._checked([record for _, record in self.there])
        if split not in SPLITS:
            raise InputError(f"split={split!r} is not one of {', '.join(SPLITS)}, predict")
        listed = self._listed_splits
        if listed == {None}:
            return self._checked(self._division[split])
        chosen = [record for name, record in self.used if name == split]
        if split in listed and not chosen:
            raise InputError(
                f"none of the videos listed in {self.listed_in} for the split {split!r} can be used, as they, or all "
                f"training videos of their classes, are not there; {self.remedy}"
            )
        if split in ("train", "val") and "val" not in listed:
            chosen = self._division[split]
        return self._checked(chosen)

    @cached_property
    def _listed_splits(self) -> set[str | None]:
        return {split for split, _ in self.rows}

    @cached_property
    def _division(self) -> dict[str, list[VideoRecord]]:
        """All videos if they have no splits, else the training videos, divided."""
        divides_all = self._listed_splits == {None}
        test_fraction = self.test_fraction if divides_all else 0.0
        shares = {"train": 1 - self.val_fraction - test_fraction, "val": self.val_fraction, "test": test_fraction}
        records = [record for split, record in self.used if divides_all or split == "train"]
        return split_records(records, shares, self.split_seed, self.label_separator)

    def _checked(self, records: list[VideoRecord]) -> list[VideoRecord]:
        absent = self._absent(records) if self.missing == "error" else []
        if absent:
            raise InputError(
                f"{len(absent)} of the {len(records)} videos listed in {self.listed_in} are not there, the first of "
                f"them {', '.join(absent[:3])}; {self.remedy}, or set missing to skip to do without them"
            )
        return records

    def _absent(self, records: Sequence[VideoRecord]) -> list[str]:
        """Return the paths that are no file, in order; each folder is read once, which is quick on network drives."""
        absent = self._absent_paths
        return list(dict.fromkeys(record.path for record in records if record.path in absent)) if absent else []

    @cached_property
    def _absent_paths(self) -> set[str]:
        """The paths of all rows that are no file."""
        folders: dict[str, list[str]] = defaultdict(list)
        for _, record in self.rows:
            folders[record.path[: record.path.rfind(os.sep) + 1]].append(record.path)
        return {path for folder, paths in folders.items() for path in _no_files(folder, paths)}


class Rows(Sequence[tuple[str | None, VideoRecord]]):
    """Videos with their splits, without a tuple for each, which a million of them would feel.

    Args:
        splits: The split of each video.
        records: The videos.
    """

    def __init__(self, splits: Sequence[str | None], records: Sequence[VideoRecord]) -> None:
        self.splits = splits
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[tuple[str | None, VideoRecord]]:
        return zip(self.splits, self.records, strict=True)

    def __getitem__(self, index: Any) -> Any:
        """Return a video with its split, or of a slice a list of such."""
        if isinstance(index, slice):
            return list(zip(self.splits[index], self.records[index], strict=True))
        return self.splits[index], self.records[index]


def _no_files(folder: str, paths: Sequence[str]) -> list[str]:
    """Return those of a folder's paths that are no file."""
    try:
        with os.scandir(os.path.dirname(folder) or ".") as entries:
            files = {entry.name for entry in entries if _is_file(entry)}
    except PermissionError:  # files in it may be readable
        return [path for path in paths if not os.path.isfile(path)]
    except (OSError, ValueError):  # such as a name that is too long, or with a zero byte
        return list(paths)
    return [path for path in paths if path[len(folder) :] not in files]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def check_missing(missing: str) -> None:
    """Raise an InputError if `missing` is not a way to treat videos that are not there."""
    if missing not in get_args(Missing):
        raise InputError(f"missing={missing!r} is not one of {', '.join(get_args(Missing))}")


def check_fractions(val: float, test: float | None = None) -> None:
    """Raise an InputError if nothing is left to train on."""
    if test is None and not 0 <= val < 1:
        raise InputError(f"val_fraction={val} must be in [0, 1) and leave something to train on")
    if test is not None and not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise InputError(
            f"val_fraction={val} and test_fraction={test} must be in [0, 1) and leave something to train on"
        )


def _first_process() -> bool:
    """Return whether this is the process that speaks for all, by the variables that launchers set."""
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"
