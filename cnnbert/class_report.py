"""Tells how well each class is recognised, which classes are taken for which, and which videos are judged worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from cnnbert.data.protocols import CountFailed
from cnnbert.tasks.metrics import ScoredVideos, class_average_precisions

MOST_PAIRS = 50
"""Rows of the table of confused pairs."""


class Rows(NamedTuple):
    """A table.

    Attributes:
        titles: Those of the columns.
        rows: A list of as many cells each; None is an empty cell.
    """

    titles: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class ClassNumbers:
    """How well one class is found; NaN is where there is nothing to divide by.

    Attributes:
        name: The class.
        num_videos: Videos that have it and count.
        num_failed: Videos that have it and could not be read.
        precision: Share of the videos said to have it that do.
        recall: Share of the videos that have it that are said to; its mean over the classes is the mean class accuracy.
        f1: The harmonic mean of both.
        score: The mean of its probability over the videos that have it and could be read.
        average_precision: Where videos may have several classes, else None; see `average_precisions`.
    """

    name: str
    num_videos: int
    num_failed: int
    precision: float
    recall: float
    f1: float
    score: float
    average_precision: float | None


def confusion(videos: ScoredVideos) -> Tensor:
    """Return how many videos of each class (row) were taken for each class (column), int64 (K, K).

    Videos that could not be read were taken for nothing, and are left out.
    """
    read = videos.was_read
    scores = videos.video_logits[read]
    return multiclass_confusion_matrix(scores.argmax(1), videos.label[read], scores.shape[1])


def class_numbers(
    videos: ScoredVideos, class_names: Sequence[str], count_failed: CountFailed = "wrong", multi_label: bool = False
) -> list[ClassNumbers]:
    """Return how well each class is found. A video that could not be read but counts is said to have no class.

    Args:
        videos: The videos; at least one could be read.
        class_names: The names of the K classes.
        count_failed: Whether videos that could not be read count as not recognised, or are left out.
        multi_label: Whether a video may have several classes: those of a probability of at least 0.5 are predicted.
    """
    read = videos.was_read
    counted = torch.ones_like(read) if count_failed == "wrong" else read
    if multi_label:
        target, probabilities = videos.label, videos.video_logits.sigmoid()
        decided = (videos.video_logits >= 0) & read[:, None]  # (N, K)
    else:
        target, probabilities = F.one_hot(videos.label, len(class_names)), videos.video_logits.softmax(1)
        decided = (F.one_hot(videos.video_logits.argmax(1), len(class_names)) == 1) & read[:, None]
    num_videos, num_said = target[counted].sum(0), decided[counted].sum(0)  # (K,)
    options: dict[str, Any] = {"num_labels": len(class_names), "average": None}
    pair = (decided[counted].int(), target[counted])
    kinds = [
        (multilabel_precision, num_said),
        (multilabel_recall, num_videos),
        (multilabel_f1_score, num_videos + num_said),
    ]
    # torchmetrics gives 0 where there is nothing to divide by.
    shares = [function(*pair, **options).double().where(size > 0, math.nan) for function, size in kinds]
    is_of = target[read] == 1
    scores = probabilities[read].double().where(is_of, 0).sum(0) / is_of.sum(0)
    average: list[float | None] = [None] * len(class_names)
    if multi_label:
        average = class_average_precisions(videos, count_failed).tolist()
    columns = (num_videos, target[~read].sum(0), *shares, scores)
    rows = zip(class_names, *(column.tolist() for column in columns), average, strict=True)
    return [ClassNumbers(*row) for row in rows]


def class_table(
    videos: ScoredVideos, class_names: Sequence[str], count_failed: CountFailed = "wrong", multi_label: bool = False
) -> Rows:
    """Return `class_numbers` as a table; where there is nothing to divide by, a cell is empty."""
    rows = []
    for one in class_numbers(videos, class_names, count_failed, multi_label):
        shares = [one.precision, one.recall, one.f1, *([one.average_precision] if multi_label else [])]
        cells = [None if share is None or math.isnan(share) else share for share in shares]
        rows.append([one.name, one.num_videos, one.num_failed, *cells])
    titles = ["class", "videos", "not read", "precision", "recall", "F1"]
    return Rows(titles + (["average precision"] if multi_label else []), rows)


def confused_pairs(counts: Tensor, class_names: Sequence[str]) -> Rows:
    """Return the pairs of classes that are confused most, the most frequent first.

    Args:
        counts: What `confusion` gives, (K, K).
        class_names: The names of the K classes.
    """
    pairs = [
        (label, taken, number, number / sum(row))
        for label, row in enumerate(counts.tolist())
        for taken, number in enumerate(row)
        if number and taken != label
    ]
    ranked = sorted(pairs, key=lambda pair: (-pair[2], -pair[3], pair[:2]))[:MOST_PAIRS]
    return Rows(
        ["label", "taken for", "videos", "share of the label"],
        [[class_names[label], class_names[taken], number, share] for label, taken, number, share in ranked],
    )


def worst_videos(videos: ScoredVideos, number: int, multi_label: bool = False) -> list[tuple[int, float]]:
    """Return the places among the videos of those with the highest loss, and their losses, the highest first.

    Args:
        videos: The videos; those that could not be read have no loss and are left out.
        number: How many at most.
        multi_label: Whether a video may have several classes.
    """
    if multi_label:
        logits, target = videos.video_logits, videos.label.float()
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    else:
        losses = F.cross_entropy(videos.video_logits, videos.label, reduction="none")
    losses = losses.where(videos.was_read, -1.0)
    highest = losses.topk(min(number, int(videos.was_read.sum())))
    return list(zip(highest.indices.tolist(), highest.values.tolist(), strict=True))
