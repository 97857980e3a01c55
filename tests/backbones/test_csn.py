"""CSN's published sizes and names, and its numbers against torchvision's residual network of such convolutions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicStem, Bottleneck, VideoResNet

from cnnbert.backbones import CSN
from cnnbert.backbones.weights import PUBLISHED, Published
from cnnbert.errors import InputError


class Alone(nn.Conv3d):
    """A convolution of each channel alone, as torchvision's VideoResNet makes them."""

    def __init__(self, in_planes: int, out_planes: int, midplanes: int | None = None, stride: int = 1) -> None:
        super().__init__(in_planes, out_planes, 3, stride, padding=1, groups=in_planes, bias=False)

    @staticmethod
    def get_downsample_stride(stride: int) -> tuple[int, int, int]:
        return stride, stride, stride


class Interacting(nn.Sequential):
    """The same after a convolution of 1x1x1 and a norm."""

    def __init__(self, in_planes: int, out_planes: int, midplanes: int | None = None, stride: int = 1) -> None:
        first = nn.Conv3d(in_planes, out_planes, 1, bias=False)
        super().__init__(first, nn.BatchNorm3d(out_planes), Alone(out_planes, out_planes, None, stride))

    get_downsample_stride = Alone.get_downsample_stride


def vmz(convolution: type, blocks: list[int]) -> VideoResNet:
    """Return the network of the authors' code, made of torchvision's."""
    network = VideoResNet(Bottleneck, [convolution] * 4, blocks, BasicStem)  # type: ignore[list-item]
    network.stem.append(nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)))  # type: ignore[operator]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3
    return network


@pytest.mark.parametrize(("bottleneck", "convolution"), [("ir", Alone), ("ip", Interacting)])
@pytest.mark.parametrize(("depth", "blocks"), [(26, [2, 2, 2, 2]), (50, [3, 4, 6, 3])])
def test_features_equal_those_of_the_authors_layout(
    tmp_path: Path, bottleneck: Any, convolution: type, depth: Any, blocks: list[int]
) -> None:
    torch.manual_seed(0)
    reference = vmz(convolution, blocks).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.01, 1)  # small enough for eps to show
            nn.init.uniform_(module.weight, 0.2, 0.5)
            nn.init.normal_(module.bias, std=0.1)
    torch.save(reference.state_dict(), tmp_path / "vmz.pth")
    backbone = CSN(depth, bottleneck, weights=str(tmp_path / "vmz.pth"))
    assert backbone.load_pretrained().endswith("not loaded: fc.weight, fc.bias (the classifier)")
    reference, backbone = reference.double(), backbone.double().eval()
    x = torch.randn(1, 3, 9, 64, 33, dtype=torch.float64)
    with torch.no_grad():
        expected = x
        for part in (reference.stem, reference.layer1, reference.layer2, reference.layer3, reference.layer4):
            expected = part(expected)
        features = backbone.forward_features(x)
    assert features.shape == (1, 2048, 2, 2, 2)
    # float64 keeps sixteen digits, of which the layers lose few; the largest feature sets the scale.
    assert (features - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize(
    ("bottleneck", "depth", "parameters", "millions"),
    [
        ("ir", 26, 8_569_552, 8.5),
        ("ir", 50, 13_131_152, 13.1),
        ("ir", 101, 22_213_776, 22.1),
        ("ir", 152, 29_703_568, 29.6),
        ("ip", 26, 9_269_712, 9.2),
        ("ip", 50, 14_396_176, 14.3),
        ("ip", 101, 24_601_616, 24.5),
        ("ip", 152, 33_016_592, 32.8),
    ],
)
def test_parameters(bottleneck: Any, depth: Any, parameters: int, millions: float) -> None:
    """Counts as open-mmlab/mmaction2 has them for ir 50, ir 152 and ip 152; millions as the paper, without norms."""
    with torch.device("meta"):
        backbone = CSN(depth, bottleneck)
    count = sum(parameter.numel() for parameter in backbone.parameters()) + 2049 * 400
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm3d)]
    assert count == parameters
    assert round((count - sum(p.numel() for norm in norms for p in norm.parameters())) / 1e6, 1) == millions
    assert {norm.eps for norm in norms} == {1e-3} and {norm.momentum for norm in norms} == {0.1}


