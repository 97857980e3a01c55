"""Finds clips in longer videos."""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from cnnbert.data.encoding import Encoding, encode_pieces, pictures, remove_parts
from cnnbert.data.manifest import manifest
from cnnbert.data.readers import PyAVReader
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import Folder
from cnnbert.errors import InputError
from cnnbert.outputs import write_whole
from cnnbert.parallel import map_files

# Frames are made this high or wide, whichever is less, in pixels, before scenes are told apart.
SCENE_SIDE = 144

# How clips are cut: in the size of their video.
CUT = Encoding(short_side=2**16, crf=18)


def clips(
    videos: str,
    *,
    by: Literal["scene", "rule", "table"] = "scene",
    out: str = "clips.csv",
    threshold: float = 27.0,
    window_seconds: float = 4.0,
    step_seconds: float | None = None,
    min_seconds: float | None = None,
    max_seconds: float | None = None,
    cut: str | None = None,
    timeout_seconds: float = 3600.0,
    num_workers: int | None = None,
) -> int:
    """Find clips in longer videos, and list them in a CSV file for training.

    Three ways. scene: from one change of scene to the next, found by PySceneDetect (pip install 'cnnbert[clips]').
    rule: windows of the same length, one every so many seconds. table: by hand; the videos are then a CSV file with
    columns path, start, end and label, times in seconds or as [h:]mm:ss, paths relative to the file.

    The list has a line a clip with path, label, start_seconds and end_seconds, and as group the video, so that clips of
    one video stay on one side of a split. A folder's class folders give the labels; labels that are missing are to be
    filled in. Train with --data data/csv.yaml --data.source.path clips.csv; nothing needs to be cut. Videos that cannot
    be read are named, and the exit status is then 1.

    Args:
        videos: A video, a folder with videos anywhere below it, or with by=table a CSV file.
        by: How clips are found.
        out: The list of the clips; an existing file is replaced.
        threshold: scene: how different two frames must be to be of different scenes, for PySceneDetect's
            ContentDetector; above 0.
        window_seconds: rule: length of a window; above 0.
        step_seconds: rule: from the start of one window to that of the next, above 0; by default a window.
        min_seconds: Shorter clips are left out, and counted in the last line; scenes end no sooner. By default 1, and
            0 for a table.
        max_seconds: Longer clips are divided into equal parts, as few as possible; by default they may have any length.
        cut: A folder to which each clip is written as a file of its own, in the folder of its label; the list then
            names those.
        timeout_seconds: The longest that one video may take; above 0.
        num_workers: Videos that are gone through at the same time; by default one a CPU core.
    """
    at_least = (0.0 if by == "table" else 1.0) if min_seconds is None else min_seconds
    at_most = math.inf if max_seconds is None else max_seconds
    step = window_seconds if step_seconds is None else step_seconds
    rule = Rule(by, threshold, window_seconds, step, at_least, at_most)
    if not timeout_seconds > 0:
        raise InputError(f"timeout_seconds={timeout_seconds:g} must be above 0")
    if num_workers is not None and num_workers < 1:
        raise InputError(f"num_workers={num_workers} must be at least 1")
    path, table = Path(videos).expanduser(), Path(out).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist; give a video, a folder of videos, or with by=table a CSV file")
    if table.is_dir() or table.resolve() == path.resolve():
        raise InputError(f"out={table} is {'a folder' if table.is_dir() else 'what is read'}; give another file")
    if by != "table" and path.suffix.lower() == ".csv":
        raise InputError(f"{path} is a table; add --by table")
    jobs = _jobs_of_table(path) if by == "table" else [(r.path, r.label, []) for r in Folder(videos).records("predict")]
    if by == "scene":
        _detector(threshold, 1)  # raises where PySceneDetect is not there
    found: dict[str, Found] = {}
    failed: dict[str, str] = {}
    wrong: list[tuple[int, str]] = []
    try:
        for (video, *_), got in map_files(partial(_find, rule=rule), jobs, num_workers, timeout_seconds, "clips"):
            if isinstance(got, Exception):
                failed[video] = _why(got)
            else:
                found[video] = got
                wrong += got.wrong
        if wrong:
            raise _mistakes(path, wrong)
        listed = {video: found[video] for video, _, _ in jobs if video in found and found[video].parts}
        rows = _listed(listed) if cut is None else _cut(listed, Path(cut).expanduser(), num_workers, timeout_seconds)
    except KeyboardInterrupt:
        raise InputError(f"stopped; {table} is not written") from None
    for video in [video for video, got in rows.items() if isinstance(got, Exception)]:
        failed[video] = _why(rows.pop(video))  # type: ignore[arg-type]
    records = [record for got in rows.values() if not isinstance(got, Exception) for record in got]
    place = table.parent.resolve()
    text = manifest(({}, replace(record, path=os.path.relpath(record.path, place))) for record in records)
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        write_whole(table, text)
    except OSError as error:
        raise InputError(f"out={table} cannot be written: {error}") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{table} cannot name a video whose name is no UTF-8 text ({error}); rename it") from error
    for video, why in list(failed.items())[:10]:
        print(f"cannot read {video}: {why}", flush=True)
    num_short = sum(one.num_short for one in found.values())
    short = f"; {num_short} shorter than {at_least:g} s are left out" if num_short else ""
    num_read = len(jobs) - len(failed)
    print(f"{len(records)} clips of {num_read} of {len(jobs)} videos, listed in {table}{short}", flush=True)
    return 1 if failed else 0


