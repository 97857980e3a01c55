"""Feature extractors: clips in, a grid of features over time and space out."""

from cnnbert.backbones.base import Backbone
from cnnbert.backbones.r2plus1d import R2Plus1D
from cnnbert.backbones.resnext3d import ResNeXt3D

__all__ = ["Backbone", "R2Plus1D", "ResNeXt3D"]
