"""Makes a training copy of a data set: small videos that are quick to read at any frame."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path

from cnnbert.data.encoding import Encoding, comment_of, encode_whole
from cnnbert.data.manifest import manifest
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import CSVManifest, Folder, VideoSource
from cnnbert.data.splits import SPLITS
from cnnbert.derived_files import check_limits, common_folder, make_files, target_paths, write_failed
from cnnbert.errors import InputError
from cnnbert.loading import build_data
from cnnbert.outputs import write_whole

MADE_BY = "made by cnnbert prepare"

Row = tuple[Mapping[str, str], VideoRecord]
"""The splits that a video is in, by the names of the divisions, and the video."""


def prepare(
    videos: str | None = None,
    *,
    out: str,
    config: str | None = None,
    short_side: int = 128,
    gop: int = 16,
    crf: int = 20,
    preset: str = "medium",
    timeout_seconds: float = 3600.0,
    num_workers: int | None = None,
    settings: Sequence[str] = (),
) -> int:
    """Encode the videos of a data set anew for training: small, without sound, with a key frame every few frames.

    Give a folder or a CSV file: cnnbert prepare my_videos --out prepared. Or give a run's data:
    --data data/ucf101.yaml --data.source.root UCF101. The copies lie in the output folder as the originals lie in
    theirs, and prepared/videos.csv lists them with labels, groups and splits, numbered ones too: train with
    --data data/csv.yaml --data.source.path prepared/videos.csv. Every frame is kept; frames are turned upright and
    pixels made square.

    The originals are only read. A copy is there whole or not at all, after its frames have been decoded and counted.
    Interrupted in whatever way, the same command goes on where it stopped. Copies are made anew where the original or a
    setting has changed. Videos that cannot be read to their end are named in prepared/failed.csv and left out of
    videos.csv; the exit status is then 1.

    Args:
        videos: A folder with a folder of videos per class, or a CSV file that lists videos; none with --data.
        out: The folder of the copies.
        config: A run's config whose videos are copied: a path, or a shipped one.
        short_side: Height or width of the copies, whichever is less, in pixels, even; smaller videos are not enlarged.
        gop: Frames from one key frame to the next.
        crf: x264's constant rate factor, in [0, 51]: the higher, the smaller and the worse.
        preset: x264's preset, ultrafast to veryslow: the slower, the smaller.
        timeout_seconds: The longest that one video may take; above 0.
        num_workers: Videos that are encoded at the same time; by default one a CPU core.
        settings: A run's settings, such as --data.source.path=videos.csv.
    """
    encoding = Encoding(short_side, gop, crf, preset)
    check_limits(timeout_seconds, num_workers)
    source = _source(videos, config, settings)
    folder = Path(out).expanduser()
    _check_folder(folder, source)
    divisions = _divisions(source)
    rows = _rows(source.records("predict"), divisions)
    root = source.root if isinstance(source, Folder) and source.root.is_dir() else None
    paths = [record.path for _, record in rows]
    top = common_folder(paths) if root is None else os.path.abspath(root)
    targets = target_paths(paths, folder, top, ".mp4")
    comments = {path: _comment(path, encoding) for path in targets}
    waiting = _not_made(targets, comments)
    if len(waiting) < len(targets):
        print(f"{len(targets) - len(waiting)} of {len(targets)} videos have their copies already", flush=True)
    jobs = {path: (targets[path], comments[path]) for path in waiting}
    failed = make_files(partial(encode_whole, encoding), jobs, folder, num_workers, timeout_seconds, "prepare")
    _write_lists(folder, rows, targets, failed)
    write_failed(folder, failed)
    told = f"; {len(failed)} could not be read, see {folder / 'failed.csv'}" if failed else ""
    print(
        f"{len(targets) - len(failed)} of {len(targets)} videos are listed in {folder / 'videos.csv'}{told}",
        flush=True,
    )
    return 1 if failed else 0


def _source(videos: str | None, config: str | None, settings: Sequence[str]) -> VideoSource:
    if videos is None:
        if config is None and not settings:
            raise InputError("prepare needs videos: give a folder, a CSV file, or a run's settings such as --data")
        data = build_data(config, settings)
        data.prepare_data()
        return data.source
    if config is not None or settings:
        raise InputError(f"give either {videos} or a run's config and settings, not both")
    path = Path(videos).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist; give a folder of videos, or a CSV file that lists videos")
    return CSVManifest(videos) if path.suffix.lower() == ".csv" else Folder(videos)


def _check_folder(folder: Path, source: VideoSource) -> None:
    """Refuse a folder in which the copies, or their list, would get in the originals' way."""
    place = folder.resolve()
    if isinstance(source, Folder) and (place == source.root.resolve() or source.root.resolve() in place.parents):
        raise InputError(
            f"out={folder} lies in {source.root}, where its folders would count as classes; give another folder as out"
        )
    if isinstance(source, CSVManifest) and source.path.resolve() == place / "videos.csv":
        raise InputError(f"the list of the copies would take the place of {source.path}; give another folder as out")


