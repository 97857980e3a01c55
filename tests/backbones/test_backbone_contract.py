"""What every backbone promises, on tiny networks."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import check_file, first_of_each_class, settle, small_model
from torch import Tensor, nn

import cnnbert.backbones
from cnnbert.backbones import (
    C3D,
    CSN,
    I3D,
    S3D,
    Backbone,
    FrameCNN,
    FrameFusion,
    R2Plus1D,
    ResNet3D,
    ResNeXt3D,
    TorchvisionVideo,
    TwoStream,
)
from cnnbert.errors import InputError
from cnnbert.heads import BERTHead

TEN = {"depth": 10, "width": 8}
# A class with its arguments may be an argument itself.
CASES: list[tuple[type[Backbone], dict[str, Any]]] = [
    (R2Plus1D, {"depth": 10, "width": 8}),
    (R2Plus1D, {"depth": 18, "width": 4}),
    (R2Plus1D, {"depth": 34, "width": 4}),
    (ResNeXt3D, {"depth": 14, "width": 8, "cardinality": 4}),
    (ResNeXt3D, {"depth": 50, "width": 4, "cardinality": 2}),
    (ResNeXt3D, {"depth": 14, "width": 8, "cardinality": 4, "last_block_channels": 64}),
    (ResNeXt3D, {"depth": 50, "width": 4, "cardinality": 2, "last_block_channels": 64}),
    (R2Plus1D, {"depth": 10, "width": 8, "in_channels": 2}),
    (ResNeXt3D, {"depth": 14, "width": 8, "cardinality": 4, "in_channels": 2}),
    (ResNet3D, {"depth": 10, "width": 8}),
    (ResNet3D, {"depth": 10, "width": 8, "convolutions": "mc3", "in_channels": 2}),
    (ResNet3D, {"depth": 10, "width": 8, "convolutions": "rmc4", "stem": "hara"}),
    (ResNet3D, {"depth": 50, "width": 4, "last_block_channels": 64}),
    (CSN, {"depth": 26, "width": 4}),
    (CSN, {"depth": 26, "width": 4, "bottleneck": "ip", "in_channels": 2}),
    (CSN, {"depth": 50, "width": 4, "last_block_channels": 64}),
    (TorchvisionVideo, {"network": "mc3_18", "in_channels": 2}),
    (C3D, {"width": 1}),
    (C3D, {"width": 4, "fully_connected": False, "in_channels": 2}),
    (I3D, {"width": 8}),
    (I3D, {"width": 8, "last_block_channels": 64, "in_channels": 2}),
    (S3D, {"width": 8}),
    (S3D, {"width": 8, "gating": True, "in_channels": 2}),
    (S3D, {"width": 8, "last_block_channels": 64}),
    (FrameCNN, {"network": "shufflenet_v2_x0_5"}),
    (FrameCNN, {"network": "mobilenet_v3_small", "in_channels": 2}),
    (FrameFusion, {"width": 3, "cells": 2}),
    (FrameFusion, {"fusion": "late", "width": 3, "cells": 2, "in_channels": 2}),
    (FrameFusion, {"fusion": "early", "width": 3, "cells": 2}),
    (FrameFusion, {"fusion": "single", "width": 3, "cells": 2}),
    (TwoStream, {"rgb": (R2Plus1D, TEN), "flow": (R2Plus1D, {**TEN, "in_channels": 2})}),
    (TwoStream, {"rgb": (R2Plus1D, TEN), "flow": (ResNet3D, {**TEN, "in_channels": 2}), "fusion": "concat"}),
]
every_case = pytest.mark.parametrize(("cls", "arguments"), CASES)


def made(cls: Callable[..., Backbone], arguments: dict[str, Any], **more: Any) -> Backbone:
    given = {name: made(*value) if isinstance(value, tuple) else value for name, value in arguments.items()}
    return cls(**given, **more)


def build(cls: type[Backbone], arguments: dict[str, Any], **more: Any) -> Backbone:
    torch.manual_seed(0)
    return made(cls, arguments, **more)


def random_clips(backbone: Backbone, batch: int, steps: int = 2, cells: int = 2) -> Tensor:
    frames = max(steps * backbone.temporal_stride, backbone.least_frames)
    pixels = max(cells * backbone.spatial_stride, backbone.least_pixels)
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, backbone.in_channels, frames, pixels, pixels, generator=generator)


def test_every_exported_backbone_has_a_case() -> None:
    exported = {getattr(cnnbert.backbones, name) for name in cnnbert.backbones.__all__}
    assert {cls for cls in exported if not inspect.isabstract(cls)} == {cls for cls, _ in CASES}


@every_case
@pytest.mark.parametrize("extra_frames", [0, 1])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3)])
def test_output_shape(cls: type[Backbone], arguments: dict, extra_frames: int, rows: int, columns: int) -> None:
    backbone = build(cls, arguments).eval()
    steps = backbone.num_steps(backbone.least_frames)
    rows, columns = (max(cells, -(-backbone.least_pixels // backbone.spatial_stride)) for cells in (rows, columns))
    frames = max(steps * backbone.temporal_stride, backbone.least_frames) + extra_frames
    size = (rows * backbone.spatial_stride, columns * backbone.spatial_stride)
    features = backbone(torch.rand(2, backbone.in_channels, frames, *size))
    assert features.shape == (2, backbone.out_channels, steps + extra_frames, rows, columns)
    assert backbone.num_steps(frames) == steps + extra_frames


@every_case
def test_every_parameter_receives_a_gradient(cls: type[Backbone], arguments: dict) -> None:
    backbone = build(cls, arguments)
    features = backbone(random_clips(backbone, batch=2))
    (features * torch.randn_like(features)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@every_case
def test_evaluation_is_deterministic_and_sees_each_clip_alone(cls: type[Backbone], arguments: dict) -> None:
    backbone = build(cls, arguments).eval()
    clips = random_clips(backbone, batch=3)
    with torch.no_grad():
        features = backbone(clips)
        assert torch.equal(features, backbone(clips))
        # Another batch size may sum in another order: float32 keeps about seven digits of the largest number.
        tolerance = 1e-5 * max(1, features.abs().max().item())
        torch.testing.assert_close(backbone(clips[1:2]), features[1:2], rtol=1e-4, atol=tolerance)


@every_case
def test_uint8_and_float_clips_agree(cls: type[Backbone], arguments: dict) -> None:
    backbone = build(cls, arguments).eval()
    clips = (random_clips(backbone, batch=1) * 255).to(torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(backbone(clips), backbone(clips.float() / 255))


@every_case
def test_unknown_keyword_is_refused(cls: Callable[..., Backbone], arguments: dict) -> None:
    with pytest.raises(TypeError, match="widht"):
        made(cls, arguments, widht=8)


@every_case
def test_too_small_a_clip_names_a_size_that_works(cls: type[Backbone], arguments: dict) -> None:
    backbone = build(cls, arguments).eval()
    frames, pixels, channels = backbone.least_frames, backbone.least_pixels, backbone.in_channels
    with pytest.raises(InputError, match=f"clip_length={frames - 1} .* at least {frames} frames"):
        backbone(torch.rand(1, channels, frames - 1, pixels, pixels))
    with pytest.raises(InputError, match=f"{pixels}x{pixels - 1} .* at least {pixels}x{pixels} pixels"):
        backbone(torch.rand(1, channels, frames, pixels, pixels - 1))
    backbone(torch.rand(1, channels, frames, pixels, pixels))


@every_case
def test_clips_of_other_channels_are_refused(cls: type[Backbone], arguments: dict) -> None:
    backbone = build(cls, arguments).eval()
    frames, pixels, channels = backbone.least_frames, backbone.least_pixels, backbone.in_channels
    remedy = "--data.reader RGBFlowReader" if cls is TwoStream else "in_channels=4 makes one that fits"
    message = f"clips have 4 channels, but {cls.__name__} takes {channels}.*; {remedy}"
    with pytest.raises(InputError, match=message):
        backbone(torch.rand(1, 4, frames, pixels, pixels))


@every_case
def test_weights_are_touched_by_load_pretrained_alone(cls: type[Backbone], arguments: dict, tmp_path: Path) -> None:
    """Also a reduced last block of one's own is loaded, and whoever has loaded weights knows it."""
    path = tmp_path / "weights.pth"
    backbone = made(cls, arguments, weights=str(path))
    with pytest.raises(InputError, match=f"weights {path} are neither a file nor a published name"):
        backbone.load_pretrained()
    assert not backbone.was_loaded
    expected = build(cls, arguments).state_dict()
    torch.save(expected, path)
    assert backbone.load_pretrained() == f"weights {path}: loaded {len(expected)} tensors into {cls.__name__}"
    assert backbone.was_loaded
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, expected[name]), name