@pytest.mark.parametrize(("bottleneck", "more"), [("ir", 0), ("ip", 1)])
@pytest.mark.parametrize("depth", [26, 50, 101, 152])
def test_depth_counts_the_layers(depth: Any, bottleneck: Any, more: int) -> None:
    with torch.device("meta"):
        backbone = CSN(depth, bottleneck)
    names = [name for name, m in backbone.named_modules() if isinstance(m, nn.Conv3d) and "downsample" not in name]
    num_blocks = (depth - 2) // 3
    assert len(names) + 1 == depth + more * num_blocks  # and a classifier
    alone = [m for m in backbone.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    assert len(alone) == num_blocks and all(m.groups == m.in_channels for m in alone)


def mmaction2(depth: int, bottleneck: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of ResNet3dCSN in open-mmlab/mmaction2, written down from its code."""

    def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        parts = ("weight", "bias", "running_mean", "running_var")
        norm: dict[str, tuple[int, ...]] = {f"{name}.bn.{part}": shape[:1] for part in parts}
        return {f"{name}.conv.weight": shape, **norm, f"{name}.bn.num_batches_tracked": ()}

    blocks = {50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}[depth]
    shapes, channels = layer("conv1", 64, 3, 3, 7, 7), 64
    for stage, (planes, num_blocks) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), 1):
        for index in range(num_blocks):
            block = f"layer{stage}.{index}"
            shapes |= layer(f"{block}.conv1", planes, channels, 1, 1, 1)
            if bottleneck == "ip":
                shapes |= layer(f"{block}.conv2.0", planes, planes, 1, 1, 1)
            shapes |= layer(f"{block}.conv2.{int(bottleneck == 'ip')}", planes, 1, 3, 3, 3)
            shapes |= layer(f"{block}.conv3", 4 * planes, planes, 1, 1, 1)
            if index == 0:
                shapes |= layer(f"{block}.downsample", 4 * planes, channels, 1, 1, 1)
            channels = 4 * planes
    return shapes


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.tensor(5) if name.endswith("tracked") else torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("name", "depth", "bottleneck", "whole"),
    [
        ("ircsn_ig65m", 152, "ir", False),
        ("ipcsn_ig65m", 152, "ip", False),
        ("ipcsn_kinetics400", 152, "ip", True),
        ("ircsn50_ig65m_kinetics400", 50, "ir", True),
    ],
)
def test_files_of_mmaction2(tmp_path: Path, monkeypatch, name: str, depth: Any, bottleneck: Any, whole: bool) -> None:
    """The files of IG-65M hold the trunk alone, those of Kinetics a recogniser with its classifier."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    state = fill(mmaction2(depth, bottleneck))
    content: Any = state
    if whole:
        head = {"cls_head.fc_cls.weight": torch.rand(400, 2048), "cls_head.fc_cls.bias": torch.rand(400)}
        content = {"meta": {}, "state_dict": {f"backbone.{key}": value for key, value in state.items()} | head}
    path = tmp_path / "checkpoints" / "file.pth"
    torch.save(content, path)
    entry = PUBLISHED[name]
    file = entry.file.replace(entry.sha256, hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    path = path.rename(path.with_name(file))
    monkeypatch.setitem(PUBLISHED, name, Published(entry.network, entry.place, file))
    backbone = CSN(depth, bottleneck, weights=name)
    report = backbone.load_pretrained()
    path.unlink()
    told = "; not loaded: cls_head.fc_cls.weight, cls_head.fc_cls.bias (the rest of the model)" if whole else ""
    assert report == f"weights {name}: loaded {len(state)} tensors into CSN{told}"
    loaded = backbone.state_dict()
    assert len(loaded) == len(state)
    assert torch.equal(loaded["stem.0.weight"], state["conv1.conv.weight"])
    assert torch.equal(loaded["layer2.1.conv3.1.running_var"], state["layer2.1.conv3.bn.running_var"])
    assert torch.equal(loaded["layer4.0.downsample.0.weight"], state["layer4.0.downsample.conv.weight"])
    middle = "layer3.2.conv2"
    if bottleneck == "ir":
        assert torch.equal(loaded[f"{middle}.0.weight"], state[f"{middle}.0.conv.weight"])
        assert torch.equal(loaded[f"{middle}.1.bias"], state[f"{middle}.0.bn.bias"])
    else:
        assert torch.equal(loaded[f"{middle}.0.0.weight"], state[f"{middle}.0.conv.weight"])
        assert torch.equal(loaded[f"{middle}.0.1.bias"], state[f"{middle}.0.bn.bias"])
        assert torch.equal(loaded[f"{middle}.0.2.weight"], state[f"{middle}.1.conv.weight"])
        assert torch.equal(loaded[f"{middle}.1.bias"], state[f"{middle}.1.bn.bias"])


def test_a_trunk_for_the_other_bottleneck_is_refused(tmp_path: Path) -> None:
    torch.save(fill(mmaction2(50, "ir")), tmp_path / "file.pth")
    backbone = CSN(50, "ip", weights=str(tmp_path / "file.pth"))
    network = r"CSN\(depth=50, bottleneck=ip, width=64\)"
    with pytest.raises(InputError, match=f"does not fit {network}; tensors missing: "):
        backbone.load_pretrained()


def test_reduced_last_block(tmp_path: Path) -> None:
    state = fill(mmaction2(50, "ir"))
    torch.save(state, tmp_path / "file.pth")
    backbone = CSN(50, last_block_channels=512, weights=str(tmp_path / "file.pth"))
    before = {name: value.clone() for name, value in backbone.layer4[2].state_dict().items()}
    assert backbone.load_pretrained().endswith("; not loaded: layer4.2.* (never pretrained, stays random)")
    after = backbone.layer4[2].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(backbone.state_dict()["layer4.1.conv1.0.weight"], state["layer4.1.conv1.conv.weight"])
    assert backbone.out_channels == 512 and before["conv3.weight"].shape == (512, 256, 1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18}, "depth=18 is not a depth of CSN; choose 26, 50, 101 or 152"),
        ({"bottleneck": "id"}, "bottleneck=id is neither ir nor ip"),
        ({"width": 0}, "width=0 must be at least 1; try 64"),
        ({"last_block_channels": 0}, "last_block_channels=0 must be a positive multiple of 64; try 64"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        CSN(**arguments)
    assert str(error.value) == message
