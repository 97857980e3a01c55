"""Accuracies of videos, each counted once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from cnnbert.data.protocols import Average, CountFailed

STATES = ("index", "label", "video_logits", "num_views", "num_hits")


def average_views(logits: Tensor, average: Average) -> Tensor:
    """Return the scores of videos as logits (B, K), from those of their views (B, V, K).

    `logits` is their mean, as in LTM's test scripts (artest08/LateTemporalModeling3DCNN); `probabilities` is the
    logarithm of the mean of their softmax, so that its softmax is that mean. Without views all scores are NaN.
    """
    logits = logits.float()
    if average == "logits":
        return logits.mean(1)
    return logits.log_softmax(2).logsumexp(1) - torch.tensor(float(logits.shape[1])).log()


class ScoredVideos:
    """Videos with their scores, in the order of their index: N videos, K classes.

    Neither a tuple nor a dataclass, whose tensors torchmetrics would squeeze where there is but one video.

    Args:
        index: Numbers of the videos, int64 (N,).
        label: Their classes, int64 (N,); -1 where unknown.
        video_logits: Their scores, averaged over their views, float32 (N, K); NaN where there are none.
        num_views: How many views each has, int64 (N,); 0 where the video could not be read.
        num_hits: How many of these are right by themselves, int64 (N,).

    Attributes:
        was_read: Which videos could be read, bool (N,).
    """

    def __init__(self, index: Tensor, label: Tensor, video_logits: Tensor, num_views: Tensor, num_hits: Tensor) -> None:
        self.index = index
        self.label = label
        self.video_logits = video_logits
        self.num_views = num_views
        self.num_hits = num_hits
        self.was_read = num_views > 0


class VideoScores(Metric):
    """Collects the scores of videos over batches and processes.

    Distributed runs repeat videos so that every process gets as many; a video is kept once all the same.

    Attributes:
        average: What is averaged over the views of a video; to be set before the first update.
    """

    full_state_update = False
    index: list[Tensor]
    label: list[Tensor]
    video_logits: list[Tensor]
    num_views: list[Tensor]
    num_hits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.average: Average = "logits"
        for name in STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, label: Tensor, logits: Tensor) -> None:
        """Add videos.

        Args:
            index: Their numbers in the list of records, int64 (B,).
            label: Their classes, int64 (B,); -1 where unknown.
            logits: The logits of their views, (B, V, K); V is 0 for videos that could not be read.
        """
        self.index.append(index)
        self.label.append(label)
        self.video_logits.append(average_views(logits, self.average))
        self.num_views.append(torch.full_like(index, logits.shape[1]))
        self.num_hits.append((logits.argmax(2) == label[:, None]).sum(1))

    def compute(self) -> ScoredVideos:
        """Return every video seen by any process, once, by index."""
        index, *others = (_concatenate(getattr(self, name)) for name in STATES)
        index, places = index.unique(return_inverse=True)
        first = torch.empty_like(index).scatter_(0, places, torch.arange(len(places), device=index.device))
        return ScoredVideos(index, *(state[first] for state in others))


def accuracies(videos: ScoredVideos, count_failed: CountFailed = "wrong") -> dict[str, Tensor]:
    """Return the loss and the accuracies of labelled videos, at least one of which could be read.

    Args:
        videos: The videos.
        count_failed: Whether those that could not be read are wrong in the accuracies of videos, or left out.

    Returns:
        Per video `top1`, `top5` (with more than 5 classes) and `mean_class_accuracy` (over the classes that occur). Of
        the videos that could be read, `loss`, the cross-entropy of the video logits, and `clip_top1`, where every view
        counts by itself.
    """
    read = videos.was_read
    counted = read if count_failed == "left_out" else torch.ones_like(read)
    scores, label = videos.video_logits, videos.label
    right = (scores.argmax(1) == label) & read
    of_class = F.one_hot(label[counted], scores.shape[1]).float()  # (N, K)
    size = of_class.sum(0)
    num_right = of_class[right[counted]].sum(0)
    result = {
        "loss": F.cross_entropy(scores[read], label[read]),
        "top1": right[counted].float().mean(),
        "mean_class_accuracy": (num_right / size)[size > 0].mean(),
        "clip_top1": videos.num_hits.sum() / videos.num_views.sum(),
    }
    if scores.shape[1] > 5:
        among = (scores.topk(5).indices == label[:, None]).any(1) & read
        result["top5"] = among[counted].float().mean()
    return result


def _concatenate(state: Tensor | list[Tensor]) -> Tensor:
    return state if isinstance(state, Tensor) else torch.cat(state)
