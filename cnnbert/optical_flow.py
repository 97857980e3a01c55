"""Computes optical flow: how far what is seen moves from one frame to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.models import optical_flow as networks  # type: ignore[import-untyped]

from cnnbert.backbones.weights import TORCHVISION, Published, check_hash, fetched, unwrap
from cnnbert.errors import InputError
from cnnbert.machine import best_device

Method = Literal["raft_small", "raft_large", "farneback", "tvl1"]
METHODS: tuple[Method, ...] = get_args(Method)

RAFT = {
    # torchvision.models.optical_flow.Raft_Small_Weights.C_T_V2 and Raft_Large_Weights.C_T_SKHT_V2, its defaults
    "raft_small": Published("RAFT", TORCHVISION, "raft_small_C_T_V2-01064c6d.pth"),
    "raft_large": Published("RAFT", TORCHVISION, "raft_large_C_T_SKHT_V2-ff5fadd5.pth"),
}
"""The published weights of RAFT."""

RAFT_STRIDE, RAFT_LEAST = 8, 128
"""RAFT takes frames whose sides are multiples of the one and at least the other, in pixels; they are padded to that."""

FARNEBACK = {"pyr_scale": 0.5, "levels": 5, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}
"""The arguments of OpenCV's documentation, with two more levels for faster motion."""


def find_weights(method: Method, weights: str | None) -> Path | None:
    """Return the file of RAFT's weights, fetched first where need be; None for methods that have none.

    Args:
        method: How flow is computed.
        weights: A file with torchvision's names of tensors; None for the published one.

    Raises:
        InputError: The file does not fit, is damaged, or cannot be had, or the method has none.
    """
    if method not in RAFT:
        if weights is not None:
            raise InputError(f"weights={weights} are for raft_small and raft_large; {method} has none")
        return None
    if weights is None:
        otherwise = "give another file with --weights, or take --method farneback"
        path = fetched(method, RAFT[method], otherwise)
        check_hash(path, RAFT[method].sha256)
    else:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise InputError(f"weights={weights} is not a file; give torchvision's weights of {method}")
    _raft(method, path)
    return path


def check_packages(method: Method) -> None:
    """Raise `InputError` where OpenCV, or the part of it that a method needs, is not installed."""
    if method not in RAFT:
        _opencv(method)


def flows(frames: Iterable[np.ndarray], method: Method, weights: Path | None = None) -> Iterator[np.ndarray]:
    """Yield the optical flow from each frame to the next; for the last frame the flow before it again, and 0 for one
    that is alone.

    Args:
        frames: uint8 (H, W, 3) each, RGB, all of one size.
        method: How it is computed. RAFT (Teed & Deng 2020) by torchvision in 12 steps, on a GPU if there is one;
            Farnebäck (2003) and TV-L1 (Zach et al. 2007) by OpenCV.
        weights: RAFT's, as `find_weights` gives them.

    Yields:
        float32 (H, W, 2) for each frame: to the right and downwards, in pixels.

    Raises:
        InputError: As for `find_weights` and `check_packages`.
    """
    between = _raft_flow(method, weights) if weights is not None else _opencv_flow(method)
    prepared: Iterator[Any] = map(_tensor if weights is not None else _grey, frames)
    first = next(prepared, None)
    if first is None:
        return
    flow = np.zeros((*first.shape[-2:], 2), np.float32)
    for one, other in pairwise(_and_then(first, prepared)):
        flow = between(one, other)
        yield flow
    yield flow


def _and_then(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others


def _tensor(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]  # (1, 3, H, W)


def _grey(frame: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)


def _raft_flow(method: Method, weights: Path) -> Callable[[torch.Tensor, torch.Tensor], np.ndarray]:
    device = best_device()
    network = _raft(method, weights).to(device)

    @torch.inference_mode()
    def between(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
        height, width = one.shape[-2:]
        sides = [max(RAFT_LEAST, -(-side // RAFT_STRIDE) * RAFT_STRIDE) for side in (height, width)]
        padding = (0, sides[1] - width, 0, sides[0] - height)
        scaled = (F.pad(frame.to(device) / 127.5 - 1, padding, "replicate") for frame in (one, other))
        return network(*scaled)[-1][0, :, :height, :width].permute(1, 2, 0).float().cpu().numpy()

    return between


@cache
def _raft(method: Method, path: Path) -> torch.nn.Module:
    """Return RAFT with the weights of a file, in evaluation mode."""
    network = getattr(networks, method)(weights=None)
    state, ours = unwrap(path), network.state_dict()
    wrong = [name for name in ours if name not in state or state[name].shape != ours[name].shape]
    wrong += [name for name in state if name not in ours]
    if wrong:
        raise InputError(
            f"{path} does not hold torchvision's weights of {method}: {len(wrong)} tensors are missing, left over or "
            f"of another shape, such as {wrong[0]}"
        )
    network.load_state_dict(state)
    return network.eval()


def _opencv_flow(method: Method) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    cv2: Any = _opencv(method)
    cv2.setNumThreads(1)  # other processes have the other cores
    if method == "farneback":
        return lambda one, other: cv2.calcOpticalFlowFarneback(one, other, None, **FARNEBACK)
    tvl1 = cv2.optflow.DualTVL1OpticalFlow_create()
    return lambda one, other: tvl1.calc(one, other, None)


def _opencv(method: Method) -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise InputError(f"method={method} needs OpenCV ({error}); pip install 'cnnbert[flow]'") from error
    if method == "tvl1" and not hasattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create"):
        raise InputError(
            "method=tvl1 needs OpenCV with its contributed modules, and another OpenCV has taken their place: "
            "pip install --force-reinstall --no-deps opencv-contrib-python-headless"
        )
    return cv2
