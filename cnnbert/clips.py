"""Finds clips in longer videos."""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
from av.video.reformatter import VideoReformatter

from cnnbert.callbacks import write_whole
from cnnbert.data.encoding import Encoding, encode
from cnnbert.data.manifest import manifest
from cnnbert.data.readers import PyAVReader
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import Folder
from cnnbert.errors import InputError, VideoReadError
from cnnbert.parallel import map_files

# Frames are made this wide, in pixels, before scenes are told apart.
SCENE_WIDTH = 256

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
        min_seconds: Shorter clips are left out, and scenes end no sooner; by default 1, and 0 for a table.
        max_seconds: Longer clips are divided into equal parts; by default clips may have any length.
        cut: A folder to which each clip is written as a file of its own; the list then names those.
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
    path = Path(videos).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist; give a video, a folder of videos, or with by=table a CSV file")
    jobs = _jobs_of_table(path) if by == "table" else [(r.path, r.label, []) for r in Folder(videos).records("predict")]
    if by == "scene":
        _detector(threshold, 1)  # raises where PySceneDetect is not there
    table = Path(out).expanduser()
    folder = None if cut is None else Path(cut).expanduser()
    table.parent.mkdir(parents=True, exist_ok=True)
    root = os.path.commonpath([os.path.dirname(os.path.abspath(video)) for video, _, _ in jobs])
    work = partial(_clips_of, rule=rule, folder=folder, root=root)
    found: dict[str, list[VideoRecord]] = {}
    failed: dict[str, str] = {}
    try:
        for (video, *_), got in map_files(work, jobs, num_workers, timeout_seconds, "clips"):
            if isinstance(got, (InputError, OSError)):
                raise got if isinstance(got, InputError) else InputError(f"clips cannot be written: {got}")
            if isinstance(got, Exception):
                failed[video] = getattr(got, "why", None) or str(got) or type(got).__name__
            else:
                found[video] = got
    except KeyboardInterrupt:
        raise InputError(f"stopped; {table} is not written") from None
    rows = [record for video, _, _ in jobs for record in found.get(video, [])]
    place = table.parent.resolve()
    write_whole(table, manifest(({}, replace(r, path=os.path.relpath(r.path, place))) for r in rows))
    for video, why in list(failed.items())[:10]:
        print(f"cannot read {video}: {why}", flush=True)
    print(f"{len(rows)} clips of {len(found)} of {len(jobs)} videos, listed in {table}", flush=True)
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


def _clips_of(job: Job, rule: Rule, folder: Path | None, root: str) -> list[VideoRecord]:
    """Return the clips of a video, cut if they are to be."""
    video, label, rows = job
    with PyAVReader(read_timeout_seconds=math.inf).open(video) as opened:
        num_frames, fps = opened.num_frames, opened.fps
    if rule.by == "scene":
        pieces = [(first, end, label) for first, end in pairwise(_scene_cuts(video, num_frames, fps, rule))]
    elif rule.by == "rule":
        starts = range(math.ceil(num_frames / (rule.step_seconds * fps)))
        ends = [(k * rule.step_seconds * fps, (k * rule.step_seconds + rule.window_seconds) * fps) for k in starts]
        pieces = [(round(first), min(round(end), num_frames), label) for first, end in ends]
    else:
        pieces = [_piece(row, video, num_frames, fps) for row in rows]
    parts = [part for piece in pieces for part in _divided(piece, rule, fps)]
    group = os.path.relpath(os.path.abspath(video), root)
    if folder is None:
        return [
            VideoRecord(os.path.abspath(video), name, round(a / fps, 6), round(b / fps, 6), group)
            for a, b, name in parts
        ]
    stem = os.path.splitext(group)[0].replace(os.sep, "_")
    cut = {folder / _folder_name(name) / f"{stem}_{a:06}_{b:06}.mp4": (a, b, name) for a, b, name in parts}
    for target in cut:
        target.parent.mkdir(parents=True, exist_ok=True)
    if cut:
        encode(video, {target: slice(a, b) for target, (a, b, _) in cut.items()}, CUT)
    return [VideoRecord(os.path.abspath(target), name, group=group) for target, (_, _, name) in cut.items()]


def _folder_name(label: str | None) -> str:
    return (label or "").replace("/", "_").replace(os.sep, "_").lstrip(".")


def _divided(piece: tuple[int, int, str | None], rule: Rule, fps: float) -> list[tuple[int, int, str | None]]:
    """Return a piece in equal parts that are not too long, or none if it is too short; half a frame does not count."""
    first, end, label = piece
    if (end - first + 0.5) / fps < rule.min_seconds or end <= first:
        return []
    num = math.ceil((end - first - 0.5) / fps / rule.max_seconds) if rule.max_seconds < math.inf else 1
    edges = [first + (end - first) * k // max(num, 1) for k in range(max(num, 1) + 1)]
    return [(a, b, label) for a, b in pairwise(edges)]


def _piece(row: Row, video: str, num_frames: int, fps: float) -> tuple[int, int, str | None]:
    line, start, end, label = row
    first, after = round(start * fps), round(end * fps)
    if after > num_frames + 1:
        raise InputError(f"line {line}: end={end:g} is past the end of {video}, {num_frames / fps:.2f} s")
    return first, min(max(after, first + 1), num_frames), label


def _scene_cuts(video: str, num_frames: int, fps: float, rule: Rule) -> list[int]:
    """Return where scenes begin, with the first frame, and the number of frames at the end.

    Frames are counted, and their time stamps left aside, so that readers find the same ones.
    """
    from scenedetect import FrameTimecode

    detector = _detector(rule.threshold, max(1, round(rule.min_seconds * fps)))
    shrink = VideoReformatter()
    cuts, time = [0], FrameTimecode(0, fps)
    try:
        with av.open(f"file:{video}", metadata_errors="replace") as container:
            stream: Any = container.streams.best("video")
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(stream)):
                height = max(2, round(frame.height * SCENE_WIDTH / frame.width))
                small = shrink.reformat(frame, SCENE_WIDTH, height, "bgr24", interpolation="AREA", threads=1)
                time = FrameTimecode(number, fps)
                cuts += [cut.frame_num for cut in detector.process_frame(time, small.to_ndarray())]
    except av.FFmpegError as error:
        raise VideoReadError(video, error.strerror or str(error)) from error
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
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        missing = {"path", "start", "end"} - {*(reader.fieldnames or [])}
        if missing:
            columns = ", ".join(reader.fieldnames or ["(none)"])
            raise InputError(f"{path} has the columns {columns}; it needs path, start, end and label")
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in reader:
            line = reader.line_num
            video = str(path.parent / (row["path"] or ""))
            if not os.path.isfile(video):
                raise InputError(f"{path}, line {line}: there is no video {video}")
            start, end = (_seconds(row[name] or "", f"{path}, line {line}: {name}") for name in ("start", "end"))
            if end <= start:
                raise InputError(f"{path}, line {line}: end={row['end']} is not after start={row['start']}")
            rows[video].append((line, start, end, row.get("label") or None))
    if not rows:
        raise InputError(f"{path} lists no clip")
    return [(video, None, lines) for video, lines in rows.items()]


def _seconds(text: str, where: str) -> float:
    """Return seconds, from seconds or [h:]mm:ss."""
    try:
        parts = [float(part) for part in text.strip().split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(0 <= part < math.inf for part in parts):
        raise InputError(f"{where}={text!r} is no time; write seconds, or [h:]mm:ss")
    return sum(part * 60**place for place, part in enumerate(reversed(parts)))
