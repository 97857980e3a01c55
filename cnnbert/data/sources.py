"""Which videos there are, with which labels, in which split."""

from __future__ import annotations

import csv
import gc
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from cnnbert.data.listing import Listing, Missing, Rows, check_fractions, check_missing
from cnnbert.data.manifest import COLUMNS
from cnnbert.data.records import VideoRecord, split_label
from cnnbert.data.splits import SPLITS, split_records
from cnnbert.errors import InputError
from cnnbert.outputs import printable

logger = logging.getLogger("cnnbert")

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm"}
    | {".wmv"}
)
NUMBERED_SPLIT = re.compile(r"split[1-9][0-9]*")


class VideoSource(ABC):
    """Lists the videos of a data set.

    Attributes:
        label_separator: What parts the classes in a label that may name several; the data module sets it to its own.
    """

    label_separator: str | None = None

    @property
    def mirrored(self) -> Mapping[str, str]:
        """For actions that change their name in a mirror (left and right), the name that each takes."""
        return {}

    def prepare(self) -> None:
        """Make the files exist; called by one process before any video is listed. Most have nothing to do."""
        return None

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """The classes in the order of the model's outputs, known without opening a video.

        Where a label may name several classes, the data module takes such labels apart here too.
        """

    @abstractmethod
    def records(self, split: str) -> list[VideoRecord]:
        """Return the videos of a split: `train`, `val`, `test`, or `predict` (every video, labelled or not)."""


