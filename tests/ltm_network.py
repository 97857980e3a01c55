"""LTM's networks from their formulas, in plain torch operations, as the yardstick for ours.

Source: "Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition" (Kalfaoglu et al. 2020) and
its code, artest08/LateTemporalModeling3DCNN. Everything is driven by a checkpoint in that code's layout, of any width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Network:
    """A network of LTM's code, full size by default.

    Attributes:
        trunk: The backbone.
        head: What follows it.
        reduction: The feature reduction block: in place of the last block (frmb), appended (frab), or none.
        frames: Frames of a clip.
        width: Channels of the trunk's first stage (inside its blocks, for resnext).
        groups: Cardinality of resnext.
        reduced: Channels after the feature reduction.
        hidden: Channels of the hidden layer, or of the LSTM.
        heads: Attention heads.
        classes: Classes.
    """

    trunk: Literal["r2plus1d", "resnext"]
    head: Literal["tgap", "bert", "concat", "lstm", "non_local"]
    reduction: Literal["frmb", "frab", None] = None
    frames: int = 64
    width: int = 128
    groups: int = 32
    reduced: int = 512
    hidden: int = 1550
    heads: int = 8
    classes: int = 51

    @property
    def steps(self) -> int:
        return self.frames // (8 if self.trunk == "r2plus1d" else 16)

    @property
    def channels(self) -> int:
        """Channels that the head gets."""
        if self.reduction:
            return self.reduced
        return 8 * self.width if self.trunk == "r2plus1d" else 16 * self.width


def shapes(network: Network) -> Shapes:
    """Return the names and shapes of the network's checkpoint."""
    found = _r2plus1d(network) if network.trunk == "r2plus1d" else _resnext(network)
    channels, classes, hidden = network.channels, network.classes, network.hidden
    if network.reduction == "frab":
        found |= _bottleneck("mapper", 16 * network.width, network.reduced // 2, 32, shortcut=True)
    if network.head == "bert":
        found |= _bert(channels, network.steps)
    if network.head == "non_local":
        for name in ("g", "theta", "phi", "W_z.0"):
            found |= {f"NLB.{name}.weight": (channels, channels, 1, 1, 1), f"NLB.{name}.bias": (channels,)}
        found |= _norm("NLB.W_z.1", channels)
    if network.head == "lstm":
        for layer, size in enumerate((channels, hidden)):
            found |= {
                f"lstm.weight_ih_l{layer}": (4 * hidden, size),
                f"lstm.weight_hh_l{layer}": (4 * hidden, hidden),
                f"lstm.bias_ih_l{layer}": (4 * hidden,),
                f"lstm.bias_hh_l{layer}": (4 * hidden,),
            }
        channels = hidden
    if network.head in ("concat", "non_local"):
        found |= {"linear.weight": (hidden, channels * network.steps), "linear.bias": (hidden,)}
        channels = hidden
    return found | {"fc_action.weight": (classes, channels), "fc_action.bias": (classes,)}


def _norm(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def _bottleneck(name: str, inputs: int, planes: int, groups: int, shortcut: bool) -> Shapes:
    found = {f"{name}.conv1.weight": (planes, inputs, 1, 1, 1)} | _norm(f"{name}.bn1", planes)
    found |= {f"{name}.conv2.weight": (planes, planes // groups, 3, 3, 3)} | _norm(f"{name}.bn2", planes)
    found |= {f"{name}.conv3.weight": (2 * planes, planes, 1, 1, 1)} | _norm(f"{name}.bn3", 2 * planes)
    if shortcut:
        found |= {f"{name}.downsample.0.weight": (2 * planes, inputs, 1, 1, 1)}
        found |= _norm(f"{name}.downsample.1", 2 * planes)
    return found


def _resnext(network: Network) -> Shapes:
    stem = network.width // 2
    found: Shapes = {"features.0.weight": (stem, 3, 7, 7, 7)} | _norm("features.1", stem)
    inputs = stem
    for stage, blocks in enumerate((3, 4, 23, 3)):
        planes = network.width * 2**stage
        for block in range(blocks):
            name = f"features.{4 + stage}.{block}"
            if network.reduction == "frmb" and name == "features.7.2":
                found |= _bottleneck(name, inputs, network.reduced // 2, 32, shortcut=True)
            else:
                found |= _bottleneck(name, inputs, planes, network.groups, shortcut=block == 0)
            inputs = 2 * planes
    return found


def _r2plus1d(network: Network) -> Shapes:
    width = network.width
    middle = max(1, round(45 * width / 64))
    found: Shapes = {"features.0.0.weight": (middle, 3, 1, 7, 7)} | _norm("features.0.1", middle)
    found |= {"features.0.3.weight": (width, middle, 3, 1, 1)} | _norm("features.0.4", width)
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        outputs = width * 2**stage
        for block in range(blocks):
            name = f"features.{1 + stage}.{block}"
            for conv in (1, 2):
                planes = 27 * inputs * outputs // (9 * inputs + 3 * outputs)
                found |= {f"{name}.conv{conv}.0.0.weight": (planes, inputs, 1, 3, 3)}
                found |= _norm(f"{name}.conv{conv}.0.1", planes)
                found |= {f"{name}.conv{conv}.0.3.weight": (outputs, planes, 3, 1, 1)}
                found |= _norm(f"{name}.conv{conv}.1", outputs)
                if conv == 1 and stage and not block:
                    found |= {f"{name}.downsample.0.weight": (outputs, inputs, 1, 1, 1)}
                    found |= _norm(f"{name}.downsample.1", outputs)
                inputs = outputs
    return found


def _bert(channels: int, steps: int) -> Shapes:
    block = "bert.transformer_blocks.0"
    found: Shapes = {"bert.clsToken": (1, 1, channels), "bert.embedding.learnedPosition.pe": (1, 1 + steps, channels)}
    linear = {f"attention.linear_layers.{i}": (channels, channels) for i in range(3)}
    linear |= {"attention.output_linear": (channels, channels)}
    linear |= {"feed_forward.w_1": (4 * channels, channels), "feed_forward.w_2": (channels, 4 * channels)}
    for name, shape in linear.items():
        found |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    for name in ("input_sublayer", "output_sublayer"):
        found |= {f"{block}.{name}.norm.a_2": (channels,), f"{block}.{name}.norm.b_2": (channels,)}
    return found


def random_state(network: Network, seed: int = 0) -> dict[str, Tensor]:
    """Return a checkpoint's tensors at random, scaled so that signals neither vanish nor blow up."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(network).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1000)
        elif name.endswith("running_var"):
            state[name] = 0.5 + noise.abs()
        elif name.endswith(("norm.a_2",)) or (name.endswith("weight") and len(shape) == 1):
            state[name] = 0.8 + 0.1 * noise
        elif len(shape) > 1 and name.endswith("weight"):
            state[name] = noise * (2 / math.prod(shape[1:])) ** 0.5
        else:
            state[name] = 0.3 * noise
    return state


def logits(network: Network, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the logits (B, K) of clips x (B, 3, T, H, W), normalised as LTM does, in evaluation."""
    w = {name: value.to(x.dtype) if value.is_floating_point() else value for name, value in state.items()}
    x = _r2plus1d_features(network, w, x) if network.trunk == "r2plus1d" else _resnext_features(network, w, x)
    if network.reduction == "frab":
        x = _residual(w, "mapper", x, 1, 32)
    if network.head == "non_local":
        x = _non_local(w, x)
    x = x.mean((3, 4))  # (B, C, T)
    if network.head == "tgap":
        x = x.mean(2)
    elif network.head == "bert":
        x = bert(w, x.transpose(1, 2), network.heads)
    elif network.head == "lstm":
        x = _lstm(w, x.transpose(1, 2))
    elif network.head in ("concat", "non_local"):
        x = _linear(w, "linear", x.reshape(len(x), -1))
    return _linear(w, "fc_action", x)


def _r2plus1d_features(network: Network, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run torchvision's network with moabitcoin/ig65m-pytorch's two changes: three middles, and BatchNorm's eps."""
    with torch.device("meta"):
        trunk = VideoResNet(BasicBlock, [Conv2Plus1D] * 4, [3, 4, 6, 3], R2Plus1dStem)
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-3
    names = dict(enumerate(("stem", "layer1", "layer2", "layer3", "layer4")))
    parts = {i: {} for i in names}
    for name, value in w.items():
        if name.startswith("features."):
            _, number, rest = name.split(".", 2)
            parts[int(number)][rest] = value
    for number, name in names.items():
        x = _load(trunk.get_submodule(name), parts[number]).to(x.dtype).eval()(x)
    return x


def _load(module: torch.nn.Module, state: Mapping[str, Tensor]) -> torch.nn.Module:
    """Give a module these tensors, of whatever width they are."""
    for name, old in [*module.named_parameters(), *module.named_buffers()]:
        owner, _, last = name.rpartition(".")
        new = state[name]
        assert new.ndim == old.ndim
        part = module.get_submodule(owner)
        setattr(part, last, torch.nn.Parameter(new) if isinstance(old, torch.nn.Parameter) else new)
    assert set(state) == set(module.state_dict())
    return module


def _batch_norm(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    shape = (1, -1, 1, 1, 1)
    mean, var = w[f"{name}.running_mean"].view(shape), w[f"{name}.running_var"].view(shape)
    return (x - mean) / torch.sqrt(var + 1e-5) * w[f"{name}.weight"].view(shape) + w[f"{name}.bias"].view(shape)


def _resnext_features(network: Network, w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    x = F.conv3d(x, w["features.0.weight"], stride=(1, 2, 2), padding=3)
    x = F.max_pool3d(_batch_norm(w, "features.1", x).clamp(min=0), 3, stride=2, padding=1)
    for stage, blocks in enumerate((3, 4, 23, 3)):
        for block in range(blocks):
            name = f"features.{4 + stage}.{block}"
            reduction = network.reduction == "frmb" and name == "features.7.2"
            stride = 2 if stage and not block else 1
            x = _residual(w, name, x, stride, 32 if reduction else network.groups)
    return x


def _residual(w: Mapping[str, Tensor], name: str, x: Tensor, stride: int, groups: int) -> Tensor:
    y = _batch_norm(w, f"{name}.bn1", F.conv3d(x, w[f"{name}.conv1.weight"])).clamp(min=0)
    y = F.conv3d(y, w[f"{name}.conv2.weight"], stride=stride, padding=1, groups=groups)
    y = _batch_norm(w, f"{name}.bn2", y).clamp(min=0)
    y = _batch_norm(w, f"{name}.bn3", F.conv3d(y, w[f"{name}.conv3.weight"]))
    if f"{name}.downsample.0.weight" in w:
        x = _batch_norm(w, f"{name}.downsample.1", F.conv3d(x, w[f"{name}.downsample.0.weight"], stride=stride))
    return (x + y).clamp(min=0)


def _linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def bert(w: Mapping[str, Tensor], x: Tensor, heads: int, variant: str = "") -> Tensor:
    """Return the class token (B, C) of time steps x (B, T, C); a variant is what LTM's BERT is not."""
    block = "bert.transformer_blocks.0"
    width = x.shape[-1]

    def normalize(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        squares = (centred**2).sum(-1, keepdim=True)
        centred = (
            centred / torch.sqrt(squares / width + 1e-6)
            if variant == "torch's LayerNorm"
            else centred / (torch.sqrt(squares / (width - 1)) + 1e-6)
        )
        return w[f"{block}.{name}.norm.a_2"] * centred + w[f"{block}.{name}.norm.b_2"]

    def attend(x: Tensor) -> Tensor:
        q, k, v = (_linear(w, f"{block}.attention.linear_layers.{i}", x) for i in range(3))
        size = width // heads
        outputs = []
        for part in (slice(i, i + size) for i in range(0, width, size)):
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
            if variant == "class token masked":
                scores[..., 0] = -1e9
            outputs.append(scores.softmax(-1) @ v[..., part])
        return _linear(w, f"{block}.attention.output_linear", torch.cat(outputs, -1))

    def feed_forward(x: Tensor) -> Tensor:
        x = _linear(w, f"{block}.feed_forward.w_1", x)
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return _linear(w, f"{block}.feed_forward.w_2", x)

    x = torch.cat([w["bert.clsToken"].expand(len(x), 1, width), x], 1)
    if variant != "no positions":
        x = x + w["bert.embedding.learnedPosition.pe"][:, : x.shape[1]]
    for function, name in ((attend, "input_sublayer"), (feed_forward, "output_sublayer")):
        x = normalize(x + function(x), name) if variant == "post-norm" else x + function(normalize(x, name))
    return x[:, 0]


def _lstm(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the last output (B, hidden) of two layers over time steps x (B, T, C)."""
    for layer in range(2):
        size = w[f"lstm.weight_hh_l{layer}"].shape[1]
        h = c = x.new_zeros(len(x), size)
        outputs = []
        for step in x.unbind(1):
            gates = step @ w[f"lstm.weight_ih_l{layer}"].T + w[f"lstm.bias_ih_l{layer}"]
            gates = gates + h @ w[f"lstm.weight_hh_l{layer}"].T + w[f"lstm.bias_hh_l{layer}"]
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        x = torch.stack(outputs, 1)
    return x[:, -1]


def _non_local(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Add to every cell of x (B, C, T, H, W) what it gathers from all cells by embedded Gaussian affinity."""

    def embed(name: str, x: Tensor) -> Tensor:
        return F.conv3d(x, w[f"NLB.{name}.weight"], w[f"NLB.{name}.bias"])

    theta, phi, g = (embed(name, x).flatten(2) for name in ("theta", "phi", "g"))  # (B, C, cells)
    weights = (theta.transpose(1, 2) @ phi / math.sqrt(theta.shape[2])).softmax(-1)  # (B, cells, cells)
    y = (g @ weights.transpose(1, 2)).view_as(x)
    return x + _batch_norm(w, "NLB.W_z.1", embed("W_z.0", y))
