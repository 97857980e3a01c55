"""C3D against what is published of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnbert.backbones import C3D
from cnnbert.errors import InputError

CONVOLUTIONS = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")


def published(width: int, in_channels: int = 3) -> dict[str, Tensor]:
    """Return a file in the layout of DavideA/c3d-pytorch."""
    channels = [in_channels, *(width * factor for factor in (1, 2, 4, 4, 8, 8, 8, 8))]
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, before, after in zip(CONVOLUTIONS, channels, channels[1:], strict=False):
        state[f"{name}.weight"] = torch.randn(after, before, 3, 3, 3, generator=generator) / (13 * before) ** 0.5
        state[f"{name}.bias"] = torch.rand(after, generator=generator) / 10
    for name, before, after in (("fc6", 128, 64), ("fc7", 64, 64)):
        state[f"{name}.weight"] = (
            torch.randn(after * width, before * width, generator=generator) / (before * width) ** 0.5
        )
        state[f"{name}.bias"] = torch.rand(after * width, generator=generator) / 10
    return state | {"fc8.weight": torch.zeros(487, 64 * width), "fc8.bias": torch.zeros(487)}


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return fc7's features of normalised clips of 16 frames of 112x112, as the published network computes them."""
    for name in CONVOLUTIONS:
        x = F.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
        if name == "conv1":
            x = F.max_pool3d(x, (1, 2, 2), (1, 2, 2))
        elif name in ("conv2", "conv3b", "conv4b"):
            x = F.max_pool3d(x, 2, 2)
    x = F.max_pool3d(x, 2, 2, padding=(0, 1, 1)).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
    return x


def in_mmaction2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same in the layout of open-mmlab/mmaction2's C3D, which has no fc8."""
    names = {"conv1": "conv1a.conv", "conv2": "conv2a.conv"} | {name: f"{name}.conv" for name in CONVOLUTIONS[2:]}
    parts = ((*name.split("."), value) for name, value in state.items() if not name.startswith("fc8"))
    return {f"{names.get(layer, layer)}.{part}": value for layer, part, value in parts}


@pytest.mark.parametrize("layout", [dict, in_mmaction2])
def test_c3d_computes_what_the_published_network_does(tmp_path: Path, layout: type) -> None:
    state = published(width=4)
    path = tmp_path / "c3d.pickle"
    torch.save(layout(state), path)
    backbone = C3D(width=4, weights=str(path)).eval()
    assert "loaded 20 tensors into C3D" in backbone.load_pretrained()
    clips = torch.rand(1, 3, 16, 112, 112, dtype=torch.float64)
    with torch.no_grad():
        backbone.double()
        features = backbone(clips)
        expected = reference({name: value.double() for name, value in state.items()}, backbone.normalize(clips))
    torch.testing.assert_close(features[:, :, 0, 0, 0], expected, rtol=1e-6, atol=1e-6)
    half = C3D(fully_connected=False, width=4, weights=str(path))
    assert "loaded 16 tensors into C3D" in half.load_pretrained()


def test_published_sizes() -> None:
    """78.4 M parameters with the 101 classes of UCF101."""
    with torch.device("meta"):
        backbone = C3D()
        assert backbone(torch.empty(1, 3, 48, 112, 112)).shape == (1, 4096, 3, 1, 1)
    assert sum(parameter.numel() for parameter in backbone.parameters()) + 4097 * 101 == 78_409_573


def test_larger_frames_are_seen_in_parts() -> None:
    torch.manual_seed(0)
    backbone = C3D(width=1).eval()
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 20, 130, 260)).shape == (1, 64, 2, 2, 3)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="width=0 must be at least 1; try 64"):
        C3D(width=0)
    with pytest.raises(InputError, match="frames of 100x112 are too small for C3D; it needs at least 112x112 pixels"):
        C3D(width=1).check_clip(16, 100, 112)
