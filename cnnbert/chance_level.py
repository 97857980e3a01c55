"""Warns of a network that learns nothing."""

from __future__ import annotations

import logging

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from cnnbert.data.datamodule import VideoDataModule
from cnnbert.tasks.metrics import ScoredVideos
from cnnbert.tasks.recognition import ActionRecognition

logger = logging.getLogger("cnnbert")

NUM_VALIDATIONS = 5
NUM_STEPS = 100
"""Validations and steps before which nothing is said: an epoch of a few videos is but a few steps."""

NUM_SHUFFLES = 1000
"""Shuffled labels that an accuracy is compared with."""

CONFIDENCE = 0.99
"""Share of them that must not be better. Of trainings that learn nothing, at most 5 of 100 pass in five validations."""


class ChanceLevel(Callback):
    """Warns once where the network is no better than chance after five validations and a hundred steps of training.

    Chance is what the same answers would get if they had nothing to do with the videos: the accuracy with the labels
    shuffled, a thousand times. A network that is better than 99 of 100 of them even once has learned something, and is
    left alone from then on. So unequal classes are accounted for: that all videos get the largest class is chance,
    however many are right. Where the videos are so few that half the way from chance to all right would not show, there
    is no warning; nor where a video may have several classes, whose accuracy is another.
    """

    def __init__(self) -> None:
        self.accuracies: list[float] = []
        self.is_done = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the epoch."""
        assert isinstance(pl_module, ActionRecognition)
        if self.is_done or trainer.state.fn != "fit" or trainer.sanity_checking or pl_module.multi_label:
            return
        videos = pl_module.scores.compute()  # by all processes together
        if not videos.was_read.any():
            return
        accuracy, chance, bound = accuracy_by_chance(videos)
        self.accuracies.append(accuracy)
        is_at_chance = accuracy <= bound < (1 + chance) / 2
        is_late = len(self.accuracies) >= NUM_VALIDATIONS and trainer.global_step >= NUM_STEPS
        self.is_done = is_late or not is_at_chance
        if is_late and is_at_chance and trainer.is_global_zero:
            told = f"after {trainer.global_step} steps the network is no better than chance: of "
            told += f"{int(videos.was_read.sum())} videos at best {max(self.accuracies):.3f} were right, and now "
            told += f"{accuracy:.3f}, where {chance:.3f} are with the labels shuffled"
            logger.warning("%s. Usual causes:\n%s", told, "\n".join(f"  {one}" for one in _causes(trainer, pl_module)))


def accuracy_by_chance(videos: ScoredVideos) -> tuple[float, float, float]:
    """Return the accuracy of labelled videos, its mean with the labels shuffled, and what 99 % of these are at most.

    Args:
        videos: At least one that could be read; the others are left out.
    """
    answers = videos.video_logits[videos.was_read].argmax(1).cpu()
    labels = videos.label[videos.was_read].cpu()
    generator = torch.Generator().manual_seed(0)
    orders = (torch.randperm(len(labels), generator=generator) for _ in range(NUM_SHUFFLES))
    hits = torch.stack([(answers == labels[order]).double().mean() for order in orders]).sort().values
    bound = hits[int(CONFIDENCE * NUM_SHUFFLES) - 1]
    number = videos.video_logits.shape[1]
    chance = (answers.bincount(minlength=number) * labels.bincount(minlength=number)).sum() / len(labels) ** 2
    return float((answers == labels).double().mean()), float(chance), float(bound)


def _causes(trainer: Trainer, task: ActionRecognition) -> list[str]:
    data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
    rate = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
    causes = [
        f"the learning rate is too high or too low (lr of model.optimizer, now {rate:.3g}): try a tenth and ten times",
        "the labels are not those of the videos, as in a list whose lines were mixed up: look at them with "
        "`cnnbert preview`, and at the run's videos.csv",
        f"clips show too little of a video (data.clip_length {data.clip_length}, data.stride {data.stride})",
        "it takes longer: few videos, many classes, a long warm-up",
    ]
    random = " and ".join(f"{part.setting}.weights" for part in task.backbone.parts if part.weights is None)
    if task.freeze_backbone and random:
        causes.insert(0, f"the backbone is frozen with random weights: give {random}, or do not freeze it")
    elif random:
        causes.append(f"the backbone starts from random weights: pretrained ones ({random}) need fewer epochs")
    return causes
