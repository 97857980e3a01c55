"""The public data sets by which video classifiers are compared, in their official layouts and splits."""

from __future__ import annotations

import csv
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from cnnbert.data.listing import Listing, Missing, check_fractions, check_missing
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import VIDEO_SUFFIXES, VideoSource
from cnnbert.errors import InputError


class ThreeFolds(VideoSource):
    """A data set with three official splits into training and test videos, in files beside the videos.

    Args:
        root: The folder that holds the split files' folder and the videos'.
        fold: The official split: 1, 2 or 3.
        videos: The folder of the videos, or of the copies that `cnnbert prepare` made of them, if it is another.
        lists: The folder of the split files, if it is another.
        val_fraction: Share of the training videos for validation, which the data set does not have, in [0, 1).
        split_seed: Chooses among equally good divisions.
        missing: What happens where videos are not there: an `error`, or `skip` leaves them out and says so. Classes
            that then have no training video drop out, with their other videos.
    """

    LISTS: str
    """The usual name of the folder of the split files."""
    VIDEOS: tuple[str, ...]
    """The usual names of the folder of the videos."""

    def __init__(
        self,
        root: str,
        fold: int = 1,
        videos: str | None = None,
        lists: str | None = None,
        val_fraction: float = 0.15,
        split_seed: int = 0,
        missing: Missing = "error",
    ) -> None:
        if fold not in (1, 2, 3):
            raise InputError(f"fold={fold} must be 1, 2 or 3, the number of an official split")
        check_fractions(val_fraction)
        check_missing(missing)
        self.root = Path(root).expanduser()
        self.fold = fold
        self.videos = videos
        self.lists = self.root / self.LISTS if lists is None else Path(lists).expanduser()
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.missing = missing

    @cached_property
    def class_names(self) -> list[str]:
        """The classes in the official order."""
        return self._listing.classes_used(self._every_class)

    def records(self, split: str) -> list[VideoRecord]:
        """Return the videos of a split, in the order of the official lists; `predict` has all."""
        return self._listing.records(split)

    @cached_property
    def _listing(self) -> Listing:
        videos = _Videos(_video_folder(self.root, self.videos, self.VIDEOS))
        rows = [
            (split, VideoRecord(str(videos.place(label, name)), label, group=group))
            for split, label, name, group in self._rows()
        ]
        listed_in = f"{self.lists} (split {self.fold})"
        remedy = "correct root or videos"
        return Listing(rows, listed_in, remedy, self.missing, self.val_fraction, split_seed=self.split_seed)

    @cached_property
    @abstractmethod
    def _every_class(self) -> list[str]:
        """All classes in the official order."""

    @abstractmethod
    def _rows(self) -> Iterator[tuple[str | None, str, str, str | None]]:
        """Yield the split, the class, the file's name and the group of each video of the official lists."""


class UCF101(ThreeFolds):
    """UCF101: 101 actions, 13,320 videos, three official splits.

    `root` holds the folder `ucfTrainTestlist` of the official split files (`classInd.txt`, `trainlist01.txt`,
    `testlist01.txt`, ...) and the folder `UCF-101` (or `videos`) of `CLASS/VIDEO.avi`, or of all videos side by side.
    Classes are in the order of `classInd.txt`, which is alphabetical whatever the case. Videos of a class that share
    person and background (g01 to g25 in their names) stay on one side of the validation that is taken from the training
    videos.
    """

    LISTS = "ucfTrainTestlist"
    VIDEOS = ("UCF-101", "videos")

    @cached_property
    def _every_class(self) -> list[str]:
        path = self.lists / "classInd.txt"
        lines = [line.split() for line in _lines(path)]
        if [words[:1] for words in lines] != [[str(i)] for i in range(1, len(lines) + 1)] or {*map(len, lines)} != {2}:
            raise InputError(f"{path} does not number its classes from 1 on, a line `NUMBER CLASS` each")
        return [name for _, name in lines]

    def _rows(self) -> Iterator[tuple[str | None, str, str, str | None]]:
        known = set(self._every_class)
        for split in ("train", "test"):
            path = self.lists / f"{split}list{self.fold:02d}.txt"
            for line in _lines(path):
                match = re.fullmatch(r"(\w+)/(\S+_(g\d\d)_c\d\d\.avi)(?: \d+)?", line)
                if match is None or match[1] not in known:
                    raise InputError(
                        f"{path}: {line!r} does not name a video CLASS/v_CLASS_gNN_cNN.avi of a known class"
                    )
                label, name, group = match.groups()
                yield split, label, name, f"{label}_{group}"


