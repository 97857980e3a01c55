"""VideoLSTM: a convolutional LSTM that chooses where to look at each moment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head
from cnnbert.layers.conv import Conv3d


class ConvLSTMHead(Head):
    """Classifies the state that a convolutional LSTM with spatial attention reaches at the last time step.

    At each step a map over the places, made of the features and the state before, weighs the features; they and the
    state, both grids, go through the gates of an LSTM by 3x3 convolutions. The last state is averaged over space.

    Source: "VideoLSTM Convolves, Attends and Flows for Action Recognition" (Li et al. 2018): the convolutional ALSTM,
    without attention by optical flow. Its state has 512 channels; with 128, the convolutions of a backbone of 2048
    channels hold 12.5 million parameters.

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        hidden_channels: Channels of the state, and inside the attention.
        classifier_dropout: Probability in [0, 1) of dropping a channel before the classifier in training.
    """

    def __init__(
        self, in_channels: int, num_classes: int, hidden_channels: int = 128, classifier_dropout: float = 0.8
    ) -> None:
        super().__init__(in_channels, num_classes)
        if hidden_channels < 1:
            raise InputError(f"hidden_channels={hidden_channels} must be at least 1; try 128")
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        both = in_channels + hidden_channels
        kernel, padding = (1, 3, 3), (0, 1, 1)
        self.look = Conv3d(both, hidden_channels, kernel, padding=padding)
        self.score = Conv3d(hidden_channels, 1, kernel, padding=padding, bias=False)  # softmax would not see a bias
        self.gates = Conv3d(both, 4 * hidden_channels, kernel, padding=padding)
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(hidden_channels, num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        hidden, _ = self.read(features)  # (B, hidden, 1, H', W')
        return self.classifier(self.classifier_dropout(hidden.mean(dim=(2, 3, 4))))  # (B, K)

    def attention(self, features: Tensor) -> Tensor:
        """Return where each time step is looked at, the same in training and evaluation.

        Args:
            features: (B, in_channels, T', H', W') of any length and size.

        Returns:
            (B, T', H', W'), probabilities in [0, 1]; each time step's sum to 1.
        """
        return self.read(features)[1]

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last state (B, hidden, 1, H', W') and the attention (B, T', H', W').

        Args:
            features: (B, in_channels, T', H', W').
        """
        hidden = cell = features.new_zeros(features.shape[0], self.score.in_channels, 1, *features.shape[3:])
        maps = []
        for x in features.split(1, dim=2):  # (B, C, 1, H', W')
            scores = self.score(self.look(torch.cat([x, hidden], dim=1)).tanh())  # (B, 1, 1, H', W')
            weights = scores.flatten(2).softmax(dim=2).view_as(scores)  # (B, 1, 1, H', W')
            gates = self.gates(torch.cat([(weights * x).to(hidden.dtype), hidden], dim=1))  # (B, 4 * hidden, 1, H', W')
            take, keep, show, candidate = gates.chunk(4, dim=1)  # (B, hidden, 1, H', W') each
            cell = keep.sigmoid() * cell + take.sigmoid() * candidate.tanh()
            hidden = show.sigmoid() * cell.tanh()
            maps.append(weights[:, 0])
        return hidden, torch.cat(maps, dim=1)
