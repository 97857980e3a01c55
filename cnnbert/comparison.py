"""Whether two sets of runs on the same test videos differ by more than chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cnnbert.data.protocols import CountFailed
from cnnbert.errors import InputError
from cnnbert.predictions import Predictions

RESAMPLES = 10_000
AT_ONCE = 500


@dataclass(frozen=True)
class Comparison:
    """How much better one set of runs is than another on the same videos.

    Attributes:
        difference: The mean accuracy of the first less that of the second, in [-1, 1].
        interval: Its 95 % interval, where both have at least two runs.
        only_first: Videos that the first alone has right, by the mean scores of its runs.
        only_second: Videos that the second alone has right.
        p_value: That of McNemar's exact test on these two numbers.
    """

    difference: float
    interval: tuple[float, float] | None
    only_first: int
    only_second: int
    p_value: float


def compare(
    first: Sequence[Predictions], second: Sequence[Predictions], count_failed: CountFailed = "wrong", seed: int = 0
) -> Comparison:
    """Compare two sets of runs, one run a seed, on the same videos.

    The interval is that of the percentile bootstrap over videos and seeds (Efron & Tibshirani 1993, chapter 13): each
    of 10,000 times the videos are drawn anew, the same for both, and the runs of each set, all with replacement. It so
    holds for other videos and other seeds. McNemar's test (McNemar 1947; its exact form is the binomial test of the
    videos that only one of the two has right) takes the mean scores of each set's runs, and so holds for other videos
    but for the runs as they are.

    Args:
        first: At least one run.
        second: At least one run.
        count_failed: Whether a video that a run could not read is wrong, or left out of all runs.
        seed: Seeds the bootstrap.

    Raises:
        InputError: The runs are of different videos or classes.
    """
    for run in (*first[1:], *second):
        check_same_videos(first[0].videos, first[0].class_names, run.videos, run.class_names)
    counted = np.all([run.was_read | (count_failed == "wrong") for run in (*first, *second)], axis=0)
    ours, theirs = (np.array([run.is_right for run in runs], np.float64)[:, counted] for runs in (first, second))
    one, other = (_averaged(runs).is_right[counted] for runs in (first, second))
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    return Comparison(
        difference=float(ours.mean() - theirs.mean()),
        interval=_bootstrap(ours, theirs, seed) if min(len(ours), len(theirs)) > 1 else None,
        only_first=only_first,
        only_second=only_second,
        p_value=exact_mcnemar(only_first, only_second),
    )


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value: how likely a split at least as uneven is where each side is as likely.

    Args:
        only_first: Videos that the first alone has right, at least 0.
        only_second: Videos that the second alone has right, at least 0.
    """
    total = only_first + only_second
    tail = sum(math.comb(total, number) for number in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**total)


def check_same_videos(
    videos: Sequence[tuple[str, ...]],
    class_names: Sequence[str],
    other_videos: Sequence[tuple[str, ...]],
    other_class_names: Sequence[str],
    names: tuple[str, str] = ("one", "the other"),
) -> None:
    """Refuse to compare what was judged on other classes or other videos.

    Args:
        videos: What tells each video and its label, in any order.
        class_names: The classes.
        other_videos: The same of the other.
        other_class_names: The same of the other.
        names: What the two are called in the message.

    Raises:
        InputError: They differ; the message shows in what.
    """
    both = f"{names[0]} and {names[1]} do not go together, since their"
    _check_same("classes", [*class_names], [*other_class_names], names, both)
    here, there = ([" ".join(video) for video in listed] for listed in (videos, other_videos))
    _check_same("videos", here, there, names, both)
    if list(class_names) != list(other_class_names):
        order = f"{', '.join(class_names)} and {', '.join(other_class_names)}"
        raise InputError(f"{both} classes have another order: {order}")


def _check_same(what: str, here: list[str], there: list[str], names: tuple[str, str], both: str) -> None:
    only = [sorted(Counter(here) - Counter(there)), sorted(Counter(there) - Counter(here))]
    if any(only):
        told = [
            f"{len(some)} only in {name}, such as {some[0]}" for name, some in zip(names, only, strict=True) if some
        ]
        raise InputError(f"{both} {what} differ: {'; '.join(told)}")


def _averaged(runs: Sequence[Predictions]) -> Predictions:
    return replace(runs[0], scores=np.mean([run.scores for run in runs], axis=0))


def _bootstrap(ours: NDArray[np.float64], theirs: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of the means of (S1, N) and (S2, N)."""
    rng = np.random.default_rng(seed)
    num_videos = ours.shape[1]
    differences = []
    for start in range(0, RESAMPLES, AT_ONCE):
        number = min(AT_ONCE, RESAMPLES - start)
        of_videos = rng.multinomial(num_videos, np.full(num_videos, 1 / num_videos), size=number) / num_videos  # (R, N)
        means = []
        for right in (ours, theirs):
            num_seeds = len(right)
            of_seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=number) / num_seeds  # (R, S)
            means.append(((of_videos @ right.T) * of_seeds).sum(1))
        differences.append(means[0] - means[1])
    low, high = np.quantile(np.concatenate(differences), (0.025, 0.975))
    return float(low), float(high)