class Folder(VideoSource):
    """A folder with a sub-folder of videos per class.

    Either `root/CLASS/VIDEO`, divided into training, validation and test videos here, or
    `root/train/CLASS/VIDEO` with `val` and `test` beside `train`, used as they are (a missing `val` is taken from
    `train`). To predict, every video below `root` is taken; `root` may then also be one video.

    Args:
        root: The folder.
        val_fraction: Share of the videos for validation where no `val` folder exists, in [0, 1).
        test_fraction: Share of the videos for testing where no `train` folder exists, in [0, 1).
        split_seed: Chooses among equally good divisions.
    """

    def __init__(self, root: str, val_fraction: float = 0.15, test_fraction: float = 0.15, split_seed: int = 0) -> None:
        check_fractions(val_fraction, test_fraction)
        self.root = Path(root).expanduser()
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the class folders, sorted."""
        names = sorted(self._class_folders(self._folders().get("train", self.root)))
        if not names:
            raise InputError(
                f"{self.root} holds no class folders; expected {self.root}/CLASS/VIDEO or {self.root}/train/CLASS/VIDEO"
            )
        return names

    def records(self, split: str) -> list[VideoRecord]:
        """Return the videos of a split, sorted by class and name."""
        folders = self._folders()
        if split == "predict":
            return self._every_video()
        if "train" not in folders:
            shares = _shares(self.val_fraction, self.test_fraction)
            return split_records(self._labelled(self.root), shares, self.split_seed, self.label_separator)[split]
        if split in folders and not (split == "train" and "val" not in folders):
            return self._labelled(folders[split])
        if split == "test":
            raise InputError(f"{self.root} has a train folder but no test folder; add {self.root / 'test'}")
        shares = _shares(self.val_fraction, 0.0)
        return split_records(self._labelled(folders["train"]), shares, self.split_seed, self.label_separator)[split]

    def _folders(self) -> dict[str, Path]:
        if not os.path.exists(self.root):
            raise InputError(f"{self.root} does not exist; give the folder that holds the class folders")
        folders = {split: self.root / split for split in SPLITS}
        if not folders["train"].is_dir():
            return {}
        return {split: path for split, path in folders.items() if path.is_dir()}

    @staticmethod
    def _class_folders(folder: Path) -> dict[str, Path]:
        if not os.path.isdir(folder):
            raise InputError(f"{folder} is not a folder; give the folder that holds the class folders")
        try:
            below = [path for path in folder.iterdir() if os.path.isdir(path) and not path.name.startswith(".")]
        except OSError as error:
            raise InputError(f"the folder {folder} cannot be read: {error.strerror}") from None
        here = os.path.realpath(folder)  # a link back to here, or above, leads in a circle
        return {path.name: path for path in below if not Path(here).is_relative_to(os.path.realpath(path))}

    def _labelled(self, folder: Path) -> list[VideoRecord]:
        records = []
        known = _classes(self.class_names, self.label_separator)
        for name, path in sorted(self._class_folders(folder).items()):
            if not known.issuperset(split_label(name, self.label_separator)):
                raise InputError(f"{path} is a class that {self.root / 'train'} does not have")
            videos = videos_below(path)
            if not videos:
                raise InputError(
                    f"the class folder {path} holds no video; add some or remove it "
                    f"(videos end in {' '.join(sorted(VIDEO_SUFFIXES))})"
                )
            records += [VideoRecord(str(video), name) for video in videos]
        return records

    def _every_video(self) -> list[VideoRecord]:
        if self.root.is_file():
            return [VideoRecord(str(self.root))]
        records = []
        for video in videos_below(self.root):
            parents = [p for p in video.relative_to(self.root).parts[:-1] if p not in SPLITS]
            records.append(VideoRecord(str(video), parents[0] if parents else None))
        if not records:
            raise InputError(f"{self.root} holds no video (they end in {' '.join(sorted(VIDEO_SUFFIXES))})")
        return records


class CSVManifest(VideoSource):
    """A CSV file with a line per video, or per piece of one.

    Columns: `path` (relative to the CSV's folder, or to `root`), `label`, and if wanted `split` (`train`, `val` or
    `test`), `start_seconds`, `end_seconds` and `group` (clips of one group stay on one side of a split). Without a
    split column the videos are divided here; without `val` lines, validation is taken from the training lines. A data
    set that is divided several ways has columns `split1`, `split2`, ..., empty for a video that a division leaves out.
    Labels are names; labels that are all whole numbers must be 0 to K-1, unless `class_names` lists them.

    Args:
        path: The CSV file, UTF-8, with a header line.
        root: The folder that paths in the CSV are relative to; the CSV's own by default.
        class_names: The classes in order; by default the labels of the file, sorted.
        val_fraction: Share of the videos for validation where the file names none, in [0, 1).
        test_fraction: Share of the videos for testing where the file has no split column, in [0, 1).
        split_seed: Chooses among equally good divisions.
        fold: Takes the division of the column with this number, `split1` for 1, in place of `split`.
        missing: What happens where videos are not there: an `error`, or `skip` leaves them out and says so. Classes
            that then have no training video drop out, with their other videos.
    """

    def __init__(
        self,
        path: str,
        root: str | None = None,
        class_names: list[str] | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        fold: int | None = None,
        missing: Missing = "error",
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        check_missing(missing)
        if fold is not None and fold < 1:
            raise InputError(f"fold={fold} must be at least 1, the number of the column split1")
        self.path = Path(path).expanduser()
        self.root = self.path.parent if root is None else Path(root).expanduser()
        self.given_class_names = class_names
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.fold = fold
        self.missing = missing

    @cached_property
    def class_names(self) -> list[str]:
        """The classes given, or the labels of the file, sorted (by value where they are numbers)."""
        if self.given_class_names is not None:
            return self._listing.classes_used(self.given_class_names)
        labels = {record.label for record in self._lines.records if record.label is not None}
        if not labels:
            raise InputError(f"{self.path} names no label; fill its label column")
        return self._listing.classes_used(sorted_labels(labels, str(self.path)))

    def records(self, split: str) -> list[VideoRecord]:
        """Return the videos of a split, in the file's order."""
        if split != "predict":
            self._check_labels()
            self._check_split(split)
        return self._listing.records(split)

    @cached_property
    def _listing(self) -> Listing:
        return Listing(
            Rows([splits.get(self._column) for splits in self._lines.splits], self._lines.records),
            str(self.path),
            "correct the paths or set root",
            self.missing,
            self.val_fraction,
            self.test_fraction,
            self.split_seed,
            label_separator=self.label_separator,
        )

    @property
    def _column(self) -> str:
        """The column that divides the videos."""
        return "split" if self.fold is None else f"split{self.fold}"

    def _check_split(self, split: str) -> None:
        column = self._column
        there = list(self._lines.splits[0])
        if self.fold is not None and column not in there:
            raise InputError(
                f"fold={self.fold}, but {self.path} has no column {column}; "
                f"its split columns are {', '.join(there) or '(none)'}"
            )
        if self.fold is None and there and column not in there:
            raise InputError(
                f"{self.path} divides its videos by the columns {', '.join(there)}; set fold to the number of one"
            )
        named = {splits.get(column) for splits in self._lines.splits}
        if split in ("train", "test") and split not in named and (self.fold is not None or named != {None}):
            raise InputError(f"{self.path} has a {column} column but no line with {column}={split}")

    @cached_property
    def _lines(self) -> ManifestLines:
        if not os.path.isfile(self.path):
            raise InputError(f"{self.path} does not exist or is not a file; give a CSV file")
        try:
            # Names of files may hold bytes that are no UTF-8; elsewhere these are refused.
            with self.path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file, _no_collection():
                reader = csv.reader(file, strict=True)
                lines = ManifestLines(self.path, self.root, next(reader, []))
                for cells in reader:
                    if cells:
                        lines.add(reader.line_num, cells)
        except (OSError, csv.Error) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"{self.path} cannot be read as CSV: {why}") from None
        if not lines.records:
            raise InputError(f"{self.path} lists no video")
        return lines

    def _check_labels(self) -> None:
        known = _classes(self.class_names, self.label_separator)
        unknown = {
            label
            for label in {record.label for _, record in self._listing.used}
            if label is None or not known.issuperset(split_label(label, self.label_separator))
        }
        record = (
            next((record for _, record in self._listing.used if record.label in unknown), None) if unknown else None
        )
        if record is not None and record.label is None:
            none = f", and a video of no class has the label {self.label_separator}" if self.label_separator else ""
            raise InputError(f"{self.path} gives no label for {record.path}; only predict can do without{none}")
        if record is not None:
            raise InputError(
                f"{self.path} gives {record.path} the label {record.label!r}, which is not one of the classes "
                f"{', '.join(self.class_names)}"
            )


