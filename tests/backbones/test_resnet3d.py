"""ResNet3D against torchvision's networks, published sizes and names."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.video import MC3_18_Weights, R3D_18_Weights, mc3_18, r3d_18
from torchvision.models.video.resnet import BasicStem, Bottleneck, Conv3DNoTemporal, Conv3DSimple, VideoResNet

from cnnbert.backbones import ResNet3D
from cnnbert.backbones.weights import PUBLISHED
from cnnbert.errors import InputError

KINETICS = 400


def num_parameters(backbone: nn.Module, features: int = 512) -> int:
    """Return the parameters with a classifier of Kinetics-400."""
    return sum(parameter.numel() for parameter in backbone.parameters()) + (features + 1) * KINETICS


def resnet_50(convolutions: list[type]) -> VideoResNet:
    return VideoResNet(Bottleneck, convolutions, [3, 4, 6, 3], BasicStem)


@pytest.mark.parametrize(
    ("depth", "convolutions", "build"),
    [
        (18, "3d", r3d_18),
        (18, "mc3", mc3_18),
        (50, "3d", lambda: resnet_50([Conv3DSimple] * 4)),
        (50, "rmc4", lambda: resnet_50([Conv3DNoTemporal] * 2 + [Conv3DSimple] * 2)),
    ],
)
def test_features_equal_torchvision_from_its_file(tmp_path: Path, depth: Any, convolutions: Any, build) -> None:
    torch.manual_seed(0)
    reference: VideoResNet = build().eval()
    if convolutions == "rmc4":  # torchvision has no 2D stem
        reference.stem[0] = nn.Conv3d(3, 64, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    torch.save(reference.state_dict(), tmp_path / "torchvision.pth")
    backbone = ResNet3D(depth, convolutions=convolutions, weights=str(tmp_path / "torchvision.pth"))
    assert backbone.load_pretrained().endswith("not loaded: fc.weight, fc.bias (the classifier)")
    reference, backbone = reference.double(), backbone.double().eval()
    x = torch.randn(1, 3, 9, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = x
        for part in (reference.stem, reference.layer1, reference.layer2, reference.layer3, reference.layer4):
            expected = part(expected)
        features = backbone.forward_features(x)
    assert features.shape == (1, backbone.out_channels, backbone.num_steps(9), 2, 3)
    assert (features - expected).abs().max() <= 1e-6
    # float64 keeps sixteen digits, of which the layers lose few; the largest feature sets the scale.
    assert (features - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_parameters_are_as_many_as_torchvision_says() -> None:
    with torch.device("meta"):
        assert num_parameters(ResNet3D(18)) == R3D_18_Weights.KINETICS400_V1.meta["num_params"]
        mc3 = num_parameters(ResNet3D(18, convolutions="mc3"))
    assert mc3 == MC3_18_Weights.KINETICS400_V1.meta["num_params"]


@pytest.mark.parametrize(
    ("convolutions", "groups", "temporal_stride", "parameters"),
    [
        ("3d", (1, 1, 1, 1, 1), 8, 33_371_472),
        ("mc2", (1, 0, 0, 0, 0), 1, 11_400_528),
        ("mc3", (1, 1, 0, 0, 0), 1, 11_695_440),
        ("mc4", (1, 1, 1, 0, 0), 2, 12_727_632),
        ("mc5", (1, 1, 1, 1, 0), 4, 16_856_400),
        ("rmc2", (0, 1, 1, 1, 1), 8, 33_352_656),
        ("rmc3", (0, 0, 1, 1, 1), 8, 33_057_744),
        ("rmc4", (0, 0, 0, 1, 1), 4, 32_025_552),
        ("rmc5", (0, 0, 0, 0, 1), 2, 27_896_784),
    ],
)
def test_mixed_convolutions(convolutions: Any, groups: tuple, temporal_stride: int, parameters: int) -> None:
    """The groups are 3D as the names say, in kernels and in temporal strides; sizes follow from that."""
    with torch.device("meta"):
        backbone = ResNet3D(18, convolutions=convolutions)
        features = backbone(torch.empty(1, 3, 9, 32, 32))
    assert num_parameters(backbone) == parameters
    stages = (backbone.stem, backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    for index, (part, is_3d) in enumerate(zip(stages, groups, strict=True)):
        kernels = [m for m in part.modules() if isinstance(m, nn.Conv3d) and m.kernel_size != (1, 1, 1)]
        assert {m.kernel_size[0] for m in kernels} == {3 if is_3d else 1}
        assert kernels[0].stride[0] == (2 if is_3d and index >= 2 else 1)
        assert all(m.stride == (1, 1, 1) for m in kernels[1:])
    assert backbone.temporal_stride == temporal_stride
    assert features.shape[2] == backbone.num_steps(9) == -(-9 // temporal_stride)


@pytest.mark.parametrize(("depth", "layers"), [(10, 10), (18, 18), (34, 34), (50, 50), (101, 101)])
def test_depth_counts_the_layers(depth: Any, layers: int) -> None:
    with torch.device("meta"):
        convolutions = [n for n, m in ResNet3D(depth).named_modules() if isinstance(m, nn.Conv3d)]
    assert len([name for name in convolutions if "downsample" not in name]) + 1 == layers  # and a classifier


def test_haras_stem() -> None:
    with torch.device("meta"):
        backbone = ResNet3D(50, stem="hara")
        features = backbone(torch.empty(1, 3, 17, 64, 33))
    assert features.shape == (1, 2048, 2, 2, 2) and (backbone.temporal_stride, backbone.spatial_stride) == (16, 32)
    assert backbone.stem[0].weight.shape == (64, 3, 7, 7, 7)
    buffers = ("running_mean", "running_var", "tracked", "fc.weight", "fc.bias")
    expected = sum(math.prod(shape) for name, shape in hara(50).items() if not name.endswith(buffers))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == expected == 46_198_976


def hara(depth: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of Hara's files, written down from his network (kenshohara/3D-ResNets-PyTorch)."""
    expansion = 4 if depth >= 50 else 1
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7, 7), **norm("bn1", 64)}
    channels = 64
    for stage, (planes, num_blocks) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
        for index in range(num_blocks):
            block = f"layer{stage}.{index}"
            kernels = ((3, planes), (3, planes)) if depth < 50 else ((1, planes), (3, planes), (1, 4 * planes))
            given = channels
            for number, (size, made) in enumerate(kernels, 1):
                shapes[f"{block}.conv{number}.weight"] = (made, given, size, size, size)
                shapes |= norm(f"{block}.bn{number}", made)
                given = made
            if index == 0 and (stage > 1 or channels != expansion * planes):
                shapes[f"{block}.downsample.0.weight"] = (expansion * planes, channels, 1, 1, 1)
                shapes |= norm(f"{block}.downsample.1", expansion * planes)
            channels = expansion * planes
    return shapes | {"fc.weight": (700, channels), "fc.bias": (700,)}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (channels,) for part in parts}, f"{name}.num_batches_tracked": ()}


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.rand(shape, generator=generator) if shape or "num_batches" not in name else torch.tensor(5)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("depth", "last_block_channels"), [(18, None), (50, None), (50, 512)])
def test_haras_files(tmp_path: Path, depth: Any, last_block_channels: int | None, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    name = f"r3d{depth}_kinetics700"
    state = random_state(hara(depth))
    content = {"epoch": 200, "arch": f"resnet-{depth}", "state_dict": OrderedDict(state), "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "checkpoints" / PUBLISHED[name].file)
    backbone = ResNet3D(depth, stem="hara", last_block_channels=last_block_channels, weights=name)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    report = backbone.load_pretrained()
    (tmp_path / "checkpoints" / PUBLISHED[name].file).unlink()
    assert "not loaded: fc.weight, fc.bias (the classifier)" in report
    loaded = backbone.state_dict()
    assert torch.equal(loaded["stem.0.weight"], state["conv1.weight"])
    assert torch.equal(loaded["stem.1.running_var"], state["bn1.running_var"])
    assert torch.equal(loaded["layer2.0.conv2.0.weight"], state["layer2.0.conv2.weight"])
    assert torch.equal(loaded["layer3.1.conv1.1.bias"], state["layer3.1.bn1.bias"])
    assert torch.equal(loaded["layer4.0.downsample.0.weight"], state["layer4.0.downsample.0.weight"])
    kept = [key for key in loaded if not last_block_channels or not key.startswith("layer4.2.")]
    assert not any(torch.equal(loaded[key], before[key]) for key in kept)
    if last_block_channels:
        assert report.endswith(", layer4.2.* (never pretrained, stays random)")
        assert all(torch.equal(loaded[key], before[key]) for key in loaded if key.startswith("layer4.2."))
    else:
        assert len(loaded) == len(state) - 2


def test_haras_files_are_fetched_by_hand(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with torch.device("meta"):
        backbone = ResNet3D(50, stem="hara", weights="r3d50_kinetics700_moments")
    with pytest.raises(InputError) as error:
        backbone.fetch_pretrained()
    assert str(error.value).startswith(
        "weights r3d50_kinetics700_moments: r3d50_KM_200ep.pth is not here, and no program can fetch it; get it from "
        "https://drive.google.com/open?id=1xbYbZ7rpyjftI_KCk6YuL-XrfQDz7Yd4, the folder that the README of "
        f"https://github.com/kenshohara/3D-ResNets-PyTorch links, and put the file into {tmp_path}"
    )
    with torch.device("meta"):
        backbone = ResNet3D(18, weights="mc3_18_kinetics400")
    with pytest.raises(InputError, match=r"are for ResNet3D\(depth=18, width=64, convolutions=mc3, stem=tran\), not "):
        backbone.fetch_pretrained()


def test_normalization() -> None:
    clips = torch.rand(1, 3, 1, 2, 2)
    for stem, mean, std in (
        ("tran", (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
        ("hara", (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)),
    ):
        backbone = ResNet3D(10, width=4, stem=stem)  # type: ignore[arg-type]
        expected = (clips - torch.tensor(mean).view(3, 1, 1, 1)) / torch.tensor(std).view(3, 1, 1, 1)
        torch.testing.assert_close(backbone.normalize(clips), expected)
        flow = ResNet3D(10, width=4, stem=stem, in_channels=2)  # type: ignore[arg-type]
        torch.testing.assert_close(flow.normalize(clips[:, :2]), (clips[:, :2] - 0.5) / 0.226)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, "depth=20 is not a depth of ResNet3D; choose 10, 18, 34, 50 or 101"),
        ({"width": 0}, "width=0 must be at least 1; try 64"),
        ({"convolutions": "mc6"}, "convolutions=mc6 is none of 3d, mc2, mc3, mc4, mc5, rmc2, rmc3, rmc4, rmc5"),
        ({"stem": "7x7x7"}, "stem=7x7x7 is neither tran nor hara"),
        (
            {"depth": 50, "last_block_channels": 500},
            "last_block_channels=500 must be a positive multiple of 64; try 512",
        ),
        (
            {"last_block_channels": 256},
            "last_block_channels=256 is for a depth of 50 or more; depth=18 gives 512 channels as it is",
        ),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        ResNet3D(**arguments)
    assert str(error.value) == message
