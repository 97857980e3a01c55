"""Exports small networks and runs the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnbert.backbones import Backbone
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.export import export_model, open_exported, random_clips
from cnnbert.heads import Head
from cnnbert.tasks.recognition import ActionRecognition

CLASSES = ["a", "b", "c", "d", "e"]


class Patches(Backbone):
    """Makes features of patches of 4x8x8: the least that a head can be exported with."""

    def __init__(self, out_channels: int) -> None:
        super().__init__(3, out_channels, temporal_stride=4, spatial_stride=8, mean=[0.5] * 3, std=[0.25] * 3)
        self.conv = nn.Conv3d(3, out_channels, (4, 8, 8), stride=(4, 8, 8))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x)


def small_model(
    backbone: Backbone, head: Callable[[int, int], Head], clip_length: int, frame_size: int
) -> ActionRecognition:
    """Return an untrained model of parts, as `cnnbert.load` would give it."""
    model = ActionRecognition(backbone, head, CLASSES, clip_length).eval()
    model.data = VideoDataModule(clip_length=clip_length, frame_size=frame_size, resize=frame_size)
    return model


def settle(model: ActionRecognition) -> None:
    """Let norms know what they see, as training does; else random weights may drive all scores to 0 and 1."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.momentum = None  # the mean of all that is seen
    model.train()
    with torch.no_grad():
        model(random_clips(model, 5))
    model.eval()


def check_file(model: ActionRecognition, folder: Path, tolerance: float = 1e-5) -> None:
    """Export a model to ONNX and compare what its file gives for one clip and for five with its own scores."""
    path = folder / "model.onnx"
    assert export_model(model, path, "onnx") < tolerance
    run, clips = open_exported(path, "onnx"), random_clips(model, 5)
    with torch.no_grad():
        expected = model.probabilities(model(clips))
        assert expected.std(0).max() > 1e-5  # the clips are told apart
        for batch in (1, 5):
            # float32 keeps about seven digits; the sums are made in another order.
            torch.testing.assert_close(run(clips[:batch]), expected[:batch], rtol=0, atol=tolerance)


def first_of_each_class(cases: Sequence[tuple[type, dict[str, Any]]]) -> pytest.MarkDecorator:
    """Return the first case of each class: the others' exported programs are compared without a file."""
    classes = [cls for cls, _ in cases]
    return pytest.mark.parametrize(("cls", "arguments"), [cases[classes.index(cls)] for cls in dict.fromkeys(classes)])
