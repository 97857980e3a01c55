"""Convolution over time: short patterns of neighbouring moments, wherever they occur."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head
from cnnbert.layers.conv import Conv3d


class TemporalConvHead(Head):
    """Classifies which short patterns in time occur anywhere in the features.

    The features are averaged over space and convolved over time, with zeros beyond both ends; each kernel's largest
    response, after a ReLU, goes to the classifier.

    Source: time-domain convolution of "Beyond Short Snippets: Deep Networks for Video Classification" (Ng et al. 2015),
    256 kernels before max-pooling over time. Theirs slide over frames, ten at a time with stride 5; here there are few
    time steps, and each is made of several frames already.

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        hidden_channels: Kernels.
        kernel_size: Time steps that a kernel spans; odd.
        classifier_dropout: Probability in [0, 1) of dropping a channel before the classifier in training.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_channels: int = 256,
        kernel_size: int = 3,
        classifier_dropout: float = 0.8,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if hidden_channels < 1:
            raise InputError(f"hidden_channels={hidden_channels} must be at least 1; try 256")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"kernel_size={kernel_size} must be odd and at least 1; try {max(1, kernel_size + 1)}")
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        self.conv = Conv3d(in_channels, hidden_channels, (kernel_size, 1, 1), padding=(kernel_size // 2, 0, 0))
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(hidden_channels, num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        x = features.mean(dim=(3, 4), keepdim=True)  # (B, C, T', 1, 1)
        x = F.relu(self.conv(x)).amax(dim=(2, 3, 4))  # (B, hidden)
        return self.classifier(self.classifier_dropout(x))  # (B, K)
