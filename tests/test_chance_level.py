"""A network that learns nothing is warned of once, and no other is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN

from cnnbert.chance_level import accuracy_by_chance
from cnnbert.cli import main
from cnnbert.tasks.metrics import ScoredVideos


def scored(answers: Sequence[int], labels: Sequence[int], num_failed: int = 0) -> ScoredVideos:
    """Return videos with answers; of some more, none could be read."""
    number = len(labels) + num_failed
    label = torch.tensor([*labels, *[0] * num_failed])
    logits = torch.nn.functional.one_hot(torch.tensor([*answers, *[0] * num_failed])).float()
    views = torch.tensor([1] * len(labels) + [0] * num_failed)
    return ScoredVideos(torch.arange(number), label, logits, views, torch.zeros(number, dtype=torch.int64))


def test_answers_that_know_nothing_are_at_chance() -> None:
    """However unequal the classes and the answers are, and more often than 95 times of 100."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, generator=generator) < 0.9).long().tolist()
    missed = 0
    for _ in range(40):
        answers = (torch.rand(200, generator=generator) < 0.8).long().tolist()
        accuracy, chance, bound = accuracy_by_chance(scored(answers, labels))
        assert chance == pytest.approx(0.9 * 0.8 + 0.1 * 0.2, abs=0.1)
        missed += accuracy > bound
    assert missed <= 2


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_one_answer_for_all_is_chance_exactly(share: float) -> None:
    labels = [1] * int(100 * share) + [0] * int(100 - 100 * share)
    accuracy, chance, bound = accuracy_by_chance(scored([1] * 100, labels))
    assert accuracy == pytest.approx(share) and chance == pytest.approx(share) and bound == pytest.approx(share)


def test_what_was_learned_shows() -> None:
    """Also where most videos are of one class: 3 of 20 small ones found are few in top-1, and no chance."""
    labels = [0] * 180 + [1] * 20
    accuracy, chance, bound = accuracy_by_chance(scored([0] * 180 + [1] * 6 + [0] * 14, labels))
    assert accuracy > bound > chance > 0.85
    labels = [number % 101 for number in range(1010)]  # 2 % of 101 classes
    answers = [label if number < 20 else (label + 1 + number % 7) % 101 for number, label in enumerate(labels)]
    accuracy, chance, bound = accuracy_by_chance(scored(answers, labels))
    assert accuracy == pytest.approx(20 / 1010) and accuracy > bound


def test_videos_that_could_not_be_read_do_not_count() -> None:
    assert accuracy_by_chance(scored([0, 1], [0, 1], num_failed=5))[0] == 1.0


def fit(videos: Path, *options: str) -> list[str]:
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", "--data.batch_size=1"]
    run = [*TINY_RUN, "--trainer.logger=false", "--model.optimizer=AdamW", "--trainer.precision=32-true"]
    return ["fit", *TINY_MODEL, *data, *run, *options]


WARNING = "the network is no better than chance"


def test_a_network_that_learns_nothing_is_told_why(workplace, videos, caplog):
    stuck = ["--model.optimizer.lr=0", "--model.freeze_backbone=true", "--trainer.max_epochs=11"]
    with caplog.at_level(logging.WARNING, "cnnbert"):
        assert main(fit(videos, *stuck)) == 0
    (record,) = [record for record in caplog.records if WARNING in record.getMessage()]  # once
    told = record.getMessage()
    was = "at best 0.333 were right, and now 0.333, where 0.333 are with the labels shuffled. Usual causes:"
    assert told.startswith(f"after 108 steps {WARNING}: of 6 videos {was}\n")  # 9 epochs
    for cause in (
        "the backbone is frozen with random weights: give model.backbone.weights, or do not freeze it",
        "the learning rate is too high or too low (lr of model.optimizer, now 0): try a tenth and ten times",
        "`cnnbert preview`, and at the run's videos.csv",
        "(data.clip_length 8, data.stride 1)",
        "it takes longer",
    ):
        assert cause in told


def test_a_network_that_learns_is_left_alone(workplace, videos, caplog):
    learns = ["--model.optimizer.lr=3e-3", "--trainer.max_epochs=10"]
    with caplog.at_level(logging.WARNING, "cnnbert"):
        assert main(fit(videos, *learns)) == 0
    assert WARNING not in caplog.text


def test_several_classes_a_video_are_not_judged(workplace, videos, caplog):
    stuck = ["--model.optimizer.lr=0", "--trainer.max_epochs=9", "--data.label_separator=|"]
    with caplog.at_level(logging.WARNING, "cnnbert"):
        assert main(fit(videos, *stuck)) == 0
    assert WARNING not in caplog.text
