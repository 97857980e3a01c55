"""FrameCNN against torchvision's own networks on each frame, and their published weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from cnnbert.backbones import FrameCNN
from cnnbert.backbones.frame_cnn import NETWORKS
from cnnbert.backbones.weights import Published
from cnnbert.errors import InputError
from cnnbert.layers.conv import Conv2d
from cnnbert.machine import lay_out_channels_last

FAMILIES = [
    *("alexnet", "densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18"),
    *("regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1"),
]
"""A small network of each."""
SLOW_FAMILIES = ["convnext_tiny", "googlenet", "inception_v3", "swin_t", "swin_v2_t", "vgg11_bn", "resnext50_32x4d"]
with_families = pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAMILIES)]
)


def torchvision_features(network: nn.Module, frames: Tensor) -> Tensor:
    """Return what a whole network of torchvision pools, or where no layer pools, what it classifies."""
    kept: list[Tensor] = []
    parts = dict(network.named_children())
    last = parts["avgpool"] if "avgpool" in parts else list(parts.values())[-1]
    hook = last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        network(frames)
    hook.remove()
    return kept[0]


def disturb(network: nn.Module) -> None:
    """Let no norm, bias or table be what every network starts with."""
    generator = torch.Generator().manual_seed(5)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim < 3:
            low, high = (0.5, 1.5) if name.endswith(("running_var", "norm.weight")) else (-0.1, 0.1)
            value += torch.rand(value.shape, generator=generator) * (high - low) + low


@with_families
def test_each_frames_features_equal_torchvision_from_its_file(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    reference = get_model(name, **options).eval()
    disturb(reference)
    torch.save(reference.state_dict(), tmp_path / "torchvision.pth")
    backbone = FrameCNN(name, weights=str(tmp_path / "torchvision.pth"))
    report = backbone.load_pretrained()
    assert f"loaded {len(backbone.state_dict())} tensors into FrameCNN; not loaded: " in report
    assert report.endswith("(the classifier)")
    reference, backbone = reference.double(), backbone.double().eval()
    pixels = max(64, backbone.least_pixels)
    clips = torch.randn(2, 3, 2, pixels, pixels + 32, dtype=torch.float64)
    with torch.no_grad():
        features = backbone.forward_features(clips)
    assert features.shape[:3] == (2, backbone.out_channels, 2)
    for clip, clip_features in zip(clips, features, strict=True):
        for time in range(2):
            expected = torchvision_features(reference, clip[:, time][None])[0]
            found = clip_features[:, time]
            found = found.mean((1, 2)) if expected.ndim == 1 else found
            scale = max(1, expected.abs().max().item())
            assert (found - expected).abs().max() <= 1e-10 * scale  # float64 keeps sixteen digits


def test_all_image_networks_of_torchvision_but_those_of_one_frame_size_are_there() -> None:
    others = {name for name in list_models(module=torchvision.models) if name not in NETWORKS}
    assert others == {"maxvit_t", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"}


@pytest.mark.parametrize("name", [*FAMILIES, "convnext_base", "googlenet", "inception_v3", "swin_v2_b", "vgg16"])
def test_sizes_and_published_names(name: str) -> None:
    """A frame of the least size gives one cell, or two where strides round up."""
    with torch.device("meta"):
        backbone = FrameCNN(name).eval()
        least = backbone.least_pixels
        cells = backbone(torch.empty(2, 3, 3, least, least)).shape
        assert cells in [(2, backbone.out_channels, 3, size, size) for size in (1, 2)]
        _, _, _, rows, columns = backbone(torch.empty(1, 3, 1, 224, 192)).shape
    stride = backbone.spatial_stride
    assert 224 // stride - 2 <= rows <= 224 // stride and 192 // stride - 2 <= columns <= 192 // stride
    enum: Any = get_model_weights(name)
    assert set(backbone.published) == set(enum.__members__) - {"DEFAULT"}
    for key, entry in backbone.published.items():
        assert f"{entry.place}/{entry.file}" == enum[key].url and len(entry.sha256) >= 8
        assert entry.network == backbone.architecture == f"FrameCNN(network={name})"
    assert all(type(m) is Conv2d for m in backbone.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("name", "weights"),
    [("resnet18", None), ("squeezenet1_1", "a.ckpt"), ("vgg16", "IMAGENET1K_FEATURES")],
)
def test_frames_are_normalised_as_the_weights_want_it(name: str, weights: str | None) -> None:
    backbone = FrameCNN(name, weights=weights)
    enum: Any = get_model_weights(name)
    transforms = enum.__members__.get(weights, enum.DEFAULT).transforms()
    clips = torch.rand(1, 3, 1, 4, 4)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (transforms.mean, transforms.std))
    torch.testing.assert_close(backbone.normalize(clips), (clips - mean) / std)


def test_googlenet_takes_what_its_transform_input_gives() -> None:
    """Its weights are for frames in [-1, 1], which torchvision makes of normalised ones inside the network."""
    torch.manual_seed(0)
    reference = get_model("googlenet", init_weights=False, transform_input=True).eval().double()
    backbone = FrameCNN("googlenet").eval().double()
    backbone.network.load_state_dict(
        {name: value for name, value in reference.state_dict().items() if name in backbone.network.state_dict()}
    )
    clips = torch.rand(1, 3, 1, 64, 64, dtype=torch.float64)
    transforms = get_model_weights("googlenet").DEFAULT.transforms()  # type: ignore[attr-defined]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transforms.mean, transforms.std))
    expected = torchvision_features(reference, (clips[:, :, 0] - mean) / std)
    with torch.no_grad():
        torch.testing.assert_close(backbone(clips)[:, :, 0], expected, rtol=1e-5, atol=1e-6)  # mean is float32 there


def test_weights_for_other_channels(tmp_path: Path) -> None:
    reference = get_model("resnet18")
    torch.save(reference.state_dict(), tmp_path / "resnet18.pth")
    backbone = FrameCNN("resnet18", in_channels=2, weights=str(tmp_path / "resnet18.pth"))
    told = "network.conv1.weight adapted from 3 to 2 channels: for each their mean, times 3/2"
    assert backbone.load_pretrained().endswith(told)
    expected = reference.conv1.weight.mean(1, keepdim=True).repeat(1, 2, 1, 1) * 1.5
    assert torch.equal(backbone.network.conv1.weight, expected)  # type: ignore[union-attr, arg-type]
    clips = torch.rand(1, 2, 1, 4, 4)
    torch.testing.assert_close(backbone.normalize(clips), (clips - 0.5) / 0.226)


def test_densenets_files_have_older_names(tmp_path: Path) -> None:
    state = get_model("densenet121").state_dict()
    older = {
        re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", name): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    torch.save(older, tmp_path / "densenet121.pth")
    backbone = FrameCNN("densenet121", weights=str(tmp_path / "densenet121.pth"))
    assert "not loaded: classifier.weight, classifier.bias (the classifier)" in backbone.load_pretrained()
    name = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(backbone.state_dict()[f"network.{name}"], state[name])


def test_published_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a name is taken where it lies, if its hash is right."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    state = get_model("shufflenet_v2_x0_5").state_dict()
    torch.save(state, path)
    backbone = FrameCNN("shufflenet_v2_x0_5", weights="IMAGENET1K_V1")
    with pytest.raises(InputError, match=f"{path} is not the published file, or is damaged: .* instead of f707e7126e"):
        backbone.load_pretrained()
    file = f"shufflenet-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    path.rename(path.with_name(file))
    table: Mapping = {"IMAGENET1K_V1": Published(backbone.architecture, "https://nowhere.test", file)}
    monkeypatch.setattr(FrameCNN, "published", property(lambda _: table))
    assert "weights IMAGENET1K_V1: loaded" in backbone.load_pretrained()
    assert torch.equal(backbone.state_dict()["network.conv5.0.weight"], state["conv5.0.weight"])


def test_names_that_are_not_published() -> None:
    backbone = FrameCNN("shufflenet_v2_x0_5", weights="KINETICS400_V1")
    with pytest.raises(InputError) as error:
        backbone.fetch_pretrained()
    assert str(error.value) == (
        "weights KINETICS400_V1 are neither a file nor a published name; there are IMAGENET1K_V1 for "
        "FrameCNN(network=shufflenet_v2_x0_5)"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "network=resnet19 is no image network of torchvision; choose alexnet, convnext_base, "),
        ("r3d_18", "network=r3d_18 is no image network of torchvision; choose alexnet, "),
        ("vit_b_16", "network=vit_b_16 takes frames of one size and has no grid of features for others; choose alex"),
        ("maxvit_t", "network=maxvit_t takes frames of one size"),
    ],
)
def test_networks_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FrameCNN(name)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_frames_reach_the_network_in_the_layout_of_its_weights(layout: torch.memory_format) -> None:
    backbone = FrameCNN("shufflenet_v2_x0_5").eval()
    clips = torch.rand(2, 3, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(clips)
        if layout == torch.channels_last_3d:
            lay_out_channels_last(backbone)
        seen = []
        backbone.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        torch.testing.assert_close(backbone(clips), expected, rtol=1e-4, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == (layout == torch.channels_last_3d)
