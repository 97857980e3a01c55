"""The transformer of LTM's BERT.

Source: "Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition" (LTM, Kalfaoglu et
al. 2020) and its public code, artest08/LateTemporalModeling3DCNN, class BERT5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnbiasedLayerNorm(nn.Module):
    """Normalises the channels by their unbiased standard deviation, with `eps` added outside the root.

    It differs from `torch.nn.LayerNorm`, which takes the biased variance and adds eps to it inside the root.

    Args:
        width: Channels, at least 2.
        eps: Added to the standard deviation.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x (..., width)."""
        std, mean = torch.std_mean(x, dim=-1, correction=1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias


class SelfAttention(nn.Module):
    """Lets every token attend to all tokens through several heads.

    The linear layers keep PyTorch's default initialisation; `qkv` holds LTM's three projections, queries
    first.

    Args:
        width: Channels of a token, a multiple of `num_heads`.
        num_heads: Heads; each takes `width / num_heads` neighbouring channels.
        dropout: Probability in [0, 1) of dropping an attention weight in training.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return the attended tokens.

        Args:
            x: (B, S, width), S tokens.
            key_mask: Boolean (B, 1, 1, S), true where a token may be attended to; None attends to all.

        Returns:
            (B, S, width).
        """
        q, k, v = self.project(x)  # (B, heads, S, D) each
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, dropout_p=dropout)  # (B, heads, S, D)
        return self.out(x.transpose(1, 2).flatten(2))  # (B, S, width)

    def weights(self, x: Tensor) -> Tensor:
        """Return how much each token attends to each where none is masked and no weight is dropped.

        Args:
            x: (B, S, width), S tokens.

        Returns:
            (B, num_heads, S, S), probabilities in [0, 1]; each row, a query's, sums to 1.
        """
        q, k, _ = self.project(x)  # (B, heads, S, D) each
        return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3)  # (B, heads, S, S)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, (B, num_heads, S, D) each, of tokens x (B, S, width)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, S, 3, heads, D)
        return qkv.permute(2, 0, 3, 1, 4).unbind()


class TransformerBlock(nn.Module):
    """Adds to the tokens what self-attention, then a feed-forward network, makes of them once normalised.

    Args:
        width: Channels of a token, a multiple of `num_heads`.
        num_heads: Attention heads.
        feedforward_channels: Channels between the two linear layers of the feed-forward network.
        dropout: Probability in [0, 1) of every dropout: of attention weights, of hidden units, of what the
            two sub-layers add, and of the output.
    """

    def __init__(self, width: int, num_heads: int, feedforward_channels: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = UnbiasedLayerNorm(width)
        self.attention = SelfAttention(width, num_heads, dropout)
        self.feedforward_norm = UnbiasedLayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward_channels),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(feedforward_channels, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Return tokens (B, S, width) of tokens x (B, S, width); for `key_mask` see `SelfAttention`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), key_mask))  # (B, S, width)
        x = x + self.dropout(self.feedforward(self.feedforward_norm(x)))  # (B, S, width)
        return self.dropout(x)  # (B, S, width)

    def attention_weights(self, x: Tensor) -> Tensor:
        """Return the attention weights (B, num_heads, S, S) of tokens x (B, S, width); see `SelfAttention.weights`."""
        return self.attention.weights(self.attention_norm(x))