class HMDB51(ThreeFolds):
    """HMDB51: 51 actions, 6,766 videos, three official splits of 70 training and 30 test videos of each action.

    `root` holds the folder `testTrainMulti_7030_splits` of the official split files (`CLASS_test_split1.txt`, ...) and
    the folder `hmdb51_org` (or `videos`) of `CLASS/VIDEO.avi`, or of all videos side by side. Classes are sorted.
    Videos cut from one film stay on one side of the validation that is taken from the training videos.
    """

    LISTS = "testTrainMulti_7030_splits"
    VIDEOS = ("hmdb51_org", "videos")

    @cached_property
    def _every_class(self) -> list[str]:
        found = (re.fullmatch(r"(.+)_test_split[123]\.txt", path.name) for path in self.lists.glob("*.txt"))
        names = sorted({match[1] for match in found if match})
        if not names:
            raise InputError(f"{self.lists} holds no CLASS_test_split{self.fold}.txt; correct root or lists")
        return names

    def _rows(self) -> Iterator[tuple[str | None, str, str, str | None]]:
        for label in self._every_class:
            path = self.lists / f"{label}_test_split{self.fold}.txt"
            for line in _lines(path):
                name, _, number = line.rpartition(" ")
                if not name.endswith(".avi") or number not in ("0", "1", "2"):
                    raise InputError(f"{path}: {line!r} is not VIDEO.avi and 0, 1 or 2")
                film = re.match(rf"(.+)_{re.escape(label)}_", name)
                yield {"1": "train", "2": "test"}.get(number), label, name, film and film[1]  # 0 is in neither


