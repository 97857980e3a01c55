"""ActionVLAD: how the features of all places and moments differ from learned anchors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head
from cnnbert.layers.conv import Conv3d


class ActionVLADHead(Head):
    """Classifies the residuals of the features to learned anchors, summed over time and space.

    Each feature vector, scaled to length 1, is shared out among the anchors: a softmax of -alpha times its squared
    distances. The residuals to each anchor, weighted by these shares and summed, are scaled to length 1, first those of
    each anchor, then all together. The order of the frames does not count.

    Source: "ActionVLAD: Learning Spatio-Temporal Aggregation for Action Classification" (Girdhar et al. 2017), with 64
    anchors. There they come from k-means, and alpha is 1000. Here they start as random directions, of which so large an
    alpha would let only the nearest learn; and `reduce_to` brings the features to a size for which the classifier, of
    `num_clusters` times as many inputs, stays small.

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        num_clusters: Anchors.
        reduce_to: Channels to which a convolution of one place and moment brings the features. None uses the features
            as they are.
        alpha: How sharply a feature belongs to its nearest anchor alone; above 0.
        classifier_dropout: Probability in [0, 1) of dropping a channel of an anchor before the classifier in training.
    """

    undecayed = ("anchors",)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_clusters: int = 64,
        reduce_to: int | None = 512,
        alpha: float = 10.0,
        classifier_dropout: float = 0.8,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if num_clusters < 1:
            raise InputError(f"num_clusters={num_clusters} must be at least 1; try 64")
        if reduce_to is not None and reduce_to < 1:
            raise InputError(f"reduce_to={reduce_to} must be at least 1, or null for none; try 512")
        if not alpha > 0:
            raise InputError(f"alpha={alpha} must be above 0; try 10")
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        self.alpha = alpha
        width = in_channels if reduce_to is None else reduce_to
        self.reduction: nn.Module = nn.Identity()
        if reduce_to is not None:
            self.reduction = Conv3d(in_channels, reduce_to, kernel_size=1, bias=False)
        self.anchors = nn.Parameter(F.normalize(torch.randn(num_clusters, width), dim=1))
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(num_clusters * width, num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        x = self.reduction(features).flatten(2).transpose(1, 2)  # (B, N, C), N = T' * H' * W'
        x = unit_length(x.to(self.anchors.dtype))  # (B, N, C)
        # (B, N, A), in float32 under autocast; always by matrix products, which exporters know.
        distances = torch.cdist(x, self.anchors.expand(x.shape[0], -1, -1), compute_mode="use_mm_for_euclid_dist")
        shares = (-self.alpha * distances.square()).softmax(dim=2)  # (B, N, A)
        residuals = shares.transpose(1, 2) @ x - shares.sum(dim=1)[:, :, None] * self.anchors  # (B, A, C)
        vlad = unit_length(unit_length(residuals).flatten(1))  # (B, A * C)
        return self.classifier(self.classifier_dropout(vlad))  # (B, K)


def unit_length(x: Tensor) -> Tensor:
    """Return x (..., C) scaled to length 1 over C; 0 stays 0, with a gradient of at most 1000."""
    return x * (x.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()
