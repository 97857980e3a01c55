"""Runs a backbone once over a data set and stores its features, on which heads are then trained without decoding."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning import seed_everything
from pytorch_lightning.cli import instantiate_module
from torch.utils.data import DataLoader
from tqdm import tqdm

import cnnbert
from cnnbert.backbones.base import Backbone
from cnnbert.backbones.weights import state_digest
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.dataset import Sample, VideoDataset
from cnnbert.data.features import FeatureWriter, read_facts
from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError
from cnnbert.loading import build_data, config_settings, instantiate
from cnnbert.machine import autocast, best_device, best_precision, lay_out_channels_last, prefers_channels_last
from cnnbert.tasks.recognition import CLIPS_AT_ONCE

IRRELEVANT = (
    "source",  # the videos are compared themselves
    "exclude",
    "count_failed",
    "balanced_sampling",
    "cache",
    "cache_gib",
    "max_failed_share",
    "batch_size",
    "num_workers",
    "average",
    "class_names",
)
"""Settings of the data that the features do not depend on."""

CONFIG = "config.yaml"
LINKED = ("class_names", "clip_length", "multi_label")
"""What the data tells the model."""

ENDS = 65536
"""Bytes at each end of a file by which a change of it is noticed."""


def features(*, config: str, out: str, train_views: int = 4, settings: Sequence[str] = ()) -> None:
    """Store the features that a backbone gives for the videos of a data set.

    Heads are then trained on them without decoding a video: cnnbert ablate --features FOLDER. The backbone's weights
    are those that fit would start from (--model.backbone.weights); all settings of fit are taken too. Of each training
    video there are some augmented clips, those that fit would draw in its first epochs with the same seed; of
    validation and test videos the views of the protocol.

    The folder is there whole or not at all. It knows what it was made from: weights, videos, clips and their
    transforms. Where one of these is another later, the features are refused.

    Args:
        config: A run's config: a path, or a shipped one such as r2plus1d_tgap.yaml.
        out: The folder to be made.
        train_views: Augmented clips of each training video, at least 1.
        settings: Settings that win over the config's, such as --data.source.path=videos.csv.
    """
    folder = Path(out).expanduser()
    if train_views < 1:
        raise InputError(f"train_views={train_views} must be at least 1; try 4")
    if folder.exists():
        raise InputError(f"{folder} is there already; remove it, or give --out another folder")
    known = config_settings(config, [], settings)
    data = build_data(config, settings)
    data.prepare_data()
    known["model"]["class_names"] = data.class_names
    backbone = build_backbone(known)
    for stage in ("fit", "test"):
        data.setup(stage)
    key = {**feature_key(known, data, backbone), "train_views": train_views}
    writer = FeatureWriter(folder)
    shutil.rmtree(writer.part, ignore_errors=True)  # of a start that was stopped
    writer.part.mkdir(parents=True)
    try:
        for split, num_epochs in {"train": train_views, "val": 1, "test": 1}.items():
            _store(split, num_epochs, data, backbone, known["trainer"]["precision"], writer)
        model = {name: value for name, value in known["model"].items() if name not in LINKED}
        config_text = yaml.safe_dump({**known, "model": model}, sort_keys=False)
        (writer.part / CONFIG).write_text(config_text, encoding="utf-8")
        writer.finish({"key": key, "version": cnnbert.__version__})
    except OSError as error:
        raise InputError(f"the features cannot be written to {writer.part}: {error}") from error
    finally:
        shutil.rmtree(writer.part, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    failed = sum(len(data.failures[split]) for split in ("train", "val", "test"))
    print(f"{folder}: features of {sum(map(len, data.datasets.values()))} videos, {size:.0f} MiB", flush=True)
    if failed:
        print(f"{failed} videos could not be read: left out of training, and counted in tests as cnnbert test does")


def build_backbone(settings: Mapping[str, Any]) -> Backbone:
    """Return the backbone of a run's settings with the weights that its training would start from, in evaluation."""
    seed_everything(settings["seed_everything"], workers=True, verbose=False)
    backbone = instantiate(settings["model"]).backbone
    backbone.fetch_pretrained()
    print(backbone.load_pretrained() or "the backbone has random weights: weights is null", flush=True)
    return backbone.eval()


