"""R(2+1)D against torchvision's network, published sizes and names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.video import r2plus1d_18
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

from cnnbert.backbones import R2Plus1D
from cnnbert.errors import InputError

CHECKPOINT_KEYS = Path(__file__).parents[3] / "shared" / "checkpoint_keys"


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def torchvision_ig65m() -> VideoResNet:
    """Return torchvision's network with the middles and the eps of the IG-65M weights."""
    network = VideoResNet(BasicBlock, [Conv2Plus1D] * 4, [3, 4, 6, 3], R2Plus1dStem)  # type: ignore[list-item]
    for stage, planes, middle in (
        (network.layer2, 128, 288),
        (network.layer3, 256, 576),
        (network.layer4, 512, 1152),
    ):
        stage[0].conv2[0] = Conv2Plus1D(planes, planes, middle)  # type: ignore[union-attr, operator]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3
    return network


@pytest.mark.parametrize(("depth", "build"), [(18, r2plus1d_18), (34, torchvision_ig65m)])
def test_features_equal_torchvision_from_its_file(tmp_path: Path, depth, build) -> None:
    torch.manual_seed(0)
    reference: VideoResNet = build().eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.01, 1)  # small enough for eps to show
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    torch.save(reference.state_dict(), tmp_path / "torchvision.pth")
    backbone = R2Plus1D(depth, weights=str(tmp_path / "torchvision.pth"))
    assert backbone.load_pretrained().endswith("not loaded: fc.weight, fc.bias (the classifier)")
    (tmp_path / "torchvision.pth").unlink()
    reference, backbone = reference.double(), backbone.double().eval()
    x = torch.randn(1, 3, 9, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = x
        for part in (reference.stem, reference.layer1, reference.layer2, reference.layer3, reference.layer4):
            expected = part(expected)
        features = backbone.forward_features(x)
    # float64 keeps sixteen digits, of which the layers lose few; the largest feature sets the scale.
    assert (features - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_norm_settings() -> None:
    with torch.device("meta"):
        norms = {
            depth: [m for m in R2Plus1D(depth).modules() if isinstance(m, nn.BatchNorm3d)] for depth in (10, 18, 34)
        }
    assert {m.eps for m in norms[34]} == {1e-3}
    assert {m.eps for m in norms[18] + norms[10]} == {1e-5}
    assert {m.momentum for m in norms[34] + norms[18] + norms[10]} == {0.1}
    with torch.device("meta"):
        ltm = [m for m in R2Plus1D(34, batchnorm_momentum=0.9).modules() if isinstance(m, nn.BatchNorm3d)]
    assert {(m.eps, m.momentum) for m in ltm} == {(1e-3, 0.9)} and len(ltm) == len(norms[34])


def test_normalization() -> None:
    clips = torch.rand(1, 3, 2, 4, 4, dtype=torch.float64)
    backbone = R2Plus1D(depth=10, width=4).double()
    for channel, (mean, std) in enumerate(zip((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989), strict=True)):
        expected = (clips[:, channel] - mean) / std
        # The mean and the standard deviation were stored in float32.
        torch.testing.assert_close(backbone.normalize(clips)[:, channel], expected, rtol=0, atol=1e-6)
    flow = R2Plus1D(depth=10, width=4, in_channels=2).double()
    torch.testing.assert_close(flow.normalize(clips[:, :2]), (clips[:, :2] - 0.5) / 0.226, rtol=0, atol=1e-6)


def test_names_and_shapes() -> None:
    with torch.device("meta"):
        found = shapes(R2Plus1D())
    assert len(found) == 414
    assert found["stem.0.weight"] == [45, 3, 1, 7, 7]
    assert found["stem.3.weight"] == [64, 45, 3, 1, 1]
    assert found["layer1.0.conv1.0.0.weight"] == [144, 64, 1, 3, 3]
    assert found["layer2.0.conv1.0.0.weight"] == [230, 64, 1, 3, 3]
    assert found["layer2.0.conv2.0.0.weight"] == [288, 128, 1, 3, 3]
    assert found["layer3.0.conv1.0.3.weight"] == [256, 460, 3, 1, 1]
    assert found["layer3.0.conv2.0.1.running_var"] == [576]
    assert found["layer3.5.conv2.1.bias"] == [256]
    assert found["layer4.0.conv1.0.0.weight"] == [921, 256, 1, 3, 3]
    assert found["layer4.2.conv2.0.0.weight"] == [1152, 512, 1, 3, 3]
    assert found["layer4.0.downsample.0.weight"] == [512, 256, 1, 1, 1]
    assert not any(name.startswith(("layer1.0.downsample", "fc")) for name in found)


@pytest.mark.parametrize(
    ("depth", "file"),
    [
        (34, "ig65m_r2plus1d34_clip32_359.json"),
        (34, "ig65m_kinetics_r2plus1d34_400.json"),
        (18, "torchvision_r2plus1d_18_400.json"),
    ],
)
def test_published_checkpoints_fit(depth, file: str) -> None:
    if not CHECKPOINT_KEYS.is_dir():
        pytest.skip("the tables of published checkpoints are not here")
    published = json.loads((CHECKPOINT_KEYS / file).read_text())
    with torch.device("meta"):
        found = shapes(R2Plus1D(depth))
    assert found == {name: shape for name, shape in published.items() if not name.startswith("fc.")}


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in R2Plus1D(34).parameters()) == 63_491_975
        # torchvision's published count less its classifier of 400 classes.
        assert sum(p.numel() for p in R2Plus1D(18).parameters()) == 31_505_325 - 400 * 513


def test_initialization() -> None:
    torch.manual_seed(0)
    backbone = R2Plus1D(34, width=16)
    weights = dict(backbone.named_parameters())
    kaiming, default = weights["layer4.1.conv2.0.0.weight"], weights["layer4.0.conv2.0.0.weight"]
    assert kaiming.std().item() == pytest.approx((2 / (kaiming.shape[0] * 9)) ** 0.5, rel=0.02)
    assert default.abs().max().item() == pytest.approx((default.shape[1] * 9) ** -0.5, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 50}, "depth=50 is not a depth of R2Plus1D; choose 10, 18 or 34"),
        ({"width": 0}, "width=0 must be at least 1; try 64"),
        ({"in_channels": 0}, "in_channels=0 must be at least 1; try 3 for RGB, 2 for optical flow"),
        ({"batchnorm_momentum": 0.0}, "batchnorm_momentum=0.0 must be in (0, 1]; try 0.1"),
        ({"batchnorm_momentum": 1.5}, "batchnorm_momentum=1.5 must be in (0, 1]; try 0.1"),
    ],
)
def test_wrong_numbers(arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        R2Plus1D(**arguments)
    assert str(error.value) == message
