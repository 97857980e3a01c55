"""Accuracies of videos, each counted once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision

from cnnbert.data.protocols import Average, CountFailed

STATES = ("index", "label", "video_logits", "num_views", "num_hits")


def average_views(logits: Tensor, average: Average, multi_label: bool = False) -> Tensor:
    """Return the scores of videos as logits (B, K), from those of their views (B, V, K).

    `logits` is their mean, as in LTM's test scripts (artest08/LateTemporalModeling3DCNN); `probabilities` is the
    logarithm of the mean of their softmax, so that its softmax is that mean; where a video may have several classes,
    it is the logit of the mean of their sigmoids. Without views all scores are NaN.
    """
    logits = logits.float()
    if average == "logits":
        return logits.mean(1)
    if multi_label:
        return F.logsigmoid(logits).logsumexp(1) - F.logsigmoid(-logits).logsumexp(1)
    return logits.log_softmax(2).logsumexp(1) - torch.tensor(float(logits.shape[1])).log()


class ScoredVideos:
    """Videos with their scores, in the order of their index: N videos, K classes.

    Neither a tuple nor a dataclass, whose tensors torchmetrics would squeeze where there is but one video.

    Args:
        index: Numbers of the videos, int64 (N,).
        label: Their classes, int64 (N,), or 0 and 1 for every class, (N, K); -1 where unknown.
        video_logits: Their scores, averaged over their views, float32 (N, K); NaN where there are none.
        num_views: How many views each has, int64 (N,); 0 where the video could not be read.
        num_hits: How many of these are right by themselves, int64 (N,); 0 where a video may have several classes.

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

    Args:
        multi_label: Whether a video may have several classes.

    Attributes:
        average: What is averaged over the views of a video; to be set before the first update.
    """

    full_state_update = False
    index: list[Tensor]
    label: list[Tensor]
    video_logits: list[Tensor]
    num_views: list[Tensor]
    num_hits: list[Tensor]

    def __init__(self, multi_label: bool = False) -> None:
        super().__init__()
        self.multi_label = multi_label
        self.average: Average = "logits"
        for name in STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, label: Tensor, logits: Tensor) -> None:
        """Add videos.

        Args:
            index: Their numbers in the list of records, int64 (B,).
            label: Their classes, int64 (B,), or 0 and 1 for every class, (B, K); -1 where unknown.
            logits: The logits of their views, (B, V, K); V is 0 for videos that could not be read.
        """
        self.index.append(index)
        self.label.append(label)
        self.video_logits.append(average_views(logits, self.average, self.multi_label))
        self.num_views.append(torch.full_like(index, logits.shape[1]))
        is_hit = torch.zeros_like(index) if self.multi_label else (logits.argmax(2) == label[:, None]).sum(1)
        self.num_hits.append(is_hit)

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


def average_precisions(videos: ScoredVideos, count_failed: CountFailed = "wrong") -> dict[str, Tensor]:
    """Return the loss and the mean average precision of videos that may have several classes.

    Args:
        videos: The videos; at least one could be read, and at least one that counts has a class.
        count_failed: Whether the classes of videos that could not be read count as never found, so that the average
            precision of a class falls by the share of such videos; or whether the videos are left out.

    Returns:
        `map`, the mean over the classes that occur of the average precision: the precision at the score of every video
        of the class, averaged over these videos. `micro_f1`, the F1 of the decisions at a probability of 0.5, of all
        classes together. Of the videos that could be read, `loss`, the mean binary cross-entropy of the video logits.
    """
    read = videos.was_read
    label, scores = videos.label[read], videos.video_logits[read]
    precision = class_average_precisions(videos, count_failed)  # (K,)
    size = (label if count_failed == "left_out" else videos.label).sum()
    predicted = scores.sigmoid() >= 0.5
    return {
        "map": precision[~precision.isnan()].mean(),
        "micro_f1": 2 * label[predicted].sum() / (size + predicted.sum()),
        "loss": F.binary_cross_entropy_with_logits(scores, label.float()),
    }


def class_average_precisions(videos: ScoredVideos, count_failed: CountFailed = "wrong") -> Tensor:
    """Return the average precision of every class, (K,), NaN where no video has it; see `average_precisions`."""
    read = videos.was_read
    label, scores = videos.label[read], videos.video_logits[read]
    size = (label if count_failed == "left_out" else videos.label).sum(0)  # (K,)
    found = label.sum(0)
    precision = torch.zeros_like(size, dtype=scores.dtype)
    for number in found.nonzero()[:, 0].tolist():
        # In float64, so that sure scores stay different as probabilities; on the CPU, as not every device has float64.
        probability = scores[:, number].cpu().double().sigmoid()
        precision[number] = binary_average_precision(probability, label[:, number].cpu())
    return precision * found / size


def _concatenate(state: Tensor | list[Tensor]) -> Tensor:
    return state if isinstance(state, Tensor) else torch.cat(state)
