"""What every head promises, on tiny networks."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import Patches, check_file, first_of_each_class, settle, small_model
from torch import Tensor, nn

import cnnbert.heads
from cnnbert.errors import InputError
from cnnbert.heads import (
    ActionVLADHead,
    AttentivePoolHead,
    BERTHead,
    ConcatHead,
    ConvLSTMHead,
    EfficientBERTHead,
    Head,
    LSTMHead,
    MaxPoolHead,
    NonLocalHead,
    SnippetPoolHead,
    TemporalConvHead,
    TGAPHead,
)

CHANNELS, CLASSES = 16, 5
CASES: list[tuple[type[Head], dict[str, Any]]] = [
    (TGAPHead, {}),
    (BERTHead, {}),
    (BERTHead, {"num_steps": 3, "num_layers": 2, "num_heads": 4, "feedforward_channels": 24}),
    (BERTHead, {"reduce_to": 64}),
    (BERTHead, {"num_class_tokens": 3}),
    (BERTHead, {"spatial_tokens": True}),
    (EfficientBERTHead, {}),
    (EfficientBERTHead, {"inner_channels": 24, "num_steps": 3, "num_layers": 2, "num_heads": 3}),
    (ConcatHead, {}),
    (ConcatHead, {"num_steps": 3, "hidden_channels": None}),
    (LSTMHead, {}),
    (LSTMHead, {"hidden_channels": 24, "num_layers": 1}),
    (NonLocalHead, {}),
    (NonLocalHead, {"num_steps": 3, "hidden_channels": None}),
    (MaxPoolHead, {}),
    (MaxPoolHead, {"pooling": "min"}),
    (MaxPoolHead, {"pooling": "mean_max"}),
    (TemporalConvHead, {}),
    (TemporalConvHead, {"hidden_channels": 24, "kernel_size": 5}),
    (ActionVLADHead, {}),
    (ActionVLADHead, {"num_clusters": 6, "reduce_to": None, "alpha": 1.0}),
    (ConvLSTMHead, {}),
    (ConvLSTMHead, {"hidden_channels": 24}),
    (AttentivePoolHead, {}),
    (AttentivePoolHead, {"num_steps": 3, "num_queries": 2, "num_layers": 2, "num_heads": 4}),
    (AttentivePoolHead, {"reduce_to": 64}),
    (SnippetPoolHead, {"pooling": "late", "hidden_channels": 24}),
    (SnippetPoolHead, {"pooling": "slow", "hidden_channels": 24, "window": 3, "stride": 2}),
    (SnippetPoolHead, {"pooling": "local", "hidden_channels": 24, "window": 3, "stride": 2}),
    (SnippetPoolHead, {"pooling": "local", "hidden_channels": 24, "window": 2, "stride": 1, "num_steps": 3}),
]
ORDERLESS = (TGAPHead, MaxPoolHead, ActionVLADHead)
every_case = pytest.mark.parametrize(("cls", "arguments"), CASES)


def build(cls: type[Head], arguments: dict[str, Any]) -> Head:
    torch.manual_seed(0)
    return cls(CHANNELS, CLASSES, **arguments)


def departed(head: Head) -> Head:
    """Return a head whose branches that start at zero have left it, as after the first step of a training."""
    if isinstance(head, EfficientBERTHead):
        nn.init.xavier_uniform_(head.bert.classifier.weight)
    return head


def random_features(batch: int, steps: int = 4, rows: int = 2, columns: int = 3) -> Tensor:
    return torch.randn(batch, CHANNELS, steps, rows, columns, generator=torch.Generator().manual_seed(1))


def test_every_exported_head_has_a_case() -> None:
    exported = {getattr(cnnbert.heads, name) for name in cnnbert.heads.__all__}
    assert {cls for cls in exported if not inspect.isabstract(cls)} == {cls for cls, _ in CASES}


@pytest.mark.parametrize("cls", dict.fromkeys(cls for cls, _ in CASES), ids=lambda cls: cls.__name__)
def test_the_dropout_before_the_classifier_has_one_name(cls: type[Head]) -> None:
    """An argument that a config gives one head is handed on to another head in its place: it must mean the same."""
    arguments = inspect.signature(cls).parameters
    assert arguments["classifier_dropout"].default == 0.8
    assert "dropout" not in arguments or cls in (BERTHead, EfficientBERTHead)


@every_case
@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3)])
def test_output_shape(cls: type[Head], arguments: dict, steps: int, rows: int, columns: int) -> None:
    logits = build(cls, arguments).eval()(random_features(2, steps, rows, columns))
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()


@every_case
@pytest.mark.parametrize("steps", [4, 6])
def test_every_parameter_receives_a_gradient(cls: type[Head], arguments: dict, steps: int) -> None:
    head = departed(build(cls, arguments))
    for module in head.modules():
        if isinstance(module, nn.BatchNorm3d):
            # The norm of a non-local block starts from zero, which lets no gradient pass; and the mean of a batch
            # takes the biases before it away again.
            nn.init.ones_(module.weight)
            module.eval()
    logits = head(random_features(8, steps))
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in head.named_parameters():
        if name != "block.phi.bias":  # adds the same to all scores of a query: softmax sees no difference
            assert parameter.grad is not None and parameter.grad.abs().sum() > 1e-6, name


@every_case
def test_evaluation_is_deterministic_and_sees_each_clip_alone(cls: type[Head], arguments: dict) -> None:
    head, features = build(cls, arguments).eval(), random_features(3)
    with torch.no_grad():
        logits = head(features)
        assert torch.equal(logits, head(features))
        # Another batch size may sum in another order: float32 keeps about seven digits.
        torch.testing.assert_close(head(features[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


@every_case
def test_training_draws_and_follows_the_seed(cls: type[Head], arguments: dict) -> None:
    head, features = build(cls, arguments), random_features(3)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(head(features))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every_case
def test_all_but_the_orderless_see_the_order_of_time(cls: type[Head], arguments: dict) -> None:
    head, features = departed(build(cls, arguments)).eval(), random_features(3)
    with torch.no_grad():
        change = (head(features.flip(2)) - head(features)).abs().max()
    if cls in ORDERLESS or arguments.get("pooling") == "late":
        assert change < 1e-5  # rounding of a sum in another order
    else:
        assert change > 1e-3  # positions are small at first: N(0, 0.02)


@every_case
def test_unknown_keyword_is_refused(cls: Callable[..., Head], arguments: dict) -> None:
    with pytest.raises(TypeError, match="droput"):
        cls(CHANNELS, CLASSES, **arguments, droput=0.5)


@every_case
def test_names_of_special_parameters_exist(cls: type[Head], arguments: dict) -> None:
    head = build(cls, arguments)
    parts = {name: part for name, part in head.named_modules() if isinstance(part, Head)}
    own = {
        f"{part}.{name}".lstrip(".")
        for part, module in parts.items()
        for name, _ in module.named_parameters(recurse=False)
    }
    assert own == set(head.undecayed)
    assert set(head.resizable) <= own


@every_case
def test_classifier_starts_from_xavier_and_zero(cls: type[Head], arguments: dict) -> None:
    name = "average.classifier" if cls is EfficientBERTHead else "classifier"
    classifier = build(cls, arguments).get_submodule(name)
    assert isinstance(classifier, nn.Linear)
    bound = (6 / (classifier.in_features + CLASSES)) ** 0.5
    assert 0.9 * bound < classifier.weight.abs().max() <= bound
    assert torch.equal(classifier.bias, torch.zeros(CLASSES))


@every_case
def test_construction_needs_no_network(cls: type[Head], arguments: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a constructor opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    first, second = build(cls, arguments), build(cls, arguments)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), f"{name} does not follow the seed"


@every_case
def test_meta_device(cls: type[Head], arguments: dict) -> None:
    with torch.device("meta"):
        head = cls(CHANNELS, CLASSES, **arguments)
        features = torch.empty(2, CHANNELS, 8, 2, 2)
        head.set_num_steps(8)
        assert all(tensor.is_meta for tensor in head.state_dict().values())
        assert head(features).shape == (2, CLASSES)


@every_case
def test_features_of_zero(cls: type[Head], arguments: dict) -> None:
    """A ReLU may leave nothing: no norm may divide by it."""
    head, features = build(cls, arguments), torch.zeros(3, CHANNELS, 4, 2, 3, requires_grad=True)
    logits = head(features)
    logits.square().sum().backward()
    for tensor in (logits, features.grad, *(parameter.grad for parameter in head.parameters())):
        assert tensor is not None and tensor.isfinite().all()


@every_case
@pytest.mark.parametrize("steps", [4, 6])
def test_bfloat16_autocast_and_float64(cls: type[Head], arguments: dict, steps: int) -> None:
    head, features = build(cls, arguments).eval(), random_features(3, steps)
    with torch.no_grad():
        logits = head(features)
        with torch.autocast("cpu", torch.bfloat16):
            low = head(features.bfloat16())
        high = head.double()(features.double())
    assert low.dtype == torch.bfloat16 and high.dtype == torch.float64
    torch.testing.assert_close(logits.double(), high, rtol=1e-4, atol=1e-5)
    # bfloat16 keeps eight bits, and their errors add up over the layers.
    assert (low.double() - high).norm() < 0.1 * high.norm()


@every_case
def test_bfloat16_autocast_trains(cls: type[Head], arguments: dict) -> None:
    head = build(cls, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        head(random_features(8).bfloat16()).float().square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@every_case
def test_export_with_any_batch_size(cls: type[Head], arguments: dict) -> None:
    head, features = build(cls, arguments).eval(), random_features(5, 6)
    exported = torch.export.export(head, (features[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    run: nn.Module = exported.module()
    with torch.no_grad():
        for batch in (1, 5):
            torch.testing.assert_close(run(features[:batch]), head(features[:batch]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@first_of_each_class(CASES)
def test_an_onnx_file_takes_any_batch_size(cls: type[Head], arguments: dict, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small_model(Patches(CHANNELS), partial(cls, **arguments), clip_length=16, frame_size=16)
    departed(model.head)
    settle(model)
    check_file(model, tmp_path)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (TGAPHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
        (TGAPHead, {"classifier_dropout": -0.1}, "classifier_dropout=-0.1 must be in [0, 1); try 0.8"),
        (BERTHead, {"dropout": 1.0}, "dropout=1.0 must be in [0, 1); try 0.1"),
        (BERTHead, {"mask_probability": 1.0}, "mask_probability=1.0 must be in [0, 1); try 0.2"),
        (BERTHead, {"classifier_dropout": 2}, "classifier_dropout=2 must be in [0, 1); try 0.8"),
        (BERTHead, {"num_heads": 6}, "num_heads=6 must divide the width 16; try 4"),
        (BERTHead, {"num_heads": 0}, "num_heads=0 must divide the width 16; try 1"),
        (BERTHead, {"num_heads": 7, "reduce_to": 64}, "num_heads=7 must divide the width 64; try 8"),
        (BERTHead, {"num_class_tokens": 0}, "num_class_tokens=0 must be at least 1; try 1"),
        (BERTHead, {"num_layers": 0}, "num_layers=0 must be at least 1; try 1"),
        (BERTHead, {"num_steps": 0}, "num_steps=0 must be at least 1; leave it out to take the backbone's"),
        (BERTHead, {"feedforward_channels": 0}, "feedforward_channels=0 must be at least 1; try 64"),
        (BERTHead, {"reduce_to": 500}, "reduce_to=500 must be a positive multiple of 64; try 512"),
        (BERTHead, {"reduce_to": 0}, "reduce_to=0 must be a positive multiple of 64; try 64"),
        (ConcatHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
        (ConcatHead, {"num_steps": 0}, "num_steps=0 must be at least 1; leave it out to take the backbone's"),
        (ConcatHead, {"hidden_channels": 0}, "hidden_channels=0 must be at least 1, or null for none; try 1550"),
        (LSTMHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
        (LSTMHead, {"hidden_channels": 0}, "hidden_channels=0 must be at least 1; try 450"),
        (LSTMHead, {"num_layers": 0}, "num_layers=0 must be at least 1; try 2"),
        (NonLocalHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
        (NonLocalHead, {"num_steps": 0}, "num_steps=0 must be at least 1; leave it out to take the backbone's"),
        (NonLocalHead, {"hidden_channels": 0}, "hidden_channels=0 must be at least 1, or null for none; try 1000"),
        (MaxPoolHead, {"pooling": "mean"}, "pooling='mean' must be one of max, min, mean_max; try max"),
        (MaxPoolHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
        (TemporalConvHead, {"hidden_channels": 0}, "hidden_channels=0 must be at least 1; try 256"),
        (TemporalConvHead, {"kernel_size": 4}, "kernel_size=4 must be odd and at least 1; try 5"),
        (TemporalConvHead, {"kernel_size": -3}, "kernel_size=-3 must be odd and at least 1; try 1"),
        (TemporalConvHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
        (ActionVLADHead, {"num_clusters": 0}, "num_clusters=0 must be at least 1; try 64"),
        (ActionVLADHead, {"reduce_to": 0}, "reduce_to=0 must be at least 1, or null for none; try 512"),
        (ActionVLADHead, {"alpha": 0.0}, "alpha=0.0 must be above 0; try 10"),
        (ActionVLADHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
        (ConvLSTMHead, {"hidden_channels": 0}, "hidden_channels=0 must be at least 1; try 128"),
        (ConvLSTMHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
        (AttentivePoolHead, {"num_steps": 0}, "num_steps=0 must be at least 1; leave it out to take the backbone's"),
        (AttentivePoolHead, {"num_queries": 0}, "num_queries=0 must be at least 1; try 1"),
        (AttentivePoolHead, {"num_layers": -1}, "num_layers=-1 must not be negative; try 0"),
        (AttentivePoolHead, {"num_heads": 6}, "num_heads=6 must divide the width 16; try 4"),
        (AttentivePoolHead, {"reduce_to": 500}, "reduce_to=500 must be a positive multiple of 64; try 512"),
        (AttentivePoolHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
        (
            SnippetPoolHead,
            {"pooling": "max"},
            "pooling='max' must be one of late, slow, local; try slow, or MaxPoolHead",
        ),
        (SnippetPoolHead, {"hidden_channels": 0}, "hidden_channels=0 must be at least 1; try 4096"),
        (SnippetPoolHead, {"window": 0}, "window=0 must be at least 1; try 10"),
        (SnippetPoolHead, {"stride": 11}, "stride=11 must be in [1, 10], up to the window; try 5"),
        (SnippetPoolHead, {"num_steps": 0}, "num_steps=0 must be at least 1; leave it out to take the backbone's"),
        (SnippetPoolHead, {"classifier_dropout": 1.0}, "classifier_dropout=1.0 must be in [0, 1); try 0.8"),
    ],
)
def test_wrong_numbers(cls: type[Head], arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        cls(CHANNELS, CLASSES, **arguments)
    assert str(error.value) == message


@every_case
@pytest.mark.parametrize("training", [False, True])
def test_attention_over_time(cls: type[Head], arguments: dict, training: bool) -> None:
    head, features = departed(build(cls, arguments)).train(training), random_features(3, 5)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    shares = head.time_attention(features)
    assert (shares is not None) == (cls in (BERTHead, EfficientBERTHead, AttentivePoolHead))
    if shares is None:
        return
    assert shares.shape[::2] == (3, 5)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(2), torch.ones(shares.shape[:2]))
    assert shares.std(2).max() > 1e-4  # far from even: the comparisons can tell
    torch.testing.assert_close(head.time_attention(features[1:2]), shares[1:2], rtol=1e-4, atol=1e-6)
    assert torch.equal(head.eval().time_attention(features), shares)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_attention_over_time_is_what_the_class_token_sees() -> None:
    """What lies at each moment is summed over the places there, and the token's look at itself left out."""
    head, features = build(BERTHead, {"spatial_tokens": True, "num_layers": 2}), random_features(2)
    seen = head.attention(features)[1, :, :, 0, 1:].unflatten(2, (4, 6)).sum(3)
    torch.testing.assert_close(head.time_attention(features), seen / seen.sum(2, keepdim=True))
