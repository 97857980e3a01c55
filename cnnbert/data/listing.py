"""The videos that a list names: which of them are there, and which are of a split."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

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
            so once.
        val_fraction: Share of the videos for validation where no row has the split `val`.
        test_fraction: Share of the videos for testing where no row has any split.
        split_seed: Chooses among equally good divisions.
        found: The paths that are there; by default each is looked for.
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
        found: Collection[str] | None = None,
        label_separator: str | None = None,
    ) -> None:
        self.rows = rows
        self.listed_in = listed_in
        self.remedy = remedy
        self.missing = missing
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.found = found
        self.label_separator = label_separator

    @cached_property
    def there(self) -> Sequence[tuple[str | None, VideoRecord]]:
        """The rows that are used: all, or under `skip` those whose video is there."""
        if self.missing == "error":
            return self.rows
        there = [row for row in self.rows if self._is_there(row[1])]
        if not there and self.rows:
            raise InputError(
                f"none of the {len(self.rows)} videos listed in {self.listed_in} is there, the first of them "
                f"{self.rows[0][1].path}; {self.remedy}"
            )
        if len(there) < len(self.rows) and _first_process():
            first = next(record.path for _, record in self.rows if not self._is_there(record))
            labels = self._classes(self.rows)
            lost = labels - self._classes(there)
            logger.warning(
                "skipped %d of the %d videos listed in %s, which are not there, the first of them %s%s",
                len(self.rows) - len(there),
                len(self.rows),
                self.listed_in,
                first,
                f"; {len(lost)} of the {len(labels)} classes have no video" if lost else "",
            )
        return there

    def classes_there(self, names: Sequence[str]) -> list[str]:
        """Return those of the classes that the rows in use have, in the order given; under `error` all."""
        if self.missing == "error":
            return list(names)
        there = self._classes(self.there)
        return [name for name in names if there.issuperset(split_label(name, self.label_separator))]

    def _classes(self, rows: Sequence[tuple[str | None, VideoRecord]]) -> set[str]:
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
        listed = {name for name, _ in self.rows}
        if listed == {None}:
            return self._checked(self._divided([record for _, record in self.there], self.test_fraction)[split])
        chosen = [record for name, record in self.there if name == split]
        if split in listed and not chosen:
            raise InputError(
                f"none of the videos listed in {self.listed_in} for the split {split!r} is there; {self.remedy}"
            )
        if split in ("train", "val") and "val" not in listed:
            chosen = self._divided([record for name, record in self.there if name == "train"], 0.0)[split]
        return self._checked(chosen)

    def _divided(self, records: Sequence[VideoRecord], test_fraction: float) -> dict[str, list[VideoRecord]]:
        shares = {"train": 1 - self.val_fraction - test_fraction, "val": self.val_fraction, "test": test_fraction}
        return split_records(records, shares, self.split_seed, self.label_separator)

    def _checked(self, records: list[VideoRecord]) -> list[VideoRecord]:
        absent = [] if self.missing == "skip" else [r.path for r in records if not self._is_there(r)]
        if absent:
            raise InputError(
                f"{len(absent)} of the {len(records)} videos listed in {self.listed_in} are not there, the first of "
                f"them {', '.join(absent[:3])}; {self.remedy}, or set missing to skip to do without them"
            )
        return records

    def _is_there(self, record: VideoRecord) -> bool:
        return Path(record.path).is_file() if self.found is None else record.path in self.found


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
