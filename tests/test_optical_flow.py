"""Optical flow gives motion that is known, and says what it needs where it cannot be had."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from moving import texture
from torchvision.models.optical_flow import raft_small  # type: ignore[import-untyped]

from cnnbert.errors import InputError
from cnnbert.optical_flow import RAFT, find_weights, flows

INSIDE = np.s_[20:-20, 20:-20]
"""Away from the borders, where something else comes in."""


@pytest.fixture(scope="session")
def raft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the published form, with random weights."""
    path = tmp_path_factory.mktemp("raft") / "raft_small.pth"
    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("method", ["farneback", "tvl1"])
@pytest.mark.parametrize(("right", "down"), [(3, -2), (-5, 0), (0, 4), (0, 0)])
def test_known_motion(method: Any, right: int, down: int) -> None:
    """Within 0.15 pixels on average, and half a pixel nearly everywhere, of a texture that moves by whole pixels."""
    frames = [np.roll(texture(96, 120), (n * down, n * right), (0, 1)) for n in range(3)]
    found = list(flows(frames, method))
    assert [flow.shape for flow in found] == [(96, 120, 2)] * 3 and found[0].dtype == np.float32
    for flow in found[:2]:
        error = np.abs(flow[INSIDE] - [right, down])
        assert error.mean() < 0.15 and np.quantile(error, 0.95) < 0.5
    np.testing.assert_array_equal(found[1], found[2])  # the last frame has none of its own


def test_of_one_frame_and_of_none() -> None:
    (only,) = flows([texture(20, 30)], "farneback")
    assert only.shape == (20, 30, 2) and not only.any()
    assert list(flows([], "farneback")) == []


@pytest.mark.parametrize("size", [(128, 136), (67, 101)])
def test_raft_takes_any_size(raft: Path, size: tuple[int, int]) -> None:
    frames = [np.roll(texture(*size), n, 1) for n in range(2)]
    weights = find_weights("raft_small", str(raft))
    found = list(flows(frames, "raft_small", weights))
    assert [flow.shape for flow in found] == [(*size, 2)] * 2
    assert np.isfinite(found[0]).all() and found[0].std() > 0


def test_raft_is_torchvisions(raft: Path) -> None:
    """Frames of a size that needs no padding give what torchvision's network gives of them."""
    frames = [np.roll(texture(128, 128), n, 1) for n in range(2)]
    network = raft_small(weights=None).eval()
    network.load_state_dict(torch.load(raft))
    one, other = (torch.from_numpy(frame).permute(2, 0, 1)[None] / 255 * 2 - 1 for frame in frames)
    with torch.no_grad():
        expected = network(one, other)[-1][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(next(flows(frames, "raft_small", raft)), expected, atol=1e-4)


def test_published_weights_are_said_where_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raft: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refused(url: str, path: str, *_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    with pytest.raises(InputError) as error:
        find_weights("raft_large", None)
    assert str(error.value) == (
        "weights raft_large: raft_large_C_T_SKHT_V2-ff5fadd5.pth cannot be fetched from "
        "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth (no network); put the file into "
        f"{tmp_path}/checkpoints, or give another file with --weights, or take --method farneback"
    )
    (tmp_path / "checkpoints" / RAFT["raft_small"].file).write_bytes(raft.read_bytes())
    with pytest.raises(InputError, match="is not the published file, or is damaged: its SHA-256 begins with"):
        find_weights("raft_small", None)


def test_the_published_weights_are_torchvisions() -> None:
    from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights

    for name, weights in {"raft_small": Raft_Small_Weights, "raft_large": Raft_Large_Weights}.items():
        assert f"{RAFT[name].place}/{RAFT[name].file}" == weights.DEFAULT.url  # type: ignore[index]


def test_other_weights_are_refused(raft: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not hold torchvision's weights of raft_large: \d+ tensors are missing"):
        find_weights("raft_large", str(raft))
    with pytest.raises(InputError, match=r"weights=nowhere is not a file; give torchvision's weights of raft_small"):
        find_weights("raft_small", "nowhere")
    with pytest.raises(InputError, match="are for raft_small and raft_large; farneback has none"):
        find_weights("farneback", str(raft))


def test_without_opencv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(InputError, match="pip install --force-reinstall --no-deps opencv-contrib-python-headless"):
        next(flows([texture(20, 30)], "tvl1"))
    monkeypatch.delitem(sys.modules, "cv2")
    load = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"method=farneback needs OpenCV .*; pip install 'cnnbert\[flow\]'"):
        next(flows([texture(20, 30)], "farneback"))