class Kinetics(VideoSource):
    """Kinetics-400, -600 or -700: videos by the official CSV files.

    The files have the columns `label,youtube_id,time_start,time_end,split` and sometimes `is_cc`; the column split is
    not read. A video is found by its name anywhere below `root`, in class folders or not:
    `YOUTUBEID_000012_000022.mp4`, start and end in whole seconds with six digits, with any suffix of videos. Files
    named by the YouTube id alone are not found, as the name does not tell whether they were cut.

    Args:
        root: The folder of the videos.
        train: The CSV file of training videos; needed to train.
        val: That of validation videos; taken from the training videos by default.
        test: That of test videos; needed to test. The official test labels of some versions are not public; results
            are then usually those of the validation videos, which can be given here.
        val_fraction: Share of the training videos for validation where `val` is not given, in [0, 1).
        split_seed: Chooses among equally good divisions.
        missing: What happens where videos are not there: an `error`, or `skip` leaves them out and says so. Classes
            that then have no training video drop out, with their other videos.
    """

    COLUMNS = ("youtube_id", "time_start", "time_end")

    def __init__(
        self,
        root: str,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        val_fraction: float = 0.15,
        split_seed: int = 0,
        missing: Missing = "error",
    ) -> None:
        check_fractions(val_fraction)
        check_missing(missing)
        tables = {"train": train, "val": val, "test": test}
        self.tables = {split: Path(path).expanduser() for split, path in tables.items() if path is not None}
        if not self.tables:
            raise InputError("no list of videos is given; set train, val or test to a CSV file of Kinetics")
        self.root = Path(root).expanduser()
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.missing = missing

    @cached_property
    def class_names(self) -> list[str]:
        """The labels of all CSV files, sorted, which is the official order."""
        labels = {record.label for _, record in self._listing.rows if record.label is not None}
        if not labels:
            raise InputError(f"{' and '.join(map(str, self.tables.values()))} name no label; fill the column label")
        return self._listing.classes_used(sorted(labels))

    def records(self, split: str) -> list[VideoRecord]:
        """Return the videos of a split, in the order of its CSV file; `predict` has those of all files."""
        asked = "train" if split == "val" else split
        if split not in self.tables and asked not in self.tables and split != "predict":
            raise InputError(f"there is no CSV file of {asked} videos; set {asked} beside {', '.join(self.tables)}")
        records = self._listing.records(split)
        unlabelled = [record.path for record in records if record.label is None]
        if unlabelled and split != "predict":
            raise InputError(
                f"the {split} videos are without label, {unlabelled[0]} the first; only predict takes them"
            )
        return records

    @cached_property
    def _listing(self) -> Listing:
        found = self._found
        rows: list[tuple[str | None, VideoRecord]] = []
        for split, path in self.tables.items():
            for name, label in self._read(path):
                places = found.get(name, [self.root / f"{name}.mp4"])
                if len(places) > 1 and len({place.resolve() for place in places}) > 1:
                    raise InputError(
                        f"{places[0]} and {places[1]} are the same video by name; set root to one's folder"
                    )
                rows.append((split, VideoRecord(str(places[0]), label)))
        names = " and ".join(map(str, self.tables.values()))
        remedy = "correct root"
        return Listing(rows, names, remedy, self.missing, self.val_fraction, split_seed=self.split_seed)

    @cached_property
    def _found(self) -> dict[str, list[Path]]:
        """The files below the root by name without suffix; one walk is quicker than looking for each."""
        if not self.root.is_dir():
            raise InputError(f"{self.root} does not exist or is not a folder; give the folder of the videos")
        found: dict[str, list[Path]] = {}
        for folder, folders, names in os.walk(self.root, followlinks=True):
            folders.sort()
            for name, suffix in map(os.path.splitext, sorted(names)):
                if suffix.lower() in VIDEO_SUFFIXES:
                    found.setdefault(name, []).append(Path(folder, name + suffix))
        return found

    def _read(self, path: Path) -> list[tuple[str, str | None]]:
        """Return the name without suffix, and the label, of each video of a CSV file."""
        if not path.is_file():
            raise InputError(f"{path} does not exist or is not a file; give a CSV file of Kinetics")
        videos = []
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {*self.COLUMNS} <= {*(reader.fieldnames or [])}:
                raise InputError(
                    f"{path} has the columns {', '.join(reader.fieldnames or ['(none)'])}; "
                    "expected label,youtube_id,time_start,time_end,split"
                )
            for row in reader:
                try:
                    start, end = int(row["time_start"]), int(row["time_end"])
                except (TypeError, ValueError):
                    told = f"time_start={row['time_start']} and time_end={row['time_end']}"
                    raise InputError(f"{path}, line {reader.line_num}: {told} are not whole seconds") from None
                videos.append((f"{row['youtube_id']}_{start:06d}_{end:06d}", row.get("label") or None))
        if not videos:
            raise InputError(f"{path} lists no video")
        return videos


class _Videos:
    """The videos of a data set: in a folder per class, or side by side; or copies of them, whose suffix is mp4."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = {"": set(os.listdir(folder))}

    def place(self, label: str, name: str) -> Path:
        """Return where a video is, or, if it is not there, where it would be."""
        if label not in self.names:
            inside = self.folder / label
            self.names[label] = set(os.listdir(inside)) if inside.is_dir() else set()
        places = [(part, one) for one in (name, f"{Path(name).stem}.mp4") for part in (label, "")]
        part, found = next((place for place in places if place[1] in self.names[place[0]]), (label, name))
        return self.folder / part / found


def _video_folder(root: Path, given: str | None, usual: Sequence[str]) -> Path:
    """Return the folder of the videos: the one given, or else the first of the usual ones that is there, or root."""
    if not root.is_dir():
        raise InputError(f"{root} does not exist or is not a folder; give the folder of the data set")
    folders = [root / name for name in (*usual, "")] if given is None else [Path(given).expanduser()]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise InputError(f"videos={given} does not exist or is not a folder; give the folder of the class folders")
    return folder


def _lines(path: Path) -> list[str]:
    """Return the lines of an official file, without those that are blank."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; correct root or lists, or fetch the official split files")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    return [line for line in lines if line]
