"""The task trains what it should, at the rate and with the loss that it is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import cnnbert
from cnnbert.backbones import R2Plus1D
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.dataset import Sample
from cnnbert.data.generated import GeneratedActions
from cnnbert.data.loaders import collate
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import VideoSource
from cnnbert.errors import InputError, VideoReadError
from cnnbert.heads import TGAPHead
from cnnbert.tasks.recognition import ActionRecognition

TINY = ["model.backbone.depth=10", "model.backbone.width=8", "model.backbone.weights=null", "data.clip_length=8"]
NO_SCHEDULER = "model.scheduler=null"


def build(*overrides: str, num_classes: int = 3, seed: int = 0) -> ActionRecognition:
    torch.manual_seed(seed)
    names = [f"class {number}" for number in range(num_classes)]
    return cnnbert.build("r2plus1d_bert.yaml", names, [*TINY, *overrides])


def samples(number: int = 6, num_views: int = 1, num_classes: int = 3) -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    shape = (number, num_views, 3, 8, 32, 32)
    clips = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return [{"index": i, "label": i % num_classes, "clip": clip} for i, clip in enumerate(clips)]


def loader(number: int = 6, batch_size: int = 2, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(samples(number, **arguments), batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]


def trainer(**arguments: Any) -> Trainer:
    switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(switches, False)
    return Trainer(accelerator="cpu", num_sanity_val_steps=0, **quiet, **arguments)


class Watcher(Callback):
    """Notes at every step the learning rates, and which parts are in training mode."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.modes: list[tuple[bool, bool]] = []

    def on_train_batch_start(self, trainer: Trainer, model: Any, batch: Any, batch_idx: int) -> None:
        self.modes.append((model.backbone.training, model.head.training))

    def on_before_optimizer_step(self, trainer: Trainer, model: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def rates(model: ActionRecognition, num_steps: int) -> list[list[float]]:
    """The learning rates of each group, at every step of a real run."""
    watcher = Watcher()
    trainer(max_steps=num_steps, limit_val_batches=0, callbacks=[watcher]).fit(model, loader())
    return watcher.rates


def test_forward_is_head_of_backbone() -> None:
    model = build()
    clips = collate(samples(2))["clip"][:, 0]
    with torch.no_grad():
        assert torch.equal(model(clips), model.head(model.backbone(clips)))
        assert model(clips).shape == (2, 3)


def test_one_view_is_a_plain_forward() -> None:
    model = build()
    clips = collate(samples(3))["clip"]  # (3, 1, 3, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.view_logits(clips)[:, 0], model(clips[:, 0]))


def test_views_are_averaged_over_their_logits() -> None:
    model = build("model.memory_format=channels_first")
    batch = collate(samples(4, num_views=3))
    with torch.no_grad():
        views = torch.stack([model(clips) for clips in batch["clip"].unbind(1)], dim=1)  # (4, 3, K)
    (probabilities,) = trainer().predict(model, loader(4, 4, num_views=3))
    # 1e-5: float32 convolutions in batches of 4 and of 12 clips sum in another order.
    torch.testing.assert_close(probabilities, F.softmax(views.mean(1), 1), atol=1e-5, rtol=0)
    videos = model.scores.compute()
    torch.testing.assert_close(videos.video_logits, views.mean(1), atol=1e-5, rtol=0)
    assert videos.num_views.tolist() == [3] * 4
    assert torch.equal(videos.num_hits, (views.argmax(2) == batch["label"][:, None]).sum(1))
    (metrics,) = trainer().test(model, loader(4, 4, num_views=3), verbose=False)
    expected = F.cross_entropy(views.mean(1), batch["label"]).item()
    assert metrics["test/loss"] == pytest.approx(expected, abs=1e-5)


def test_many_views_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    task = build()
    clips = torch.randint(256, (2, 5, 3, 8, 32, 32), dtype=torch.uint8)
    sizes: list[int] = []
    task.backbone.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with torch.no_grad():
        together = task.view_logits(clips)
        monkeypatch.setattr("cnnbert.tasks.recognition.CLIPS_AT_ONCE", 4)
        parts = task.view_logits(clips)
    assert sizes == [10, 4, 4, 2]
    torch.testing.assert_close(parts, together, rtol=1e-4, atol=1e-5)  # sums in another order


def test_order_of_views_does_not_count() -> None:
    model = build()
    clips = collate(samples(2, num_views=4))["clip"]
    with torch.no_grad():
        one, other = (model.view_logits(clips[:, order]).mean(1) for order in ([0, 1, 2, 3], [2, 0, 3, 1]))
    # 1e-6: only the order of the four summands of the mean differs.
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def group_names(model: ActionRecognition) -> tuple[torch.optim.Optimizer, dict[str, list[str]]]:
    """The optimizer, and the names of the parameters in each of its groups."""
    (optimizer,), _ = model.configure_optimizers()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return optimizer, {group["name"]: [names[id(p)] for p in group["params"]] for group in optimizer.param_groups}


@pytest.mark.parametrize("everything", ["true", "false"])
def test_every_parameter_is_in_one_group(everything: str) -> None:
    model = build(f"model.decay_everything={everything}")
    _, groups = group_names(model)
    listed = [name for names in groups.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    for group, names in groups.items():
        assert all(name.startswith(group.split("/")[0] + ".") for name in names)


def test_the_backbone_has_a_rate_of_its_own() -> None:
    optimizer, groups = group_names(build("model.backbone_lr_factor=0.1"))
    assert list(groups) == ["backbone", "head"]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-5, 1e-4])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 1e-3]


