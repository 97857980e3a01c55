"""Feature extractors: clips in, a grid of features over time and space out."""

from cnnbert.backbones.base import Backbone
from cnnbert.backbones.c3d import C3D
from cnnbert.backbones.csn import CSN
from cnnbert.backbones.frame_cnn import FrameCNN
from cnnbert.backbones.frame_fusion import FrameFusion
from cnnbert.backbones.i3d import I3D
from cnnbert.backbones.r2plus1d import R2Plus1D
from cnnbert.backbones.resnet3d import ResNet3D
from cnnbert.backbones.resnext3d import ResNeXt3D
from cnnbert.backbones.s3d import S3D
from cnnbert.backbones.torchvision_video import TorchvisionVideo
from cnnbert.backbones.two_stream import TwoStream

__all__ = [
    "C3D",
    "CSN",
    "I3D",
    "S3D",
    "Backbone",
    "FrameCNN",
    "FrameFusion",
    "R2Plus1D",
    "ResNeXt3D",
    "ResNet3D",
    "TorchvisionVideo",
    "TwoStream",
]
