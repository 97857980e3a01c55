"""Fuses what several networks say of the same videos: late fusion of scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnbert import report_numbers
from cnnbert.callbacks import METRICS
from cnnbert.comparison import check_same_videos
from cnnbert.data.protocols import CountFailed
from cnnbert.errors import InputError
from cnnbert.outputs import new_file
from cnnbert.predictions import Predictions, write_predictions
from cnnbert.run_results import RunResults, read_run_results

STEPS = 20
"""Weights that are chosen are multiples of a twentieth."""

MOST_CHOSEN = 4
"""Networks whose weights can be chosen: each makes many more combinations."""

LEAST_PROBABILITY = 1e-7
"""What a probability of 0 counts as in the loss; files have six digits."""


def fuse(
    predictions: tuple[str, ...],
    *,
    validation: tuple[str, ...] = (),
    weights: tuple[float, ...] = (),
    out: str = "fused.csv",
    force: bool = False,
) -> None:
    """Fuse what several networks say of the same videos, such as those of two streams, colours and optical flow.

    cnnbert fuse rgb/predictions.csv flow/predictions.csv takes the predictions files of two tests or more. The fused
    score of a class is the weighted mean of the networks' probabilities, as in "Two-Stream Convolutional Networks for
    Action Recognition in Videos" (Simonyan & Zisserman 2014), where all weigh the same. The table says how accurate
    each network is alone, and all together.

    With --validation the weights are chosen: of all multiples of 0.05 that sum up to 1, those with the highest
    accuracy on the validation videos, and of equal ones those with the lowest loss. The files are predictions of
    cnnbert validate, one for each network in the same order.

    A video that one of the networks could not read is not fused: the file names it with the reason, and it counts as
    the tests have counted such videos.

    Args:
        predictions: Two predictions files or more, of the same videos and classes.
        validation: As many predictions files of other videos, 4 at most, to choose the weights on.
        weights: How much each network counts, at least 0; divided by their sum. By default all count the same.
        out: The predictions file of all together, in a folder that exists; cnnbert report takes it.
        force: Whether a file that is there may be replaced.
    """
    if len(predictions) < 2:
        raise InputError(f"fuse needs the predictions files of two networks or more, and got {len(predictions)}")
    if weights and validation:
        raise InputError("give weights, or validation to have them chosen, not both")
    for name, values in (("weights", weights), ("validation", validation)):
        if values and len(values) != len(predictions):
            raise InputError(f"{name} has {len(values)} values for {len(predictions)} predictions; give one for each")
    if len(validation) > MOST_CHOSEN:
        raise InputError(
            f"weights are chosen for {MOST_CHOSEN} networks at most, not {len(validation)}; give --weights"
        )
    target = new_file(out, force)
    tested = _read(predictions)
    if validation:
        validated = _read(validation)
        _check_validation(tested[0], validated[0])
        shares = choose_weights([run.predictions for run in validated], validated[0].count_failed)
        told = f"chosen on {len(validated[0].predictions.videos)} validation videos"
    else:
        shares = _normalized(weights or [1.0] * len(predictions))
        told = "as given" if weights else "all the same"
    fused = fused_predictions([run.predictions for run in tested], shares, predictions)
    if not fused.was_read.any():
        raise InputError(f"none of the {len(fused.videos)} videos could be read by all networks")
    write_predictions(target, fused)
    rows = [
        (name, f"{share:.2f}", run.predictions) for name, share, run in zip(predictions, shares, tested, strict=True)
    ]
    print(_table([*rows, (str(target), "", fused)], tested[0].count_failed))
    num_failed = int((~fused.was_read).sum())
    failed = f"; {num_failed} could not be read by all" if num_failed else ""
    print(f"{len(fused.videos)} videos fused into {target}, weights {told}{failed}", flush=True)


def fused_predictions(
    predictions: Sequence[Predictions], weights: NDArray[np.float64], names: Sequence[str]
) -> Predictions:
    """Return the weighted mean of the probabilities that several networks give the same videos.

    Args:
        predictions: Those of M networks, of the same videos and classes.
        weights: How much each network counts, (M,), at least 0; they sum up to 1.
        names: What the networks are called in the errors of videos that one of them could not read.
    """
    errors = tuple(
        "; ".join(f"{name}: {why}" for name, why in zip(names, of_video, strict=True) if why)
        for of_video in zip(*(one.errors for one in predictions), strict=True)
    )
    return replace(predictions[0], scores=_mean(predictions, weights), errors=errors)


def choose_weights(predictions: Sequence[Predictions], count_failed: CountFailed = "wrong") -> NDArray[np.float64]:
    """Return the weights, (M,), with the highest accuracy, or mAP, and of equal ones those with the lowest loss.

    All multiples of 0.05 that sum up to 1 are tried.

    Args:
        predictions: Those of M networks, of the same videos and classes.
        count_failed: Whether videos that could not be read are wrong, or left out.

    Raises:
        InputError: No video could be read by all networks.
    """
    best, chosen = (-math.inf, -math.inf), np.empty(0)
    for weights in _grid(len(predictions)):
        fused = replace(predictions[0], scores=_mean(predictions, weights))
        if not fused.was_read.any():
            raise InputError("none of the validation videos could be read by all networks; weights cannot be chosen")
        metric = "top1" if fused.label_separator is None else "map"
        value = (report_numbers.metrics(fused, count_failed)[metric], -_loss(fused))
        if value > best:
            best, chosen = value, weights
    return chosen


def _read(paths: Sequence[str]) -> list[RunResults]:
    """Read predictions files, which must be of the same videos and classes."""
    first = read_run_results(Path(paths[0]).expanduser())
    return [first, *(read_run_results(Path(path).expanduser(), first) for path in paths[1:])]


def _check_validation(tested: RunResults, validated: RunResults) -> None:
    """Refuse validation videos of other classes, or such as are tested too."""
    names = (str(tested.path), str(validated.path))
    check_same_videos((), tested.predictions.class_names, (), validated.predictions.class_names, names)
    shared = sorted({*tested.predictions.videos} & {*validated.predictions.videos})
    if shared:
        raise InputError(
            f"{names[0]} and {names[1]} both have {len(shared)} videos, such as {shared[0][0]}; weights that are "
            "chosen on test videos say nothing about others: give validation the predictions of cnnbert validate"
        )


def _normalized(weights: Sequence[float]) -> NDArray[np.float64]:
    values = np.array(weights, np.float64)
    if values.min() < 0 or values.sum() == 0:
        given = ", ".join(f"{weight:g}" for weight in weights)
        raise InputError(
            f"weights={given} must be at least 0, and one of them above; try {' '.join('1' * len(weights))}"
        )
    return values / values.sum()


def _mean(predictions: Sequence[Predictions], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted mean of the scores, (N, K); NaN where one of the networks could not read a video."""
    return np.einsum("m,mnk->nk", weights, np.stack([one.scores for one in predictions]))


