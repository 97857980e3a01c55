"""FrameFusion: sizes of the paper, and which frames each fusion joins where."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnbert.backbones import FrameFusion
from cnnbert.backbones.frame_fusion import Fusion, _normalize_locally
from cnnbert.errors import InputError


def small(fusion: Any) -> FrameFusion:
    torch.manual_seed(0)
    return FrameFusion(fusion, width=3, cells=2).eval().double()


def random_clips(frames: int) -> Tensor:
    return torch.rand(1, 3, frames, 48, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_parameters_are_those_of_the_papers_layers(fusion: Fusion) -> None:
    """C(96,11,3)-N-P-C(256,5,1)-N-P-C(384,3,1)-C(384,3,1)-C(256,3,1)-P-FC(4096)-FC(4096), by hand."""
    frames = {"single": (1, 1, 1), "early": (10, 1, 1), "late": (1, 1, 1), "slow": (4, 2, 2)}[fusion]
    columns = 2 if fusion == "late" else 1
    expected = (
        *(96 * (3 * 11 * 11 * frames[0] + 1), 256 * (96 * 5 * 5 * frames[1] + 1), 384 * (256 * 3 * 3 * frames[2] + 1)),
        *(384 * (384 * 3 * 3 + 1), 256 * (384 * 3 * 3 + 1)),
        *(4096 * (columns * 256 * 6 * 6 + 1), 4096 * (4096 + 1)),
    )
    with torch.device("meta"):
        backbone = FrameFusion(fusion)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == sum(expected)
    assert backbone.out_channels == 4096


@pytest.mark.parametrize(
    ("fusion", "frames", "steps"),
    [
        ("single", 1, [1] * 5),
        ("early", 10, [1, 1, 1, 1, 1]),
        ("late", 16, [2, 2, 2, 2, 2]),  # both columns, until the fully connected layer
        ("slow", 10, [4, 2, 1, 1, 1]),
    ],
)
def test_sizes_of_one_window_of_the_paper(fusion: Fusion, frames: int, steps: list[int]) -> None:
    """Frames of 170x170: 54, 27, 13 and 6 cells, which the first fully connected layer sees at once."""
    with torch.device("meta"):
        backbone = FrameFusion(fusion)
        shapes = []
        for module in backbone.children():
            module.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
        features = backbone(torch.empty(1, 3, frames, 170, 170))
    sizes = [(96, 54), (256, 27), (384, 13), (384, 13), (256, 13)]
    grids = [(channels, step, size, size) for (channels, size), step in zip(sizes, steps, strict=True)]
    assert shapes == [*grids, (4096, 1, 1, 1), (4096, 1, 1, 1)]
    assert features.shape == (1, 4096, 1, 1, 1)
    assert backbone.num_steps(frames) == 1 and backbone.least_frames == frames
    with pytest.raises(InputError, match=f"at least {frames} frames"):
        backbone(torch.empty(1, 3, frames - 1, 170, 170))


@pytest.mark.parametrize(
    ("fusion", "first", "second"),
    [
        ("single", [3], [4]),
        ("early", range(8, 18), range(16, 26)),
        ("late", [8, 23], [16, 31]),
        ("slow", range(8, 18), range(16, 26)),
    ],
)
def test_frames_that_a_step_sees(fusion: Fusion, first: Any, second: Any) -> None:
    """Windows begin every 8 frames."""
    backbone, clips = small(fusion), random_clips(40)
    number = 3 if fusion == "single" else 1
    for step, frames in ((number, first), (number + 1, second)):
        clips.requires_grad_().grad = None
        backbone(clips)[:, :, step].sum().backward()
        assert clips.grad is not None
        assert clips.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist() == list(frames)


@pytest.mark.parametrize("fusion", ["early", "late", "slow"])
def test_a_step_of_a_longer_clip_is_that_of_its_window(fusion: Fusion) -> None:
    """Whatever stands before or after; the last window repeats the last frame."""
    backbone, clips = small(fusion), random_clips(26)
    window = backbone.least_frames
    with torch.no_grad():
        features = backbone(clips)
        assert features.shape[2] == backbone.num_steps(26) == 3
        for step in range(3):
            frames = torch.arange(8 * step, 8 * step + window).clamp(max=25)
            torch.testing.assert_close(features[:, :, step : step + 1], backbone(clips[:, :, frames]))


def test_late_fusion_is_two_single_frame_networks_with_shared_weights() -> None:
    """By the paper's words, with plain torch operations on images."""
    backbone, clips = small("late"), random_clips(16)

    def column(frame: Tensor) -> Tensor:
        x = frame
        for conv, stride, padding in ((backbone.conv1, 3, 0), (backbone.conv2, 1, 2)):
            x = F.relu(F.conv2d(x, conv.weight[:, :, 0], conv.bias, stride, padding))
            x = F.local_response_norm(x, 5, alpha=5e-4, beta=0.5, k=2)  # torch takes the mean of five, not their sum
            x = F.max_pool2d(x, 2)
        for conv in (backbone.conv3, backbone.conv4, backbone.conv5):
            x = F.relu(F.conv2d(x, conv.weight[:, :, 0], conv.bias, 1, 1))
        return F.pad(F.max_pool2d(x, 2), (0, 1, 0, 1)).flatten(1)  # 1 cell of 2

    with torch.no_grad():
        pixels = clips * 255 - 117
        half = backbone.fc6.weight.shape[1] // 2
        first, second = (part.flatten(1) for part in backbone.fc6.weight.split(half, dim=1))
        hidden = F.relu(column(pixels[:, :, 0]) @ first.T + column(pixels[:, :, 15]) @ second.T + backbone.fc6.bias)
        expected = F.relu(F.linear(hidden, backbone.fc7.weight.flatten(1), backbone.fc7.bias))
        torch.testing.assert_close(backbone(clips).flatten(1), expected, rtol=1e-5, atol=1e-4)  # mean is float32 there
    assert expected.abs().max() > 1


def test_response_normalisation() -> None:
    x = torch.randn(2, 7, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 100
    expected = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.5, k=2)(x)
    torch.testing.assert_close(_normalize_locally(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "mean"), [(3, 117 / 255), (2, 0.5)])
def test_normalisation(channels: int, mean: float) -> None:
    backbone = FrameFusion(width=3, cells=2, in_channels=channels)
    clips = torch.rand(1, channels, 1, 4, 4)
    torch.testing.assert_close(backbone.normalize(clips), (clips - mean) * 255, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", get_args(Fusion))
def test_single_frames_can_be_shared(fusion: Fusion) -> None:
    assert small(fusion).is_framewise == (fusion == "single")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fusion": "none"}, "fusion='none' must be one of single, early, late, slow; try slow"),
        ({"width": 64}, "width=64 must be a positive multiple of 3; try 63"),
        ({"width": 0}, "width=0 must be a positive multiple of 3; try 3"),
        ({"cells": 0}, "cells=0 must be at least 1; try 6"),
    ],
)
def test_wrong_sizes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        FrameFusion(**arguments)
    assert str(error.value) == message