def feature_key(settings: Mapping[str, Any], data: VideoDataModule, backbone: Backbone) -> dict[str, Any]:
    """Return all that features depend on, by name, to be compared with that of other features.

    Args:
        settings: A run's settings.
        data: Its data, set up for fit and test.
        backbone: Its backbone with its weights.
    """
    described = {name: value for name, value in settings["data"].items() if name not in IRRELEVANT}
    if described["seed"] is None:
        described["seed"] = settings["seed_everything"]
    videos = {f"{split} videos": _digest(videos.records) for split, videos in data.datasets.items()}
    named = {f"data.{name}": value for name, value in described.items()}
    return {
        "backbone": _without_weights(settings["model"]["backbone"]),
        "weights": state_digest(backbone),
        "classes": data.class_names,
        "mirrored classes": data.source.mirrored,
        **videos,
        **({"optical flow": data.reader.made_with} if data.reader.made_with else {}),
        **json.loads(json.dumps(named)),
    }


def _without_weights(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return the class of a backbone and its arguments, and those of backbones among them, but for their weights."""
    arguments = {name: value for name, value in (backbone.get("init_args") or {}).items() if name != "weights"}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and "class_path" in value:
            arguments[name] = _without_weights(value)
    return {"class_path": backbone["class_path"], **arguments}


def check_features(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse features that were made with another backbone, other videos or other clips than those of the settings.

    Args:
        folder: What `cnnbert features` wrote.
        settings: All settings of the run that is to use them.

    Raises:
        InputError: There are no features, or they are of something else; the message says of what.
    """
    then = read_facts(folder)["key"]
    data = build_data_of(settings)
    for stage in ("fit", "test"):
        data.setup(stage)
    now = feature_key(settings, data, build_backbone(settings))
    for name, value in now.items():
        if then.get(name) != value:
            raise InputError(
                f"the features in {folder} are of another kind: {name} was {_short(then.get(name))} and is "
                f"{_short(value)}; make them again with cnnbert features"
            )


def build_data_of(settings: Mapping[str, Any]) -> VideoDataModule:
    """Return the data module of a run's settings."""
    return instantiate_module(VideoDataModule, dict(settings["data"]))


@torch.inference_mode()
def _store(
    split: str,
    num_epochs: int,
    data: VideoDataModule,
    backbone: Backbone,
    precision: str | None,
    writer: FeatureWriter,
) -> None:
    """Run the backbone over a split and write what it gives."""
    videos = data.datasets[split]
    device = best_device()
    precision = precision or best_precision(device)
    backbone.to(device)
    if prefers_channels_last(device, precision):
        lay_out_channels_last(backbone)
    with (
        writer.split(split, len(videos), num_epochs) as split_writer,
        autocast(device, precision),
        tqdm(
            total=len(videos) * num_epochs, desc=f"features ({split})", unit="video", disable=None, dynamic_ncols=True
        ) as bar,
    ):
        for samples in _chunks(videos, num_epochs, data):
            views = [sample["clip"] for sample in samples if "clip" in sample]
            clips = torch.cat(views).split(CLIPS_AT_ONCE) if views else []
            found = [backbone(some.to(device)).float().cpu() for some in clips]
            rows = iter(torch.cat(found).split([len(view) for view in views]) if views else [])
            for sample in samples:
                split_writer.add(sample, next(rows) if "clip" in sample else None)
                if "failure" in sample and sample["index"] not in data.failures[split]:
                    data.failures[split][sample["index"]] = sample["failure"]
                    tqdm.write(str(sample["failure"]))
            bar.update(len(samples))


def _chunks(videos: VideoDataset, num_epochs: int, data: VideoDataModule) -> Iterator[list[Sample]]:
    """Yield the samples of all epochs, in order, some at a time."""
    items: Any = [(epoch, index) for epoch in range(num_epochs) for index in range(len(videos))]
    workers = data.num_workers if data.num_workers is not None else data.default_workers()
    yield from DataLoader(videos, CLIPS_AT_ONCE // 2, sampler=items, num_workers=workers, collate_fn=list)


def _digest(records: Sequence[VideoRecord]) -> str:
    """Return a digest of videos: their paths, labels and pieces, and the size and both ends of each file.

    By that a changed file is noticed without being read as a whole, and a copied one is the same.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr(record).encode(errors="surrogateescape"))
        path = Path(record.path)
        if path.is_file():
            with path.open("rb") as file:
                size = path.stat().st_size
                digest.update(f"{size}".encode() + file.read(ENDS))
                file.seek(max(0, size - ENDS))
                digest.update(file.read(ENDS))
    return f"{len(records)} ({digest.hexdigest()[:12]})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:76]}..."
