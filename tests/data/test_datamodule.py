"""Every stage gets the views it should, and every video once."""

from __future__ import annotations

import math
import sys
import tempfile
from collections import Counter
from typing import Any

import pytest
import torch
from memory import ListedSource, MemoryReader, MemoryVideo
from pytorch_lightning import LightningModule, Trainer

from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.dataset import Sample
from cnnbert.data.loaders import BalancedSampler, EpochSampler, collate
from cnnbert.data.video import Video
from cnnbert.errors import InputError, VideoReadError

NAMES = ["left", "right"]


def videos(number: int, prefix: str = "") -> dict[str, str | None]:
    return {f"{prefix}{i}": NAMES[i % 2] for i in range(number)}


def datamodule(splits: dict[str, dict[str, str | None]] | None = None, **arguments: Any) -> VideoDataModule:
    """A data module of six training, four validation and three test videos in memory."""
    splits = splits or {"train": videos(6), "val": videos(4), "test": videos(3)}
    source = arguments.pop("source", ListedSource(splits, NAMES))
    defaults = {"clip_length": 8, "frame_size": 24, "resize": (32, 40), "num_workers": 0, "reader": MemoryReader()}
    return VideoDataModule(source, **{**defaults, **arguments})


def test_many_views_open_a_video_once() -> None:
    reader = MemoryReader()
    data = datamodule(reader=reader, num_clips=3, num_crops=10)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [batch["clip"].shape for batch in batches] == [(1, 30, 3, 8, 24, 24)] * 3
    assert reader.opened == ["0", "1", "2"]


def test_shapes_of_batches() -> None:
    data = datamodule(batch_size=4, num_clips=2, num_crops=3, seed=0)
    data.setup("fit")
    data.setup("test")
    data.setup("validate")
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    shapes = [[tuple(batch["clip"].shape) for batch in loader] for loader in loaders]
    view = (3, 8, 24, 24)
    assert shapes == [[(4, 1, *view), (2, 1, *view)], [(4, 1, *view)], [(1, 6, *view)] * 3]
    batch = next(iter(data.val_dataloader()))
    assert batch["clip"].dtype == torch.uint8
    assert (batch["index"].tolist(), batch["label"].tolist()) == ([0, 1, 2, 3], [0, 1, 0, 1])
    assert (batch["index"].dtype, batch["label"].dtype, batch["failures"]) == (torch.int64, torch.int64, [])


@pytest.mark.parametrize(("batch_size", "videos_a_batch"), [(5, 1), (12, 2), (18, 3)])
def test_a_test_batch_holds_about_as_many_clips(batch_size: int, videos_a_batch: int) -> None:
    data = datamodule(batch_size=batch_size, num_clips=2, num_crops=3)
    data.setup("test")
    assert next(iter(data.test_dataloader()))["clip"].shape[:2] == (videos_a_batch, 6)


def test_training_draws_and_evaluation_does_not() -> None:
    data = datamodule({"train": videos(6), "val": videos(4), "test": {"left/0": "left"}}, clip_length=2)
    data.setup("fit")
    data.setup("test")
    clips = {name: [data.datasets[name][epoch, 0]["clip"] for epoch in range(5)] for name in data.datasets}
    assert len({clip.numpy().tobytes() for clip in clips["train"]}) > 2
    assert all(torch.equal(clip, clips["val"][0]) for clip in clips["val"])
    assert all(torch.equal(clip, clips["test"][0]) for clip in clips["test"])


def epochs(sampler: EpochSampler, number: int = 3) -> list[list[tuple[int, int]]]:
    orders = []
    for epoch in range(number):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


def test_every_epoch_has_every_video_in_an_order_of_its_own() -> None:
    data = datamodule({"train": videos(20), "val": videos(4)})
    data.setup("fit")
    orders = epochs(data.train_dataloader().sampler)
    for epoch, order in enumerate(orders):
        assert {number for number, _ in order} == {epoch}
        assert sorted(index for _, index in order) == list(range(20))
    plain = [[index for _, index in order] for order in orders]
    assert plain[0] != plain[1] != plain[2] != plain[0]
    assert plain[0] != list(range(20))


