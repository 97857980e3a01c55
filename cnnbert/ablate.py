"""Trains and tests several networks with several seeds on the same videos, and compares them."""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import cnnbert.heads
from cnnbert.ablation_runs import (
    is_finished,
    lock_folder,
    logs_to_wandb,
    results_of,
    time_left,
    train_and_test,
    train_on_features,
    with_classes,
)
from cnnbert.ablation_table import Network, Size, write_tables
from cnnbert.checkpoint_classes import check_config
from cnnbert.comparison import check_same_videos
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.features import read_facts
from cnnbert.errors import InputError
from cnnbert.features import CONFIG, check_features
from cnnbert.loading import build, build_data, config_settings
from cnnbert.machine import best_device, best_precision, describe, prefers_channels_last
from cnnbert.outputs import write_whole
from cnnbert.shipped import find_config
from cnnbert.summary import network_size
from cnnbert.throughput import clips_per_second

ROWS = (
    "resnext_tgap.yaml",
    "resnext_bert_frmb.yaml",
    "resnext_bert.yaml",
    "r2plus1d_tgap.yaml",
    "r2plus1d_bert.yaml",
)
"""The five rows of Table 1 of Garg & Murugan 2021."""

HARMLESS = ("data.num_workers", "data.cache", "data.cache_gib", "trainer.logger", "trainer.enable_progress_bar")
"""Settings that may differ between two starts, since what is learnt does not depend on them."""


def ablate(
    *,
    configs: tuple[str, ...] = ROWS,
    seeds: int = 5,
    baseline: tuple[str, ...] = (),
    out: str = "ablation",
    features: str | None = None,
    heads: tuple[str, ...] = (),
    settings: Sequence[str] = (),
) -> int:
    """Train and test several networks with several seeds on the same data, and compare their test accuracies.

    For the paper's five rows on your own videos: cnnbert ablate --data data/folder.yaml --data.source.root my_videos.
    All settings of fit are taken too and hold for all networks, such as --trainer.max_epochs 50. Each training and each
    test is a process of its own; the best checkpoint of the training is tested.

    The output folder gets table.md, table.csv and figure.png, and in seedS/NETWORK the runs with their checkpoints,
    predictions and log.txt. Each network is compared with its baseline on the same test videos: the difference of the
    mean accuracies with a 95 % interval by bootstrap over videos and seeds, and McNemar's exact test.

    Stopped in whatever way, the same command goes on: finished runs are kept, others go on from their last checkpoint.
    A run that fails stops nothing else; the table names it, the exit status is 1, and the next start tries it again.
    More seeds and networks can be added to a folder; changed settings are refused. With W&B the runs are one group,
    and the table is in it.

    With --features, heads are trained on stored features of one frozen backbone, as many at a time as there are CPU
    cores, and much faster: cnnbert ablate --features FOLDER --heads TGAPHead BERTHead. The numbers are those of fit
    with freeze_backbone.

    Args:
        configs: The networks' configs: paths, or shipped ones. A network is called after its file.
        seeds: How many seeds, from 0 on.
        baseline: Networks that others are compared with, by name: each with the one that has the same backbone, or else
            with the first. By default those that average over time (TGAPHead), or else the first of all.
        out: The folder that everything goes to.
        features: A folder that `cnnbert features` made. The networks are then its backbone with one head each, trained
            as its config says; of a run head.ckpt stays, the head's weights without the backbone's: a checkpoint for
            test, classify and all that use a trained model, where the file of the backbone's weights is.
        heads: The heads for `features`: names of classes, or YAML files with `class_path` and `init_args`, or configs
            with `model.head` and whatever else a head's training needs, such as its learning rate. What the features'
            config gives its own head holds for these too, where they have such an argument. By default all of the
            package.
        settings: Settings that win over those of all configs, such as --data.source.path=videos.csv.
    """
    if seeds < 1:
        raise InputError(f"seeds={seeds} must be at least 1; with 5 one sees how much is chance")
    folder = Path(out).expanduser()
    if features is None:
        if heads:
            raise InputError(f"heads={', '.join(heads)} are trained on --features; without, give --configs")
        if len({Path(config).stem for config in configs}) < max(1, len(configs)):
            raise InputError(f"configs={', '.join(configs)} must be files of different names, at least one")
        networks = _networks({Path(config).stem: (find_config(config), ()) for config in configs}, baseline, settings)
        data, videos = _data(networks)
    else:
        if configs != ROWS:
            raise InputError(f"configs={', '.join(configs)} do not go with features; give --heads")
        stored = Path(features).expanduser()
        read_facts(stored)
        check_config(stored / CONFIG)
        networks = _networks(
            {name: (stored / CONFIG, (head,)) for name, head in _heads(heads).items()}, baseline, settings
        )
        data, videos = _data(networks[:1])
        kinds = {_clips_and_backbone(network): network for network in networks}
        for network in kinds.values():
            check_features(stored, with_classes(network, data.class_names))
    _check_start(folder, networks, videos)
    runs = [(network, seed) for seed in range(seeds) for network in networks]
    sizes = {network.name: _size(network, num_classes=len(data.class_names)) for network in networks}
    about = [_command(configs, seeds, baseline, out, features, heads, settings)]
    with lock_folder(folder) as lock, _ending_on_sigterm():
        try:
            if features is None:
                for place, (network, seed) in enumerate(runs, 1):
                    if is_finished(folder, network, seed):
                        continue
                    print(f"\n{network.name}, seed {seed}: {place} of {len(runs)}{time_left(folder, runs)}", flush=True)
                    train_and_test(folder, network, seed, lock)
                    write_tables(folder, networks, results_of(folder, runs), sizes, about)
            else:
                left = [run for run in runs if not is_finished(folder, *run)]
                done = train_on_features(folder, left, stored, data.class_names)
                for place, (network, seed) in enumerate(done, len(runs) - len(left) + 1):
                    print(f"{network.name}, seed {seed}: {place} of {len(runs)} done", flush=True)
        except KeyboardInterrupt:
            num_finished = sum(is_finished(folder, *run) for run in runs)
            raise InputError(f"stopped after {num_finished} of {len(runs)} runs; the same command goes on") from None
        results = results_of(folder, runs)
        speeds = _speeds(folder, networks, data.class_names)
        sizes = {name: replace(size, clips_per_second=speeds.rates[name]) for name, size in sizes.items()}
        about.append(f"Clips a second: in inference, 8 at once, on {speeds.machine}, {time.strftime('%Y-%m-%d')}.")
        print(
            f"\n{write_tables(folder, networks, results, sizes, about)}\nthe same in {folder / 'table.md'}", flush=True
        )
        _log_to_wandb(folder, networks)
    return int(any(result.error for result in results))


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Make SIGTERM an exception, on which the training ends as well."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _heads(heads: Sequence[str]) -> dict[str, str]:
    """Return the setting of each head by its name."""
    known = [name for name in cnnbert.heads.__all__ if not inspect.isabstract(getattr(cnnbert.heads, name))]
    named = {}
    for head in heads or known:
        if head.endswith((".yaml", ".yml")):
            named[Path(head).stem] = _head_file(find_config(head))
        elif "." in head or head in known:
            named[head.rpartition(".")[2]] = f"--model.head={head}"
        else:
            raise InputError(f"heads={head} is no head; the package has {', '.join(known)}")
    if heads and len(named) < len(heads):
        raise InputError(f"heads={', '.join(heads)} must have different names")
    return named