@every_case
def test_any_state_that_is_loaded_is_noted(cls: type[Backbone], arguments: dict) -> None:
    network = nn.Sequential(build(cls, arguments))
    assert not network[0].was_loaded
    network.load_state_dict(network.state_dict())
    assert network[0].was_loaded


@every_case
def test_construction_needs_no_network(cls: type[Backbone], arguments: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a constructor opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    weights = "ig65m_clip32_359"  # even where they are for another network
    first, second = (build(cls, arguments, weights=weights) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), f"{name} does not follow the seed"


@every_case
def test_meta_device(cls: type[Backbone], arguments: dict) -> None:
    with torch.device("meta"):
        backbone = made(cls, arguments)
        pixels = backbone.least_pixels
        clips = torch.empty(2, backbone.in_channels, backbone.least_frames, pixels, pixels)
    assert all(tensor.is_meta for tensor in backbone.state_dict().values())
    num_steps, cells = backbone.num_steps(backbone.least_frames), -(-pixels // backbone.spatial_stride)
    assert backbone(clips).shape == (2, backbone.out_channels, num_steps, cells, cells)


@every_case
def test_bfloat16_autocast_and_float64(cls: type[Backbone], arguments: dict) -> None:
    backbone = build(cls, arguments).eval()
    clips = random_clips(backbone, batch=1)
    with torch.no_grad():
        features = backbone(clips)
        with torch.autocast("cpu", torch.bfloat16):
            low = backbone(clips)
        high = backbone.double()(clips)
    assert low.dtype == torch.bfloat16 and high.dtype == torch.float64
    torch.testing.assert_close(features.double(), high, rtol=1e-3, atol=1e-4)
    # bfloat16 keeps eight bits, and their errors add up over the layers.
    assert (low.double() - high).norm() < 0.1 * high.norm()


@every_case
def test_export_with_any_batch_size(cls: type[Backbone], arguments: dict) -> None:
    backbone = build(cls, arguments).eval()
    clips = random_clips(backbone, batch=5, cells=1)
    exported = torch.export.export(backbone, (clips[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    run: nn.Module = exported.module()
    with torch.no_grad():
        for batch in (1, 5):
            torch.testing.assert_close(run(clips[:batch]), backbone(clips[:batch]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@first_of_each_class(CASES)
def test_an_onnx_file_takes_any_batch_size(cls: type[Backbone], arguments: dict, tmp_path: Path) -> None:
    backbone = build(cls, arguments)
    frames = max(2 * backbone.temporal_stride, backbone.least_frames)
    model = small_model(backbone, BERTHead, frames, backbone.least_pixels)
    settle(model)
    check_file(model, tmp_path, tolerance=1e-4)  # many layers of random weights enlarge what is rounded
