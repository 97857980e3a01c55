"""The size of a network: its stages, parameters and multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cnnbert.errors import InputError
from cnnbert.heads import BERTHead
from cnnbert.loading import config_settings, instantiate
from cnnbert.tasks.recognition import ActionRecognition

Shape = tuple[int, ...]
aten = torch.ops.aten


@dataclass(frozen=True)
class Stage:
    """A part of a network.

    Attributes:
        name: Its name in the network, such as `backbone.layer1`.
        shape: Its output, channels first and without the batch: (C, T, H, W) of a grid, (K,) of a head.
        parameters: How many numbers it learns.
        multiply_adds: Multiply-adds of its convolutions and matrix products for one clip.
    """

    name: str
    shape: Shape
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class NetworkSize:
    """What a network consists of, and what one clip takes.

    Attributes:
        clip: The clip's channels, frames, height and width.
        stages: The parts of the network in the order in which the clip passes them.
        features: The last grid, which the head pools: its channels, time steps, height and width.
        elementwise: What ptflops counts beside multiply-adds: the elements of BatchNorm, twice, and those that go
            into ReLU and pooling.
    """

    clip: Shape
    stages: tuple[Stage, ...]
    features: Shape
    elementwise: int

    @property
    def parameters(self) -> int:
        """How many numbers the network learns."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of convolutions and matrix products for one clip."""
        return sum(stage.multiply_adds for stage in self.stages)

    @property
    def ptflops(self) -> int:
        """What ptflops counts for one clip, in LTM's log (artest08/LateTemporalModeling3DCNN) called Flops."""
        return self.multiply_adds + self.elementwise

    def part(self, name: str) -> tuple[int, int]:
        """Return the parameters and the multiply-adds of the backbone or the head."""
        stages = [stage for stage in self.stages if stage.name.startswith(name)]
        return sum(stage.parameters for stage in stages), sum(stage.multiply_adds for stage in stages)


def summary(*, config: str, num_classes: int = 13, settings: Sequence[str] = ()) -> None:
    """Show the stages of a network with their output, parameters and multiply-adds.

    Nothing is read, fetched or trained. The settings of the config can be changed as for fit, by options such as
    --data.clip_length 32 or --model.head.num_heads 4.

    Args:
        config: A run's config: a path, or a shipped one such as resnext_bert.yaml.
        num_classes: Classes K.
        settings: Settings that win over the config's, such as --data.clip_length=32.
    """
    model, frame_size = _model(config, num_classes, settings)
    size = measure(model, frame_size)
    unit, scale = ("G", 1e9) if size.multiply_adds >= 1e8 else ("M", 1e6)

    def show(name: str, output: str, parameters: int, multiply_adds: int) -> None:
        print(f"{name:<20}{output:<22}{parameters:>12,}{multiply_adds / scale:>20.3f}")

    print(f"{config}: {type(model.backbone).__name__} and {type(model.head).__name__}, {num_classes} classes")
    print(f"a clip of {_by(size.clip)}: channels x frames x height x width\n")
    print(f"{'stage':<20}{'output':<22}{'parameters':>12}{f'multiply-adds ({unit})':>20}")
    for stage in size.stages:
        logits = " logits" if stage is size.stages[-1] else ""
        show(stage.name, _by(stage.shape) + logits, stage.parameters, stage.multiply_adds)
    print("-" * 74)
    show("total", "", size.parameters, size.multiply_adds)
    for part in ("backbone", "head"):
        show(f"  {part}", "", *size.part(part))
    channels, num_steps = size.features[:2]
    token = " (+ the class token)" if isinstance(model.head, BERTHead) else ""
    ptflops = f"{size.ptflops / scale:.2f} {unit}"
    print(f"\ntime steps    {num_steps} of {channels} channels{token}")
    print(f"multiply-adds {size.multiply_adds / scale:.2f} {unit} a clip, in convolutions and matrix products;")
    print(f"              {ptflops} as ptflops counts, with BatchNorm (twice), ReLU, pooling:")
    print("              the GFlops in the log of LTM (artest08/LateTemporalModeling3DCNN)")


def network_size(config: str, num_classes: int = 13, settings: Sequence[str] = ()) -> NetworkSize:
    """Return the size of the network of a config, and what a clip of the config's length and frame size takes.

    Args:
        config: A run's config: a path, or the name of a shipped one.
        num_classes: Classes K.
        settings: Settings that win over the config's, such as `data.clip_length=32`.

    Raises:
        InputError: There is no such config, it does not know a setting, or the clip is too small for the network.
    """
    return measure(*_model(config, num_classes, settings))


