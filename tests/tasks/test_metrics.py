"""Accuracies are what their names say, and no video counts twice."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cnnbert.data.protocols import Average, CountFailed
from cnnbert.tasks.metrics import ScoredVideos, VideoScores, accuracies, average_views


def one_hot_logits(predictions: list[list[int]], num_classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), num_classes).float()


def scored(label: list[int], logits: torch.Tensor) -> ScoredVideos:
    scores = VideoScores()
    scores.update(torch.arange(len(label)), torch.tensor(label), logits)
    return scores.compute()


def test_by_hand():
    # Three videos of two views: all right; one view right, one wrong but weaker; all wrong.
    logits = one_hot_logits([[0, 0], [1, 2], [0, 0]], 3)
    logits[1, 1] *= 0.5
    videos = scored([0, 1, 1], logits)
    result = accuracies(videos)
    assert result["top1"] == pytest.approx(2 / 3)
    assert result["clip_top1"] == pytest.approx(3 / 6)
    assert result["mean_class_accuracy"] == pytest.approx((1 + 0.5) / 2)  # class 2 does not occur
    expected = torch.nn.functional.cross_entropy(logits.mean(1), videos.label)
    assert result["loss"] == pytest.approx(expected.item())
    assert "top5" not in result


def test_averages_by_hand():
    """Three views, one of them sure of the first class: it wins by its logits, and loses by its probability."""
    probabilities = torch.tensor([[[0.998, 0.002], [0.2, 0.8], [0.2, 0.8]]])
    logits = probabilities.log() + torch.tensor([5.0, -3.0, 0.0])[:, None]  # the same softmax
    by_logits = average_views(logits, "logits")
    torch.testing.assert_close(by_logits, logits.sum(1) / 3)
    odds = (499 * 0.25 * 0.25) ** (1 / 3)
    assert by_logits.softmax(1)[0, 0].item() == pytest.approx(odds / (1 + odds))
    by_probabilities = average_views(logits, "probabilities")
    torch.testing.assert_close(by_probabilities.exp(), torch.tensor([[1.398 / 3, 1.602 / 3]]))
    torch.testing.assert_close(by_probabilities.softmax(1), by_probabilities.exp())
    assert (by_logits.argmax(), by_probabilities.argmax()) == (0, 1)


def test_one_sure_view_leaves_no_infinity():
    logits = torch.tensor([[[1000.0, -1000.0], [-1000.0, 1000.0]]])
    torch.testing.assert_close(average_views(logits, "probabilities").exp(), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_the_number_of_views_may_vary(average):
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(2, number, 3, generator=generator) * 5 for number in (1, 4, 10)]
    label = torch.tensor([[0, 1], [2, 0], [1, 1]])
    scores = VideoScores()
    scores.average = average
    for number, (row, logits) in enumerate(zip(label, views, strict=True)):
        scores.update(torch.tensor([2 * number, 2 * number + 1]), row, logits)
    videos = scores.compute()
    assert videos.video_logits.shape == (6, 3)
    assert videos.num_views.tolist() == [1, 1, 4, 4, 10, 10]
    alone = [video for batch in views for video in batch]
    hits = [
        sum(int(view.argmax() == answer) for view in video)
        for video, answer in zip(alone, label.flatten(), strict=True)
    ]
    assert videos.num_hits.tolist() == hits
    assert accuracies(videos)["clip_top1"] == pytest.approx(sum(hits) / 30)
    expected = [video.mean(0).softmax(0) if average == "logits" else video.softmax(1).mean(0) for video in alone]
    torch.testing.assert_close(videos.video_logits.softmax(1), torch.stack(expected))


def test_top5_counts_the_five_best():
    logits = torch.arange(8.0).flip(0).repeat(8, 1)[:, None]  # class 0 best, class 7 worst
    result = accuracies(scored(list(range(8)), logits))
    assert (result["top1"], result["top5"]) == (pytest.approx(1 / 8), pytest.approx(5 / 8))


def test_repeated_videos_count_once():
    scores = VideoScores()
    right, wrong = one_hot_logits([[1]], 2), one_hot_logits([[0]], 2)
    scores.update(torch.tensor([2, 0]), torch.tensor([1, 1]), torch.cat([wrong, right]))
    scores.update(torch.tensor([1, 0]), torch.tensor([1, 1]), torch.cat([right, right]))
    scores.update(torch.tensor([0]), torch.tensor([1]), right)
    videos = scores.compute()
    assert videos.index.tolist() == [0, 1, 2]
    assert accuracies(videos)["top1"] == pytest.approx(2 / 3)
    assert accuracies(videos)["clip_top1"] == pytest.approx(2 / 3)
    scores.reset()
    scores.update(torch.tensor([5]), torch.tensor([0]), wrong)
    assert scores.compute().index.tolist() == [5]


def failed(scores: VideoScores, index: list[int], label: list[int], num_classes: int) -> None:
    scores.update(torch.tensor(index), torch.tensor(label), torch.empty(len(index), 0, num_classes))


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("count_failed", "top1", "top5", "by_class"),
    [("wrong", 2 / 6, 3 / 6, (1 / 2 + 1 / 3 + 0) / 3), ("left_out", 2 / 3, 1, (1 + 1 / 2) / 2)],
)
def test_videos_that_could_not_be_read(
    average: Average, count_failed: CountFailed, top1: float, top5: float, by_class: float
) -> None:
    """Of six videos, three of two views: one right of class 0, one right and one wrong of class 1."""
    scores = VideoScores()
    scores.average = average
    failed(scores, [4, 1], [6, 0], 7)
    logits = one_hot_logits([[0, 0], [1, 1], [3, 3]], 7)
    logits[:, :, :5] += 0.5  # so that classes 0 to 4 are the best five
    scores.update(torch.tensor([0, 2, 3]), torch.tensor([0, 1, 1]), logits)
    failed(scores, [5], [1], 7)
    videos = scores.compute()
    assert videos.index.tolist() == list(range(6))
    assert videos.was_read.tolist() == [True, False, True, True, False, False]
    assert videos.video_logits.isnan().all(1).tolist() == [False, True, False, False, True, True]
    result = accuracies(videos, count_failed)
    names = ("top1", "top5", "mean_class_accuracy", "clip_top1")
    assert [result[name].item() for name in names] == pytest.approx([top1, top5, by_class, 4 / 6])
    alone = scored([0, 1, 1], logits)
    assert result["loss"].item() == pytest.approx(F.cross_entropy(alone.video_logits, alone.label).item())


def test_repeated_videos_that_could_not_be_read_count_once() -> None:
    scores = VideoScores()
    for _ in range(3):
        failed(scores, [1], [1], 2)
    scores.update(torch.tensor([0]), torch.tensor([1]), one_hot_logits([[1]], 2))
    assert scores.compute().was_read.tolist() == [True, False]
    assert accuracies(scores.compute())["top1"] == 0.5