def _divisions(source: VideoSource) -> dict[str, dict[str, list[VideoRecord]]]:
    """Return the videos of each split by the source's division, and by each of its numbered ones if it has such."""
    untouched = copy(source)  # a source remembers what it has read of its division
    splits, why = _splits(source)
    divisions = {"split": splits}
    for fold in count(1) if hasattr(source, "fold") else ():
        numbered = copy(untouched)
        vars(numbered)["fold"] = fold
        divisions[f"split{fold}"] = splits if fold == vars(source)["fold"] else _splits(numbered)[0]
        if not divisions[f"split{fold}"]:
            break
    divisions = {name: splits for name, splits in divisions.items() if splits}
    if not divisions:
        print(f"the copies are in no split: {why}", flush=True)
    return divisions


def _splits(source: VideoSource) -> tuple[dict[str, list[VideoRecord]], str]:
    """Return the videos of each split that a source has, and why it lacks others."""
    splits, why = {}, ""
    for split in SPLITS:
        try:
            splits[split] = source.records(split)
        except InputError as error:
            why = why or str(error)
    return splits, why


def _rows(every: Sequence[VideoRecord], divisions: Mapping[str, Mapping[str, Sequence[VideoRecord]]]) -> list[Row]:
    """Return each video once, or as often as a division has it, with its splits by the names of the divisions."""
    rows: dict[tuple[VideoRecord, int], dict[str, str]] = {}
    for name, splits in divisions.items():
        times: Counter[VideoRecord] = Counter()
        for split, records in splits.items():
            for record in records:
                rows.setdefault((record, times[record]), {})[name] = split
                times[record] += 1
    times = Counter()
    for record in every:
        rows.setdefault((record, times[record]), {})
        times[record] += 1
    return [(splits, replace(record, path=os.path.abspath(record.path))) for (record, _), splits in rows.items()]


def _comment(path: str, encoding: Encoding) -> str:
    """Return what a copy says of itself: its original and how it was made."""
    status = os.stat(path)
    how = ", ".join(f"{name} {value}" for name, value in asdict(encoding).items())
    return f"{MADE_BY}: {how}, of {status.st_size} bytes of {status.st_mtime_ns}"


def _not_made(targets: Mapping[str, Path], comments: Mapping[str, str]) -> list[str]:
    """Return the videos that have no copy yet, or another."""
    waiting, num_others = [], 0
    for path, target in targets.items():
        comment = comment_of(target) if target.exists() else None
        if comment is not None and not comment.startswith(MADE_BY):
            raise InputError(f"{target} is there and was not made by cnnbert prepare; give another folder as out")
        if comment != comments[path]:
            waiting.append(path)
            num_others += comment is not None
    if num_others:
        print(f"{num_others} copies were made of other originals or by other settings, and are made anew", flush=True)
    return waiting


def _write_lists(
    folder: Path,
    rows: Sequence[Row],
    targets: Mapping[str, Path],
    failed: Mapping[str, str],
) -> None:
    """Write the list of the copies."""
    copied = [
        (splits, replace(record, path=targets[record.path].relative_to(folder).as_posix()))
        for splits, record in rows
        if record.path not in failed
    ]
    write_whole(folder / "videos.csv", manifest(copied))