def measure(model: ActionRecognition, frame_size: int) -> NetworkSize:
    """Return the size of a network, and what a clip of the length that it is trained on takes.

    Args:
        model: The network, in evaluation mode; on the device `meta` nothing is computed.
        frame_size: Height and width of the clip.

    Raises:
        InputError: The clip is too small for the network.
    """
    clip = (model.backbone.in_channels, model.clip_length, frame_size, frame_size)
    shapes: dict[nn.Module, Shape] = {}

    def note_shape(module: nn.Module, _: Any, output: Any) -> None:
        shapes[module] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

    hooks = [module.register_forward_hook(note_shape) for module in model.modules()]
    counter = FlopCounterMode(display=False, custom_mapping=ELEMENTWISE)
    try:
        with counter, torch.no_grad():
            model(torch.zeros(1, *clip, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    counts = counter.get_flop_counts()

    def multiply_adds(name: str) -> int:
        flops = counts.get(f"{type(model).__name__}.{name}", {})
        return sum(number for operation, number in flops.items() if operation not in ELEMENTWISE) // 2

    backbone = _stages("backbone", model.backbone, clip, shapes, multiply_adds)
    head = _stages("head", model.head, shapes[model.backbone], shapes, multiply_adds)
    features = shapes[model.backbone]
    reduced = [stage.shape for stage in head if len(stage.shape) == 4 and stage.shape[1:] == features[1:]]
    elementwise = sum(number for operation, number in counts["Global"].items() if operation in ELEMENTWISE)
    return NetworkSize(clip, (*backbone, *head), reduced[-1] if reduced else features, elementwise)


def _stages(
    name: str, part: nn.Module, shape: Shape, shapes: Mapping[nn.Module, Shape], multiply_adds: Callable[[str], int]
) -> list[Stage]:
    """Return the children of backbone or head that give a grid, and what else there is of it as a last stage.

    A child that only scales, such as a BatchNorm, belongs to the one before it.
    """
    stages: list[Stage] = []
    for child_name, child in part.named_children():
        out = shapes.get(child, ())
        stage = Stage(f"{name}.{child_name}", out, _parameters(child), multiply_adds(f"{name}.{child_name}"))
        if len(out) == 4 and (stage.multiply_adds or out != shape):
            stages.append(stage)
        elif len(out) == 4 and stages:
            stages[-1] = replace(stages[-1], parameters=stages[-1].parameters + stage.parameters)
        shape = out or shape
    rest = Stage(
        f"{name}, the rest" if stages else name,
        shapes[part],
        _parameters(part) - sum(stage.parameters for stage in stages),
        multiply_adds(name) - sum(stage.multiply_adds for stage in stages),
    )
    return stages if stages and not (rest.parameters or rest.multiply_adds) else [*stages, rest]


def _model(config: str, num_classes: int, settings: Sequence[str]) -> tuple[ActionRecognition, int]:
    """Return the network of a config without its weights, and the frame size."""
    if num_classes < 1:
        raise InputError(f"num_classes={num_classes} must be at least 1")
    known = config_settings(config, [str(i) for i in range(num_classes)], settings)
    with torch.device("meta"):
        model = instantiate(known["model"]).eval()
    return model.requires_grad_(False), known["data"]["frame_size"]  # else torch's counter fails over some views


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _by(shape: Shape) -> str:
    return " x ".join(str(length) for length in shape)


def _elements(shape: Shape, *_: Any, **__: Any) -> int:
    return math.prod(shape)


def _twice_the_elements(shape: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(shape)


ELEMENTWISE = {
    aten.native_batch_norm: _twice_the_elements,
    aten._native_batch_norm_legit_no_training: _twice_the_elements,  # the same in torch before 2.15
    aten.relu: _elements,
    aten.relu_: _elements,
    aten.max_pool2d_with_indices: _elements,
    aten.max_pool3d_with_indices: _elements,
    aten.avg_pool2d: _elements,
    aten.avg_pool3d: _elements,
    aten._adaptive_avg_pool2d: _elements,
    aten._adaptive_avg_pool3d: _elements,
    aten.mean: _elements,  # global pooling
}
"""What ptflops counts beside multiply-adds, by the elements of the input."""
