"""Temporal global average pooling (TGAP), the head that BERT replaces."""

from __future__ import annotations

from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head


class TGAPHead(Head):
    """Classifies the mean of the features over time and space; the order of the frames does not count.

    Source: LTM ("Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition", Kalfaoglu
    et al. 2020; artest08/LateTemporalModeling3DCNN).

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        classifier_dropout: Probability in [0, 1) of dropping a channel before the classifier in training.
    """

    def __init__(self, in_channels: int, num_classes: int, classifier_dropout: float = 0.8) -> None:
        super().__init__(in_channels, num_classes)
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(in_channels, num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        x = features.mean(dim=(2, 3, 4))  # (B, C)
        return self.classifier(self.classifier_dropout(x))  # (B, K)
