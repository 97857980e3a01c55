"""Accuracies are what their names say, and no video counts twice."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from cnnbert.data.protocols import Average, CountFailed
from cnnbert.tasks.metrics import ScoredVideos, VideoScores, accuracies, average_precisions, average_views


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


def scored_labels(label: torch.Tensor, logits: torch.Tensor, average: Average = "logits") -> ScoredVideos:
    """Videos of several labels, label (N, K) and logits (N, K) of one view or (N, V, K) of V."""
    scores = VideoScores(multi_label=True)
    scores.average = average
    scores.update(torch.arange(len(label)), label, logits if logits.ndim == 3 else logits[:, None])
    return scores.compute()


def precision_by_hand(scores: list[float], truth: list[int]) -> float:
    """The mean over the positives of the share of positives among all that score as high as they do."""
    positives = [score for score, there in zip(scores, truth, strict=True) if there]
    shares = []
    for score in positives:
        among = [there for other, there in zip(scores, truth, strict=True) if other >= score]
        shares.append(sum(among) / len(among))
    return sum(shares) / len(positives)


def test_average_precision_by_hand() -> None:
    """Four videos; in the order of their scores, the three classes are at places 1 and 3, 2, and 1 and 2."""
    logits = torch.tensor([[4.0, 3.0, 2.0], [3.0, 4.0, 1.0], [2.0, 0.1, -1.0], [-1.0, 2.0, -2.0]])
    label = torch.tensor([[1, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    result = average_precisions(scored_labels(label, logits))
    assert result["map"].item() == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2 + 1) / 3)
    assert result["micro_f1"].item() == pytest.approx(2 * 5 / (5 + 9))  # all 5 are found, among 9 scores above 0
    assert result["loss"].item() == pytest.approx(
        sum(
            math.log1p(math.exp(-score if there else score))
            for score, there in zip(logits.flatten().tolist(), label.flatten().tolist(), strict=True)
        )
        / 12,
        rel=1e-5,  # float32
    )


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_average_precision_of_random_scores(digits: int) -> None:
    """With scores rounded to whole numbers most are tied."""
    generator = torch.Generator().manual_seed(digits)
    logits = torch.randn(40, 5, generator=generator).mul(2).round(decimals=digits)
    label = (torch.rand(40, 5, generator=generator) < 0.3).long()
    expected = [precision_by_hand(logits[:, k].tolist(), label[:, k].tolist()) for k in range(5)]
    result = average_precisions(scored_labels(label, logits))
    assert result["map"].item() == pytest.approx(sum(expected) / 5, rel=1e-5)
    order = torch.randperm(40, generator=generator)
    again = average_precisions(scored_labels(label[order], logits[order]))
    assert again["map"].item() == pytest.approx(result["map"].item())


def test_perfect_and_constant_scores() -> None:
    label = torch.tensor([[1, 0], [0, 1], [0, 0], [1, 1]])
    assert average_precisions(scored_labels(label, label * 10.0 - 5))["map"] == 1
    constant = average_precisions(scored_labels(label, torch.full((4, 2), -1.0)))
    assert constant["map"].item() == pytest.approx(0.5)  # the share of the positives
    assert constant["micro_f1"] == 0


@pytest.mark.filterwarnings("error")
def test_classes_that_do_not_occur_are_left_out() -> None:
    label = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 0]])
    logits = torch.tensor([[3.0, 9.0, 9.0], [2.0, 9.0, 9.0], [1.0, 9.0, 9.0]])
    assert average_precisions(scored_labels(label, logits))["map"].item() == pytest.approx((1 + 2 / 3) / 2)


def test_sure_scores_stay_in_order() -> None:
    """In float32 the sigmoids of all three are 1."""
    label = torch.tensor([[1], [0], [0]])
    assert average_precisions(scored_labels(label, torch.tensor([[30.0], [25.0], [20.0]])))["map"] == 1


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("count_failed", "precisions", "f1"),
    [
        ("wrong", ((1 + 2 / 3) / 3, 1 / 2, 0), 2 * 2 / (3 + 2 + 1 + 4)),
        ("left_out", ((1 + 2 / 3) / 2, 1), 2 * 2 / (2 + 1 + 4)),
    ],
)
def test_videos_of_several_labels_that_could_not_be_read(
    average: Average, count_failed: CountFailed, precisions: tuple[float, ...], f1: float
) -> None:
    """Three could be read, of two equal views: the classes of the other two are found at no threshold."""
    scores = VideoScores(multi_label=True)
    scores.average = average
    scores.update(torch.tensor([1, 4]), torch.tensor([[1, 1, 1], [0, 0, 0]]), torch.empty(2, 0, 3))
    label = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    logits = torch.tensor([[3.0, 2.0, -4.0], [2.0, 1.0, -4.0], [-1.0, -2.0, -4.0]])
    scores.update(torch.tensor([0, 2, 3]), label, logits[:, None].expand(-1, 2, -1))
    videos = scores.compute()
    assert videos.was_read.tolist() == [True, False, True, True, False]
    assert videos.label.tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert videos.video_logits.isnan().all(1).tolist() == [False, True, False, False, True]
    result = average_precisions(videos, count_failed)
    assert result["map"].item() == pytest.approx(sum(precisions) / len(precisions))
    assert result["micro_f1"].item() == pytest.approx(f1)
    alone = average_precisions(scored_labels(label, logits))
    assert result["loss"].item() == pytest.approx(alone["loss"].item())


def test_averages_of_several_labels_by_hand() -> None:
    """Two views: the mean of the logits, or of the probabilities, however sure they are."""
    probabilities = torch.tensor([[[0.9, 0.2, 0.5], [0.3, 0.4, 0.5]]], dtype=torch.float64)
    logits = probabilities.logit()
    torch.testing.assert_close(average_views(logits, "logits", True), logits.mean(1).float())
    averaged = average_views(logits, "probabilities", True)
    torch.testing.assert_close(averaged.sigmoid(), torch.tensor([[0.6, 0.3, 0.5]]))
    sure = torch.tensor([[[1000.0, -1000.0], [-1000.0, -1000.0]]])
    torch.testing.assert_close(average_views(sure, "probabilities", True).sigmoid(), torch.tensor([[0.5, 0.0]]))


def test_repeated_videos_of_several_labels_count_once() -> None:
    scores = VideoScores(multi_label=True)
    label, logits = torch.tensor([[1, 0], [0, 1]]), torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    for order in ([0, 1], [1, 0]):
        scores.update(torch.tensor(order), label[order], logits[order])
    videos = scores.compute()
    assert (videos.index.tolist(), videos.label.tolist()) == ([0, 1], label.tolist())
    assert average_precisions(videos)["map"].item() == pytest.approx((1 / 2 + 1) / 2)
