"""The numbers of a report, from the predictions of a test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_calibration_error

from cnnbert import class_report
from cnnbert.class_report import ClassNumbers
from cnnbert.data.protocols import CountFailed
from cnnbert.predictions import Predictions
from cnnbert.tasks.metrics import ScoredVideos, accuracies, average_precisions

NUM_BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence.

    Attributes:
        low: The lowest confidence that belongs to it.
        high: The first that does not, but for 1, which the last bin has.
        number: How many predictions there are.
        confidence: Their mean confidence; NaN where there are none.
        accuracy: The share of them that is right; NaN where there are none.
    """

    low: float
    high: float
    number: int
    confidence: float
    accuracy: float


def counted(predictions: Predictions, count_failed: CountFailed) -> NDArray[np.bool_]:
    """Return which videos count, (N,): all of them, or those that could be read."""
    return predictions.was_read | (count_failed == "wrong")


def metrics(predictions: Predictions, count_failed: CountFailed) -> dict[str, float]:
    """Return the accuracies of videos by their names in `results.json`, at least one of which could be read.

    Those are `top1`, `mean_class_accuracy` and, with more than 5 classes, `top5`; where videos may have several
    classes, `map` and `micro_f1`. What predictions do not tell, as the accuracy of clips, is left out.
    """
    judge = accuracies if predictions.label_separator is None else average_precisions
    values = judge(_scored(predictions), count_failed)
    return {name: float(value) for name, value in values.items() if name not in ("loss", "clip_top1")}


def class_numbers(predictions: Predictions, count_failed: CountFailed) -> list[ClassNumbers]:
    """Return how well each class is found; see `class_report.class_numbers`."""
    several = predictions.label_separator is not None
    return class_report.class_numbers(_scored(predictions), predictions.class_names, count_failed, several)


def confusions(predictions: Predictions) -> list[list[tuple[int, int]]]:
    """Return the cells of the confusion matrix that each video is in, as numbers of a true class and a predicted one.

    With one class a video that is one cell. Where a video may have several, each that it has and is said to have is in
    the cell of both, and each that it has and is not said to have in those with every class that it is wrongly said to
    have. K is the number of no class: as a prediction where none is wrong in place of a missed one, as a truth where
    none is missed in place of a wrong one. K + 1 as a prediction is that the video could not be read.
    """
    num_classes = len(predictions.class_names)
    found = []
    for target, decided, was_read in zip(predictions.target, predictions.decided, predictions.was_read, strict=True):
        missed, wrong = np.flatnonzero(target & ~decided).tolist(), np.flatnonzero(decided & ~target).tolist()
        cells = [(number, number) for number in np.flatnonzero(target & decided).tolist()]
        if not was_read:
            wrong = [num_classes + 1]
        if missed or wrong:
            cells += [(true, said) for true in missed or [num_classes] for said in wrong or [num_classes]]
        found.append(cells)
    return found


def most_confused(found: list[list[tuple[int, int]]], num_classes: int, most: int) -> list[tuple[int, int, int]]:
    """Return the pairs of a true and a predicted class, another one, with the most videos, and these numbers.

    Args:
        found: The cells of each video; see `confusions`.
        num_classes: Classes K.
        most: At most so many.
    """
    pairs = Counter(pair for some in found for pair in some if pair[0] != pair[1] and max(pair) < num_classes)
    return [(*pair, number) for pair, number in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]]


def confidence(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the confidence of every prediction and whether it is right, (M,), of the videos that could be read.

    That is each video's highest probability; where videos may have several classes, the probability of each class of
    each video, and whether the video has it.
    """
    read = predictions.was_read
    if predictions.label_separator is None:
        return predictions.scores[read].max(1), predictions.is_right[read]
    return predictions.scores[read].ravel(), predictions.target[read].ravel()


def calibration(predictions: Predictions) -> tuple[float, list[Bin]]:
    """Return the expected calibration error, in [0, 1], and the bins of equal width that it is made of.

    It is the mean over all predictions of the difference between the mean confidence and the share that is right of
    the bin that a prediction is in (Naeini et al. 2015; with 15 bins as in Guo et al. 2017, section 2).
    """
    sure, right = confidence(predictions)
    sure = np.minimum(sure, np.nextafter(1, 0))  # else torchmetrics has a bin of its own for 1
    error = binary_calibration_error(torch.from_numpy(sure), torch.from_numpy(right).int(), NUM_BINS, "l1")
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64).numpy()
    places = np.digitize(sure, edges) - 1
    bins = []
    for place, (low, high) in enumerate(pairwise(edges)):
        inside = places == place
        means = (float(values[inside].mean()) if inside.any() else float("nan") for values in (sure, right))
        bins.append(Bin(float(low), float(high), int(inside.sum()), *means))
    return float(error), bins


def worst(predictions: Predictions) -> NDArray[np.int64]:
    """Return the videos that are wrong, the confidence falling.

    Where videos may have several classes, it is the confidence of a video's surest wrong decision.
    """
    if predictions.label_separator is None:
        sure = predictions.scores.max(1)
    else:
        sure = np.where(predictions.decided != predictions.target, _certainty(predictions), 0).max(1)
    return _ordered(-sure, predictions.was_read & ~predictions.is_right)


def least_sure(predictions: Predictions) -> NDArray[np.int64]:
    """Return the videos that could be read, right or wrong, the confidence rising.

    Where videos may have several classes, it is the confidence of a video's least sure decision.
    """
    sure = predictions.scores.max(1) if predictions.label_separator is None else _certainty(predictions).min(1)
    return _ordered(sure, predictions.was_read)


def _certainty(predictions: Predictions) -> NDArray[np.float64]:
    """Return the probability of what is decided for each class, (N, K)."""
    return np.maximum(predictions.scores, 1 - predictions.scores)


def _ordered(key: NDArray[np.float64], which: NDArray[np.bool_]) -> NDArray[np.int64]:
    numbers = np.flatnonzero(which)
    return numbers[np.argsort(key[numbers], kind="stable")]


def _scored(predictions: Predictions) -> ScoredVideos:
    """Return the videos as a test has them, with the logarithms of their probabilities as logits."""
    scores = torch.from_numpy(predictions.scores)
    read = torch.from_numpy(predictions.was_read).long()
    target = torch.from_numpy(predictions.target).long()
    if predictions.label_separator is not None:
        return ScoredVideos(torch.arange(len(read)), target, scores.logit(), read, torch.zeros_like(read))
    right = torch.from_numpy(predictions.is_right).long()
    return ScoredVideos(torch.arange(len(read)), target.argmax(1), scores.log(), read, right)
