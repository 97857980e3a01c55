"""Temporal heads: a grid of features in, the logits of the classes out."""

from cnnbert.heads.action_vlad import ActionVLADHead
from cnnbert.heads.attentive_pool import AttentivePoolHead
from cnnbert.heads.base import Head
from cnnbert.heads.bert import BERTHead
from cnnbert.heads.concat import ConcatHead
from cnnbert.heads.conv_lstm import ConvLSTMHead
from cnnbert.heads.efficient_bert import EfficientBERTHead
from cnnbert.heads.lstm import LSTMHead
from cnnbert.heads.max_pool import MaxPoolHead
from cnnbert.heads.non_local import NonLocalHead
from cnnbert.heads.snippet_pool import SnippetPoolHead
from cnnbert.heads.temporal_conv import TemporalConvHead
from cnnbert.heads.tgap import TGAPHead

__all__ = [
    "ActionVLADHead",
    "AttentivePoolHead",
    "BERTHead",
    "ConcatHead",
    "ConvLSTMHead",
    "EfficientBERTHead",
    "Head",
    "LSTMHead",
    "MaxPoolHead",
    "NonLocalHead",
    "SnippetPoolHead",
    "TGAPHead",
    "TemporalConvHead",
]