def test_the_backbones_rate_in_a_run() -> None:
    model = build("model.backbone_lr_factor=0.1", "model.warmup_steps=2", NO_SCHEDULER)
    for (backbone, head), factor in zip(rates(model, 4), (0.01, 0.505, 1, 1), strict=True):
        assert (backbone, head) == (pytest.approx(1e-5 * factor), pytest.approx(1e-4 * factor))


@pytest.mark.parametrize("reduced", [False, True])
def test_norms_biases_and_positions_can_be_spared_decay(reduced: bool) -> None:
    model = build("model.decay_everything=false", *(["model.head.reduce_to=64"] if reduced else []))
    optimizer, groups = group_names(model)
    spared = {"head.cls", "head.positions"}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if name == "bias" or "Norm" in type(module).__name__:
                spared.add(f"{prefix}.{name}")
    undecayed = {name for group, names in groups.items() if group.endswith("/undecayed") for name in names}
    assert undecayed == spared
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"backbone": 1e-3, "backbone/undecayed": 0.0, "head": 1e-3, "head/undecayed": 0.0}


def test_a_frozen_backbone_stays_as_it_is() -> None:
    """Also right after the constructor, without `build`, and with validation between the epochs."""
    model = ActionRecognition(R2Plus1D(depth=10, width=8), TGAPHead, ["a", "b", "c"], 8, freeze_backbone=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    watcher = Watcher()
    run = trainer(max_epochs=2, callbacks=[watcher])
    run.fit(model, loader(), loader())
    assert watcher.modes == [(False, True)] * 6
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.classifier.weight", "head.classifier.bias"}
    (optimizer,) = run.optimizers
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.head.parameters()}


