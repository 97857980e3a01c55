"""Temporal heads: a grid of features in, the logits of the classes out."""

from cnnbert.heads.base import Head
from cnnbert.heads.bert import BERTHead
from cnnbert.heads.concat import ConcatHead
from cnnbert.heads.lstm import LSTMHead
from cnnbert.heads.non_local import NonLocalHead
from cnnbert.heads.tgap import TGAPHead

__all__ = ["BERTHead", "ConcatHead", "Head", "LSTMHead", "NonLocalHead", "TGAPHead"]
