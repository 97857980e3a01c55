"""Accuracies of videos, each counted once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy

STATES = ("index", "label", "logits")


class ScoredVideos:
    """Videos with their scores, in the order of their index: N videos, V views, K classes.

    Neither a tuple nor a dataclass, whose tensors torchmetrics would squeeze where there is but one video.

    Args:
        index: Numbers of the videos, int64 (N,).
        label: Their classes, int64 (N,); -1 where unknown.
        logits: Logits of every view, float32 (N, V, K).
    """

    def __init__(self, index: Tensor, label: Tensor, logits: Tensor) -> None:
        self.index = index
        self.label = label
        self.logits = logits

    @property
    def video_logits(self) -> Tensor:
        """Mean of the logits of a video's views, (N, K), as in LTM's test scripts."""
        return self.logits.mean(1)


class VideoScores(Metric):
    """Collects the logits of videos over batches and processes.

    Distributed runs repeat videos so that every process gets as many; a video is kept once all the same.
    """

    full_state_update = False
    index: list[Tensor]
    label: list[Tensor]
    logits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, label: Tensor, logits: Tensor) -> None:
        """Add videos.

        Args:
            index: Their numbers in the list of records, int64 (B,).
            label: Their classes, int64 (B,); -1 where unknown.
            logits: The logits of their views, (B, V, K).
        """
        self.index.append(index)
        self.label.append(label)
        self.logits.append(logits.float())

    def compute(self) -> ScoredVideos:
        """Return every video seen by any process, once, by index."""
        index, label, logits = (_concatenate(getattr(self, name)) for name in STATES)
        index, places = index.unique(return_inverse=True)
        first = torch.empty_like(index).scatter_(0, places, torch.arange(len(places), device=index.device))
        return ScoredVideos(index, label[first], logits[first])


def accuracies(videos: ScoredVideos) -> dict[str, Tensor]:
    """Return the loss and the accuracies of labelled videos.

    Returns:
        `loss`, the cross-entropy of the video logits; per video `top1`, `top5` (with more than 5 classes) and
        `mean_class_accuracy` (over the classes that occur); per clip `clip_top1`, where every view counts by itself.
    """
    scores, label = videos.video_logits, videos.label
    num_views, num_classes = videos.logits.shape[1:]
    per_class = multiclass_accuracy(scores, label, num_classes, average="none")
    result = {
        "loss": F.cross_entropy(scores, label),
        "top1": multiclass_accuracy(scores, label, num_classes, average="micro"),
        "mean_class_accuracy": per_class[label.unique()].mean(),
        "clip_top1": multiclass_accuracy(
            videos.logits.flatten(0, 1), label.repeat_interleave(num_views), num_classes, average="micro"
        ),
    }
    if num_classes > 5:
        result["top5"] = multiclass_accuracy(scores, label, num_classes, average="micro", top_k=5)
    return result


def _concatenate(state: Tensor | list[Tensor]) -> Tensor:
    return state if isinstance(state, Tensor) else torch.cat(state)
