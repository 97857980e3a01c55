"""Paired statistics against numbers worked out by hand and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cnnbert.comparison import check_same_videos, compare, exact_mcnemar
from cnnbert.errors import InputError
from cnnbert.predictions import Predictions


def predictions(right: list[int], number: int = 2) -> Predictions:
    """Predictions with the videos right or wrong as given, or unreadable where it is -1."""
    videos = tuple((f"{i}.mp4", "0.0", "", "a") for i in range(len(right)))
    names = tuple("abcdef"[:number])
    scores = np.array([[np.nan] * number if hit < 0 else [hit, 1 - hit] + [0] * (number - 2) for hit in right], float)
    return Predictions(videos, names, scores)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 2**5),
        (0, 5, 2 / 2**5),
        (9, 1, 2 * (1 + 10) / 2**10),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_exact_mcnemar(only_first: int, only_second: int, p_value: float) -> None:
    assert exact_mcnemar(only_first, only_second) == pytest.approx(p_value, rel=1e-12)


def test_exact_mcnemar_of_many_videos() -> None:
    """Where the numbers are large, the normal approximation with its correction for continuity is close."""
    z = (abs(5300 - 5000) - 1) / math.sqrt(10300)
    assert exact_mcnemar(5300, 5000) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_difference_and_discordant_videos() -> None:
    ours = [predictions([1, 1, 1, 0]), predictions([1, 1, 0, 0])]
    theirs = [predictions([1, 0, 0, 0])]
    found = compare(ours, theirs)
    assert found.difference == pytest.approx(5 / 8 - 1 / 4)
    assert found.interval is None  # one run shows nothing of other seeds
    # The mean scores of the first set are 1, 1, 0.5 and 0: a tie goes to the first class, which is the label.
    assert (found.only_first, found.only_second, found.p_value) == (2, 0, 0.5)


def test_interval_of_videos_alone_is_the_exact_one() -> None:
    """With equal runs only the videos vary: the difference of 40 videos is then a sum of independent draws."""
    right = [1] * 24 + [0] * 16
    ours, theirs = [predictions(right)] * 2, [predictions([0] * 40)] * 2
    low, high = compare(ours, theirs).interval or (0, 0)
    chances = [math.comb(40, n) * 0.6**n * 0.4 ** (40 - n) for n in range(41)]
    below = np.cumsum(chances)
    expected = [int(np.searchsorted(below, share)) / 40 for share in (0.025, 0.975)]
    assert (low, high) == pytest.approx(expected, abs=1 / 40 + 1e-9)  # at a step of the quantile either may come


def test_interval_widens_with_the_seeds() -> None:
    theirs = [predictions([0] * 400)] * 2
    level = compare([predictions([1, 0] * 200)] * 2, theirs).interval or (0, 0)
    uneven = compare([predictions([1] * 400), predictions([0] * 400)], theirs).interval or (0, 0)
    assert 0.42 < level[0] < 0.5 < level[1] < 0.58
    assert uneven == pytest.approx((0, 1))  # a draw has the same run twice in one of two cases


def test_pairing_narrows_the_interval() -> None:
    """Both are right on the same easy videos, so that drawing other videos changes both alike."""
    easy = [1] * 200 + [0] * 200
    shifted = [0] * 200 + [1] * 200
    low, high = compare([predictions(easy)] * 2, [predictions(easy)] * 2).interval or (1, 1)
    assert (low, high) == (0, 0)
    low, high = compare([predictions(easy)] * 2, [predictions(shifted)] * 2).interval or (0, 0)
    assert high - low > 0.15


def test_unreadable_videos_are_wrong_or_left_out() -> None:
    ours, theirs = [predictions([1, -1, 1, 0])], [predictions([1, 1, 0, -1])]
    assert compare(ours, theirs).difference == 0
    assert (compare(ours, theirs).only_first, compare(ours, theirs).only_second) == (1, 1)
    left_out = compare(ours, theirs, count_failed="left_out")
    assert (left_out.difference, left_out.only_first, left_out.only_second) == (0.5, 1, 0)


@pytest.mark.parametrize(
    ("videos", "classes", "message"),
    [
        ([("1.mp4", "a")], ["a", "b", "c"], "their classes differ: 1 only in y, such as c"),
        ([("1.mp4", "a")], ["b", "a"], "their classes have another order: a, b and b, a"),
        (
            [("2.mp4", "a")],
            ["a", "b"],
            "their videos differ: 1 only in x, such as 1.mp4 a; 1 only in y, such as 2",
        ),
        ([("1.mp4", "a")] * 2, ["a", "b"], "their videos differ: 1 only in y, such as 1.mp4 a"),
        ([("1.mp4", "b")], ["a", "b"], "such as 1.mp4 a; 1 only in y, such as 1.mp4 b"),
    ],
)
def test_what_cannot_be_compared(videos: list[tuple[str, ...]], classes: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        check_same_videos([("1.mp4", "a")], ["a", "b"], videos, classes, ("x", "y"))
    assert str(error.value).startswith("x and y do not go together, since their")
    assert message in str(error.value)
