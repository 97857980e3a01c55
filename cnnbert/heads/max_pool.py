"""Pooling by the strongest or the weakest moment of each channel."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head

Pooling = Literal["max", "min", "mean_max"]


class MaxPoolHead(Head):
    """Classifies the extremes of the features over time; the order of the frames does not count.

    The features are averaged over space; each channel then keeps its largest or smallest time step.

    Source: the maximum is conv pooling of "Beyond Short Snippets: Deep Networks for Video Classification" (Ng et al.
    2015), there of frames and before two fully connected layers; `SnippetPoolHead` has its late, slow and local
    pooling, `TemporalConvHead` its time-domain convolution. The minimum and the pair of mean and maximum are this
    package's comparisons.

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        pooling: What is kept of each channel over time; `mean_max` keeps mean and maximum, twice as many channels.
        classifier_dropout: Probability in [0, 1) of dropping a channel before the classifier in training.
    """

    def __init__(
        self, in_channels: int, num_classes: int, pooling: Pooling = "max", classifier_dropout: float = 0.8
    ) -> None:
        super().__init__(in_channels, num_classes)
        if pooling not in get_args(Pooling):
            raise InputError(f"pooling={pooling!r} must be one of {', '.join(get_args(Pooling))}; try max")
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        self.pooling = pooling
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(2 * in_channels if pooling == "mean_max" else in_channels, num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        x = features.mean(dim=(3, 4))  # (B, C, T')
        if self.pooling == "mean_max":
            x = torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)  # (B, 2 * C)
        else:
            x = x.amax(dim=2) if self.pooling == "max" else x.amin(dim=2)  # (B, C)
        return self.classifier(self.classifier_dropout(x))  # (B, K)
