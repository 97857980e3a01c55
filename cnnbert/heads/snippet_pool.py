"""Late, slow and local pooling of "Beyond Short Snippets"."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head

SnippetPooling = Literal["late", "slow", "local"]


class SnippetPoolHead(Head):
    """Classifies what two fully connected layers find in the time steps, pooled by maxima before, after or between.

    The features are averaged over space. With `late`, each time step goes through both layers, and each channel keeps
    its largest value; the order of the frames does not count. With `slow`, each channel first keeps the largest value
    in windows of time steps that overlap; the first layer sees each window, the maxima of all windows go to the second
    one. With `local`, both layers see each window, and the classifier has weights of its own for each of them.

    Source: "Beyond Short Snippets: Deep Networks for Video Classification" (Ng et al. 2015). Of the other poolings
    there, conv pooling is `MaxPoolHead`, with one linear layer in place of three, and time-domain convolution is
    `TemporalConvHead`. The paper's layers see the whole grid of AlexNet or the average of GoogLeNet, which is what they
    see here; of slow pooling it names one fully connected layer, between the two poolings, and the second is here to
    make the three alike.

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        pooling: Where the maxima are taken.
        hidden_channels: Channels of both fully connected layers, 4096 in AlexNet.
        window: Time steps of a window of slow and local pooling; the paper has 10 frames. Shorter features are one
            window.
        stride: Time steps from one window to the next, at most `window`; the paper has 5. The last window may be
            shorter.
        num_steps: Time steps T' whose windows local pooling tells apart. None takes those of the backbone at the clip
            length in use, 4 until they are known. The windows of features of another length are brought to that number
            by adaptive average pooling.
        classifier_dropout: Probability in [0, 1) of dropping a channel before the classifier in training.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        pooling: SnippetPooling = "slow",
        hidden_channels: int = 4096,
        window: int = 10,
        stride: int = 5,
        num_steps: int | None = None,
        classifier_dropout: float = 0.8,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if pooling not in get_args(SnippetPooling):
            raise InputError(
                f"pooling={pooling!r} must be one of {', '.join(get_args(SnippetPooling))}; try slow, or MaxPoolHead"
            )
        if hidden_channels < 1:
            raise InputError(f"hidden_channels={hidden_channels} must be at least 1; try 4096")
        if window < 1:
            raise InputError(f"window={window} must be at least 1; try 10")
        if not 1 <= stride <= window:
            raise InputError(f"stride={stride} must be in [1, {window}], up to the window; try {max(1, window // 2)}")
        if num_steps is not None and num_steps < 1:
            raise InputError(f"num_steps={num_steps} must be at least 1; leave it out to take the backbone's")
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        self.pooling = pooling
        self.window = window
        self.stride = stride
        self.num_steps_given = num_steps is not None
        self.fc1 = nn.Linear(in_channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, hidden_channels)
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.classifier = self._classifier(4 if num_steps is None else num_steps)

    def set_num_steps(self, num_steps: int) -> None:
        """Draw a classifier for the windows of `num_steps` time steps, unless the constructor was given a number.

        Call it before an optimizer holds the parameters and before weights are loaded.
        """
        if num_steps < 1:
            raise InputError(f"num_steps={num_steps} must be at least 1; leave it out to take the backbone's")
        if not self.num_steps_given and self._inputs(num_steps) != self.classifier.in_features:
            self.classifier = self._classifier(num_steps).to(self.classifier.weight)

    def _inputs(self, num_steps: int) -> int:
        hidden = self.fc2.out_features
        return hidden * len(self.starts(num_steps)) if self.pooling == "local" else hidden

    def _classifier(self, num_steps: int) -> nn.Linear:
        classifier = nn.Linear(self._inputs(num_steps), self.num_classes)
        nn.init.xavier_uniform_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        return classifier

    def starts(self, num_steps: int) -> range:
        """Return the first time step of every window of `num_steps` time steps."""
        return range(0, max(1, num_steps - self.window + self.stride), self.stride)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        x = features.mean(dim=(3, 4)).transpose(1, 2)  # (B, T', C)
        if self.pooling == "late":
            x = F.relu(self.fc2(F.relu(self.fc1(x)))).amax(dim=1)  # (B, hidden)
            return self.classifier(self.classifier_dropout(x))  # (B, K)
        windows = [x[:, start : start + self.window].amax(dim=1) for start in self.starts(x.shape[1])]
        x = F.relu(self.fc1(torch.stack(windows, dim=1)))  # (B, W, hidden)
        if self.pooling == "slow":
            x = F.relu(self.fc2(x.amax(dim=1)))  # (B, hidden)
            return self.classifier(self.classifier_dropout(x))  # (B, K)
        x = F.relu(self.fc2(x)).transpose(1, 2)  # (B, hidden, W)
        num_windows = self.classifier.in_features // self.fc2.out_features
        if x.shape[2] != num_windows:
            x = F.adaptive_avg_pool1d(x, num_windows)
        return self.classifier(self.classifier_dropout(x.flatten(1)))  # (B, K)