def _clips_and_backbone(network: Network) -> str:
    """Return the settings that features may depend on."""
    known = network.settings
    return json.dumps([known["seed_everything"], known["model"]["backbone"], known["data"]], default=str)


def _head_file(path: Path) -> str:
    """Return the setting of a head that a file describes."""
    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML file: {error}") from error
    if isinstance(known, Mapping) and "class_path" in known:
        return f"--model.head={json.dumps(known)}"
    if isinstance(known, Mapping) and isinstance(known.get("model"), Mapping) and "head" in known["model"]:
        return f"--config={path}"
    raise InputError(f"{path} describes no head; it needs class_path, and init_args, or is a config with model.head")


def _networks(
    given: Mapping[str, tuple[Path, tuple[str, ...]]], baseline: Sequence[str], settings: Sequence[str]
) -> list[Network]:
    """Return networks by their name, config and options, each with the name of the one that it is compared with."""
    unknown = [name for name in baseline if name not in given]
    if unknown:
        raise InputError(f"baseline={', '.join(unknown)} is not among the networks {', '.join(given)}")
    options = {name: (*own, *settings) for name, (_, own) in given.items()}
    resolved = {name: config_settings(config, [], options[name]) for name, (config, _) in given.items()}
    backbones = {name: known["model"]["backbone"]["class_path"] for name, known in resolved.items()}
    averages = [name for name, known in resolved.items() if known["model"]["head"]["class_path"].endswith(".TGAPHead")]
    baselines = [*baseline] or averages or [*given][:1]
    of_backbone = {backbones[name]: name for name in reversed(baselines)}
    return [
        Network(
            name,
            str(config),
            options[name],
            resolved[name],
            "" if name in baselines else of_backbone.get(backbones[name], baselines[0]),
        )
        for name, (config, _) in given.items()
    ]


