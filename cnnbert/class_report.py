"""Tells how well each class is recognised, which classes are taken for which, and which videos are judged worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

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


def confusion(videos: ScoredVideos) -> Tensor:
    """Return how many videos of each class (row) were taken for each class (column), int64 (K, K).

    Videos that could not be read were taken for nothing, and are left out.
    """
    read = videos.was_read
    scores = videos.video_logits[read]
    return multiclass_confusion_matrix(scores.argmax(1), videos.label[read], scores.shape[1])


def class_table(
    videos: ScoredVideos, class_names: Sequence[str], count_failed: CountFailed = "wrong", multi_label: bool = False
) -> Rows:
    """Return for every class its number of videos, precision, recall and F1.

    A share of nothing is an empty cell: the precision of a class that no video was taken for, the recall of one without
    videos. The mean of the recalls is the mean class accuracy.

    Args:
        videos: The videos; at least one could be read.
        class_names: The names of the K classes.
        count_failed: Whether videos that could not be read count as not recognised, or are left out.
        multi_label: Whether a video may have several classes: those of a probability of at least 0.5 are predicted, and
            the average precision is told too.
    """
    read = videos.was_read
    counted = torch.ones_like(read) if count_failed == "wrong" else read
    if multi_label:
        labels, predicted = videos.label == 1, (videos.video_logits.sigmoid() >= 0.5) & read[:, None]
    else:
        labels = F.one_hot(videos.label, len(class_names)) == 1
        predicted = (F.one_hot(videos.video_logits.argmax(1), len(class_names)) == 1) & read[:, None]
    columns = {
        "videos": labels[counted].sum(0).tolist(),
        "not read": labels[~read].sum(0).tolist(),
        "predicted": predicted.sum(0).tolist(),
        "right": (labels & predicted).sum(0).tolist(),
    }
    average = [] if not multi_label else class_average_precisions(videos, count_failed).tolist()
    rows = []
    for number, name in enumerate(class_names):
        size, failed, taken, right = (column[number] for column in columns.values())
        shares = [_share(right, taken), _share(right, size), _share(2 * right, size + taken)]
        rows.append([name, size, failed, *shares, *([average[number] if size else None] if multi_label else [])])
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


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
