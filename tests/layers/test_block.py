"""Blocks that are computed a second time give the same for less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cnnbert import build
from cnnbert.backbones import R2Plus1D, ResNeXt3D
from cnnbert.backbones.base import Backbone
from cnnbert.errors import InputError
from cnnbert.heads import TGAPHead
from cnnbert.layers.block import Block
from cnnbert.tasks.recognition import ActionRecognition

NETWORKS = [R2Plus1D(18, width=8), ResNeXt3D(50, width=8, cardinality=2)]


def recomputed(network: nn.Module) -> nn.Module:
    """Return a copy whose blocks are computed a second time."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, Block):
            module.is_recomputed = True
    return network


def step(network: nn.Module, clips: Tensor) -> tuple[Tensor, int]:
    """Return the output of a forward and backward pass, and how many bytes the forward pass has kept."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network(clips)
    out.square().mean().backward()
    return out.detach(), sum(kept.values())


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
@pytest.mark.parametrize("training", [True, False])
def test_the_same_for_less_memory(network: nn.Module, training: bool) -> None:
    plain, saving = copy.deepcopy(network).train(training), recomputed(network).train(training)
    clips = torch.rand(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, much = step(plain, clips)
    found, little = step(saving, clips)
    assert torch.equal(found, expected)
    for (name, one), other in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    for (name, buffer), theirs in zip(saving.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, theirs), name  # the batch is counted once
    assert little < 0.5 * much


def test_nothing_is_computed_twice_without_gradients() -> None:
    network = recomputed(NETWORKS[0]).eval()
    with torch.no_grad():
        assert torch.equal(network(torch.zeros(1, 3, 8, 16, 16)), NETWORKS[0].eval()(torch.zeros(1, 3, 8, 16, 16)))


def test_dropout_drops_the_same_again() -> None:
    class Dropping(Block):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    torch.manual_seed(0)
    plain = Dropping()
    saving = recomputed(plain)
    for network in (plain, saving):
        step(network, torch.ones(4, 8))
    assert torch.equal(saving.layers[0].weight.grad, plain.layers[0].weight.grad)


def test_the_option_reaches_all_blocks() -> None:
    model = build("resnext_bert.yaml", ["a", "b"], ["model.gradient_checkpointing=true", "model.backbone.depth=14"])
    assert all(block.is_recomputed for block in model.modules() if isinstance(block, Block))
    assert isinstance(model.head.reduction, Block)
    assert not any(
        block.is_recomputed for block in build("quickstart.yaml", ["a", "b"]).modules() if isinstance(block, Block)
    )


def test_a_network_without_blocks() -> None:
    class Plain(Backbone):
        def __init__(self) -> None:
            super().__init__(3, 3, 1, 1, (0,) * 3, (1,) * 3)

        def forward_features(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(InputError, match=r"^gradient_checkpointing: Plain has no block that can be computed a second"):
        ActionRecognition(Plain(), TGAPHead, ["a", "b"], gradient_checkpointing=True)


def test_not_compiled_as_well() -> None:
    both = ["model.gradient_checkpointing=true", "model.compile_backbone=true"]
    with pytest.raises(InputError, match=r"^gradient_checkpointing does not go with compile_backbone; leave one of"):
        build("quickstart.yaml", ["a", "b"], both)
