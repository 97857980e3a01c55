"""Where pretrained weights come from, how their keys map, how they are checked."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnnbert.errors import InputError
from cnnbert.tensorfile import read_tensors

if TYPE_CHECKING:
    from cnnbert.backbones.base import Backbone

State = Mapping[str, Tensor]

R2PLUS1D_34 = "R2Plus1D(depth=34, width=64)"
R2PLUS1D_18 = "R2Plus1D(depth=18, width=64)"
RESNEXT3D_101 = "ResNeXt3D(depth=101, width=128, cardinality=32)"
IG65M = "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0"
TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class Published:
    """A published file of weights.

    Attributes:
        network: The network that it is for, as `architecture` writes it.
        place: The address of the folder that it lies in.
        file: Its name.
        by_hand: How people get it where no program can fetch it, as part of a sentence.
    """

    network: str
    place: str
    file: str
    by_hand: str = ""

    @property
    def sha256(self) -> str:
        """The first digits of the file's SHA-256, with which its name ends by torch.hub's custom; "" where none are."""
        digits = re.search(r"-([0-9a-f]{8,})\.pth$", self.file)
        return digits[1] if digits else ""


PUBLISHED = {
    "ig65m_clip32_359": Published(R2PLUS1D_34, IG65M, "r2plus1d_34_clip32_ig65m_from_scratch-449a7af9.pth"),
    "ig65m_clip8_487": Published(R2PLUS1D_34, IG65M, "r2plus1d_34_clip8_ig65m_from_scratch-9bae36ae.pth"),
    "ig65m_kinetics_clip32_400": Published(
        R2PLUS1D_34, IG65M, "r2plus1d_34_clip32_ft_kinetics_from_ig65m-ade133f1.pth"
    ),
    "ig65m_kinetics_clip8_400": Published(R2PLUS1D_34, IG65M, "r2plus1d_34_clip8_ft_kinetics_from_ig65m-0aa0550b.pth"),
    # torchvision.models.video.R2Plus1D_18_Weights.KINETICS400_V1
    "r2plus1d_18_kinetics400": Published(R2PLUS1D_18, TORCHVISION, "r2plus1d_18-91a641e6.pth"),
    "kinetics400_64f": Published(
        RESNEXT3D_101,
        "https://drive.google.com/drive/folders/1zvl89AgFAApbH0At-gMuZSeQB_LpNP-M",
        "resnext-101-64f-kinetics.pth",
        by_hand=(
            "the folder of old pretrained models that the README of https://github.com/kenshohara/3D-ResNets-PyTorch "
            "links (its issues 35 and 194 are about this file)"
        ),
    ),
}
"""The weights that have a name."""

WRAPPERS = ("state_dict", "model")
"""Where the tensors lie in files that hold more than them: the first for Hara, LTM and Lightning."""

PARALLEL = "module."
"""What every name begins with where torch's DataParallel held the network."""

OURS = "backbone."
"""What the trunk's names begin with in a checkpoint of this package, beside the head's."""

CLASSIFIER = "fc."
"""What the names of the published networks' own classifiers begin with."""

COUNTER = ".num_batches_tracked"
"""How the names of BatchNorm's counters end, which files of old torch versions lack and nothing here reads."""


def fetch(backbone: Backbone) -> Path:
    """Return the file of a backbone's weights, after fetching it if it is a published one that is not here yet.

    Raises:
        InputError: There is no such file or name, it is for another network, or it cannot be fetched.
    """
    weights = backbone.weights
    assert weights is not None
    published = _published(backbone, weights)
    if published is None:
        return Path(weights).expanduser()
    folder = Path(torch.hub.get_dir(), "checkpoints")
    path = folder / published.file
    if path.is_file():
        return path
    ways_out = f"put the file into {folder}, or start from random weights with --model.backbone.weights null"
    if published.by_hand:
        raise InputError(
            f"weights {weights}: {published.file} is not here, and no program can fetch it; get it from "
            f"{published.place}, {published.by_hand}, and {ways_out}"
        )
    url = f"{published.place}/{published.file}"
    print(f"fetching {url} into {folder}", file=sys.stderr, flush=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), published.sha256)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash is another
        raise InputError(
            f"weights {weights}: {published.file} cannot be fetched from {url} ({error}); {ways_out}"
        ) from error
    return path


def load(backbone: Backbone) -> str:
    """Load a backbone's weights and return what was done, in a sentence; all is checked before anything is changed.

    Raises:
        InputError: As for `fetch`; or the file is damaged, or does not fit the backbone.
    """
    path = fetch(backbone)
    published = PUBLISHED.get(str(backbone.weights))
    if published is not None and published.sha256:
        _check_hash(path, published.sha256)
    state, notes = _match(unwrap(path), backbone, path)
    backbone.load_state_dict(state)
    return "; ".join([f"weights {backbone.weights}: {notes[0]}", *notes[1:]])


