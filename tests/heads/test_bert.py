"""The BERT head against plain torch operations, its masking and its positions."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cnnbert.errors import InputError
from cnnbert.heads import BERTHead

CHECKPOINT_KEYS = Path(__file__).parents[3] / "shared" / "checkpoint_keys"
CHANNELS, CLASSES, STEPS, HEADS = 16, 5, 4, 4


def trained_head(num_layers: int = 2, spatial_tokens: bool = False) -> BERTHead:
    """Return a head in float64 without dropout whose every parameter is far from its initial value."""
    torch.manual_seed(0)
    head = BERTHead(
        CHANNELS,
        CLASSES,
        num_layers=num_layers,
        num_heads=HEADS,
        mask_probability=0.5,
        dropout=0.0,
        classifier_dropout=0.0,
        spatial_tokens=spatial_tokens,
    ).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def reference(
    head: BERTHead,
    features: Tensor,
    seen: Tensor | None = None,
    norm: str = "ltm",
    order: str = "pre",
    gelu: str = "tanh",
    positions: str = "all",
    class_token: str = "seen",
) -> tuple[Tensor, Tensor]:
    """Return logits and attention weights (layers, B, heads, S, S) from the formulas of LTM in plain operations.

    The arguments after `seen` make variants that LTM is not.

    Source: "Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition" (2020) and
    artest08/LateTemporalModeling3DCNN, class BERT5.
    """
    weights = dict(head.named_parameters())
    batch, _, steps = features.shape[:3]
    looks = []
    if seen is not None and class_token == "masked":
        seen = torch.cat([seen[:, 1:2], seen[:, 1:]], dim=1)  # hidden where the first time step is

    def normalize(x: Tensor, name: str) -> Tensor:
        gain, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        centred = x - x.mean(-1, keepdim=True)
        squares = (centred**2).sum(-1, keepdim=True)
        if norm == "ltm":
            return gain * (centred / (torch.sqrt(squares / (CHANNELS - 1)) + 1e-6)) + shift
        return gain * (centred / torch.sqrt(squares / CHANNELS + 1e-5)) + shift

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def attend(x: Tensor, name: str) -> Tensor:
        size = CHANNELS // HEADS
        q, k, v = linear(x, f"{name}.qkv").split(CHANNELS, dim=-1)
        outputs, shares = [], []
        for start in range(0, CHANNELS, size):
            part = slice(start, start + size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)  # (B, S, S)
            if seen is not None:
                scores = scores.masked_fill(~seen[:, None, :], -1e9)
            shares.append(scores.softmax(-1))
            outputs.append(shares[-1] @ v[..., part])
        looks.append(torch.stack(shares, dim=1))
        return linear(torch.cat(outputs, -1), f"{name}.out")

    def feed_forward(x: Tensor, name: str) -> Tensor:
        hidden = linear(x, f"{name}.0")
        if gelu == "tanh":
            inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
            hidden = 0.5 * hidden * (1 + torch.tanh(inner))
        else:
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        return linear(hidden, f"{name}.3")

    tokens = [weights["cls"][0, 0].expand(batch, CHANNELS)]
    for step in range(steps):
        if head.spatial_tokens:
            tokens += [features[:, :, step, y, x] for y in range(features.shape[3]) for x in range(features.shape[4])]
        else:
            tokens.append(features[:, :, step].mean((-1, -2)))
    x = torch.stack(tokens, dim=1)
    places = (len(tokens) - 1) // steps
    table = torch.stack([weights["positions"][0, 1 + token // places] for token in range(len(tokens) - 1)])
    if positions == "all":
        x[:, 0] += weights["positions"][:, 0]
    if positions in ("all", "steps"):
        x[:, 1:] += table
    for layer in range(len(head.blocks)):
        block = f"blocks.{layer}"
        for function, name in ((attend, "attention"), (feed_forward, "feedforward")):
            if order == "pre":
                x = x + function(normalize(x, f"{block}.{name}_norm"), f"{block}.{name}")
            else:
                x = normalize(x + function(x, f"{block}.{name}"), f"{block}.{name}_norm")
    return linear(x[:, 0], "classifier"), torch.stack(looks)


def random_features(steps: int = STEPS) -> Tensor:
    return torch.randn(6, CHANNELS, steps, 3, 2, dtype=torch.float64)


@pytest.mark.parametrize("spatial_tokens", [False, True])
def test_formulas(spatial_tokens: bool) -> None:
    head, features = trained_head(spatial_tokens=spatial_tokens).eval(), random_features()
    torch.testing.assert_close(head(features), reference(head, features)[0], rtol=1e-10, atol=1e-10)


def draw(head: BERTHead, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of training, and which tokens they were drawn to see, (B, S)."""
    torch.manual_seed(3)
    logits = head.train()(features)
    torch.manual_seed(3)
    return logits, head.draw_key_mask(features)[:, 0, 0]