@dataclass(frozen=True)
class Rule:
    """How clips are chosen; see `clips`."""

    by: str
    threshold: float
    window_seconds: float
    step_seconds: float
    min_seconds: float
    max_seconds: float

    def __post_init__(self) -> None:
        for name in ("threshold", "window_seconds", "step_seconds", "max_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name):g} must be above 0")
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise InputError(
                f"min_seconds={self.min_seconds:g} must be at least 0 and at most max_seconds={self.max_seconds:g}"
            )
        if self.by == "rule" and self.window_seconds < self.min_seconds:
            raise InputError(f"window_seconds={self.window_seconds:g} is less than min_seconds={self.min_seconds:g}")


Row = tuple[int, float, float, str | None]
"""A line of a table: its number, start and end in seconds, and label."""

Job = tuple[str, str | None, Sequence[Row]]
"""A video, its label, and the lines of the table that are of it."""

Part = tuple[int, int, str | None]
"""The first frame, the first after it, and the label."""


@dataclass(frozen=True)
class Found:
    """The clips of a video.

    Attributes:
        parts: The first frame of each, the first after it, and its label.
        fps: Frames a second.
        num_short: How many were left out, being too short.
        wrong: What is wrong with lines of the table, by their numbers.
    """

    parts: list[Part]
    fps: float
    num_short: int
    wrong: list[tuple[int, str]]


def _find(job: Job, rule: Rule) -> Found:
    """Find the clips of a video."""
    video, label, rows = job
    wrong: list[tuple[int, str]] = []
    with PyAVReader(read_timeout_seconds=math.inf).open(video) as opened:
        num_frames, fps = opened.num_frames, opened.fps
    if rule.by == "scene":
        pieces = [(first, end, label) for first, end in pairwise(_scene_cuts(video, num_frames, fps, rule))]
    elif rule.by == "rule":
        starts = range(math.ceil(num_frames / (rule.step_seconds * fps)))
        ends = [(k * rule.step_seconds * fps, (k * rule.step_seconds + rule.window_seconds) * fps) for k in starts]
        pieces = [(round(first), min(round(end), num_frames), label) for first, end in ends]
    else:
        past = [(line, end) for line, _, end, _ in rows if round(end * fps) > num_frames + 1]
        wrong = [(line, f"end={end:g} is past the end of {video}, {num_frames / fps:.2f} s") for line, end in past]
        frames = [(round(start * fps), round(end * fps), name) for _, start, end, name in rows]
        pieces = [(first, min(max(end, first + 1), num_frames), name) for first, end, name in frames]
    divided = [_divided(piece, rule, fps) for piece in pieces]
    return Found([part for parts in divided for part in parts], fps, divided.count([]), wrong)


def _listed(found: Mapping[str, Found]) -> dict[str, list[VideoRecord] | Exception]:
    """Return the clips of each video as pieces of it."""
    groups = _groups(list(found))
    return {
        video: [
            VideoRecord(
                os.path.abspath(video), label, round(first / one.fps, 6), round(end / one.fps, 6), groups[video]
            )
            for first, end, label in one.parts
        ]
        for video, one in found.items()
    }


def _cut(
    found: Mapping[str, Found], folder: Path, num_workers: int | None, timeout_seconds: float
) -> dict[str, list[VideoRecord] | Exception]:
    """Write each clip to a file of its own, and return those of each video, or why it has none."""
    groups = _groups(list(found))
    taken: set[str] = set()
    rows: dict[str, list[VideoRecord] | Exception] = {}
    jobs: list[tuple[str, dict[Path, slice]]] = []
    for video, one in found.items():
        stem = name = os.path.splitext(groups[video])[0].replace(os.sep, "_")
        number = 1
        while name.lower() in taken:  # a/b.mp4 beside a_b.mp4 or a/b.avi
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        pieces = {
            (folder / _folder_name(label) / f"{name}_{a:06}_{b:06}.mp4"): (a, b, label) for a, b, label in one.parts
        }
        jobs.append((video, {target: slice(a, b) for target, (a, b, _) in pieces.items()}))
        rows[video] = [
            VideoRecord(os.path.abspath(t), label, group=groups[video]) for t, (_, _, label) in pieces.items()
        ]
    try:
        for target in {target.parent for _, pieces in jobs for target in pieces}:
            target.mkdir(parents=True, exist_ok=True)
        for (video, _), got in map_files(partial(encode_pieces, CUT), jobs, num_workers, timeout_seconds, "cut"):
            if isinstance(got, OSError):
                raise got
            if isinstance(got, Exception):
                rows[video] = got
    except OSError as error:
        raise InputError(f"clips cannot be written to cut={folder}: {error}") from error
    finally:
        remove_parts(folder)
    return rows


