"""TorchvisionVideo against torchvision's own networks, and their published weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from exported import check_file, small_model
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models, video
from torchvision.models.video import MViT, mvit

from cnnbert.backbones import TorchvisionVideo
from cnnbert.backbones.torchvision_video import STRIDES, Network, _positions
from cnnbert.backbones.weights import Published
from cnnbert.errors import InputError
from cnnbert.heads import BERTHead
from cnnbert.layers.conv import Conv3d

LAST = {"fc": "layer4", "classifier": "features", "head": "norm"}
CLASSIFIER = {
    "r3d_18": "fc.weight, fc.bias",
    "r2plus1d_18": "fc.weight, fc.bias",
    "mc3_18": "fc.weight, fc.bias",
    "s3d": "classifier.1.weight, classifier.1.bias",
    "swin3d_t": "head.weight, head.bias",
    "swin3d_s": "head.weight, head.bias",
    "swin3d_b": "head.weight, head.bias",
    "mvit_v1_b": "head.1.weight, head.1.bias",
    "mvit_v2_s": "head.1.weight, head.1.bias",
}
with_slow_ones = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("swin3d_s", "swin3d_b", "r3d_18") else [])
        for name in get_args(Network)
        if not name.startswith("mvit")
    ],
)


def torchvision_features(network: nn.Module, clips: Tensor) -> Tensor:
    """Return what a whole network of torchvision has where ours ends, as (B, C, T', H', W') or tokens."""
    kept: list[Tensor] = []
    last = next(layer for classifier, layer in LAST.items() if hasattr(network, classifier))
    hook = network.get_submodule(last).register_forward_hook(lambda _, __, output: kept.append(output))
    with torch.no_grad():
        network(clips)
    hook.remove()
    return kept[0]


def disturb(network: nn.Module) -> None:
    """Let no norm, bias or table be what every network starts with."""
    generator = torch.Generator().manual_seed(5)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim < 3:
            low, high = (0.5, 1.5) if name.endswith(("running_var", "norm.weight")) else (-0.1, 0.1)
            value += torch.rand(value.shape, generator=generator) * (high - low) + low


@with_slow_ones
def test_features_equal_torchvision_from_its_file(tmp_path: Path, name: Any) -> None:
    torch.manual_seed(0)
    reference = get_model(name).eval()
    disturb(reference)
    torch.save(reference.state_dict(), tmp_path / "torchvision.pth")
    backbone = TorchvisionVideo(name, weights=str(tmp_path / "torchvision.pth"))
    report = backbone.load_pretrained()
    (tmp_path / "torchvision.pth").unlink()
    tensors = len(reference.state_dict()) - 2
    assert f"loaded {tensors} tensors into TorchvisionVideo; not loaded: {CLASSIFIER[name]} (the class" in report
    reference, backbone = reference.double(), backbone.double().eval()
    if name == "s3d":
        reference.avgpool = nn.AdaptiveAvgPool3d(1)  # what it has is for larger clips
    clips = torch.randn(1, 3, 8, 64, 32, dtype=torch.float64)
    expected = torchvision_features(reference, clips)
    if name.startswith("swin"):
        expected = expected.permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        features = backbone.forward_features(clips)
    assert features.shape[1] == backbone.out_channels
    scale = max(1, expected.abs().max().item())
    assert (features - expected).abs().max() <= 1e-10 * scale  # float64 keeps sixteen digits


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_mvit_equals_torchvision_with_tables_for_small_clips(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's takes only clips of the size that its tables are for."""
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        sizes = {"spatial_size": (64, 64), "temporal_size": 4}
        patch.setattr(mvit, "MViT", lambda **arguments: MViT(**{**arguments, **sizes}))
        reference = get_model(name).eval().double()
    disturb(reference)
    with torch.device("meta"):
        backbone = TorchvisionVideo(name).eval()
    backbone.network = reference
    clips = torch.randn(2, 3, 4, 64, 64, dtype=torch.float64)
    tokens = torchvision_features(reference, clips)
    with torch.no_grad():
        features = backbone.forward_features(clips)
    assert tokens.shape == (2, 1 + 2 * 2 * 2, 768) and features.shape == (2, 768, 2, 2, 2)
    torch.testing.assert_close(features, tokens[:, 1:].transpose(1, 2).unflatten(2, (2, 2, 2)), rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_mvit_equals_torchvision_in_full_size(tmp_path: Path, name: Any) -> None:
    torch.manual_seed(0)
    reference = get_model(name).eval()
    disturb(reference)
    torch.save(reference.state_dict(), tmp_path / "torchvision.pth")
    backbone = TorchvisionVideo(name, weights=str(tmp_path / "torchvision.pth")).eval()
    assert f"not loaded: {CLASSIFIER[name]} (the classifier)" in backbone.load_pretrained()
    clips = torch.randn(1, 3, 16, 224, 224, dtype=torch.float64)
    tokens = torchvision_features(reference.double(), clips)
    with torch.no_grad():
        features = backbone.double().forward_features(clips)
    assert features.shape == (1, 768, 8, 7, 7)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens[:, 1:], rtol=0, atol=1e-6)


def check_normalization(backbone: TorchvisionVideo) -> None:
    transforms = get_model_weights(backbone.name).DEFAULT.transforms()  # type: ignore[attr-defined]
    clips = torch.rand(1, 3, 1, 4, 4)
    expected = (clips - torch.tensor(transforms.mean).view(3, 1, 1, 1)) / torch.tensor(transforms.std).view(3, 1, 1, 1)
    torch.testing.assert_close(backbone.normalize(clips), expected)


@pytest.mark.parametrize("name", ["swin3d_t", "mvit_v1_b", "mvit_v2_s"])
def test_transformers_take_clips_of_any_size(name: Any) -> None:
    torch.manual_seed(0)
    backbone = TorchvisionVideo(name).eval()
    assert (backbone.least_frames, backbone.least_pixels) == (2, 32)
    check_normalization(backbone)
    with pytest.raises(InputError, match="clip_length=1 is too short for TorchvisionVideo; it needs at least 2 frames"):
        backbone(torch.rand(1, 3, 1, 32, 32))
    with pytest.raises(InputError, match=r"frames of 32x31 are too small .* at least 32x32 pixels"):
        backbone(torch.rand(1, 3, 2, 32, 31))
    for frames, height, width in ((2, 32, 32), (5, 33, 96), (18, 40, 32)):
        with torch.no_grad():
            features = backbone(torch.rand(1, 3, frames, height, width))
        cells = -(-height // 32), -(-width // 32)
        assert features.shape == (1, 768, backbone.num_steps(frames), *cells)
        assert features.isfinite().all()


@pytest.mark.parametrize("name", ["mvit_v1_b", "swin3d_t"])
def test_every_parameter_of_transformers_receives_a_gradient(name: Any) -> None:
    torch.manual_seed(0)
    backbone = TorchvisionVideo(name).eval()  # else a block may be left out by chance
    features = backbone(torch.rand(1, 3, 4, 64, 64))
    (features * torch.randn_like(features)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.slow
def test_an_exported_transformer_takes_any_batch_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small_model(TorchvisionVideo("swin3d_t"), BERTHead, 4, 64)
    check_file(model, tmp_path, tolerance=1e-4)


def test_interpolated_positions() -> None:
    """Tables of their own size are left alone; halfway between two entries is their mean; ramps stay ramps."""
    encoding = nn.Module()
    encoding.spatial_size = (2, 2)
    encoding.class_pos = torch.tensor([9.0])
    encoding.temporal_pos = torch.tensor([[0.0], [10.0]])
    encoding.spatial_pos = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert _positions(encoding, (2, 2, 2)).flatten().tolist() == [9, 1, 2, 3, 4, 11, 12, 13, 14]
    assert _positions(encoding, (1, 2, 2)).flatten().tolist() == [9, 6, 7, 8, 9]
    assert _positions(encoding, (1, 1, 1)).flatten().tolist() == [9, 7.5]
    longer = _positions(encoding, (4, 1, 2))[1:].view(4, 2)
    torch.testing.assert_close(longer[:, 0] - longer[0, 0], torch.tensor([0, 2.5, 7.5, 10]))


def test_all_video_networks_of_torchvision_are_there() -> None:
    assert set(list_models(module=video)) == set(get_args(Network)) == set(STRIDES)


@pytest.mark.parametrize("name", get_args(Network))
def test_what_torchvision_says_of_its_weights(name: Any) -> None:
    """Sizes, addresses and hashes."""
    enum: Any = get_model_weights(name)
    default = enum.DEFAULT
    with torch.device("meta"):
        backbone = TorchvisionVideo(name)
        whole = get_model(name)
    num_classifier = sum(parameter.numel() for parameter in whole.get_submodule(_classifier(name)).parameters())
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert count + num_classifier == default.meta["num_params"]
    assert set(backbone.published) == set(enum.__members__) - {"DEFAULT"}
    for key, entry in backbone.published.items():
        assert f"{entry.place}/{entry.file}" == enum[key].url and len(entry.sha256) == 8
    assert all(type(m) is Conv3d for m in backbone.modules() if isinstance(m, nn.Conv3d))


def _classifier(name: str) -> str:
    return CLASSIFIER[name].partition(".")[0]


def test_s3d_of_flow_from_torchvisions_file(tmp_path: Path) -> None:
    """Two channels: other numbers to normalise by, and adapted weights."""
    check_normalization(TorchvisionVideo("s3d"))
    reference = get_model("s3d")
    torch.save(reference.state_dict(), tmp_path / "s3d.pth")
    backbone = TorchvisionVideo("s3d", in_channels=2, weights=str(tmp_path / "s3d.pth"))
    told = "network.features.0.0.0.weight adapted from 3 to 2 channels: for each their mean, times 3/2"
    assert backbone.load_pretrained().endswith(told)
    weight = reference.features[0][0][0].weight  # type: ignore[index]
    assert torch.equal(
        backbone.network.features[0][0][0].weight, weight.mean(1, keepdim=True).repeat(1, 2, 1, 1, 1) * 1.5
    )
    clips = torch.rand(1, 2, 8, 32, 32)
    torch.testing.assert_close(backbone.normalize(clips), (clips - 0.5) / 0.226)


def test_s3d_keeps_an_odd_last_step() -> None:
    """Torchvision's own drops what does not fill its last pooling."""
    torch.manual_seed(0)
    backbone = TorchvisionVideo("s3d").eval()
    clips = torch.rand(1, 3, 24, 32, 96)
    with torch.no_grad():
        features = backbone(clips)
    assert features.shape == (1, 1024, 3, 1, 3) and backbone.num_steps(24) == 3


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_published_names(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = TorchvisionVideo("s3d", weights="KINETICS400_V1")
    wrong = hub / "s3d-d76dad2f.pth"
    state = get_model("s3d").state_dict()
    torch.save(state, wrong)
    with pytest.raises(InputError, match=f"{wrong} is not the published file, or is damaged: .* instead of d76dad2f"):
        backbone.load_pretrained()
    digits = hashlib.sha256(wrong.read_bytes()).hexdigest()[:8]
    wrong.rename(hub / f"s3d-{digits}.pth")
    table: Mapping = {"KINETICS400_V1": Published(backbone.architecture, "https://nowhere.test", f"s3d-{digits}.pth")}
    monkeypatch.setattr(TorchvisionVideo, "published", property(lambda _: table))
    assert "weights KINETICS400_V1: loaded" in backbone.load_pretrained()
    assert torch.equal(backbone.state_dict()["network.features.15.branch0.1.bias"], state["features.15.branch0.1.bias"])


def test_names_that_are_not_published(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        backbones = [TorchvisionVideo("swin3d_b", weights="IMAGENET1K_V1"), TorchvisionVideo(weights="KINETICS400_V1")]
    with pytest.raises(InputError) as error:
        backbones[0].fetch_pretrained()
    assert str(error.value) == (
        "weights IMAGENET1K_V1 are neither a file nor a published name; there are KINETICS400_V1, "
        "KINETICS400_IMAGENET22K_V1 for TorchvisionVideo(network=swin3d_b)"
    )

    def fail(*_: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError) as error:
        backbones[1].fetch_pretrained()
    assert str(error.value).startswith(
        "weights KINETICS400_V1: swin3d_t-7615ae03.pth cannot be fetched from "
        f"https://download.pytorch.org/models/swin3d_t-7615ae03.pth (no route); put the file into {hub}, or start from "
    )


def test_an_unknown_network() -> None:
    with pytest.raises(InputError, match="network=r3d_34 is no video network of torchvision; choose r3d_18, mc3_18, "):
        TorchvisionVideo("r3d_34")  # type: ignore[arg-type]
