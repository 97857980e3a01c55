"""The concatenation head: a linear layer sees every moment of a clip in its place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head


class ConcatHead(Head):
    """Classifies the features of all time steps, one behind the other, so that each step has its own weights.

    The features are averaged over space and concatenated over time. Two linear layers follow, with nothing between
    them.

    Source: LTM ("Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition", Kalfaoglu
    et al. 2020; artest08/LateTemporalModeling3DCNN, class rgb_resneXt3D64f101_concatenation).

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        num_steps: Time steps T' that are concatenated. None takes those of the backbone at the clip length in use,
            4 until they are known. Features of another length are brought to it by adaptive average pooling.
        hidden_channels: Channels between the two linear layers, 1550 in LTM's released code. None leaves out the
            first layer: by LTM's log, that is the head of its 76.49 % on HMDB51.
        classifier_dropout: Probability in [0, 1) of dropping a channel of a time step before the linear layers in
            training.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_steps: int | None = None,
        hidden_channels: int | None = 1550,
        classifier_dropout: float = 0.8,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if hidden_channels is not None and hidden_channels < 1:
            raise InputError(f"hidden_channels={hidden_channels} must be at least 1, or null for none; try 1550")
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        self.num_steps_given = num_steps is not None
        self.num_steps = 4 if num_steps is None else num_steps
        self.hidden_channels = hidden_channels
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.hidden, self.classifier = linear_layers(in_channels, self.num_steps, hidden_channels, num_classes)

    def set_num_steps(self, num_steps: int) -> None:
        """Draw linear layers for `num_steps` time steps, unless the constructor was given a number.

        Call it before an optimizer holds the parameters and before weights are loaded.
        """
        if self.num_steps_given or num_steps == self.num_steps:
            return
        hidden, classifier = linear_layers(self.in_channels, num_steps, self.hidden_channels, self.num_classes)
        old = self.classifier.weight
        self.hidden, self.classifier, self.num_steps = hidden.to(old), classifier.to(old), num_steps

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        x = concatenate_steps(features, self.num_steps)  # (B, C * num_steps)
        return self.classifier(self.hidden(self.classifier_dropout(x)))  # (B, K)


def linear_layers(
    in_channels: int, num_steps: int, hidden_channels: int | None, num_classes: int
) -> tuple[nn.Module, nn.Linear]:
    """Return the hidden layer, the identity where `hidden_channels` is None, and the classifier of `num_steps` steps.

    Raises:
        InputError: `num_steps` is below 1.
    """
    if num_steps < 1:
        raise InputError(f"num_steps={num_steps} must be at least 1; leave it out to take the backbone's")
    width = in_channels * num_steps
    hidden = nn.Identity() if hidden_channels is None else nn.Linear(width, hidden_channels)
    classifier = nn.Linear(width if hidden_channels is None else hidden_channels, num_classes)
    nn.init.xavier_uniform_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return hidden, classifier


def concatenate_steps(features: Tensor, num_steps: int) -> Tensor:
    """Average features over space and put their time steps one behind the other, channel by channel.

    Args:
        features: (B, C, T', H', W').
        num_steps: Time steps S of the result. Where T' is another number, each is the mean of its share of the clip.

    Returns:
        (B, C * S); step s of channel c stands at c * S + s.
    """
    x = features.mean(dim=(3, 4))  # (B, C, T')
    if x.shape[2] != num_steps:
        x = F.adaptive_avg_pool1d(x, num_steps)  # (B, C, S)
    return x.flatten(1)  # (B, C * S)
