"""Tables of classes, confused pairs and worst videos are those of a few videos counted by hand."""

from __future__ import annotations

import pytest
import torch

from cnnbert.class_report import MOST_PAIRS, class_table, confused_pairs, confusion, worst_videos
from cnnbert.tasks.metrics import ScoredVideos, accuracies, average_precisions

NAMES = ["a", "b/%", "c", "d"]


def scored(label: list, logits: list, was_read: list[int] | None = None) -> ScoredVideos:
    num = torch.tensor(was_read or [1] * len(label))
    scores = torch.tensor(logits, dtype=torch.float32)
    scores[num == 0] = torch.nan
    return ScoredVideos(torch.arange(len(label)), torch.tensor(label), scores, num, torch.zeros_like(num))


def peak(number: int, height: float = 2.0) -> list[float]:
    return [height * (place == number) for place in range(len(NAMES))]


@pytest.fixture
def videos() -> ScoredVideos:
    """Of class a one right, two taken for b, one not read; of b one right; of c one taken for a; none of d."""
    taken = [0, 1, 1, 0, 1, 0]
    return scored([0, 0, 0, 0, 1, 2], [peak(number) for number in taken], [1, 1, 1, 0, 1, 1])


def test_confusion_leaves_out_what_was_not_read(videos):
    assert confusion(videos).tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(("count_failed", "recall"), [("wrong", 1 / 4), ("left_out", 1 / 3)])
def test_classes(videos, count_failed, recall):
    table = class_table(videos, NAMES, count_failed)
    assert table.titles == ["class", "videos", "not read", "precision", "recall", "F1"]
    num = round(1 / recall)
    rows = [
        ["a", num, 1, 1 / 2, recall, 2 / (num + 2)],
        ["b/%", 1, 0, 1 / 3, 1.0, 2 / 4],
        ["c", 1, 0, None, 0.0, 0.0],
        ["d", 0, 0, None, None, None],
    ]
    for row, expected in zip(table.rows, rows, strict=True):
        assert row[:3] == expected[:3]
        assert row[3:] == [None if share is None else pytest.approx(share) for share in expected[3:]]
    recalls = [row[4] for row in table.rows if row[4] is not None]
    mean = accuracies(videos, count_failed)["mean_class_accuracy"]
    assert sum(recalls) / len(recalls) == pytest.approx(float(mean))


def test_pairs(videos):
    table = confused_pairs(confusion(videos), NAMES)
    assert table.rows == [["a", "b/%", 2, 2 / 3], ["c", "a", 1, 1.0]]


def test_of_400_classes_the_most_frequent_pairs_are_kept():
    counts = torch.ones(400, 400, dtype=torch.int64)
    counts[7, 300] = 9
    table = confused_pairs(counts, [str(number) for number in range(400)])
    assert len(table.rows) == MOST_PAIRS
    assert table.rows[0] == ["7", "300", 9, 9 / 408]


def test_worst_are_those_of_the_highest_loss():
    videos = scored([0, 0, 0, 1], [peak(1, 5), peak(0), peak(1, 9), peak(0)], [1, 1, 1, 0])
    chosen = worst_videos(videos, 10)
    assert [place for place, _ in chosen] == [2, 0, 1]
    assert chosen[0][1] == pytest.approx(9, abs=0.01)
    assert [place for place, _ in worst_videos(videos, 1)] == [2]


def test_several_classes_a_video():
    label = [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    logits = [[3.0, 1, -1, -1], [1, -2, -1, -1], [-1, -1, -4, -1], [0, 0, 0, 0]]
    videos = scored(label, logits, [1, 1, 1, 0])
    table = class_table(videos, NAMES, "wrong", multi_label=True)
    assert table.titles[-1] == "average precision"
    names, sizes, failed, precisions, recalls, _, average = zip(*table.rows, strict=True)
    assert (names, sizes, failed) == (("a", "b/%", "c", "d"), (2, 2, 1, 0), (1, 0, 0, 0))
    assert precisions == (1 / 2, 1.0, None, None)
    assert recalls == (1 / 2, 1 / 2, 0.0, None)
    assert average[3] is None
    assert sum(average[:3]) / 3 == pytest.approx(float(average_precisions(videos, "wrong")["map"]))
    assert [place for place, _ in worst_videos(videos, 2, multi_label=True)] == [2, 1]
