"""Makes a training copy of a data set: small videos that are quick to read at any frame."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from cnnbert.callbacks import write_whole
from cnnbert.data.encoding import Encoding, comment_of, encode_whole
from cnnbert.data.manifest import manifest
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import CSVManifest, Folder, VideoSource
from cnnbert.data.splits import SPLITS
from cnnbert.errors import InputError
from cnnbert.loading import build_data
from cnnbert.parallel import map_files

MADE_BY = "made by cnnbert prepare"


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
    theirs, and prepared/videos.csv lists them with labels, splits and groups: train with --data data/csv.yaml
    --data.source.path prepared/videos.csv. Every frame is kept; frames are turned upright and pixels made square.

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
    if not timeout_seconds > 0:
        raise InputError(f"timeout_seconds={timeout_seconds:g} must be above 0")
    if num_workers is not None and num_workers < 1:
        raise InputError(f"num_workers={num_workers} must be at least 1")
    rows = _rows(_source(videos, config, settings))
    folder = Path(out).expanduser()
    targets = _targets([record.path for _, record in rows], folder)
    folder.mkdir(parents=True, exist_ok=True)
    comments = {path: _comment(path, encoding) for path in targets}
    waiting = _not_made(targets, comments)
    if len(waiting) < len(targets):
        print(f"{len(targets) - len(waiting)} of {len(targets)} videos have their copies already", flush=True)
    jobs = [(path, str(targets[path]), comments[path]) for path in waiting]
    for target in {targets[path].parent for path in waiting}:
        target.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    try:
        for (path, *_), got in map_files(
            partial(encode_whole, encoding), jobs, num_workers, timeout_seconds, "prepare"
        ):
            if isinstance(got, Exception):
                failed[path] = getattr(got, "why", None) or str(got) or type(got).__name__
                if isinstance(got, OSError):
                    raise InputError(f"{targets[path]} cannot be written: {got.strerror or got}")
    except KeyboardInterrupt:
        told = f"stopped; the copies in {folder} are whole, and the same command goes on with the rest"
        raise InputError(told) from None
    finally:
        for part in _parts(folder):
            part.unlink(missing_ok=True)
    _write_lists(folder, rows, targets, failed)
    for path, why in list(failed.items())[:10]:
        print(f"cannot copy {path}: {why}", flush=True)
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


def _rows(source: VideoSource) -> list[tuple[str | None, VideoRecord]]:
    """Return all videos of a source, each in the split that it is in, if any."""
    every = source.records("predict")  # first, as it raises where videos are not there
    rows: list[tuple[str | None, VideoRecord]] = []
    for split in SPLITS:
        with suppress(InputError):  # no such split, or no classes
            rows += [(split, record) for record in source.records(split)]
    placed = {record for _, record in rows}
    return rows + [(None, record) for record in every if record not in placed]


def _targets(paths: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return where the copy of each different video goes: named alike, with the suffix mp4."""
    places = {path: os.path.realpath(path) for path in dict.fromkeys(paths)}
    root = os.path.commonpath([os.path.dirname(place) for place in places.values()])
    stems = {path: os.path.splitext(os.path.relpath(place, root))[0] for path, place in places.items()}
    num_alike = Counter(stems.values())  # a.avi beside a.mp4
    targets = {}
    for path, place in places.items():
        name = os.path.relpath(place, root) if num_alike[stems[path]] > 1 else stems[path]
        targets[path] = folder / f"{name}.mp4"
    originals = set(places.values())
    for path, target in targets.items():
        if os.path.realpath(target) in originals:
            raise InputError(f"the copy of {path} would take the place of an original; give another folder as out")
    return targets


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


def _parts(folder: Path) -> Iterator[Path]:
    """Yield the unfinished files of processes that are no more."""
    for part in folder.rglob("*.mp4.*.part"):
        try:
            os.kill(int(part.suffixes[-2][1:]), 0)
        except (OSError, ValueError):
            yield part


def _write_lists(
    folder: Path,
    rows: Sequence[tuple[str | None, VideoRecord]],
    targets: Mapping[str, Path],
    failed: Mapping[str, str],
) -> None:
    """Write the list of the copies and that of the videos without one."""
    copied = [
        (split, replace(record, path=targets[record.path].relative_to(folder).as_posix()))
        for split, record in rows
        if record.path not in failed
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "verdict", "why"))
    writer.writerows((os.path.abspath(path), "unreadable", why) for path, why in failed.items())
    write_whole(folder / "videos.csv", manifest(copied))
    if failed:
        write_whole(folder / "failed.csv", text.getvalue())
    else:
        (folder / "failed.csv").unlink(missing_ok=True)