class ManifestLines:
    """The lines of a CSV file that lists videos; a million of them take seconds and a few hundred megabytes.

    Args:
        path: The file.
        root: The folder that its paths are relative to.
        columns: Its first line.

    Attributes:
        splits: The split of each line by each of the file's split columns.
        records: The video of each line.

    Raises:
        InputError: The columns are others than those of such files.
    """

    def __init__(self, path: Path, root: Path, columns: Sequence[str]) -> None:
        known = [name for name in columns if name in COLUMNS or NUMBERED_SPLIT.fullmatch(name)]
        if "path" not in columns or known != columns or len({*columns}) < len(columns):
            raise InputError(
                f"{path} has the columns {', '.join(columns) or '(none)'}; "
                f"expected path,label and any of {','.join(COLUMNS[2:])},split1,split2,..., each once"
            )
        self.path = path
        self.root = root
        self.prefix = str(root / "x")[:-1]
        self.columns = columns
        self.places = [columns.index(name) if name in columns else -1 for name in COLUMNS]
        self.split_columns = {name: place for place, name in enumerate(columns) if name.startswith("split")}
        self.splits: list[dict[str, str | None]] = []
        self.records: list[VideoRecord] = []
        self.known_splits: dict[tuple[str, ...], dict[str, str | None]] = {}
        self.known_words: dict[str, str | None] = {"": None}

    def add(self, line: int, cells: Sequence[str]) -> None:
        """Take in a line.

        Raises:
            InputError: Something in it cannot be used; the message names the line.
        """
        if len(cells) != len(self.columns):
            raise InputError(f"{self.path}, line {line}: the number of fields differs from the header's")
        path, label, _, start, end, group = ["" if place < 0 else cells[place].strip() for place in self.places]
        if not path:
            raise InputError(f"{self.path}, line {line}: the path is empty")
        start_seconds = self._seconds(line, "start_seconds", start) if start else 0.0
        end_seconds = self._seconds(line, "end_seconds", end) if end else None
        if end_seconds is not None and end_seconds <= start_seconds:
            raise InputError(
                f"{self.path}, line {line}: end_seconds={end_seconds:g} is not after start_seconds={start_seconds:g}"
            )
        named = tuple(cells[place] for place in self.split_columns.values())
        self.splits.append(self.known_splits.get(named) or self._split(line, named))
        words = self.known_words  # the same text is kept once
        label_word = words[label] if label in words else self._word(line, "label", label)
        group_word = words[group] if group in words else self._word(line, "group", group)
        self.records.append(VideoRecord(self._place(path), label_word, start_seconds, end_seconds, group_word))

    def _place(self, path: str) -> str:
        """Return where a video is, as `str(root / path)` writes it."""
        is_plain = path[0] not in "./~" and path[-1] != "/" and "//" not in path and "/." not in path
        return self.prefix + path if is_plain and os.sep == "/" else str(self.root / path)

    def _split(self, line: int, named: tuple[str, ...]) -> dict[str, str | None]:
        splits = {name: text.strip() or None for name, text in zip(self.split_columns, named, strict=True)}
        for name, split in splits.items():
            if split is not None and split not in SPLITS:
                raise InputError(f"{self.path}, line {line}: {name}={split!r} is not one of {', '.join(SPLITS)}")
        self.known_splits[named] = splits
        return splits

    def _word(self, line: int, column: str, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{self.path} cannot be read as CSV: line {line}, column {column}: {printable(text)!r} is not UTF-8"
            ) from None
        self.known_words[text] = text
        return text

    def _seconds(self, line: int, name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise InputError(f"{self.path}, line {line}: {name}={text!r} is not a number of seconds from 0 on")
        return value


@contextmanager
def _no_collection() -> Iterator[None]:
    """Look for no garbage where nothing but what is kept is made: of a million records a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _classes(labels: Collection[str], separator: str | None) -> set[str]:
    return {name for label in labels for name in split_label(label, separator)}


def sorted_labels(labels: Collection[str], listed_in: str) -> list[str]:
    """Return labels in the order of classes: sorted, by value if they are numbers, which must be 0 to K-1."""
    if not all(label.isdecimal() for label in labels):
        return sorted(labels)
    numbers = sorted(int(label) for label in labels)
    if numbers != list(range(len(numbers))):
        raise InputError(
            f"{listed_in} numbers its labels {numbers[0]} to {numbers[-1]} ({len(numbers)} of them); number "
            f"them 0 to {len(numbers) - 1}, use names, or list them in class_names"
        )
    return [str(number) for number in numbers]


def _shares(val: float, test: float) -> dict[str, float]:
    return {"train": 1 - val - test, "val": val, "test": test}


def videos_below(folder: Path) -> Sequence[Path]:
    """Return the video files anywhere below a folder, known by their endings, sorted."""
    found = []
    for place, _, names in os.walk(
        folder, onerror=_warn
    ):  # links to folders are not followed: they may lead in circles
        paths = (Path(place, name) for name in names)
        found += [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(path)]
    return sorted(found)


def _warn(error: OSError) -> None:
    logger.warning("the folder %s cannot be read and is left out: %s", error.filename, error.strerror)
