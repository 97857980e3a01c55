"""Mean average precision of segments, against cases worked out by hand and ActivityNet's definition written anew."""

from __future__ import annotations

import numpy as np
import pytest

from cnnbert.localization import THRESHOLDS, Segment, average_precision, mean_average_precisions, temporal_iou


def segment(start: float, end: float, score: float = 1.0, path: str = "a", label: str = "run") -> Segment:
    return Segment(path, start, end, label, score)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [((0, 4), (2, 6), 1 / 3), ((0, 4), (0, 4), 1), ((0, 4), (4, 8), 0), ((0, 4), (5, 8), 0), ((0, 8), (2, 4), 0.25)],
)
def test_temporal_iou(first: tuple[float, float], second: tuple[float, float], expected: float) -> None:
    assert temporal_iou(segment(*first), segment(*second)) == pytest.approx(expected)
    assert temporal_iou(segment(*second), segment(*first)) == pytest.approx(expected)
    assert temporal_iou(segment(*first), segment(*second, path="b")) == 0


def test_average_precision_by_hand() -> None:
    """Four true segments; by falling score: right, wrong, right (of a segment), wrong (the same again), right.

    Precision at the hits: 1/1, 2/3, 3/5; recall 1/4, 2/4, 3/4, and the fourth is never found: the area is
    (1 + 2/3 + 3/5) / 4.
    """
    truth = [segment(0, 10), segment(20, 30), segment(40, 50), segment(60, 70)]
    found = [
        segment(61, 70, 0.5),
        segment(0, 10, 0.9),
        segment(12, 18, 0.8),
        segment(21, 30, 0.7),
        segment(20, 29, 0.6),
    ]
    assert average_precision(found, truth, 0.5) == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    assert average_precision(found, truth, 0.95) == pytest.approx(1 / 4)
    assert average_precision([], truth, 0.5) == 0
    assert average_precision(truth, truth, 1.0) == 1


def test_the_highest_precision_from_a_recall_on_counts() -> None:
    """Wrong, right, right of two: precision 1/2 and 2/3 at the hits, and 2/3 counts for both."""
    truth = [segment(0, 10), segment(20, 30)]
    found = [segment(50, 60, 0.9), segment(0, 10, 0.8), segment(20, 30, 0.7)]
    assert average_precision(found, truth, 0.5) == pytest.approx(2 / 3)


def test_mean_over_classes_of_the_truth() -> None:
    truth = [segment(0, 10), segment(0, 10, label="walk")]
    found = [segment(0, 10), segment(0, 5, label="walk"), segment(0, 9, label="jump")]
    values = mean_average_precisions(found, truth)
    assert tuple(values) == THRESHOLDS
    assert list(values.values()) == pytest.approx([1, 1, 1, 0.5, 0.5])


def activitynet(found: list[Segment], truth: list[Segment], threshold: float) -> float:
    """ActivityNet's definition step by step: locked truths, true and false positives, interpolated precision."""
    order = np.argsort([-one.score for one in found], kind="stable")
    tp, fp = np.zeros(len(found)), np.zeros(len(found))
    locked: set[int] = set()
    for place, number in enumerate(order):
        overlaps = np.array([temporal_iou(found[number], one) for one in truth])
        for best in np.argsort(-overlaps, kind="stable"):
            if overlaps[best] < threshold:
                fp[place] = 1
                break
            if int(best) in locked:
                continue
            tp[place] = 1
            locked.add(int(best))
            break
        if tp[place] == fp[place] == 0:
            fp[place] = 1
    precision = np.concatenate([[0], np.cumsum(tp) / (np.cumsum(tp) + np.cumsum(fp)), [0]])
    recall = np.concatenate([[0], np.cumsum(tp) / len(truth), [1]])
    for place in range(len(precision) - 2, -1, -1):
        precision[place] = max(precision[place], precision[place + 1])
    changes = np.where(recall[1:] != recall[:-1])[0] + 1
    return float(np.sum((recall[changes] - recall[changes - 1]) * precision[changes]))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_activitynets(seed: int) -> None:
    random = np.random.default_rng(seed)

    def drawn(number: int) -> list[Segment]:
        starts, lengths, scores = random.uniform(0, 60, number), random.uniform(2, 15, number), random.random(number)
        paths = random.choice(["a", "b"], number)
        return [segment(s, s + n, p, str(v)) for s, n, p, v in zip(starts, lengths, scores, paths, strict=True)]

    truth, found = drawn(8), drawn(30)
    values = [average_precision(found, truth, threshold) for threshold in THRESHOLDS]
    assert values == pytest.approx([activitynet(found, truth, threshold) for threshold in THRESHOLDS])
    assert max(values) > 0.05