def unwrap(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by their names, without what other code wraps around them.

    Raises:
        InputError: There is no such file, it is damaged, or holds something else.
    """
    state = read_tensors(path)
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no tensors by name, neither directly nor as {' or '.join(WRAPPERS)}")
    if all(name.startswith(PARALLEL) for name in state):
        return {name.removeprefix(PARALLEL): value for name, value in state.items()}
    return dict(state)


def architecture(state: State) -> str:
    """Return the network that tensors of these names belong to, as Python would make it; "" for any other."""
    num_blocks = len({tuple(name.split(".")[:2]) for name in state if re.match(r"layer[1-4]\.\d+\.", name)})
    if "stem.3.weight" in state:
        return f"R2Plus1D(depth={2 + 2 * num_blocks}, width={len(state['stem.3.weight'])})"
    grouped, last = state.get("layer1.0.conv2.weight"), state.get("layer1.0.conv3.weight")
    if grouped is not None and last is not None and grouped.ndim == 5 and len(last) == 2 * len(grouped):
        width, group_width = grouped.shape[:2]
        return f"ResNeXt3D(depth={2 + 3 * num_blocks}, width={width}, cardinality={width // group_width})"
    return ""


def _published(backbone: Backbone, weights: str) -> Published | None:
    """Return the published weights of this name; None for a file."""
    network = architecture(backbone.state_dict()) or type(backbone).__name__
    published = PUBLISHED.get(weights)
    if published is not None and published.network != network:
        raise InputError(f"weights {weights} are for {published.network}, not for {network}")
    if published is None and not Path(weights).expanduser().is_file():
        kind = network.partition("(")[0]
        fitting: dict[str, list[str]] = {}
        for name, other in PUBLISHED.items():
            if other.network.startswith(f"{kind}("):
                fitting.setdefault(other.network, []).append(name)
        told = [f"{', '.join(names)} for {other}" for other, names in fitting.items()]
        raise InputError(
            f"weights {weights} are neither a file nor a published name; "
            + (f"there are {'; '.join(told)}" if told else f"none are published for {kind}, so give a path")
        )
    return published


def _check_hash(path: Path, expected: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    found = digest.hexdigest()
    if not found.startswith(expected):
        raise InputError(
            f"{path} is not the published file, or is damaged: its SHA-256 begins with {found[:8]} instead of "
            f"{expected}; delete it, so that it is fetched anew, or replace it"
        )


def _match(state: State, backbone: Backbone, path: Path) -> tuple[State, list[str]]:
    """Return all tensors of a backbone, those of a file wherever it has them, and what there is to say about it."""
    ours = backbone.state_dict()
    trunk, left_out = _part(state, ours)
    needed = list(ours)
    notes = []

    block = backbone.unpretrained
    if block and not _fits(_below(block, trunk), _below(block, ours)):
        left_out.append(f"{block}* (never pretrained, stays random)")
        trunk = {name: value for name, value in trunk.items() if not name.startswith(block)}
        needed = [name for name in ours if not name.startswith(block)]

    counters = [name for name in needed if name.endswith(COUNTER) and name not in trunk]
    if counters:
        notes.append(f"the file lacks {len(counters)} counters *{COUNTER}, which stay as they are")

    stem = backbone.input_weight
    if stem in trunk and _differs_in_channels_alone(trunk[stem], ours[stem]):
        given, wanted = trunk[stem].shape[1], ours[stem].shape[1]
        trunk[stem] = _adapt_channels(trunk[stem], wanted)
        notes.append(f"{stem} adapted from {given} to {wanted} channels: for each their mean, times {given}/{wanted}")

    problems = {
        "missing": [name for name in needed if name not in trunk and name not in counters],
        "left over": [name for name in trunk if name not in ours],
        "of another shape": [
            f"{name} {tuple(trunk[name].shape)} instead of {tuple(ours[name].shape)}"
            for name in ours
            if name in trunk and trunk[name].shape != ours[name].shape
        ],
    }
    told = [f"tensors {word}: {len(names)} ({_some(names)})" for word, names in problems.items() if names]
    if told:
        network = architecture(ours)
        raise InputError(
            f"{path} does not fit {network or type(backbone).__name__}; {'; '.join(told)}{_hint(trunk, network)}"
        )
    if left_out:
        notes.insert(0, f"not loaded: {', '.join(left_out)}")
    return {**ours, **trunk}, [f"loaded {len(trunk)} tensors into {type(backbone).__name__}", *notes]


def _part(state: State, ours: State) -> tuple[dict[str, Tensor], list[str]]:
    """Return the trunk's tensors in a file, and in words what else it has."""
    if any(name.startswith(OURS) for name in state):
        rest, what = [name for name in state if not name.startswith(OURS)], "the rest of the model"
    else:
        rest, what = [name for name in state if name.startswith(CLASSIFIER) and name not in ours], "the classifier"
    trunk = {name.removeprefix(OURS): value for name, value in state.items() if name not in rest}
    return trunk, [f"{_some(rest)} ({what})"] if rest else []


def _below(prefix: str, state: State) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def _fits(theirs: State, ours: State) -> bool:
    """Return whether the tensors have the same names and shapes, counters aside."""
    shapes = ({name: value.shape for name, value in x.items() if not name.endswith(COUNTER)} for x in (theirs, ours))
    return next(shapes) == next(shapes)


def _differs_in_channels_alone(theirs: Tensor, ours: Tensor) -> bool:
    same = [theirs.ndim, *theirs.shape[:1], *theirs.shape[2:]] == [ours.ndim, *ours.shape[:1], *ours.shape[2:]]
    return same and theirs.shape != ours.shape


def _adapt_channels(weight: Tensor, num_channels: int) -> Tensor:
    """Return the weight (out, num_channels, ...) that answers to a grey clip as `weight` (out, in, ...) does.

    Source: models/r2plus1d/resnet.py of artest08/LateTemporalModeling3DCNN, for optical flow.
    """
    repeats = [1, num_channels] + [1] * (weight.ndim - 2)
    return weight.mean(1, keepdim=True).repeat(repeats) * (weight.shape[1] / num_channels)


def _hint(trunk: State, network: str) -> str:
    """Return what a file that does not fit may be instead, as the end of a sentence."""
    theirs = architecture(trunk)
    if any(name.startswith("features.") for name in trunk):
        return "; it looks like a checkpoint of LTM's code, which `cnnbert import-checkpoint` turns into one of ours"
    return f"; it looks like the weights of {theirs}" if theirs and theirs != network else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
