"""The non-local head against its formulas, its beginning and its size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cnnbert.errors import InputError
from cnnbert.heads import ConcatHead, NonLocalHead

CHANNELS, CLASSES = 6, 3


def trained_head(**arguments: int | None) -> NonLocalHead:
    """Return a head in float64 in evaluation whose every parameter and statistic is far from its initial value."""
    torch.manual_seed(0)
    head = NonLocalHead(CHANNELS, CLASSES, **arguments).double().eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    head.block.out[1].running_mean.normal_()
    head.block.out[1].running_var.uniform_(0.1, 2)
    return head


def attended(head: NonLocalHead, x: Tensor, scaled_by: str = "positions", normalized_over: str = "keys") -> Tensor:
    """Return what the block makes of x by LTM's formulas, or by those of a variant, in plain operations.

    Source: "Non-local Neural Networks" (Wang et al. 2018), and artest08/LateTemporalModeling3DCNN,
    models/NLB/NLBlockND.py.
    """
    weights = {**dict(head.block.named_parameters()), **dict(head.block.named_buffers())}

    def convolve(x: Tensor, name: str) -> Tensor:
        kernel = weights[f"{name}.weight"][:, :, 0, 0, 0]
        return torch.einsum("bin,oi->bon", x, kernel) + weights[f"{name}.bias"][:, None]

    flat = x.flatten(2)  # (B, C, N)
    scores = torch.einsum("bcq,bck->bqk", convolve(flat, "theta"), convolve(flat, "phi"))
    scores = scores / math.sqrt({"positions": flat.shape[2], "channels": CHANNELS, "nothing": 1}[scaled_by])
    exponents = scores.exp()
    share = exponents / exponents.sum({"keys": 2, "queries": 1}[normalized_over], keepdim=True)
    y = convolve(torch.einsum("bqk,bck->bcq", share, convolve(flat, "g")), "out.0")
    y = (y - weights["out.1.running_mean"][:, None]) / torch.sqrt(weights["out.1.running_var"] + 1e-5)[:, None]
    y = y * weights["out.1.weight"][:, None] + weights["out.1.bias"][:, None]
    return x + y.view_as(x)


def random_features(steps: int = 4, rows: int = 3, columns: int = 2) -> Tensor:
    return torch.randn(2, CHANNELS, steps, rows, columns, dtype=torch.float64)


@pytest.mark.parametrize("hidden_channels", [7, None])
@pytest.mark.parametrize(("steps", "rows", "columns"), [(4, 3, 2), (6, 1, 5), (1, 1, 1)])
def test_formulas(steps: int, rows: int, columns: int, hidden_channels: int | None) -> None:
    head, features = trained_head(hidden_channels=hidden_channels), random_features(steps, rows, columns)
    concat = ConcatHead(CHANNELS, CLASSES, hidden_channels=hidden_channels).double().eval()
    tail = {name: value for name, value in head.state_dict().items() if not name.startswith("block.")}
    concat.load_state_dict(tail)
    torch.testing.assert_close(head.block(features), attended(head, features), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(head(features), concat(attended(head, features)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "variant", [{"scaled_by": "channels"}, {"scaled_by": "nothing"}, {"normalized_over": "queries"}]
)
def test_formulas_tell_the_variants_apart(variant: dict) -> None:
    head, features = trained_head(), random_features()
    assert (head.block(features) - attended(head, features, **variant)).abs().max() > 1e-3


def test_it_starts_as_the_concatenation_head() -> None:
    torch.manual_seed(0)
    head = NonLocalHead(CHANNELS, CLASSES)
    features = random_features().float()
    assert torch.equal(head.block(features), features)
    assert torch.equal(head.eval().block(features), features)


def test_dropout_stands_before_the_linear_layers() -> None:
    torch.manual_seed(0)
    head = NonLocalHead(100, 400, num_steps=4, hidden_channels=None)
    nn.init.eye_(head.classifier.weight)
    kept = head(torch.ones(10, 100, 4, 2, 1))
    assert set(kept.unique().tolist()) == {0.0, 5.0}
    assert 0.15 < kept.count_nonzero() / 4000 < 0.25


def test_set_num_steps() -> None:
    torch.manual_seed(0)
    head = NonLocalHead(CHANNELS, CLASSES, hidden_channels=7).double()
    block, hidden = head.block, head.hidden
    head.set_num_steps(4)
    assert head.hidden is hidden and hidden.in_features == 4 * CHANNELS
    head.set_num_steps(8)
    assert head.hidden.in_features == 8 * CHANNELS and head.hidden.weight.dtype == torch.float64
    assert head.block is block
    assert head(random_features(8)).shape == (2, CLASSES)
    with pytest.raises(InputError, match="num_steps=0 must be at least 1"):
        head.set_num_steps(0)


def test_explicit_num_steps_stays() -> None:
    head = NonLocalHead(CHANNELS, CLASSES, num_steps=3)
    before = head.hidden
    head.set_num_steps(8)
    assert head.hidden is before and before.in_features == 3 * CHANNELS


@pytest.mark.parametrize(("num_classes", "count"), [(13, 47_309_949), (51, 47_347_987), (101, 47_398_037)])
def test_parameter_counts(num_classes: int, count: int) -> None:
    """Source: artest08/LateTemporalModeling3DCNN, rgb_resneXt3D64f101_FRMB_NLB_concatenation; its trunk: 44,196,288."""
    with torch.device("meta"):
        head = NonLocalHead(512, num_classes, num_steps=4)
    assert sum(p.numel() for p in head.parameters()) == count - 44_196_288


def test_names_and_shapes() -> None:
    with torch.device("meta"):
        found = {name: tuple(value.shape) for name, value in NonLocalHead(512, 51).state_dict().items()}
    convolutions = ("block.theta", "block.phi", "block.g", "block.out.0")
    assert found == {
        **{f"{name}.weight": (512, 512, 1, 1, 1) for name in convolutions},
        **{f"{name}.bias": (512,) for name in convolutions},
        **{f"block.out.1.{name}": (512,) for name in ("weight", "bias", "running_mean", "running_var")},
        "block.out.1.num_batches_tracked": (),
        "hidden.weight": (1000, 2048),
        "hidden.bias": (1000,),
        "classifier.weight": (51, 1000),
        "classifier.bias": (51,),
    }
