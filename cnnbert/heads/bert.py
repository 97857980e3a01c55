"""The BERT head: attention decides how much each moment of a clip counts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head, in_evaluation
from cnnbert.layers.bottleneck import reduction_block
from cnnbert.layers.positions import resize_loaded, resize_positions
from cnnbert.layers.transformer import TransformerBlock


class BERTHead(Head):
    """Classifies what a class token gathers from the features over time through a small BERT.

    The features are averaged over space; each time step is a token, behind a learned class token. Every token
    gets a learned position. Pre-norm transformer blocks follow, and a linear layer classifies the class
    token.

    Source: LTM ("Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition", Kalfaoglu
    et al. 2020; artest08/LateTemporalModeling3DCNN, class BERT5).

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        num_steps: Time steps T' that the table of positions has. None takes those of the backbone at the clip
            length in use, 4 until they are known. Features of another length get positions interpolated over
            time.
        num_layers: Transformer blocks.
        num_heads: Attention heads; must divide the width of the tokens.
        feedforward_channels: Channels inside the feed-forward network; None takes 4 times the width.
        reduce_to: Append a feature reduction block that brings the features to this many channels, a multiple
            of 64, before the tokens are made: LTM's FRAB, with 512. None uses the features as they are.
        mask_probability: Probability in [0, 1) of hiding a time step from all tokens in training.
        dropout: Probability in [0, 1) of every dropout inside BERT in training.
        classifier_dropout: Probability in [0, 1) of dropping a channel before the classifier in training.
        num_class_tokens: Class tokens N, all at the first position; what they gather is classified together. LTM has 1.
        spatial_tokens: Make a token of every place at every time step, not of the mean over all places. The places of a
            time step share its position, and are hidden together. LTM has none.
    """

    undecayed = ("cls", "positions")
    resizable = ("positions",)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_steps: int | None = None,
        num_layers: int = 1,
        num_heads: int = 8,
        feedforward_channels: int | None = None,
        reduce_to: int | None = None,
        mask_probability: float = 0.2,
        dropout: float = 0.1,
        classifier_dropout: float = 0.8,
        num_class_tokens: int = 1,
        spatial_tokens: bool = False,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = in_channels if reduce_to is None else reduce_to
        if reduce_to is not None and (reduce_to < 1 or reduce_to % 64):
            nearest = 64 * max(1, round(reduce_to / 64))
            raise InputError(f"reduce_to={reduce_to} must be a positive multiple of 64; try {nearest}")
        if num_steps is not None and num_steps < 1:
            raise InputError(f"num_steps={num_steps} must be at least 1; leave it out to take the backbone's")
        if num_layers < 1:
            raise InputError(f"num_layers={num_layers} must be at least 1; try 1")
        if num_class_tokens < 1:
            raise InputError(f"num_class_tokens={num_class_tokens} must be at least 1; try 1")
        if num_heads < 1 or width % num_heads:
            divisors = [number for number in range(1, width + 1) if width % number == 0]
            best = min(divisors, key=lambda number: abs(number - num_heads))
            raise InputError(f"num_heads={num_heads} must divide the width {width}; try {best}")
        if feedforward_channels is not None and feedforward_channels < 1:
            raise InputError(f"feedforward_channels={feedforward_channels} must be at least 1; try {4 * width}")
        probabilities = {
            "mask_probability": (mask_probability, 0.2),
            "dropout": (dropout, 0.1),
            "classifier_dropout": (classifier_dropout, 0.8),
        }
        for name, (given, usual) in probabilities.items():
            if not 0 <= given < 1:
                raise InputError(f"{name}={given} must be in [0, 1); try {usual}")
        self.num_steps_given = num_steps is not None
        self.num_class_tokens = num_class_tokens
        self.spatial_tokens = spatial_tokens
        self.mask_probability = mask_probability
        self.reduction = nn.Identity() if reduce_to is None else reduction_block(in_channels, reduce_to)
        self.cls = nn.Parameter(torch.empty(1, num_class_tokens, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (num_steps or 4), width))
        nn.init.normal_(self.cls, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, num_heads, feedforward_channels or 4 * width, dropout) for _ in range(num_layers)
        )
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(num_class_tokens * width, num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def set_num_steps(self, num_steps: int) -> None:
        """Draw positions for `num_steps` time steps, unless the constructor was given a number.

        Call it before an optimizer holds the parameters and before weights are loaded.
        """
        _, num_tokens, width = self.positions.shape
        if self.num_steps_given or num_tokens == 1 + num_steps:
            return
        if num_steps < 1:
            raise InputError(f"num_steps={num_steps} must be at least 1; a clip has at least one time step")
        self.positions = nn.Parameter(self.positions.new_empty(1, 1 + num_steps, width))
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        x = self.make_tokens(features)  # (B, N + S, C)
        key_mask = self.draw_key_mask(features) if self.training else None  # (B, 1, 1, N + S)
        x = self.dropout(x)  # (B, N + S, C)
        for block in self.blocks:
            x = block(x, key_mask)  # (B, N + S, C)
        return self.classifier(self.classifier_dropout(x[:, : self.num_class_tokens].flatten(1)))  # (B, K)

    def attention(self, features: Tensor) -> Tensor:
        """Return how much each token looks at each token, as in evaluation: nothing is masked, dropped or updated.

        It does not depend on the mode of the head, and leaves it as it is. The first N = num_class_tokens tokens are
        class tokens, token N + t is time step t; so with one class token `[layer, :, :, 0, 1:]` is what it gathers from
        the time steps. With `spatial_tokens`, token N + (t * H' + y) * W' + x is the place (y, x) of time step t.

        Args:
            features: (B, in_channels, T', H', W') of any length and size.

        Returns:
            (num_layers, B, num_heads, N + S, N + S), S = T' or, with `spatial_tokens`, T' * H' * W'; probabilities in
            [0, 1]; each row, of the token that looks, sums to 1.
        """
        with in_evaluation(self):
            x = self.make_tokens(features)  # (B, N + S, C)
            weights = []
            for block in self.blocks:
                assert isinstance(block, TransformerBlock)
                weights.append(block.attention_weights(x))  # (B, heads, N + S, N + S)
                x = block(x)  # (B, N + S, C)
        return torch.stack(weights)  # (layers, B, heads, N + S, N + S)

    def time_attention(self, features: Tensor) -> Tensor:
        """Return what the class tokens of the last block look at, (B, num_heads, T'); see `Head.time_attention`.

        What they look at among themselves is left out, and what lies within a time step is summed.
        """
        num = self.num_class_tokens
        weights = self.attention(features)[-1, :, :, :num, num:].mean(2)  # (B, heads, S)
        weights = weights.unflatten(2, (features.shape[2], -1)).sum(3)  # (B, heads, T')
        return weights / weights.sum(2, keepdim=True)

    def make_tokens(self, features: Tensor) -> Tensor:
        """Return the class tokens and those of the features, (B, N + S, C), with their positions.

        Args:
            features: (B, in_channels, T', H', W').
        """
        x = self.reduction(features)  # (B, C, T', H', W')
        if not self.spatial_tokens:
            x = x.mean(dim=(3, 4), keepdim=True)  # (B, C, T', 1, 1)
        positions = resize_positions(self.positions, x.shape[2])  # (1, 1 + T', C)
        x = x + positions[:, 1:].transpose(1, 2)[..., None, None]  # (B, C, T', H', W') or (B, C, T', 1, 1)
        cls = (self.cls + positions[:, :1]).expand(x.shape[0], -1, -1)  # (B, N, C)
        return torch.cat([cls, x.flatten(2).transpose(1, 2)], dim=1)  # (B, N + S, C)

    def draw_key_mask(self, features: Tensor) -> Tensor:
        """Draw which tokens may be attended to.

        Every time step of every sample is hidden with `mask_probability`, independently; class tokens never are.

        Args:
            features: (B, in_channels, T', H', W').

        Returns:
            Boolean (B, 1, 1, N + S), true where a token may be attended to.
        """
        batch, _, num_steps, height, width = features.shape
        seen = torch.rand(batch, num_steps, device=features.device) >= self.mask_probability  # (B, T')
        if self.spatial_tokens:
            seen = seen.repeat_interleave(height * width, dim=1)  # (B, T' * H' * W')
        return F.pad(seen, (self.num_class_tokens, 0), value=True)[:, None, None]  # (B, 1, 1, N + S)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_loaded(state_dict, f"{prefix}positions", self.positions)
        super()._load_from_state_dict(state_dict, prefix, *args)
