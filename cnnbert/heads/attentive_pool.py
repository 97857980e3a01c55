"""The attentive pooling head: learned queries gather what they need from all places and moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads.base import Head, in_evaluation
from cnnbert.layers.bottleneck import reduction_block
from cnnbert.layers.positions import resize_loaded, resize_positions
from cnnbert.layers.transformer import TransformerBlock


class AttentivePoolHead(Head):
    """Classifies what learned queries gather from the features of all places and moments by cross-attention.

    Every place at every time step is a token. Transformer blocks may follow; then the queries attend to the normalised
    tokens, and a feed-forward network adds to what they found. Their outputs, one behind the other, are classified.
    Tokens get a learned position in time, the same for all places: a CNN's features carry none, and without it the
    order of the frames would not count.

    Source: the attentive probe of V-JEPA ("Revisiting Feature Prediction for Learning Visual Representations from
    Video", Bardes et al. 2024: one cross-attention block) and of V-JEPA 2 (Assran et al. 2025: three self-attention
    blocks before it, `num_layers` 3). The self-attention blocks here are those of `BERTHead`; positions and dropout are
    not V-JEPA's.

    Args:
        in_channels: Channels of the features.
        num_classes: Classes K.
        num_steps: Time steps T' that the table of positions has. None takes those of the backbone at the clip
            length in use, 4 until they are known. Features of another length get positions interpolated over
            time.
        num_queries: Learned queries.
        num_layers: Self-attention blocks before the cross-attention; 0 for none.
        num_heads: Attention heads; must divide the width of the tokens.
        reduce_to: Append a feature reduction block that brings the features to this many channels, a multiple of 64,
            before the tokens are made, as in `BERTHead`; with 2048 channels and 512 here, the head has 5 million
            parameters instead of 50. None uses the features as they are.
        classifier_dropout: Probability in [0, 1) of dropping a channel before the classifier in training.
    """

    undecayed = ("queries", "positions")
    resizable = ("positions",)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_steps: int | None = None,
        num_queries: int = 1,
        num_layers: int = 0,
        num_heads: int = 8,
        reduce_to: int | None = None,
        classifier_dropout: float = 0.8,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = in_channels if reduce_to is None else reduce_to
        if reduce_to is not None and (reduce_to < 1 or reduce_to % 64):
            nearest = 64 * max(1, round(reduce_to / 64))
            raise InputError(f"reduce_to={reduce_to} must be a positive multiple of 64; try {nearest}")
        if num_steps is not None and num_steps < 1:
            raise InputError(f"num_steps={num_steps} must be at least 1; leave it out to take the backbone's")
        if num_queries < 1:
            raise InputError(f"num_queries={num_queries} must be at least 1; try 1")
        if num_layers < 0:
            raise InputError(f"num_layers={num_layers} must not be negative; try 0")
        if num_heads < 1 or width % num_heads:
            divisors = [number for number in range(1, width + 1) if width % number == 0]
            best = min(divisors, key=lambda number: abs(number - num_heads))
            raise InputError(f"num_heads={num_heads} must divide the width {width}; try {best}")
        if not 0 <= classifier_dropout < 1:
            raise InputError(f"classifier_dropout={classifier_dropout} must be in [0, 1); try 0.8")
        self.num_steps_given = num_steps is not None
        self.reduction = nn.Identity() if reduce_to is None else reduction_block(in_channels, reduce_to)
        self.queries = nn.Parameter(torch.empty(1, num_queries, width))
        self.positions = nn.Parameter(torch.empty(1, num_steps or 4, width))
        nn.init.normal_(self.queries, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads, 4 * width, 0.0) for _ in range(num_layers))
        self.token_norm = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.classifier_dropout = nn.Dropout(classifier_dropout)
        self.classifier = nn.Linear(num_queries * width, num_classes)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def set_num_steps(self, num_steps: int) -> None:
        """Draw positions for `num_steps` time steps, unless the constructor was given a number.

        Call it before an optimizer holds the parameters and before weights are loaded.
        """
        if self.num_steps_given or self.positions.shape[1] == num_steps:
            return
        if num_steps < 1:
            raise InputError(f"num_steps={num_steps} must be at least 1; a clip has at least one time step")
        self.positions = nn.Parameter(self.positions.new_empty(1, num_steps, self.positions.shape[2]))
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, in_channels, T', H', W') of any length and size."""
        tokens = self.make_tokens(self.reduction(features))  # (B, N, C), N = T' * H' * W'
        queries = self.queries.expand(tokens.shape[0], -1, -1)  # (B, Q, C)
        found, _ = self.cross_attention(queries, tokens, tokens, need_weights=False)  # (B, Q, C)
        x = queries + found  # (B, Q, C)
        x = x + self.feedforward(x)  # (B, Q, C)
        return self.classifier(self.classifier_dropout(x.flatten(1)))  # (B, K)

    def time_attention(self, features: Tensor) -> Tensor:
        """Return what the queries look at, (B, num_heads, T'), the mean over them; see `Head.time_attention`."""
        with in_evaluation(self):
            tokens = self.make_tokens(self.reduction(features))  # (B, N, C)
            queries = self.queries.expand(tokens.shape[0], -1, -1)  # (B, Q, C)
            _, weights = self.cross_attention(queries, tokens, tokens, average_attn_weights=False)  # (B, heads, Q, N)
        return weights.mean(2).unflatten(2, (features.shape[2], -1)).sum(3)  # (B, heads, T')

    def make_tokens(self, x: Tensor) -> Tensor:
        """Return the normalised tokens (B, T' * H' * W', C) of features x (B, C, T', H', W'), first step first."""
        positions = resize_positions(self.positions, x.shape[2], num_tokens=0)  # (1, T', C)
        x = x + positions.transpose(1, 2)[..., None, None]  # (B, C, T', H', W')
        x = x.flatten(2).transpose(1, 2)  # (B, N, C)
        for block in self.blocks:
            x = block(x)  # (B, N, C)
        return self.token_norm(x)  # (B, N, C)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        resize_loaded(state_dict, f"{prefix}positions", self.positions, num_tokens=0)
        super()._load_from_state_dict(state_dict, prefix, *args)
