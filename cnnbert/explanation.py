"""Finds out which moments and places of a clip a model's answer rests on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cnnbert.heads.base import Head
from cnnbert.tasks.recognition import ActionRecognition


@dataclass(frozen=True)
class Explanation:
    """What the answer to a clip rests on: T frames, T' time steps of the features.

    Attributes:
        probabilities: Those of the K classes, float32 (K,), in [0, 1].
        target: The number of the class that is explained.
        time_attention: What the head looks at, float32 (num_heads, T'), the shares of an attention head summing to 1;
            None where the head has no attention over time.
        occlusion: How much the log-odds of the class fall when the frames of a time step are hidden, float32 (T',);
            None where the head has attention.
        heat: Grad-CAM of the class, float32 (T, H', W'), in [0, 1], the largest value 1 unless all are 0.
    """

    probabilities: Tensor
    target: int
    time_attention: Tensor | None
    occlusion: Tensor | None
    heat: Tensor

    @property
    def moments(self) -> Tensor:
        """What each time step counts, float32 (T',): the mean of the attention heads, or the occlusion."""
        if self.time_attention is not None:
            return self.time_attention.mean(0)
        assert self.occlusion is not None
        return self.occlusion


def explain_clip(model: ActionRecognition, clip: Tensor, target: int | None = None) -> Explanation:
    """Return what a model's answer to a clip rests on; computed in float32, on the model's device.

    Args:
        model: In evaluation.
        clip: uint8 (C, T, H, W).
        target: The number of the class to explain; None for the most probable.
    """
    clip = clip.to(model.device)
    with torch.no_grad():
        features = model.backbone(clip[None])  # (1, C, T', H', W')
        logits = model.head(features)
        probabilities = model.probabilities(logits)[0]
        target = int(probabilities.argmax()) if target is None else target
        attention = model.head.time_attention(features)
        occlusion = None
        if attention is None:
            occlusion = log_odds(model, logits, target).cpu() - occluded(model, clip, features.shape[2], target)
    heat = F.interpolate(
        grad_cam(model.head, features, target)[None], (clip.shape[1], *features.shape[3:]), mode="trilinear"
    )[0, 0]
    return Explanation(
        probabilities.float().cpu(),
        target,
        None if attention is None else attention[0].float().cpu(),
        occlusion,
        (heat / heat.max().clamp(min=1e-12)).cpu(),
    )


def grad_cam(head: Head, features: Tensor, target: int) -> Tensor:
    """Return where and when the features speak for a class, (B, T', H', W'), at least 0.

    Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) on the features that the backbone gives, over space and time:
    each channel is weighed by the mean of its gradient, and what speaks against the class is left out.

    Args:
        head: In evaluation.
        features: (B, C, T', H', W').
        target: The number of the class.
    """
    features = features.detach().requires_grad_()
    # cuDNN's LSTM has no gradient in evaluation.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        (gradient,) = torch.autograd.grad(head(features)[:, target].sum(), features)
    weights = gradient.mean((2, 3, 4), keepdim=True)  # (B, C, 1, 1, 1)
    return (weights * features.detach()).sum(1).relu()


def occluded(model: ActionRecognition, clip: Tensor, num_steps: int, target: int) -> Tensor:
    """Return the log-odds of a class when the frames of each time step are hidden, float32 (T',).

    The mean of all frames takes their place, in which nothing moves (occlusion over time, after Zeiler & Fergus 2014).

    Args:
        model: In evaluation.
        clip: uint8 (C, T, H, W), on the model's device.
        num_steps: Time steps T'.
        target: The number of the class.
    """
    still = clip.float().mean(1, keepdim=True).round().to(clip.dtype)  # (C, 1, H, W)
    found = []
    for step in range(num_steps):
        hidden = clip.clone()
        hidden[:, frames_of_step(step, model.backbone.temporal_stride)] = still
        found.append(log_odds(model, model(hidden[None]), target))
    return torch.cat(found).cpu()


def log_odds(model: ActionRecognition, logits: Tensor, target: int) -> Tensor:
    """Return log(p / (1 - p)) of the probability p of a class, float32 (B,), from logits (B, K).

    Unlike the probability it still changes where a model is sure.
    """
    logits = logits.float()
    if model.multi_label:
        return logits[:, target]
    others = torch.arange(logits.shape[1], device=logits.device) != target
    return logits[:, target] - logits[:, others].logsumexp(1)


def frames_of_step(step: int, temporal_stride: int) -> slice:
    """Return the frames of a clip that a time step of the features stands for."""
    return slice(step * temporal_stride, (step + 1) * temporal_stride)
