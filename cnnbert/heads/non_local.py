"""The non-local head: every place and moment attends to all others before the steps are concatenated."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head
from cnnbert.heads.concat import concatenate_steps, linear_layers
from cnnbert.layers.conv import Conv3d


class NonLocalHead(Head):
    """Classifies as `ConcatHead` does, after a non-local block over space and time.

    Source: LTM ("Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition", Kalfaoglu
    et al. 2020; artest08/LateTemporalModeling3DCNN, class rgb_resneXt3D64f101_FRMB_NLB_concatenation).

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        num_steps: Time steps T' that are concatenated. None takes those of the backbone at the clip length in use,
            4 until they are known. Features of another length are brought to it by adaptive average pooling, after
            the block.
        hidden_channels: Channels between the two linear layers. None leaves out the first.
        classifier_dropout: Probability in [0, 1) of dropping a channel of a time step before the linear layers in
            training.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_steps: int | None = None,
        hidden_channels: int | None = 1000,
        classifier_dropout: float = 0.8,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if hidden_channels is not None and hidden_channels < 1:
            raise InputError(f"hidden_channels={hidden_channels} must be at least 1, or null for none; try 1000")
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        self.num_steps_given = num_steps is not None
        self.num_steps = 4 if num_steps is None else num_steps
        self.hidden_channels = hidden_channels
        self.block = NonLocalBlock(in_channels)
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
        x = concatenate_steps(self.block(features), self.num_steps)  # (B, C * num_steps)
        return self.classifier(self.hidden(self.classifier_dropout(x)))  # (B, K)


class NonLocalBlock(nn.Module):
    """Adds to each place and moment what it finds by attending to all of them; at first, nothing.

    The embedded Gaussian of "Non-local Neural Networks" (Wang et al. 2018, sections 3.2 and 4.1), whose scores
    are divided by the square root of the number of positions as in artest08/LateTemporalModeling3DCNN,
    models/NLB/NLBlockND.py. The last norm starts from zero, which makes the block the identity.

    Args:
        channels: Channels of the input, of the output, and inside.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = Conv3d(channels, channels, kernel_size=1)
        self.phi = Conv3d(channels, channels, kernel_size=1)
        self.g = Conv3d(channels, channels, kernel_size=1)
        norm = nn.BatchNorm3d(channels)
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)
        self.out = nn.Sequential(Conv3d(channels, channels, kernel_size=1), norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, T', H', W') of x (B, channels, T', H', W')."""
        q, k, v = (layer(x).flatten(2).transpose(1, 2) for layer in (self.theta, self.phi, self.g))  # (B, N, C) each
        # With one head, since ONNX's exporter takes four dimensions alone; N = T' * H' * W'.
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=q.shape[1] ** -0.5)[
            :, 0
        ]  # (B, N, C)
        return x + self.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))  # (B, C, T', H', W')
