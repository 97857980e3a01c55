"""ResNeXt3D's published sizes and names, and its numbers against a plain formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnbert.backbones import ResNeXt3D
from cnnbert.errors import InputError

CHECKPOINT_KEYS = Path(__file__).parents[3] / "shared" / "checkpoint_keys"


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def published(file: str) -> dict[str, list[int]]:
    if not CHECKPOINT_KEYS.is_dir():
        pytest.skip("the tables of published checkpoints are not here")
    return json.loads((CHECKPOINT_KEYS / file).read_text())


def test_names_and_shapes() -> None:
    with torch.device("meta"):
        found = shapes(ResNeXt3D())
    assert len(found) == 624
    assert found["conv1.weight"] == [64, 3, 7, 7, 7]
    assert found["bn1.running_mean"] == [64]
    assert found["layer1.0.conv1.weight"] == [128, 64, 1, 1, 1]
    assert found["layer1.0.downsample.0.weight"] == [256, 64, 1, 1, 1]
    assert found["layer2.0.conv2.weight"] == [256, 8, 3, 3, 3]
    assert found["layer3.22.conv3.weight"] == [1024, 512, 1, 1, 1]
    assert found["layer4.0.downsample.1.weight"] == [2048]
    assert found["layer4.2.bn2.bias"] == [1024]
    assert "layer4.1.downsample.0.weight" not in found


def test_names_and_shapes_of_the_reduced_last_block() -> None:
    with torch.device("meta"):
        whole, reduced = shapes(ResNeXt3D()), shapes(ResNeXt3D(last_block_channels=512))
    block = {name: shape for name, shape in reduced.items() if name.startswith("layer4.2.")}
    assert block["layer4.2.conv1.weight"] == [256, 2048, 1, 1, 1]
    assert block["layer4.2.conv2.weight"] == [256, 8, 3, 3, 3]
    assert block["layer4.2.conv3.weight"] == [512, 256, 1, 1, 1]
    assert block["layer4.2.downsample.0.weight"] == [512, 2048, 1, 1, 1]
    assert block["layer4.2.downsample.1.weight"] == [512]
    others = {name: shape for name, shape in reduced.items() if name not in block}
    assert others == {name: shape for name, shape in whole.items() if not name.startswith("layer4.2.")}


def test_published_checkpoint_fits() -> None:
    table = published("hara_resnext101_64f_400_module.json")
    with torch.device("meta"):
        found = shapes(ResNeXt3D())
    assert found == {
        name.removeprefix("module."): shape for name, shape in table.items() if not name.startswith("module.fc.")
    }


def test_reduced_last_block_fits_the_layout_of_ltm() -> None:
    table = published("artest08_resnext101_bert_frmb.json")
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    expected = {}
    for name, shape in table.items():
        root, _, rest = name.partition(".")
        if root == "features":
            index, _, rest = rest.partition(".")
            expected[f"{parts[int(index)]}.{rest}"] = shape
    with torch.device("meta"):
        assert shapes(ResNeXt3D(last_block_channels=512)) == expected


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNeXt3D().parameters()) == 47_521_216
        assert sum(p.numel() for p in ResNeXt3D(last_block_channels=512).parameters()) == 44_196_288


@pytest.mark.parametrize(("depth", "layers"), [(14, 14), (50, 50), (101, 101), (152, 152)])
def test_depth_counts_the_layers(depth, layers: int) -> None:
    with torch.device("meta"):
        convolutions = [n for n, m in ResNeXt3D(depth).named_modules() if isinstance(m, nn.Conv3d)]
    assert len([name for name in convolutions if "downsample" not in name]) + 1 == layers  # and a classifier


def test_normalization_subtracts_the_mean_of_kinetics_on_the_scale_of_255() -> None:
    backbone = ResNeXt3D(depth=14, width=4, cardinality=2).double()
    clips = torch.randint(0, 256, (1, 3, 2, 4, 4), dtype=torch.uint8)
    expected = clips.double() - torch.tensor([114.7748, 107.7354, 99.4750]).view(3, 1, 1, 1)
    # The mean and the standard deviation were stored in float32.
    torch.testing.assert_close(backbone.normalize(clips), expected.double(), rtol=0, atol=1e-4)
    flow = ResNeXt3D(depth=14, width=4, cardinality=2, in_channels=2).double()
    torch.testing.assert_close(flow.normalize(clips[:, :2]), clips[:, :2].double() - 127.5, rtol=0, atol=1e-4)


def test_initialization() -> None:
    torch.manual_seed(0)
    weights = dict(ResNeXt3D(depth=14, width=32, last_block_channels=128).named_parameters())
    trunk, reduced = weights["layer3.0.conv1.weight"], weights["layer4.0.conv1.weight"]
    assert trunk.std().item() == pytest.approx((2 / trunk.shape[0]) ** 0.5, rel=0.02)  # fan out
    assert reduced.std().item() == pytest.approx((2 / reduced.shape[1]) ** 0.5, rel=0.02)  # fan in


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 34}, "depth=34 is not a depth of ResNeXt3D; choose 14, 50, 101 or 152"),
        ({"cardinality": 0}, "cardinality=0 must be at least 1; try 32"),
        ({"width": 100}, "width=100 must be a positive multiple of cardinality=32; try 96"),
        ({"width": 0}, "width=0 must be a positive multiple of cardinality=32; try 32"),
        ({"last_block_channels": 500}, "last_block_channels=500 must be a positive multiple of 64; try 512"),
        ({"in_channels": -1}, "in_channels=-1 must be at least 1; try 3 for RGB, 2 for optical flow"),
        ({"last_block_channels": 0}, "last_block_channels=0 must be a positive multiple of 64; try 64"),
    ],
)
def test_wrong_numbers(arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        ResNeXt3D(**arguments)
    assert str(error.value) == message