def _groups(videos: Sequence[str]) -> dict[str, str]:
    """Return the paths of videos below the folder that holds them all."""
    places = {video: os.path.abspath(video) for video in videos}
    root = os.path.commonpath(list(map(os.path.dirname, places.values()))) if places else ""
    return {video: os.path.relpath(place, root) for video, place in places.items()}


def _why(error: Exception) -> str:
    return getattr(error, "why", None) or str(error) or type(error).__name__


def _mistakes(table: Path, wrong: Sequence[tuple[int, str]]) -> InputError:
    lines = [f"{table}, line {line}: {why}" for line, why in sorted(wrong)]
    return InputError("\n".join([*lines, "nothing is written; correct the table"]))


def _folder_name(label: str | None) -> str:
    return (label or "").replace("/", "_").replace(os.sep, "_").lstrip(".")


def _divided(piece: Part, rule: Rule, fps: float) -> list[Part]:
    """Return a piece in equal parts that are not too long, or none if it is too short; half a frame does not count."""
    first, end, label = piece
    if (end - first + 0.5) / fps < rule.min_seconds or end <= first:
        return []
    num = math.ceil((end - first - 0.5) / fps / rule.max_seconds) if rule.max_seconds < math.inf else 1
    num = min(max(num, 1), end - first)
    edges = [first + (end - first) * k // num for k in range(num + 1)]
    return [(a, b, label) for a, b in pairwise(edges)]


def _scene_cuts(video: str, num_frames: int, fps: float, rule: Rule) -> list[int]:
    """Return where scenes begin, with the first frame, and the number of frames at the end.

    Frames are counted, and their time stamps left aside, so that readers find the same ones.
    """
    from scenedetect import FrameTimecode

    detector = _detector(rule.threshold, max(1, round(rule.min_seconds * fps)))
    cuts, time = [0], FrameTimecode(0, fps)
    for number, frame in enumerate(pictures(video, SCENE_SIDE)):
        time = FrameTimecode(number, fps)
        cuts += [cut.frame_num for cut in detector.process_frame(time, frame.to_ndarray(format="bgr24"))]
    cuts += [cut.frame_num for cut in detector.post_process(time)]
    return [*sorted({cut for cut in cuts if cut < num_frames}), num_frames]


def _detector(threshold: float, min_frames: int) -> Any:
    try:
        from scenedetect import ContentDetector
    except ImportError as error:
        raise InputError(f"by=scene needs PySceneDetect ({error}); pip install 'cnnbert[clips]'") from error
    return ContentDetector(threshold, min_frames)


def _jobs_of_table(path: Path) -> list[Job]:
    """Return the videos of a table with their lines."""
    if not path.is_file():
        raise InputError(f"{path} is no file; by=table takes a CSV file with columns path, start, end and label")
    rows: dict[str, list[Row]] = defaultdict(list)
    wrong: list[tuple[int, str]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = reader.fieldnames or []
            if not {"path", "start", "end"} <= {*columns}:
                told = ", ".join(columns) or "(none)"
                raise InputError(f"{path} has the columns {told}; it needs path, start, end and label")
            for row in reader:
                try:
                    video, times = _parse(path.parent, row)
                    rows[video].append((reader.line_num, *times, row.get("label") or None))
                except InputError as error:
                    wrong.append((reader.line_num, str(error)))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as CSV: {error}") from None
    if wrong:
        raise _mistakes(path, wrong)
    if not rows:
        raise InputError(f"{path} lists no clip")
    return [(video, None, lines) for video, lines in rows.items()]


def _parse(folder: Path, row: Mapping[str, str | None]) -> tuple[str, tuple[float, float]]:
    video = str(folder / (row["path"] or ""))
    if not os.path.isfile(video):
        raise InputError(f"there is no video {video}")
    start, end = (_seconds(row[name] or "", name) for name in ("start", "end"))
    if end <= start:
        raise InputError(f"end={row['end']} is not after start={row['start']}")
    return video, (start, end)


def _seconds(text: str, name: str) -> float:
    """Return seconds, from seconds or [h:]mm:ss."""
    try:
        parts = [float(part) for part in text.strip().split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(0 <= part < math.inf for part in parts):
        raise InputError(f"{name}={text!r} is no time; write seconds, or [h:]mm:ss")
    return sum(part * 60**place for place, part in enumerate(reversed(parts)))