def _grid(number: int) -> Iterator[NDArray[np.float64]]:
    """Yield all weights, (number,), in steps of a twentieth."""
    for counts in itertools.product(range(STEPS + 1), repeat=number - 1):
        if sum(counts) <= STEPS:
            yield np.array([*counts, STEPS - sum(counts)]) / STEPS


def _loss(predictions: Predictions) -> float:
    """Return the mean cross-entropy of the videos that could be read; where they may have several classes, the sum of
    those of every class."""
    read = predictions.was_read
    scores, target = predictions.scores[read], predictions.target[read]
    of_class = -np.log(np.maximum(np.where(target, scores, 1 - scores), LEAST_PROBABILITY))
    return float((of_class if predictions.label_separator is not None else of_class * target).sum(1).mean())


def _table(rows: Sequence[tuple[str, str, Predictions]], count_failed: CountFailed) -> str:
    """Return a table of names, weights and accuracies in per cent."""
    metrics = [report_numbers.metrics(predictions, count_failed) for _, _, predictions in rows]
    kinds = [kind for kind in METRICS if kind in metrics[0]]
    cells = [["predictions", "weight", *(METRICS[kind] for kind in kinds)]]
    for (name, weight, _), values in zip(rows, metrics, strict=True):
        cells.append([name, weight, *(f"{100 * values[kind]:.2f} %" for kind in kinds)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in cells
    )
