"""Judges where in a video actions were found, against where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Temporal intersections over union from which on a segment is found; those of THUMOS14's usual tables."""


@dataclass(frozen=True)
class Segment:
    """A part of a video in which an action happens.

    Attributes:
        path: The video.
        start_seconds: Where it begins.
        end_seconds: Where it ends, the first moment not in it.
        label: The class.
        score: How sure it is, in [0, 1].
    """

    path: str
    start_seconds: float
    end_seconds: float
    label: str
    score: float = 1.0


def temporal_iou(first: Segment, second: Segment) -> float:
    """Return the intersection of two segments over their union, in seconds, in [0, 1]; 0 in different videos."""
    if first.path != second.path:
        return 0.0
    common = min(first.end_seconds, second.end_seconds) - max(first.start_seconds, second.start_seconds)
    both = first.end_seconds - first.start_seconds + second.end_seconds - second.start_seconds - max(common, 0.0)
    return max(common, 0.0) / both if both > 0 else 0.0


def average_precision(found: Sequence[Segment], truth: Sequence[Segment], threshold: float) -> float:
    """Return the average precision of the segments found of one class, in [0, 1].

    ActivityNet's (its evaluation code, activitynet/ActivityNet, eval_detection.py): the segments are taken by falling
    score; each finds the true segment of its video that it overlaps most among those that none has found yet, if their
    temporal intersection over union is at least the threshold, and is wrong otherwise. The precision at a recall is the
    highest at that recall or above; its mean over the recall is the area under the steps.

    Args:
        found: The segments found.
        truth: The true ones, at least one.
        threshold: In (0, 1].
    """
    taken: set[int] = set()
    hits = []
    for segment in sorted(found, key=lambda one: -one.score):
        overlaps = [0.0 if number in taken else temporal_iou(segment, one) for number, one in enumerate(truth)]
        best = int(np.argmax(overlaps))
        is_hit = overlaps[best] >= threshold
        hits.append(is_hit)
        if is_hit:
            taken.add(best)
    num_hits = np.cumsum(hits)
    recall = np.concatenate([[0.0], num_hits / len(truth)])
    precision = num_hits / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * highest))


def mean_average_precisions(
    found: Sequence[Segment], truth: Sequence[Segment], thresholds: Sequence[float] = THRESHOLDS
) -> Mapping[float, float]:
    """Return for each threshold the mean over the classes of the truth of their average precisions, in [0, 1].

    Args:
        found: The segments found, of all videos.
        truth: The true ones, at least one.
        thresholds: Temporal intersections over union, in (0, 1].
    """
    classes = sorted({segment.label for segment in truth})
    return {
        threshold: float(
            np.mean(
                [
                    average_precision(
                        [segment for segment in found if segment.label == name],
                        [segment for segment in truth if segment.label == name],
                        threshold,
                    )
                    for name in classes
                ]
            )
        )
        for threshold in thresholds
    }
