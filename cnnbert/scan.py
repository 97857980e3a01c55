"""The command `scan`: finds what happens when in long videos."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cnnbert.annotate import annotate as write_annotated
from cnnbert.data.sources import CSVManifest
from cnnbert.errors import InputError, VideoReadError
from cnnbert.loading import load
from cnnbert.localization import Segment, mean_average_precisions
from cnnbert.machine import best_device
from cnnbert.outputs import printable, whole_file, write_whole
from cnnbert.scanning import Scores, scan_video, segments
from cnnbert.timeline import draw_timeline
from cnnbert.video_files import list_videos, new_files, new_table

COLUMNS = ("path", "start_seconds", "end_seconds", "label", "score")


def scan(
    checkpoint: str,
    videos: tuple[str, ...],
    *,
    out: str | None = None,
    timeline: bool = False,
    annotate: bool = False,
    truth: str | None = None,
    hop_seconds: float | None = None,
    smooth_seconds: float | None = None,
    threshold: float = 0.5,
    min_seconds: float = 0.0,
    background: tuple[str, ...] = (),
    force: bool = False,
) -> int:
    """Find what happens when in long videos: a window slides over each, and its scores are merged into segments.

    Give a checkpoint and videos, or folders with videos anywhere below them: cnnbert scan best.ckpt long.mp4. Windows
    are as long as the clips that the model was trained on. Memory does not grow with the video. A video that cannot be
    read is reported, and stops nothing; the exit status is then 1.

    Args:
        checkpoint: What cnnbert fit wrote, such as runs/.../checkpoints/best.ckpt; or best or last, the newest such
            below runs.
        videos: Videos, and folders of videos.
        out: A file to write, .csv (a line a segment: path, start_seconds, end_seconds, label, score) or .json.
        timeline: Also draw the probabilities over time and the segments, NAME.timeline.png for each video in the
            folder of --out, or in the current one.
        annotate: Also write a copy of each video with the label of the moment drawn into it, NAME.scanned.mp4 there.
        truth: A CSV file with columns path, label, start_seconds and end_seconds: the true segments of these videos.
            What is found is judged by its mean average precision at temporal intersections over union of 0.3 to 0.7
            (ActivityNet's definition).
        hop_seconds: Seconds from one window to the next, above 0; a quarter of a window by default.
        smooth_seconds: Seconds over which probabilities are averaged before they are merged, at least 0; a window's
            length by default.
        threshold: The least probability of a segment's moments, in [0, 1].
        min_seconds: Shorter segments are left out.
        background: Classes that mean that nothing happens; they have no segments.
        force: Replace files that are there.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold:g} must be in [0, 1]; try 0.5")
    for name, value in {"smooth_seconds": smooth_seconds, "min_seconds": min_seconds}.items():
        if value is not None and not value >= 0:
            raise InputError(f"{name}={value:g} must not be negative")
    if hop_seconds is not None and not hop_seconds > 0:
        raise InputError(f"hop_seconds={hop_seconds:g} must be above 0")
    table = None if out is None else new_table(out, force)
    paths = list_videos(videos)
    folder = Path() if table is None else table.parent
    pictures = new_files(folder, paths, ".timeline.png", force) if timeline else {}
    copies = new_files(folder, paths, ".scanned.mp4", force) if annotate else {}
    model = load(checkpoint)
    true = [] if truth is None else _truth(truth, paths, model.class_names)
    unknown = sorted(set(background) - set(model.class_names))
    if unknown:
        raise InputError(f"background={unknown[0]} is not one of the model's classes, {', '.join(model.class_names)}")
    model.to(best_device())
    found: dict[str, list[Segment]] = {}
    failed: dict[str, VideoReadError] = {}
    try:
        for path in paths:
            try:
                with tqdm(desc=printable(Path(path).name), unit="frame", disable=None, dynamic_ncols=True) as bar:

                    def show(done: int, total: int, bar: tqdm = bar) -> None:
                        bar.total = total
                        bar.update(done - bar.n)

                    scores = scan_video(model, path, hop_seconds, show)
                window = model.data.clip_length * model.data.stride * scores.num_seconds / scores.num_frames
                scores = scores.smoothed(window if smooth_seconds is None else smooth_seconds)
                here = segments(scores, model.class_names, model.multi_label, threshold, min_seconds, background)
                if path in pictures:
                    with whole_file(pictures[path]) as part:
                        there = [segment for segment in true if segment.path == path]
                        part.write_bytes(draw_timeline(scores, model.class_names, here, there))
                if path in copies:
                    _annotate(path, copies[path], here, scores)
            except VideoReadError as error:
                failed[path] = error
                print(printable(f"{path}\n  cannot be read: {error.why}"), flush=True)
                continue
            found[path] = here
            print(printable(_told(path, here, scores)), flush=True)
    finally:  # also of what was scanned before a full disk, or Ctrl-C
        if table is not None and (found or failed):
            write_whole(table, _json(found, failed) if table.suffix.lower() == ".json" else _csv(found))
            print(f"\n{table}: {sum(map(len, found.values()))} segments of {len(found)} videos", flush=True)
    if true:
        print("\n".join(_judged([segment for here in found.values() for segment in here], true)), flush=True)
    if failed:
        print(f"{len(failed)} of {len(paths)} videos could not be read", flush=True)
    return 1 if failed else 0