def test_the_seed_settles_the_order() -> None:
    orders = []
    for seed in (1, 1, 2):
        data = datamodule({"train": videos(20), "val": videos(4)}, seed=seed)
        data.setup("fit")
        orders.append(epochs(data.train_dataloader().sampler))
    assert orders[0] == orders[1] != orders[2]


def test_the_runs_seed_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    orders = []
    for seed in (None, 7, 0):
        data = datamodule({"train": videos(20), "val": videos(4)}, seed=seed)
        data.setup("fit")
        assert data.datasets["train"].seed == (0 if seed == 0 else 7)
        orders.append(epochs(data.train_dataloader().sampler))
    assert orders[0] == orders[1] != orders[2]


def test_two_processes_share_an_epoch() -> None:
    data = datamodule({"train": videos(20), "val": videos(4)})
    data.setup("fit")
    parts = [
        epochs(EpochSampler(data.datasets["train"], num_replicas=2, rank=rank, shuffle=True, seed=0)) for rank in (0, 1)
    ]
    for ours, theirs in zip(*parts, strict=True):
        assert len(ours) == len(theirs) == 10
        assert not set(ours) & set(theirs)
        assert sorted(index for _, index in [*ours, *theirs]) == list(range(20))


@pytest.mark.parametrize(
    ("sizes", "num_processes"), [((5, 5), 1), ((17, 3), 1), ((1, 30), 1), ((17, 3), 2), ((8, 7), 3), ((1, 8), 2)]
)
def test_balanced_sampling(sizes: tuple[int, int], num_processes: int) -> None:
    """Of each class ceil(N / 2), of a class each video as often as the others, in clips of their own."""
    listed: dict[str, str | None] = {
        f"{name}{i}": name for name, size in zip(NAMES, sizes, strict=True) for i in range(size)
    }
    data = datamodule({"train": listed, "val": videos(2)}, seed=1)
    data.setup("fit")
    samplers = [
        BalancedSampler(data.datasets["train"], num_processes, rank, shuffle=True, seed=1)
        for rank in range(num_processes)
    ]
    parts = [epochs(sampler) for sampler in samplers]
    expected = math.ceil(sum(sizes) / 2)
    orders = []
    for number, shares in enumerate(zip(*parts, strict=True)):
        assert [len(share) for share in shares] == [len(samplers[0])] * num_processes
        items = [item for together in zip(*shares, strict=True) for item in together]
        assert items[2 * expected :] == items[: len(items) - 2 * expected]  # repeated, so that all have as many
        items = items[: 2 * expected]
        assert len(set(items)) == len(items)
        indices = [index for _, index in items]
        counts = [Counter(index for index in indices if (index < sizes[0]) == first) for first in (True, False)]
        assert [count.total() for count in counts] == [expected] * 2
        for count, size in zip(counts, sizes, strict=True):
            assert len(count) == min(size, expected)
            assert max(count.values()) - min(count.values()) <= 1
        assert {draw // samplers[0].num_repeats for draw, _ in items} == {number}  # other clips in other epochs
        orders.append(indices)
    assert orders[0] != orders[1] != orders[2]
    assert epochs(samplers[0]) == parts[0]


def test_balanced_sampling_is_an_option() -> None:
    data = datamodule({"train": {**videos(1), **dict.fromkeys("abcdefg", "right")}, "val": videos(2)}, seed=0)
    seen = []
    for chosen in (False, True):
        data.balanced_sampling = chosen
        seen.append(fit(data, max_epochs=1).seen)
    assert sorted(index for _, index, _ in seen[0]) == list(range(8))
    repeats = [clip for _, index, clip in seen[1] if index == 0]
    assert (len(seen[1]), len(repeats)) == (8, 4)
    assert len(set(repeats)) > 1


class Watcher(LightningModule):
    """Trains nothing and notes the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen: list[tuple[int, int, bytes]] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for index, clip in zip(batch["index"].tolist(), batch["clip"], strict=True):
            self.seen.append((self.current_epoch, index, clip.numpy().tobytes()))

    def configure_optimizers(self) -> None:
        return None


def fit(data: VideoDataModule, **arguments: Any) -> Watcher:
    watcher = Watcher()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = Trainer(accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **quiet, **arguments)
    run.fit(watcher, datamodule=data)
    return watcher


def test_the_trainer_tells_the_epoch() -> None:
    data = datamodule({"train": videos(12), "val": videos(4)}, clip_length=2, seed=0)
    watcher = fit(data, max_epochs=2)
    first, second = ([seen[1:] for seen in watcher.seen if seen[0] == epoch] for epoch in (0, 1))
    assert sorted(index for index, _ in first) == sorted(index for index, _ in second) == list(range(12))
    assert [index for index, _ in first] != [index for index, _ in second]
    changed = sum(dict(first)[index] != dict(second)[index] for index in range(12))
    assert changed > 9  # a clip is drawn again with a chance well below 1 in 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_length": 0}, "clip_length=0 must be at least 1"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"frame_size": 0}, "frame_size=0 must be at least 1"),
        ({"num_clips": 0}, "num_clips=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        (
            {"test_protocol": "3_clips"},
            "test_protocol='3_clips' is not one of center_clip, all_clips_10_crops, 10_clips_3_crops",
        ),
        ({"average": "scores"}, "average='scores' is not one of logits, probabilities"),
        ({"count_failed": "right"}, "count_failed='right' is not one of wrong, left_out"),
        ({"max_failed_share": 1.5}, r"max_failed_share=1.5 must be in \[0, 1\]"),
        ({"max_failed_share": -0.1}, r"max_failed_share=-0.1 must be in \[0, 1\]"),
        ({"flip_probability": 1.5}, r"flip_probability=1.5 must be in \[0, 1\]"),
        ({"flip_probability": -0.1}, r"flip_probability=-0.1 must be in \[0, 1\]"),
    ],
)
def test_mistakes_in_the_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        datamodule(**arguments)


@pytest.mark.parametrize(
    ("splits", "arguments", "message"),
    [
        ({"train": {}}, {}, "the source has no video in the split 'train'; add some, or raise its fraction"),
        ({"train": videos(4), "val": {}}, {}, "the source has no video in the split 'val'"),
        (
            {"train": {**videos(4), "x": "up", "y": "down"}},
            {},
            "the train videos have labels that the model does not know: down, up; its classes are left, right",
        ),
        ({"train": {**videos(4), "x": None}}, {}, "labels that the model does not know: None"),
        ({"train": videos(4), "val": {"x": "up"}}, {}, "the val videos have labels that the model does not know: up"),
        ({"train": {"x": "left"}}, {}, "no training video has the class right; add some or drop the class"),
        ({"train": videos(4)}, {"class_names": ["left", "right", "up"]}, "no training video has the class up"),
        ({"train": videos(4)}, {"class_names": ["left"]}, "at least two and all different; given: left"),
        ({"train": videos(4)}, {"class_names": ["left", "left"]}, "all different; given: left, left"),
        (
            {"train": videos(4), "val": videos(2)},
            {"mirrored": {"left": "up"}},
            "mirrored names up; classes are left, right",
        ),
        ({"train": videos(4), "val": videos(2)}, {"frame_size": 33}, r"frame_size=33 is larger than resize=\(32, 40\)"),
    ],
)
def test_mistakes_in_the_data(splits: Any, arguments: dict[str, Any], message: str) -> None:
    data = datamodule(splits, **arguments)
    with pytest.raises(InputError, match=message):
        data.setup("fit")


def test_testing_needs_not_every_class() -> None:
    data = datamodule({"test": {"0": "left"}})
    data.setup("test")
    assert len(data.datasets["test"]) == 1


ALL, TEN = {"test_protocol": "all_clips_10_crops"}, {"test_protocol": "10_clips_3_crops"}


@pytest.mark.parametrize(
    ("arguments", "split", "words"),
    [
        ({}, "test", "center_clip: centre clip x centre crop, 8 frames, stride 1"),
        (ALL, "test", "all_clips_10_crops: all clips x 10 crops, 8 frames, stride 1, mean of logits"),
        (TEN, "predict", "10_clips_3_crops: 10 clips x 3 crops, 8 frames, stride 1, mean of probabilities"),
        (TEN, "val", "center_clip: centre clip x centre crop, 8 frames, stride 1"),
        ({"num_crops": 3}, "test", "custom: centre clip x 3 crops, 8 frames, stride 1, mean of logits"),
        ({"num_clips": 9, "stride": 2}, "test", "custom: 9 clips x centre crop, 8 frames, stride 2, mean of logits"),
        ({**ALL, "num_crops": 1}, "test", "custom: all clips x centre crop, 8 frames, stride 1, mean of logits"),
        ({**TEN, "num_clips": 5}, "test", "custom: 5 clips x 3 crops, 8 frames, stride 1, mean of probabilities"),
        ({**TEN, "average": "logits"}, "test", "custom: 10 clips x 3 crops, 8 frames, stride 1, mean of logits"),
        (
            {"num_clips": 10, "num_crops": 3, "average": "probabilities"},
            "test",
            "10_clips_3_crops: 10 clips x 3 crops, 8 frames, stride 1, mean of probabilities",
        ),
        (
            {"validate_on_test": True},
            "val",
            "center_clip: centre clip x centre crop, 8 frames, stride 1, on the test videos",
        ),
        ({"validate_on_test": True}, "test", "center_clip: centre clip x centre crop, 8 frames, stride 1"),
    ],
)
def test_protocol(arguments: dict[str, Any], split: str, words: str) -> None:
    assert datamodule(**arguments).protocol(split) == f"protocol {words}"


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ({"test_protocol": "center_clip", "batch_size": 2}, [(2, 1), (1, 1)]),
        ({"test_protocol": "10_clips_3_crops", "batch_size": 60}, [(2, 30), (1, 30)]),
        ({"test_protocol": "all_clips_10_crops", "batch_size": 60}, [(1, 10), (1, 20), (1, 40)]),
        ({"test_protocol": "all_clips_10_crops", "num_clips": 2, "batch_size": 60}, [(3, 20)]),
        ({"test_protocol": "all_clips_10_crops", "num_crops": 1}, [(1, 1), (1, 2), (1, 4)]),
    ],
)
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_views_of_a_protocol(stage: str, arguments: dict[str, Any], shapes: list[tuple[int, int]]) -> None:
    """Of videos of 10, 20 and 40 frames; validation takes one view all the same."""
    lengths: dict[str, str | None] = {"10": "left", "20": "right", "40": "left"}
    splits = {stage: lengths, "val": lengths}
    data = datamodule(splits, reader=LengthReader(), **arguments)
    data.setup(stage)
    loader = data.test_dataloader() if stage == "test" else data.predict_dataloader()
    assert [tuple(batch["clip"].shape[:2]) for batch in loader] == shapes
    data.setup("validate")
    assert all(batch["clip"].shape[1] == 1 for batch in data.val_dataloader())


class LengthReader(MemoryReader):
    """Gives videos whose path is their number of frames."""

    def open(self, path: str) -> Video:
        return MemoryVideo(int(path), self.size)


def test_validation_on_the_test_videos_trains_on_all_others() -> None:
    splits = {"train": videos(6, "train"), "val": videos(4, "val"), "test": videos(3, "test")}
    listed = {}
    for chosen in (False, True):
        data = datamodule(splits, validate_on_test=chosen)
        data.setup("fit")
        data.setup("test")
        listed[chosen] = {
            split: [record.path for record in dataset.records] for split, dataset in data.datasets.items()
        }
    assert listed[False] == {split: list(paths) for split, paths in splits.items()}
    assert listed[True] == {
        "train": [*splits["train"], *splits["val"]],
        "val": list(splits["test"]),
        "test": list(splits["test"]),
    }
    data = datamodule({"train": videos(6), "val": videos(4)}, validate_on_test=True)
    with pytest.raises(InputError, match="the source has no video in the split 'test'"):
        data.setup("validate")


def test_options_reach_sampler_and_transforms() -> None:
    for chosen in (False, True):
        options = {"skip_last_frame": chosen, "truncated_crops": chosen, "antialias": not chosen}
        data = datamodule(**options)
        data.setup("fit")
        data.setup("test")
        train = data.datasets["train"]
        assert train.sampler.skip_last_frame is chosen
        assert train.transform.truncated_crops is chosen
        assert {dataset.transform.antialias for dataset in data.datasets.values()} == {not chosen}
        assert {name: data.hparams[name] for name in options} == options


def test_predict_needs_no_labels() -> None:
    data = datamodule({"predict": {"a": None, "b": "zebra", "c": "right"}})
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["label"].tolist() == [-1, -1, 1]


def test_class_names_come_from_the_source_unless_given() -> None:
    assert datamodule().class_names == ["left", "right"]
    data = datamodule(class_names=["right", "left"])
    assert data.class_names == ["right", "left"]
    data.setup("validate")
    assert next(iter(data.val_dataloader()))["label"].tolist() == [1, 0, 1, 0]


def test_mirrored_comes_from_the_source_unless_given() -> None:
    there_and_back = {"left": "right", "right": "left"}
    source = ListedSource({"train": videos(4), "val": videos(4)}, NAMES, there_and_back)
    for mirrored, labels in ((None, {0: 1, 1: 0}), ({}, {})):
        data = datamodule(source=source, mirrored=mirrored)
        data.setup("fit")
        assert data.datasets["train"].mirrored_labels == labels
        assert data.datasets["val"].mirrored_labels == {}


def with_broken(good: int, broken: int) -> dict[str, dict[str, str | None]]:
    return {"train": {**videos(good), **videos(broken, "broken")}, "val": videos(2)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_leaves_out_what_cannot_be_read(num_workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """Every other video comes once an epoch, with the clip that it would have had; each failure is told once."""
    options: dict[str, Any] = {"batch_size": 3, "num_workers": num_workers, "seed": 0}
    data = datamodule(with_broken(8, 2), max_failed_share=0.2, **options)
    seen = fit(data, max_epochs=3).seen
    assert sorted(data.failures["train"]) == [8, 9]
    for number in range(2):
        assert caplog.text.count(f"cannot read broken{number}: it is broken; it is left out of the training") == 1
    whole = datamodule({"train": videos(10), "val": videos(2)}, **options)
    assert seen == [sample for sample in fit(whole, max_epochs=3).seen if sample[1] < 8]


@pytest.mark.parametrize(
    ("broken", "share", "stops"),
    [(0, 0.0, False), (1, 0.0, True), (1, 0.05, False), (2, 0.05, True), (6, 0.3, False), (7, 0.3, True)],
)
def test_training_stops_over_more_than_the_share(broken: int, share: float, stops: bool) -> None:
    """Of 20 videos; those that fail once more in another epoch do not count again."""
    data = datamodule(with_broken(20 - broken, broken), max_failed_share=share, batch_size=4, class_names=NAMES)
    if not stops:
        fit(data, max_epochs=3)
        assert len(data.failures["train"]) == broken
        return
    with pytest.raises(InputError, match=rf"of 20 training videos .*more than max_failed_share={share:g} allows"):
        fit(data, max_epochs=1)


def test_the_message_names_the_first_three() -> None:
    data = datamodule(with_broken(4, 5), max_failed_share=0.1, batch_size=9)
    with pytest.raises(InputError) as caught:
        fit(data, max_epochs=1)
    listed = "broken0 (it is broken), broken1 (it is broken), broken2 (it is broken) and 2 more"
    assert str(caught.value) == (
        f"5 of 9 training videos cannot be read: {listed}; "
        "that is more than max_failed_share=0.1 allows: repair or remove them, or raise it"
    )


def test_a_new_run_counts_anew() -> None:
    data = datamodule(with_broken(8, 2), max_failed_share=0.2)
    for _ in range(2):
        fit(data, max_epochs=1)
        assert len(data.failures["train"]) == 2


def test_collate_without_one_readable_video() -> None:
    sample: Sample = {"index": 0, "label": 1, "failure": VideoReadError("a", "it is broken")}
    batch = collate([sample])
    assert (batch["clip"].numel(), batch["index"].tolist(), batch["failures"]) == (0, [], [sample])


@pytest.mark.skipif(sys.platform != "linux", reason="clips come through sockets on Linux alone")
def test_a_folder_of_temporary_files_that_is_too_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 71)
    data = datamodule(num_workers=1)
    data.setup("fit")
    with pytest.raises(InputError, match=r"set TMPDIR to one of at most 75 bytes, such as /tmp, or read with"):
        data.train_dataloader()
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 70)
    assert len(data.train_dataloader())