def _data(networks: Sequence[Network]) -> tuple[VideoDataModule, dict[str, str]]:
    """Return the first network's data, with its classes and videos in short; check that all are tested on the same."""
    modules = []
    for network in networks:
        module = build_data(network.config, network.options)
        module.prepare_data()
        modules.append(module)
    tested = [
        [(v.path, str(v.start_seconds), str(v.end_seconds), str(v.label)) for v in module.records("test")]
        for module in modules
    ]
    first = modules[0]
    for network, module, videos in zip(networks[1:], modules[1:], tested[1:], strict=True):
        names = (networks[0].name, network.name)
        check_same_videos(tested[0], first.class_names, videos, module.class_names, names)
    short = {"classes": ", ".join(first.class_names)}
    for split in ("train", "val", "test"):
        lines = [repr(video) for video in first.records(split)]
        short[f"{split} videos"] = f"{len(lines)} ({hashlib.sha256(repr(lines).encode()).hexdigest()[:12]})"
    return first, short


def _check_start(folder: Path, networks: Sequence[Network], videos: Mapping[str, str]) -> None:
    """Note the settings of a first start, and refuse a later one that would mix results of different settings."""
    path = folder / "ablation.json"
    flat = {network.name: _flat(network.settings) for network in networks}
    now: dict[str, dict[str, Any]] = {"videos": dict(videos), "networks": flat}
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            then, others = before["videos"], before["networks"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error!r}); give --out another folder") from error
        changes = [f"{key}: {then.get(key)} before, {value} now" for key, value in videos.items() if then[key] != value]
        for name, known in now["networks"].items():
            old = others.get(name, known)
            changed = [key for key in sorted({*old, *known}) if old.get(key) != known.get(key)]
            changes += [f"{name}: {key}={old.get(key)} before, {known.get(key)} now" for key in changed]
        if changes:
            more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
            raise InputError(
                f"{folder} holds runs with other settings, which would be mixed with these; give --out another folder; "
                f"changed: {'; '.join(changes[:5])}{more}"
            )
        now["networks"] = {**others, **now["networks"]}
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} holds other files; give --out a new folder, or one of an earlier ablation")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(now, indent=1) + "\n")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names, without the harmless ones."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name in (*HARMLESS, "seed_everything", "config"):
            continue
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat


@dataclass(frozen=True)
class Speeds:
    """How fast the networks classify.

    Attributes:
        machine: What they were measured on.
        rates: Clips a second by the networks' names.
    """

    machine: str
    rates: Mapping[str, float]


def _speeds(folder: Path, networks: Sequence[Network], class_names: Sequence[str]) -> Speeds:
    """Return the networks' speeds in inference, measured side by side if they have not been yet."""
    path = folder / "speeds.json"
    device = best_device()
    precision = best_precision(device)
    machine = describe(device, precision, prefers_channels_last(device, precision))
    if path.is_file():
        known = Speeds(**json.loads(path.read_text(encoding="utf-8")))
        if known.machine == machine and {network.name for network in networks} <= set(known.rates):
            return known
    models = {network.name: build(network.config, class_names, network.options) for network in networks}
    sizes = {network.name: network.settings["data"]["frame_size"] for network in networks}
    speeds = Speeds(machine, clips_per_second(models, sizes))
    write_whole(path, json.dumps(asdict(speeds), indent=1) + "\n")
    return speeds


def _size(network: Network, num_classes: int) -> Size:
    size = network_size(network.config, num_classes, network.options)
    return Size(size.parameters, size.multiply_adds)


def _log_to_wandb(folder: Path, networks: Sequence[Network]) -> None:
    """Log the table and the figure as a run of the group, where the runs were logged to W&B."""
    loggers = [network.settings["trainer"]["logger"] for network in networks if logs_to_wandb(network.settings)]
    if not loggers:
        return
    import wandb

    arguments = loggers[0]["init_args"]
    has_key = arguments.get("offline") or "WANDB_MODE" in os.environ or wandb.login(prompt=False, verify=False)
    run = wandb.init(
        project=arguments.get("project"),
        group=folder.name,
        name=f"{folder.name}/table",
        dir=str(folder.absolute()),
        mode="offline" if arguments.get("offline") or not has_key else None,
    )
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        titles, *lines = csv.reader(file)
    run.log({"ablation": wandb.Table(columns=[*titles], data=lines), "figure": wandb.Image(str(folder / "figure.png"))})
    run.finish()


def _command(
    configs: Sequence[str],
    seeds: int,
    baseline: Sequence[str],
    out: str,
    features: str | None,
    heads: Sequence[str],
    settings: Sequence[str],
) -> str:
    """Return the command line that makes the tables."""
    words = ["cnnbert", "ablate", *(["--configs", *configs] if tuple(configs) != ROWS else [])]
    words += [] if features is None else ["--features", features]
    words += ["--heads", *heads] if heads else []
    words += ["--seeds", str(seeds), *(["--baseline", *baseline] if baseline else [])]
    return shlex.join([*words, *(["--out", out] if out != "ablation" else []), *settings])
