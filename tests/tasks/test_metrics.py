"""Accuracies are what their names say, and no video counts twice."""

from __future__ import annotations

import pytest
import torch

from cnnbert.tasks.metrics import ScoredVideos, VideoScores, accuracies


def one_hot_logits(predictions: list[list[int]], num_classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), num_classes).float()


def test_by_hand():
    # Three videos of two views: all right; one view right, one wrong but weaker; all wrong.
    logits = one_hot_logits([[0, 0], [1, 2], [0, 0]], 3)
    logits[1, 1] *= 0.5
    videos = ScoredVideos(torch.arange(3), torch.tensor([0, 1, 1]), logits)
    result = accuracies(videos)
    assert result["top1"] == pytest.approx(2 / 3)
    assert result["clip_top1"] == pytest.approx(3 / 6)
    assert result["mean_class_accuracy"] == pytest.approx((1 + 0.5) / 2)  # class 2 does not occur
    expected = torch.nn.functional.cross_entropy(logits.mean(1), videos.label)
    assert result["loss"] == pytest.approx(expected.item())
    assert "top5" not in result


def test_top5_counts_the_five_best():
    logits = torch.arange(8.0).flip(0).repeat(8, 1)[:, None]  # class 0 best, class 7 worst
    result = accuracies(ScoredVideos(torch.arange(8), torch.arange(8), logits))
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
    scores.reset()
    scores.update(torch.tensor([5]), torch.tensor([0]), wrong)
    assert scores.compute().index.tolist() == [5]
