"""The LSTM head: a recurrent network reads a clip from its first moment to its last."""

from __future__ import annotations

from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head


class LSTMHead(Head):
    """Classifies the state that an LSTM reaches at the last time step of the features.

    The features are averaged over space and read forwards in time.

    Source: LTM ("Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition", Kalfaoglu
    et al. 2020; artest08/LateTemporalModeling3DCNN, class rgb_resneXt3D64f101_FRMB_lstm).

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        hidden_channels: Channels of the state of each layer.
        num_layers: LSTM layers, one upon the other, without dropout between them.
        classifier_dropout: Probability in [0, 1) of dropping a channel before the classifier in training.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_channels: int = 450,
        num_layers: int = 2,
        classifier_dropout: float = 0.8,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if hidden_channels < 1:
            raise InputError(f"hidden_channels={hidden_channels} must be at least 1; try 450")
        if num_layers < 1:
            raise InputError(f"num_layers={num_layers} must be at least 1; try 2")
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        self.lstm = nn.LSTM(in_channels, hidden_channels, num_layers, batch_first=True)
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(hidden_channels, num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        x = features.mean(dim=(3, 4)).transpose(1, 2)  # (B, T', C)
        states, _ = self.lstm(x)  # (B, T', hidden)
        return self.classifier(self.classifier_dropout(states[:, -1]))  # (B, K)