@pytest.mark.parametrize("spatial_tokens", [False, True])
def test_formulas_with_masking(spatial_tokens: bool) -> None:
    head, features = trained_head(spatial_tokens=spatial_tokens), random_features()
    logits, seen = draw(head, features)
    assert not seen[:, 1:].all() and seen[:, 1:].any()
    expected, _ = reference(head, features, seen)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    assert (expected - reference(head, features)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "variant",
    [
        {"norm": "torch"},
        {"order": "post"},
        {"gelu": "erf"},
        {"positions": "none"},
        {"positions": "steps"},
        {"class_token": "masked"},
    ],
)
def test_formulas_tell_the_variants_apart(variant: dict) -> None:
    head, features = trained_head(), random_features()
    logits, seen = draw(head, features)
    assert (logits - reference(head, features, seen, **variant)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("spatial_tokens", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_attention(training: bool, spatial_tokens: bool) -> None:
    head, features = trained_head(num_layers=3, spatial_tokens=spatial_tokens), random_features()
    for block in head.blocks:
        block.attention.dropout = block.dropout.p = 0.5
    weights = head.train(training).attention(features)
    num_tokens = 1 + STEPS * (6 if spatial_tokens else 1)
    assert weights.shape == (3, 6, HEADS, num_tokens, num_tokens)
    torch.testing.assert_close(weights, reference(head, features)[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=1e-12)
    assert weights.min() >= 0 and weights.max() <= 1
    # Far from uniform, and other from head to head and from row to row: the comparison can tell them apart.
    assert weights.std(2).max() > 0.1 and weights.std(3).max() > 0.1


def test_attention_changes_nothing() -> None:
    torch.manual_seed(0)
    head = BERTHead(CHANNELS, CLASSES, reduce_to=64).train()
    head.reduction.bn1.eval()
    modes = [module.training for module in head.modules()]
    state = {name: value.clone() for name, value in head.state_dict().items()}
    features = random_features().float()
    drawn = torch.get_rng_state()
    weights = head.attention(features)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [module.training for module in head.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in head.state_dict().items())
    assert torch.equal(weights, head.eval().attention(features))
    with pytest.raises(RuntimeError, match="expected input"):
        head.train().attention(features[:, :3])
    assert head.training and head.blocks[0].dropout.training


@pytest.mark.parametrize("steps", [1, 7])
def test_attention_of_another_length(steps: int) -> None:
    weights = trained_head().attention(random_features(steps))
    assert weights.shape == (2, 6, HEADS, 1 + steps, 1 + steps)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=1e-12)


def test_dropout_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropout that scales by its own factor instead of drawing shows what stands before and after BERT."""
    head, features = trained_head(), random_features()
    head.mask_probability = 0.0
    seen = {}
    head.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.update(tokens=inputs[0]))
    factors = {head.dropout: 0.5, head.classifier_dropout: 0.25}
    head.eval()(features)
    plain = seen["tokens"]
    bias = head.classifier.bias
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: factors.get(self, 1.0) * x)
    factors[head.classifier_dropout] = 1.0
    logits = head(features)
    torch.testing.assert_close(seen["tokens"], 0.5 * plain)
    factors[head.classifier_dropout] = 0.25
    torch.testing.assert_close(head(features), 0.25 * (logits - bias) + bias)


def test_masking_draws_each_step_of_each_sample_and_never_the_class_token() -> None:
    torch.manual_seed(0)
    head = BERTHead(CHANNELS, CLASSES)
    seen = head.draw_key_mask(torch.zeros(20_000, CHANNELS, STEPS, 1, 1))
    assert seen.shape == (20_000, 1, 1, 1 + STEPS) and seen.dtype == torch.bool
    assert seen[..., 0].all()
    hidden = (~seen[:, 0, 0, 1:]).double()
    # Four standard deviations of a mean of 20,000 draws: 4 * sqrt(0.2 * 0.8 / 20000) = 0.011.
    torch.testing.assert_close(hidden.mean(0), torch.full((STEPS,), 0.2).double(), rtol=0, atol=0.012)
    assert hidden.prod(1).mean().item() == pytest.approx(0.2**STEPS, abs=0.0012)


def test_masking_hides_all_places_of_a_step_together() -> None:
    head = BERTHead(CHANNELS, CLASSES, num_class_tokens=2, spatial_tokens=True)
    seen = head.draw_key_mask(torch.zeros(100, CHANNELS, STEPS, 3, 2))
    assert seen.shape == (100, 1, 1, 2 + STEPS * 6)
    assert seen[..., :2].all()
    steps = seen[:, 0, 0, 2:].unflatten(1, (STEPS, 6))
    assert torch.equal(steps.all(2), steps.any(2))
    assert 0 < steps.all(2).double().mean() < 1


def test_nothing_is_masked_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    head, features = trained_head(), random_features()
    monkeypatch.setattr(head, "draw_key_mask", lambda steps: pytest.fail("masked in evaluation"))
    head.eval()(features)


def test_all_steps_masked_leaves_the_class_token() -> None:
    head, features = trained_head(), random_features()
    head.mask_probability = 1.0
    logits = head(features)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))


def test_initialization() -> None:
    torch.manual_seed(0)
    head = BERTHead(512, CLASSES, num_steps=8)
    assert head.cls.std().item() == pytest.approx(0.02, rel=0.1)
    assert head.positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert head.cls.shape == (1, 1, 512) and head.positions.shape == (1, 9, 512)


def test_set_num_steps() -> None:
    torch.manual_seed(0)
    head = BERTHead(512, CLASSES)
    before = head.positions
    assert before.shape == (1, 5, 512)
    head.set_num_steps(4)
    assert head.positions is before
    head.set_num_steps(8)
    assert head.positions.shape == (1, 9, 512) and isinstance(head.positions, torch.nn.Parameter)
    assert head.positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert "positions" in dict(head.named_parameters())
    with pytest.raises(InputError, match="num_steps=0 must be at least 1"):
        head.set_num_steps(0)


def test_explicit_num_steps_stays() -> None:
    head = BERTHead(CHANNELS, CLASSES, num_steps=3)
    before = head.positions
    head.set_num_steps(8)
    assert head.positions is before and before.shape == (1, 4, CHANNELS)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_another_length_interpolates_the_positions(steps: int) -> None:
    head, features = trained_head().eval(), random_features(steps)
    table = head.positions.detach()[0]
    resized = [table[0]]
    for step in range(steps):
        place = min(max((step + 0.5) * STEPS / steps - 0.5, 0), STEPS - 1)
        low = math.floor(place)
        high = min(low + 1, STEPS - 1)
        resized.append(table[1 + low] + (place - low) * (table[1 + high] - table[1 + low]))
    other = BERTHead(
        CHANNELS, CLASSES, num_steps=steps, num_layers=2, num_heads=HEADS, mask_probability=0.0, dropout=0.0
    )
    other = other.double().eval()
    other.load_state_dict({**head.state_dict(), "positions": torch.stack(resized)[None]})
    torch.testing.assert_close(head(features), other(features), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_another_length_interpolates_and_says_so(assign: bool, caplog: pytest.LogCaptureFixture) -> None:
    saved = torch.nn.ModuleDict({"head": BERTHead(CHANNELS, CLASSES, num_steps=4)}).eval()
    loaded = torch.nn.ModuleDict({"head": BERTHead(CHANNELS, CLASSES, num_steps=8)}).eval()
    state = saved.state_dict()
    with caplog.at_level(logging.WARNING, logger="cnnbert"):
        loaded.load_state_dict(state, assign=assign)
    message = "loaded positions of 4 time steps are interpolated over time to the 8 of this head"
    assert [record.getMessage() for record in caplog.records] == [message]
    assert state["head.positions"].shape == (1, 5, CHANNELS)  # the caller's dictionary is left alone
    features = torch.randn(2, CHANNELS, 8, 2, 2)
    torch.testing.assert_close(loaded["head"](features), saved["head"](features))


def test_loading_the_same_length_is_silent_and_exact(caplog: pytest.LogCaptureFixture) -> None:
    saved, loaded = BERTHead(CHANNELS, CLASSES), BERTHead(CHANNELS, CLASSES)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(saved.positions, loaded.positions)
    assert not caplog.records


def test_loading_another_width_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch for positions"):
        BERTHead(CHANNELS, CLASSES).load_state_dict(BERTHead(2 * CHANNELS, CLASSES).state_dict())


def test_names_and_shapes() -> None:
    with torch.device("meta"):
        head = BERTHead(2048, 51, reduce_to=512)
    found = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    reduction = {name for name in found if name.startswith("reduction.")}
    assert len(reduction) == 24
    assert {name: shape for name, shape in found.items() if name not in reduction} == {
        "cls": (1, 1, 512),
        "positions": (1, 5, 512),
        "blocks.0.attention_norm.weight": (512,),
        "blocks.0.attention_norm.bias": (512,),
        "blocks.0.attention.qkv.weight": (1536, 512),
        "blocks.0.attention.qkv.bias": (1536,),
        "blocks.0.attention.out.weight": (512, 512),
        "blocks.0.attention.out.bias": (512,),
        "blocks.0.feedforward_norm.weight": (512,),
        "blocks.0.feedforward_norm.bias": (512,),
        "blocks.0.feedforward.0.weight": (2048, 512),
        "blocks.0.feedforward.0.bias": (2048,),
        "blocks.0.feedforward.3.weight": (512, 2048),
        "blocks.0.feedforward.3.bias": (512,),
        "classifier.weight": (51, 512),
        "classifier.bias": (51,),
    }


def test_appended_block_fits_the_layout_of_ltm() -> None:
    if not CHECKPOINT_KEYS.is_dir():
        pytest.skip("the tables of published checkpoints are not here")
    table = json.loads((CHECKPOINT_KEYS / "artest08_resnext101_bert_frab.json").read_text())
    with torch.device("meta"):
        found = {n: list(v.shape) for n, v in BERTHead(2048, 51, reduce_to=512).state_dict().items()}
    mapper = {n.replace("mapper.", "reduction."): s for n, s in table.items() if n.startswith("mapper.")}
    assert {name: shape for name, shape in found.items() if name.startswith("reduction.")} == mapper
    assert found["cls"] == table["bert.clsToken"]
    assert found["positions"] == table["bert.embedding.learnedPosition.pe"]


def test_parameter_counts() -> None:
    with torch.device("meta"):
        for steps, count in ((4, 3_155_456), (8, 3_157_504)):
            head = BERTHead(512, 1, num_steps=steps)
            classifier = sum(p.numel() for p in head.classifier.parameters())
            assert sum(p.numel() for p in head.parameters()) - classifier == count
        wide = BERTHead(2048, 1)
        # Without reduction to 512: four attention projections and a feed-forward network of 2048 channels.
        assert sum(p.numel() for p in wide.blocks.parameters()) == 50_370_560 - 6 * 2048