def _truth(path: str, videos: Sequence[str], class_names: Sequence[str]) -> list[Segment]:
    """Return the true segments of the videos, each under the name by which its video was given."""
    names = {os.path.realpath(video): video for video in videos}
    records = [record for record in CSVManifest(path).records("predict") if os.path.realpath(record.path) in names]
    if not records:
        raise InputError(f"{path} has no segment of these videos, such as {videos[0]}")
    true = []
    for record in records:
        if record.label is None or record.label not in class_names:
            raise InputError(
                f"{path} has a segment with the label {record.label or '(none)'}, which is not one of the model's "
                f"classes, {', '.join(class_names)}"
            )
        if record.end_seconds is None:
            raise InputError(f"{path} has a segment of {record.path} without end_seconds")
        name = names[os.path.realpath(record.path)]
        true.append(Segment(name, record.start_seconds, record.end_seconds, record.label))
    return true


def _annotate(path: str, target: Path, found: Sequence[Segment], scores: Scores) -> None:
    def caption(number: int) -> str:
        moment = number * scores.num_seconds / scores.num_frames
        here = [segment for segment in found if segment.start_seconds <= moment < segment.end_seconds]
        return "\n".join(f"{segment.label}  {100 * segment.score:.0f} %" for segment in here)

    write_annotated(path, target, caption)


def _told(path: str, found: Sequence[Segment], scores: Scores) -> str:
    lines = [f"{path}, {_clock(scores.num_seconds)}: {len(found)} segments"]
    for segment in found:
        part = f"{_clock(segment.start_seconds)} to {_clock(segment.end_seconds)}"
        lines.append(f"  {part}  {100 * segment.score:5.1f} %  {segment.label}")
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    tenths = round(10 * seconds)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def _judged(found: Sequence[Segment], true: Sequence[Segment]) -> list[str]:
    values = mean_average_precisions(found, true)
    lines = ["", f"mean average precision, {len(true)} true segments, by temporal intersection over union:"]
    lines += [f"  {threshold:.1f}   {value:.4f}" for threshold, value in values.items()]
    return [*lines, f"  mean  {sum(values.values()) / len(values):.4f}"]


def _csv(found: dict[str, list[Segment]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for here in found.values():
        for one in here:
            times = (f"{one.start_seconds:.3f}", f"{one.end_seconds:.3f}")
            writer.writerow([one.path, *times, one.label, f"{one.score:.6g}"])
    return text.getvalue()


def _json(found: dict[str, list[Segment]], failed: dict[str, VideoReadError]) -> str:
    rows: list[dict[str, object]] = []
    for path, here in found.items():
        parts = [
            {
                "start_seconds": round(one.start_seconds, 3),
                "end_seconds": round(one.end_seconds, 3),
                "label": one.label,
                "score": round(one.score, 6),
            }
            for one in here
        ]
        rows.append({"path": path, "segments": parts, "error": None})
    rows += [{"path": path, "segments": [], "error": error.why} for path, error in failed.items()]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
