"""The efficient BERT head: all channels keep their average, and a narrow BERT adds what time tells beyond it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head, in_evaluation
from cnnbert.heads.bert import BERTHead
from cnnbert.heads.tgap import TGAPHead
from cnnbert.layers.conv import Conv3d

GROUP = 8
"""Channels of a group of the second convolution, as in ResNeXt-101's block of 256 channels."""


class EfficientBERTHead(Head):
    """Adds to the logits of the average over time those of a BERT on fewer channels, which start at zero.

    Garg & Murugan 2021 ("CNN+BERT for Video Recognition") reduce ResNeXt's 2048 channels to 512 for BERT, by a block
    that loses some of what the features tell (FRMB, FRAB), and leave a BERT without such a block for the future. Here
    the classifier of the average (TGAP) keeps all channels. Beside it a convolution brings the features to
    `inner_channels`, a second one over space and time, in groups of 8 channels, adds to them, and a BERT of that width,
    with a token of every place at every time step and several class tokens, gives logits that are added to the
    average's. Its classifier starts at zero: at first the head is TGAP to the last digit, and departs from it only
    where that lowers the loss. With 2048 channels and 13 classes it has 1.41 million parameters, FRAB's block and BERT
    together 4.9 million. What else was tried, and what it gave, is in docs/experiments.md.

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        inner_channels: Channels of BERT's tokens, a multiple of 8. None takes an eighth of `in_channels`, but at least
            64.
        num_steps: Time steps T' that the table of positions has. None takes those of the backbone at the clip
            length in use, 4 until they are known. Features of another length get positions interpolated over time.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide `inner_channels`.
        feedforward_channels: Channels inside the feed-forward network; None takes 4 times `inner_channels`.
        mask_probability: Probability in [0, 1) of hiding a time step from all tokens in training.
        dropout: Probability in [0, 1) of every dropout inside BERT in training.
        classifier_dropout: Probability in [0, 1) of dropping a channel before each classifier in training.
        num_class_tokens: Class tokens of BERT; what they gather is classified together.
    """

    undecayed = ("bert.cls", "bert.positions")
    resizable = ("bert.positions",)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        inner_channels: int | None = None,
        num_steps: int | None = None,
        num_layers: int = 1,
        num_heads: int = 4,
        feedforward_channels: int | None = None,
        mask_probability: float = 0.2,
        dropout: float = 0.1,
        classifier_dropout: float = 0.8,
        num_class_tokens: int = 4,
    ) -> None:
        super().__init__(in_channels, num_classes)
        usual = max(64, in_channels // 64 * 8)
        width = usual if inner_channels is None else inner_channels
        if width < 1 or width % GROUP:
            raise InputError(f"inner_channels={inner_channels} must be a positive multiple of {GROUP}; try {usual}")
        self.average = TGAPHead(in_channels, num_classes, classifier_dropout)
        self.reduction = Conv3d(in_channels, width, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm3d(width)
        self.mixing = Conv3d(width, width, kernel_size=3, padding=1, groups=width // GROUP)
        self.bert = BERTHead(
            width,
            num_classes,
            num_steps,
            num_layers,
            num_heads,
            feedforward_channels,
            None,
            mask_probability,
            dropout,
            classifier_dropout,
            num_class_tokens,
            spatial_tokens=True,
        )
        nn.init.zeros_(self.bert.classifier.weight)

    def set_num_steps(self, num_steps: int) -> None:
        """Draw positions for `num_steps` time steps; see `BERTHead.set_num_steps`."""
        self.bert.set_num_steps(num_steps)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        return self.average(features) + self.bert(self.reduce(features))  # (B, K)

    def attention(self, features: Tensor) -> Tensor:
        """Return how much each token looks at each, (num_layers, B, num_heads, N + S, N + S); see `BERTHead`.

        S = T' * H' * W'.
        """
        with in_evaluation(self):
            return self.bert.attention(self.reduce(features))

    def time_attention(self, features: Tensor) -> Tensor:
        """Return what BERT's class tokens look at, (B, num_heads, T'); see `Head.time_attention`."""
        with in_evaluation(self):
            return self.bert.time_attention(self.reduce(features))

    def reduce(self, features: Tensor) -> Tensor:
        """Return what BERT sees, (B, inner_channels, T', H', W'), of features (B, in_channels, T', H', W')."""
        x = self.norm(self.reduction(features))  # (B, C, T', H', W')
        return x + F.gelu(self.mixing(x))  # (B, C, T', H', W')
