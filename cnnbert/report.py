"""Makes one page out of the predictions of a test."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnnbert import comparison, report_numbers
from cnnbert.callbacks import METRICS
from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError, VideoReadError
from cnnbert.outputs import new_file, shown, write_whole
from cnnbert.pages import fill
from cnnbert.predictions import Predictions
from cnnbert.previews import preview
from cnnbert.run_results import RunResults, read_run_results

MOST_PAIRS = 15
TOP = 3
LISTED = 12
"""Videos in a list that has no previews."""

# Two numbers are the same if they differ by less: scores are written with six digits.
ROUNDING = 5e-4


def report(
    predictions: str, *, compare: str | None = None, out: str = "report.html", previews: int = 12, force: bool = False
) -> None:
    """Make a page that shows what a model got right and wrong, out of the predictions file of cnnbert test.

    The page is one HTML file that any browser opens, without network: accuracies with their protocol, a confusion
    matrix whose cells show their videos, a row a class, the most-confused pairs, calibration, the videos that are
    wrong with the highest confidence and those with the lowest confidence as small playing previews, and the videos
    that could not be read. The protocol is that of results.json beside the predictions.

    With --compare there is what either model alone gets right, the difference of their accuracies with McNemar's exact
    test, and the difference of every class.

    Args:
        predictions: A run's predictions.csv.
        compare: The predictions of another run on the same videos with the same classes.
        out: The page; in a folder that exists.
        previews: Videos of each list with a preview, at least 0; each takes about 30 kB of the page, at most 120.
        force: Whether a page that is there may be replaced.
    """
    if previews < 0:
        raise InputError(f"previews={previews} must be at least 0")
    target = new_file(out, force)
    run = read_run_results(Path(predictions).expanduser())
    other = None if compare is None else read_run_results(Path(compare).expanduser(), run)
    html = page(run, other, previews)
    write_whole(target, html)
    print(f"{target}: {len(run.predictions.videos)} videos, {len(html) / 1e6:.1f} MB", flush=True)


def page(run: RunResults, other: RunResults | None = None, num_previews: int = LISTED) -> str:
    """Return the page.

    Args:
        run: The test.
        other: Another test, of the same videos and classes.
        num_previews: Videos of each list that are shown as previews.
    """
    predictions = run.predictions
    lists = {"worst": report_numbers.worst(predictions), "least-sure": report_numbers.least_sure(predictions)}
    lists = {name: numbers[: num_previews or LISTED] for name, numbers in lists.items()}
    context: dict[str, Any] = {"other": None}
    if other is not None:
        first, second = ((one.predictions.is_right & _counted(run, other)) for one in (run, other))
        sure = np.argsort(-np.nan_to_num(predictions.scores.max(1)), kind="stable")
        lists |= {"only-first": sure[(first & ~second)[sure]], "only-second": sure[(second & ~first)[sure]]}
        context["other"] = _compared(run, other)
    confusions = report_numbers.confusions(predictions)
    pairs = report_numbers.most_confused(confusions, len(predictions.class_names), MOST_PAIRS)
    numbers = report_numbers.class_numbers(predictions, run.count_failed)
    error, bins = report_numbers.calibration(predictions)
    names = [shown(name) for name in predictions.class_names]
    sizes = predictions.target.sum(0)
    several = predictions.label_separator is not None
    base = _base(predictions)
    data = {
        "classes": names,
        "sizes": sizes.tolist(),
        "accuracies": [None if np.isnan(row.recall) else row.recall for row in numbers],
        "several": several,
        "uri": Path(base).as_uri() if os.path.isabs(base) else None,
        "videos": [_video(predictions, index, base, other) for index in range(len(predictions.videos))],
        "cells": confusions,
        "lists": {name: list(map(int, some)) for name, some in lists.items()},
        "numPreviews": num_previews,
        "previews": _previews(predictions, [int(i) for some in lists.values() for i in some[:num_previews]]),
    }
    context |= {
        "title": shown(run.path.resolve().parent.name),
        "path": shown(str(run.path)),
        "base": shown(base),
        "about": _about(run),
        "warnings": [*_contradictions(run), *(_contradictions(other) if other else [])],
        "metrics": _named_metrics(run),
        "several": several,
        "numbers": numbers,
        "names": names,
        "calibration_error": error,
        "bins": bins,
        "tallest": max(one.number for one in bins),
        "pairs": [(true, said, number, number / int(sizes[true])) for true, said, number in pairs],
        "failed": [
            (shown(_relative(video[0], base)), shown(why))
            for video, why in zip(predictions.videos, predictions.errors, strict=True)
            if why
        ],
        "data": data,
        "lists": data["lists"],
    }
    filters = {"percent": _percent, "points": _points, "sort_key": _sort_key}
    return fill("report.html", filters, **context)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def _points(difference: float) -> str:
    return "–" if math.isnan(difference) else f"{100 * difference:+.1f}".replace("-", "−")


def _sort_key(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _counted(*runs: RunResults) -> Any:
    """Return which videos count, (N,), as the first run counts them."""
    return np.all([report_numbers.counted(run.predictions, runs[0].count_failed) for run in runs], axis=0)


def _named_metrics(run: RunResults) -> list[tuple[str, float]]:
    """Return the accuracies with their names, and that of clips, which only `results.json` has."""
    values = dict(run.metrics)
    if isinstance(run.results.get("clip_top1"), float):
        values["clip_top1"] = run.results["clip_top1"]
    return [(METRICS[key], values[key]) for key in METRICS if key in values]


def _about(run: RunResults) -> list[str]:
    """Return sentences on what the numbers are of."""
    number, num_failed = len(run.predictions.videos), run.num_failed
    protocol = run.results.get("protocol")
    lines = [f"{number} {shown(str(run.results.get('split', 'test')))} videos, {shown(str(protocol))}."]
    if not protocol:
        lines = [f"{number} videos. By which protocol is not known: there is no results.json beside the predictions."]
    if not num_failed:
        return [*lines, "All could be read."]
    counted = {"wrong": "they count as wrong", "left_out": "they are left out of the accuracies"}[run.count_failed]
    if run.predictions.label_separator is not None and run.count_failed == "wrong":
        counted = "their classes count as never found"
    told = counted if "count_failed" in run.results else f"{counted} here, as results.json is not there to say"
    return [*lines, f"{num_failed} of them could not be read: {told}."]


def _contradictions(run: RunResults) -> list[str]:
    """Return what `results.json` says otherwise."""
    here = run.metrics | {"num_videos": len(run.predictions.videos), "num_failed": run.num_failed}
    if run.results.get("count_failed", run.count_failed) != run.count_failed:
        return []  # counted as the other run, with which it is compared
    name = shown(str(run.path.with_name("results.json")))
    return [
        f"{name} has {key} {run.results[key]:g}, the predictions give {value:g}: they may be of two tests."
        for key, value in here.items()
        if isinstance(run.results.get(key), (int, float)) and abs(run.results[key] - value) > ROUNDING
    ]


def _compared(run: RunResults, other: RunResults) -> dict[str, Any]:
    """Return what the page says of two runs."""
    found = comparison.compare([run.predictions], [other.predictions], run.count_failed)
    counts = int(_counted(run, other).sum())
    rows = zip(*(report_numbers.class_numbers(one.predictions, run.count_failed) for one in (run, other)), strict=True)
    mine, theirs = dict(_named_metrics(run)), dict(_named_metrics(other))
    return {
        "path": shown(str(other.path)),
        "about": _about(other),
        "found": found,
        "num_counted": counts,
        "metrics": [(name, mine[name], theirs[name]) for name in mine if name in theirs],
        "classes": [(shown(a.name), a.num_videos, a.recall, b.recall, a.recall - b.recall) for a, b in rows],
    }


def _base(predictions: Predictions) -> str:
    """Return the folder that all videos are in, as far as there is one; ""."""
    try:
        return os.path.commonpath([os.path.dirname(video[0]) for video in predictions.videos])
    except ValueError:  # absolute paths and others
        return ""


def _relative(path: str, base: str) -> str:
    return os.path.relpath(path, base) if base else path


def _video(predictions: Predictions, index: int, base: str, other: RunResults | None) -> list[Any]:
    """Return what the page's script needs of a video: path, piece, classes, scores, error, and what the other says."""
    path, start, end, _ = predictions.videos[index]
    piece = f"{float(start):g} to {f'{float(end):g} s' if end else 'the end'}" if end or float(start) else ""
    entry = [shown(_relative(path, base)), piece, _numbers(predictions.target[index])]
    runs = [predictions] if other is None else [predictions, other.predictions]
    return entry + [_said(one, index) for one in runs]


def _said(predictions: Predictions, index: int) -> Any:
    """Return the classes that a video is said to have and the highest scores, or why it could not be read."""
    if not predictions.was_read[index]:
        return shown(predictions.errors[index])
    scores = predictions.scores[index]
    decided = _numbers(predictions.decided[index])
    highest = np.argsort(-scores, kind="stable")[: max(TOP, len(decided))].tolist()
    return [decided, [[number, round(float(scores[number]), 4)] for number in highest]]


def _numbers(row: Any) -> list[int]:
    return [int(number) for number in np.flatnonzero(row)]


def _previews(predictions: Predictions, wanted: Sequence[int]) -> dict[int, dict[str, str]]:
    """Return a small copy of each wanted video, or why there is none."""
    made: dict[int, dict[str, str]] = {}
    for index in dict.fromkeys(wanted):
        path, start, end, _ = predictions.videos[index]
        try:
            record = VideoRecord(path, None, float(start), float(end) if end else None)
            made[index] = {"video": preview(record)}
        except VideoReadError as error:
            made[index] = {"why": shown(error.why)}
    return made