def test_a_backbone_that_is_not_frozen_learns() -> None:
    """A model out of `build` is in evaluation mode, and a run puts it into training mode."""
    model = build()
    assert not model.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    watcher = Watcher()
    trainer(max_epochs=2, callbacks=[watcher]).fit(model, loader(), loader())
    assert watcher.modes == [(True, True)] * 6
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert not same


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights, none of them equal to those of a new network."""
    torch.manual_seed(5)
    network = R2Plus1D(depth=10, width=8)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight)
            nn.init.uniform_(module.bias)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def holds(model: ActionRecognition, weights: dict[str, Tensor]) -> bool:
    """Whether the parameters of the backbone are these."""
    return all(torch.equal(value, weights[name]) for name, value in model.backbone.named_parameters())


STILL = ["model.optimizer=SGD", "model.optimizer.lr=0"]


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("frozen", ["false", "true"])
def test_a_run_starts_from_pretrained_weights(
    weights: Path, caplog: pytest.LogCaptureFixture, layout: str, frozen: str
) -> None:
    options = [f"model.memory_format={layout}", f"model.freeze_backbone={frozen}"]
    model = build(*STILL, *options, f"model.backbone.weights={weights}")
    assert not holds(model, torch.load(weights))
    head = {name: value.clone() for name, value in model.head.state_dict().items()}
    trainer(max_steps=1, limit_val_batches=0).fit(model, loader())
    assert holds(model, torch.load(weights))
    assert all(torch.equal(value, head[name]) for name, value in model.head.state_dict().items())
    assert caplog.text.count(f"weights {weights}: loaded 126 tensors into R2Plus1D") == 1
    weight = model.backbone.layer1[0].conv1[0][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) == (layout == "channels_last")


def test_the_optimizer_moves_the_pretrained_weights(weights: Path) -> None:
    """The gradient of the first step is that at the pretrained weights, as a model that holds them has it."""
    steps = []
    for early in (False, True):
        model = build("model.optimizer=SGD", "model.optimizer.lr=0.01", f"model.backbone.weights={weights}")
        if early:
            model.backbone.load_pretrained()
        torch.manual_seed(3)
        trainer(max_steps=1, limit_val_batches=0).fit(model, loader())
        steps.append(dict(model.backbone.named_parameters()))
    assert all(torch.equal(value, steps[1][name]) for name, value in steps[0].items())
    assert not torch.equal(steps[0]["stem.0.weight"], torch.load(weights)["stem.0.weight"])


def test_nothing_but_a_new_run_touches_pretrained_weights(weights: Path) -> None:
    weights.unlink()
    model = build(f"model.backbone.weights={weights}")
    trainer().validate(model, loader(), verbose=False)
    trainer().test(model, loader(), verbose=False)
    trainer().predict(model, loader())
    with pytest.raises(InputError, match=f"weights {weights} are neither a file nor a published name"):
        trainer(max_steps=1).fit(model, loader())


def test_training_that_goes_on_keeps_its_weights(weights: Path, tmp_path: Path) -> None:
    """By a checkpoint, by a model that was loaded from one, or by a second run of the same model."""
    options = ["model.optimizer=SGD", "model.optimizer.lr=0.01", NO_SCHEDULER, f"model.backbone.weights={weights}"]
    model, run = build(*options), trainer(max_epochs=1, limit_val_batches=0)
    run.fit(model, loader())
    weights.unlink()
    run.save_checkpoint(tmp_path / "model.ckpt")
    trained = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    resumed = build(*options)
    trainer(max_epochs=1, limit_val_batches=0).fit(resumed, loader(), ckpt_path=tmp_path / "model.ckpt")
    assert holds(resumed, trained)
    for more in (model, cnnbert.load(tmp_path / "model.ckpt")):
        assert holds(more, trained)
        more.optimizer = lambda groups: torch.optim.SGD(groups, lr=0)
        trainer(max_epochs=1, limit_val_batches=0).fit(more, loader())
        assert holds(more, trained)


class ShardedStrategy(SingleDeviceStrategy):
    """A strategy that takes the network apart before it restores checkpoints, as those for sharded networks do."""

    was_loaded: bool

    def setup(self, trainer: Trainer) -> None:
        model = self.lightning_module
        assert isinstance(model, ActionRecognition)
        self.was_loaded = model.backbone.was_loaded
        super().setup(trainer)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


def test_sharded_networks_take_pretrained_weights_while_they_are_whole(weights: Path) -> None:
    """tests/test_distributed.py has real processes."""
    model = build(*STILL, f"model.backbone.weights={weights}")
    strategy = ShardedStrategy("cpu")
    trainer(strategy=strategy, max_steps=1, limit_val_batches=0).fit(model, loader())
    assert strategy.was_loaded and holds(model, torch.load(weights))


def test_warm_up() -> None:
    model = build("model.warmup_steps=4", NO_SCHEDULER)
    factors = [0.01 + 0.99 * step / 4 for step in range(4)] + [1, 1, 1]
    assert [rate for rate, _ in rates(model, 7)] == pytest.approx([1e-4 * factor for factor in factors])


def test_warm_up_before_a_cosine() -> None:
    cosine = ["model.scheduler=CosineAnnealingLR", "model.scheduler.T_max=10", "model.scheduler_interval=step"]
    model = build("model.warmup_steps=4", *cosine)
    factors = [min(1, 0.01 + 0.99 * step / 4) * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(9)]
    # 1e-6: the scheduler multiplies the rate anew at every step, in float64.
    assert [rate for rate, _ in rates(model, 9)] == pytest.approx([1e-4 * factor for factor in factors], rel=1e-6)


def test_a_scheduler_by_epoch() -> None:
    model = build("model.scheduler=StepLR", "model.scheduler.step_size=1", "model.scheduler.gamma=0.5")
    assert [rate for rate, _ in rates(model, 7)] == pytest.approx([1e-4] * 3 + [5e-5] * 3 + [2.5e-5])  # 3 an epoch


@pytest.mark.parametrize(
    "scheduler",
    [
        ["model.scheduler=CosineAnnealingWarmRestarts", "model.scheduler.T_0=5"],
        ["model.scheduler=OneCycleLR", "model.scheduler.max_lr=1e-3", "model.scheduler.total_steps=10"],
    ],
)
def test_warm_up_refuses_schedulers_that_would_undo_it(scheduler: list[str]) -> None:
    """Such a scheduler sets the full rate, which the warm-up would then multiply by a hundred."""
    name = scheduler[0].partition("=")[2]
    with pytest.raises(InputError, match=f"warmup_steps=4 does not go with {name}, which sets the learning rate"):
        build("model.warmup_steps=4", *scheduler).configure_optimizers()
    build(*scheduler).configure_optimizers()


def test_the_papers_recipe_is_the_default() -> None:
    (optimizer,), (entry,) = build().configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (1e-4, 1e-3, (0.9, 0.999), 1e-8)
    scheduler = entry["scheduler"]
    assert isinstance(scheduler, ReduceLROnPlateau)
    assert (entry["monitor"], entry["interval"]) == ("val/loss", "epoch")
    assert (scheduler.patience, scheduler.factor, scheduler.mode) == (5, 0.1, "min")
    falls = []
    for _ in range(7):  # a best epoch and six that are no better
        falls.append(optimizer.param_groups[0]["lr"])
        scheduler.step(1.0)
    assert falls == [1e-4] * 7
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "name", ["pytorch_lightning.cli.ReduceLROnPlateau", "torch.optim.lr_scheduler.ReduceLROnPlateau"]
)
def test_the_plateau_is_that_of_the_validation_loss(name: str) -> None:
    """With patience 0 and a loss that cannot fall to a thousandth, the rate is cut after the second epoch."""
    settings = [name, "patience=0", "threshold=0.999"]
    overrides = [f"model.scheduler{separator}{text}" for separator, text in zip("=..", settings, strict=True)]
    overrides += ["model.scheduler.monitor=val/loss"] if name.startswith("pytorch_lightning") else []
    watcher = Watcher()
    trainer(max_epochs=3, callbacks=[watcher]).fit(build(*overrides), loader(2), loader(2))
    assert [rate for rate, _ in watcher.rates] == pytest.approx([1e-4, 1e-4, 1e-5])


def loss_by_hand(logits: Tensor, label: Tensor, smoothing: float, weights: list[float]) -> float:
    """Weighted cross-entropy, with a share of every target spread evenly over all classes."""
    total = 0.0
    for row, target in zip(logits.log_softmax(1).tolist(), label.tolist(), strict=True):
        spread = sum(-weight * value for weight, value in zip(weights, row, strict=True)) / len(row)
        total += (1 - smoothing) * -weights[target] * row[target] + smoothing * spread
    return total / sum(weights[target] for target in label.tolist())


@pytest.mark.parametrize(
    ("smoothing", "weights"), [(0.0, None), (0.2, None), (0.0, [1, 2, 0.5]), (0.1, [3, 1, 2]), (0.0, [0, 1, 1])]
)
def test_smoothing_and_weights_change_the_training_loss_alone(smoothing: float, weights: list[float] | None) -> None:
    given = [f"model.label_smoothing={smoothing}"] + ([] if weights is None else [f"model.class_weights={weights}"])
    model = build(*given, "model.memory_format=channels_first")
    batch = collate(samples(5))
    with torch.no_grad():
        logits = model(batch["clip"][:, 0])
        loss = model.training_step(batch, 0)
    expected = loss_by_hand(logits, batch["label"], smoothing, weights or [1.0] * 3)
    # 1e-5: float32 against Python's float64; and batches of one video in validation.
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (metrics,) = trainer().validate(model, loader(5, 1), verbose=False)
    assert metrics["val/loss"] == pytest.approx(loss_by_hand(logits, batch["label"], 0, [1.0] * 3), rel=1e-5)


class Listed(VideoSource):
    """Lists videos that nobody opens: 6 of the first class, 2 of the second and 1 of the third."""

    @property
    def class_names(self) -> list[str]:
        return ["class 0", "class 1", "class 2"]

    def records(self, split: str) -> list[VideoRecord]:
        return [VideoRecord(f"{i}.mp4", f"class {label}") for i, label in enumerate([0, 1, 0, 2, 0, 0, 1, 0, 0])]


def test_balanced_class_weights() -> None:
    """Every class as a whole has the same weight, and a video 1 on average."""
    data = VideoDataModule(Listed(), clip_length=8, frame_size=32, resize=32, num_workers=0)
    model = build("model.class_weights=balanced")
    batch = collate(samples(5))
    trainer(max_steps=0, limit_val_batches=0).fit(model, datamodule=data)
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    loss = model.loss(logits, batch["label"])
    expected = loss_by_hand(logits, batch["label"], 0, [9 / 3 / 6, 9 / 3 / 2, 9 / 3 / 1])
    assert loss.item() == pytest.approx(expected, rel=1e-4)  # float32 against Python's float64
    assert not any(name.startswith("loss.") for name in model.state_dict())


def test_balancing_twice_is_refused() -> None:
    data = VideoDataModule(Listed(), clip_length=8, frame_size=32, resize=32, num_workers=0, balanced_sampling=True)
    with pytest.raises(InputError, match=r"class_weights=balanced and balanced_sampling together .*; leave one out"):
        trainer(max_steps=0).fit(build("model.class_weights=balanced"), datamodule=data)
    with pytest.raises(InputError, match="class_weights=balanced needs a VideoDataModule"):
        trainer(max_steps=0).fit(build("model.class_weights=balanced"), loader())


def test_whole_numbers_are_class_weights_too() -> None:
    model = ActionRecognition(R2Plus1D(depth=10, width=8), TGAPHead, ["a", "b", "c"], 8, class_weights=[1, 2, 3])
    assert model.training_step(collate(samples(3)), 0).isfinite()
    assert not any(name.startswith("loss.") for name in model.state_dict())


def test_training_views_each_have_their_videos_label() -> None:
    model = build()
    batch = collate(samples(2, num_views=3))
    with torch.no_grad():
        expected = F.cross_entropy(model.view_logits(batch["clip"]).flatten(0, 1), torch.tensor([0, 0, 0, 1, 1, 1]))
        assert model.training_step(batch, 0).item() == pytest.approx(expected.item())


def broken(number: int) -> Sample:
    return {"index": number, "label": number % 3, "failure": VideoReadError(f"{number}.mp4", "it is broken")}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_batch_without_a_video_pulls_nowhere(frozen: bool) -> None:
    """Yet it gives every parameter a gradient, which other processes wait for."""
    model = build(f"model.freeze_backbone={str(frozen).lower()}").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss = model.training_step(collate([broken(0)]), 0)
    loss.backward()
    assert loss.item() == 0
    for weight in model.parameters():
        assert (weight.grad is not None and not weight.grad.any()) if weight.requires_grad else weight.grad is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_evaluation_collects_what_could_not_be_read() -> None:
    """In batches of both kinds and of one kind alone, without a data module too."""
    mixed = [*samples(3), broken(3), broken(4), broken(5), *samples(8)[6:]]
    model = build("model.memory_format=channels_first")
    batches = DataLoader(mixed, batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    probabilities = trainer().predict(model, batches)
    assert [len(rows) for rows in probabilities] == [2, 1, 0, 2]
    videos = model.scores.compute()
    assert videos.index.tolist() == list(range(8))
    assert videos.was_read.tolist() == [True] * 3 + [False] * 3 + [True] * 2
    assert videos.label.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    (metrics,) = trainer().test(model, batches, verbose=False)
    right = videos.video_logits[videos.was_read].argmax(1) == videos.label[videos.was_read]
    assert metrics["test/top1"] == pytest.approx(right.sum().item() / 8)


def test_accuracies_need_a_video() -> None:
    none = DataLoader([broken(0), broken(1)], collate_fn=collate)  # type: ignore[arg-type, list-item]
    with pytest.raises(InputError, match="there is nothing to judge by: no video read"):
        trainer().validate(build(), none, verbose=False)


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_shared_batch_norms_do_not_go_with_empty_batches(share: float) -> None:
    """A process without a video would keep the others waiting for its statistics."""
    source = GeneratedActions(num_clips=39)
    data = VideoDataModule(source, clip_length=8, frame_size=32, resize=32, num_workers=0, max_failed_share=share)
    run = trainer(max_steps=0, limit_val_batches=0)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(build(num_classes=len(data.class_names)))
    if share == 0:
        run.fit(model, datamodule=data)
        return
    with pytest.raises(InputError, match=r"sync_batchnorm does not go with max_failed_share=0.05: .* to 0"):
        run.fit(model, datamodule=data)


def test_any_optimizer_by_its_class() -> None:
    sgd = ["model.optimizer=SGD", "model.optimizer.lr=0.01", "model.optimizer.momentum=0.9"]
    model = build(*sgd, "model.optimizer.dampening=0.9", NO_SCHEDULER)
    run = trainer(max_steps=2, limit_val_batches=0)
    run.fit(model, loader())
    (optimizer,) = run.optimizers
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["dampening"]) == (0.01, 0.9, 0.9)


@pytest.mark.parametrize(
    ("config", "clip_length", "num_steps"),
    [
        ("r2plus1d_bert.yaml", 32, 4),
        ("r2plus1d_bert.yaml", 64, 8),
        ("resnext_bert.yaml", 64, 4),
        ("resnext_bert_frmb.yaml", 64, 4),
        ("resnext_bert.yaml", 40, 3),
    ],
)
def test_positions_fit_the_clip_length(config: str, clip_length: int, num_steps: int) -> None:
    with torch.device("meta"):
        model = cnnbert.build(config, ["a", "b"], [f"data.clip_length={clip_length}"])
        assert model.clip_length == clip_length
        assert model.head.positions.shape == (1, 1 + num_steps, 512)
        assert model.backbone(torch.empty(1, 3, clip_length, 32, 32)).shape[2] == num_steps


def test_channels_last_changes_the_layout_alone() -> None:
    logits = []
    for layout in ("channels_first", "channels_last"):
        model = build(f"model.memory_format={layout}")
        trainer().predict(model, loader())
        weight = model.backbone.layer1[0].conv1[0][0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last_3d) == (layout == "channels_last")
        logits.append(model.scores.compute().video_logits)
    # 1e-4: other kernels sum in another order; the logits are of the order of 1.
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


class FrameByFrame(R2Plus1D):
    """A backbone with a 2D convolution, whose weights have no 3D layout."""

    def __init__(self) -> None:
        super().__init__(depth=10, width=8)
        self.first = nn.Conv2d(3, 3, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(
            self.first(x.transpose(1, 2).flatten(0, 1)).unflatten(0, x.shape[::2][:2]).transpose(1, 2)
        )


def test_channels_last_leaves_other_layers_alone() -> None:
    model = ActionRecognition(FrameByFrame(), TGAPHead, ["a", "b", "c"], 8, memory_format="channels_last")
    trainer(max_steps=1, limit_val_batches=0).fit(model, loader())


@pytest.mark.parametrize(("num_classes", "has_top5"), [(3, False), (5, False), (6, True)])
def test_top5_needs_more_than_five_classes(num_classes: int, has_top5: bool) -> None:
    model = build(num_classes=num_classes)
    (metrics,) = trainer().validate(model, loader(), verbose=False)
    names = {"loss", "top1", "mean_class_accuracy", "clip_top1"} | ({"top5"} if has_top5 else set())
    assert set(metrics) == {f"val/{name}" for name in names}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_weights": [1.0]}, "class_weights has 1 numbers; give one for each of the 3 classes"),
        ({"class_weights": [1.0, -1.0, 1.0]}, r"class_weights=\[1.0, -1.0, 1.0\] must not be negative"),
        ({"class_weights": "even"}, "class_weights='even' must be a list of numbers, balanced or null"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must be in \[0, 1\)"),
        ({"backbone_lr_factor": 0.0}, "backbone_lr_factor=0.0 must be above 0; freeze_backbone stops it"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must not be negative"),
    ],
)
def test_mistakes_in_the_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ActionRecognition(R2Plus1D(depth=10, width=8), TGAPHead, ["a", "b", "c"], 8, **arguments)
