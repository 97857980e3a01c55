"""The command `classify`: names the classes of videos."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from cnnbert.annotate import annotate as write_annotated
from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError, VideoReadError
from cnnbert.inference import ranked, video_scores, views_of
from cnnbert.loading import load
from cnnbert.machine import best_device
from cnnbert.outputs import printable, write_whole
from cnnbert.video_files import list_videos, new_files, new_table

Found = dict[str, float] | VideoReadError


def classify(
    checkpoint: str,
    videos: tuple[str, ...],
    *,
    top_k: int = 5,
    out: str | None = None,
    annotate: bool = False,
    num_clips: int = 10,
    num_crops: Literal[1, 3, 10] = 1,
    num_workers: int | None = None,
    force: bool = False,
) -> int:
    """Name the classes of videos with a trained model, which holds all that is needed.

    Give a checkpoint and videos, or folders with videos anywhere below them: cnnbert classify best.ckpt my_videos.
    Several views of a video are scored, decoding it once, and their probabilities are averaged. A video that cannot be
    read is reported, and stops nothing; the exit status is then 1.

    Args:
        checkpoint: What cnnbert fit wrote, such as runs/.../checkpoints/best.ckpt; or best or last, the newest such
            below runs.
        videos: Videos, and folders of videos.
        top_k: Classes that are named of each video, at least 1.
        out: A file to write, .csv (a line a video, with the columns path, label_1, score_1, ..., error) or .json.
        annotate: Also write a copy of each video with its classes drawn into it, NAME.labelled.mp4 in the folder of
            --out, or in the current one.
        num_clips: Clips of each video, spread evenly from its beginning to its end; 1 takes the one in the middle.
        num_crops: Crops of each clip: 1 (centre), 3 (along the longer side) or 10 (corners and centre, mirrored too).
        num_workers: Processes that read videos; by default as many as suit the machine.
        force: Replace files that are there.
    """
    if top_k < 1:
        raise InputError(f"top_k={top_k} must be at least 1; try 5")
    views = views_of(num_clips, num_crops)
    table = None if out is None else new_table(out, force)
    paths = list_videos(videos)
    folder = Path() if table is None else table.parent
    copies = new_files(folder, paths, ".labelled.mp4", force) if annotate else {}
    model = load(checkpoint)
    model.to(best_device())
    records = [VideoRecord(path) for path in paths]
    found: dict[str, Found] = {}
    try:
        with tqdm(total=len(records), desc="classify", unit="video", disable=None, dynamic_ncols=True) as bar:
            for record, scores in video_scores(model, records, views, num_workers):
                got = scores if isinstance(scores, VideoReadError) else ranked(model, scores, top_k)
                if record.path in copies and not isinstance(got, VideoReadError):
                    got = _annotated(record.path, copies[record.path], got)
                found[record.path] = got
                with bar.external_write_mode():
                    print(printable(_line(record.path, got)), flush=True)
                bar.update()
    finally:  # also of what was classified before a full disk, or Ctrl-C
        ordered = {record.path: found[record.path] for record in records if record.path in found}
        if table is not None and ordered:
            write_whole(table, (_json if table.suffix.lower() == ".json" else _csv)(ordered))
            print(f"\n{table}: {len(ordered)} of {len(records)} videos", flush=True)
    failed = sum(isinstance(got, VideoReadError) for got in found.values())
    if failed:
        print(f"{failed} of {len(found)} videos could not be read", flush=True)
    return 1 if failed else 0


def _annotated(video: str, target: Path, classes: dict[str, float]) -> Found:
    words = "\n".join(f"{label}  {100 * score:.0f} %" for label, score in list(classes.items())[:3])
    try:
        write_annotated(video, target, lambda _: words)
    except VideoReadError as error:
        return error
    return classes


def _line(path: str, got: Found) -> str:
    if isinstance(got, VideoReadError):
        return f"{path}\n  cannot be read: {got.why}"
    return f"{path}\n  " + "   ".join(f"{label} {100 * score:.1f} %" for label, score in got.items())


def _csv(found: dict[str, Found]) -> str:
    width = max((len(got) for got in found.values() if isinstance(got, dict)), default=1)
    text = io.StringIO()
    writer = csv.writer(text)
    columns = [f"{name}_{place}" for place in range(1, width + 1) for name in ("label", "score")]
    writer.writerow(["path", *columns, "error"])
    for path, got in found.items():
        if isinstance(got, VideoReadError):
            writer.writerow([path, *[""] * len(columns), got.why])
        else:
            writer.writerow([path, *(cell for label, score in got.items() for cell in (label, f"{score:.6g}")), ""])
    return text.getvalue()


def _json(found: dict[str, Found]) -> str:
    rows: list[dict[str, Any]] = []
    for path, got in found.items():
        if isinstance(got, VideoReadError):
            rows.append({"path": path, "classes": [], "error": got.why})
        else:
            classes = [{"label": label, "score": round(score, 6)} for label, score in got.items()]
            rows.append({"path": path, "classes": classes, "error": None})
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
