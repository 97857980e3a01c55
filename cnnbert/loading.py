"""Models without the command line: the one that a config describes, and the one that a run has trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, instantiate_module
from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters_context

from cnnbert import __version__, backbones, heads  # noqa: F401  (their classes are known by their short names)
from cnnbert.data import benchmarks, lists  # noqa: F401  (likewise)
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.errors import InputError
from cnnbert.network_limit import no_larger_than
from cnnbert.runs import checkpoint_settings, find_checkpoint, read_checkpoint
from cnnbert.shipped import find_config
from cnnbert.tasks.recognition import ActionRecognition

# An argument of a backbone that is itself an argument of a backbone.
INNER = re.compile(
    r"^--(model\.backbone(?:\.init_args)?\.(?!init_args\b)\w+)(?:\.init_args)?\.(?!init_args\b)(\w+)=null$"
)


def build(config: str | Path, class_names: Sequence[str], overrides: Sequence[str] = ()) -> ActionRecognition:
    """Return the untrained model of a config, in evaluation mode on the CPU.

    Args:
        config: A run's config: a path, or the name of a shipped one such as `resnext_bert.yaml`.
        class_names: The classes in the order of the outputs (K of them).
        overrides: Settings that win over the config's, as on the command line: `model.head.num_heads=4`.

    Returns:
        The model: `model(clips)` gives logits (B, K) for clips (B, 3, T, H, W), uint8 or floating point on the
        [0, 1] scale.

    Raises:
        InputError: There is no such config, or a setting that it does not know.
    """
    return instantiate(config_settings(config, class_names, overrides)["model"]).eval()


def build_data(config: str | Path | None = None, overrides: Sequence[str] = ()) -> VideoDataModule:
    """Return the data module of a config, or without one that of settings alone; no video is listed yet.

    Args:
        config: A run's config: a path, or the name of a shipped one.
        overrides: Settings that win over the config's, as on the command line: `data.batch_size=4`.

    Raises:
        InputError: There is no such config, or a setting that it does not know.
    """
    if config is not None:
        settings = config_settings(config, [], overrides)["data"]
    else:
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_lightning_class_args(VideoDataModule, "data")
        try:
            given = parser.parse_args([_found(_option(override)) for override in overrides])
        except Exception as error:
            raise InputError(str(error)) from error
        settings = yaml.safe_load(parser.dump(given, skip_none=False))["data"]
    return instantiate_module(VideoDataModule, settings)


def config_settings(
    config: str | Path, class_names: Sequence[str], overrides: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return all settings of a config with their defaults, `model` and `data`; for the arguments see `build`."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--seed_everything", type=bool | int, default=0)
    parser.add_argument("--ckpt_path", type=str | None)  # both stand in the config that a run leaves
    parser.add_argument("--weights_only", type=bool | None)
    parser.add_argument("--checkpoint_minutes", type=float)
    parser.add_lightning_class_args(ActionRecognition, "model")
    parser.add_lightning_class_args(VideoDataModule, "data")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.link_arguments("data.clip_length", "model.clip_length")
    parser.link_arguments("data.label_separator", "model.multi_label", lambda separator: separator is not None)
    given = with_inner_nulls([_found(_option(override)) for override in overrides])
    names = f"--model.class_names={yaml.safe_dump(list(class_names), default_flow_style=True)}"
    try:
        settings = parser.parse_args([f"--config={find_config(str(config))}", *given, names])
    except Exception as error:
        raise InputError(f"{config}: {error}") from error
    return yaml.safe_load(parser.dump(settings, skip_link_targets=False, skip_none=False))


def with_inner_nulls(words: Sequence[str]) -> list[str]:
    """Return a command line on which null also arrives at the streams of `TwoStream`, as of backbones elsewhere.

    Of `--model.backbone.rgb.weights null` jsonargparse (4.53) makes the word None; inside of a mapping it does not.
    """
    changed: list[str] = []
    for word in words:
        if word == "null" and changed and changed[-1].startswith("--") and "=" not in changed[-1]:
            word = f"{changed.pop()}=null"
        changed.append(INNER.sub(r"--\1={init_args: {\2: null}}", word))
    return changed


def _option(override: str) -> str:
    return override if override.startswith("--") else f"--{override}"


def _found(override: str) -> str:
    """Return an override with the path of its config where it names one: `--data=data/folder.yaml`."""
    name, _, value = override.partition("=")
    return f"{name}={find_config(value)}" if "." not in name and value.endswith(".yaml") else override


def load(checkpoint: str | Path) -> ActionRecognition:
    """Return the trained model of a checkpoint, in evaluation mode on the CPU.

    Args:
        checkpoint: A file that `cnnbert fit` wrote; or `best` or `last`, the newest such below runs/.

    Returns:
        The model: `model.classify("video.mp4")` names a video's class; `model(clips)` gives logits (B, K) for clips
        (B, 3, T, H, W), uint8 or floating point on the [0, 1] scale; `model.class_names` names the K classes, and
        `model.data` makes clips of videos as the model was trained on.

    Raises:
        InputError: The file is not such a checkpoint.
    """
    path = find_checkpoint(str(checkpoint), Path("runs"), None)
    known = read_checkpoint(path)
    if not known["hyper_parameters"].get("class_names"):
        raise InputError(f"{checkpoint} does not say what its classes are; it cannot name any")
    settings = {name: value for name, value in known["hyper_parameters"].items() if name != "_instantiator"}
    try:
        with no_larger_than(known["state_dict"]):
            model = instantiate(settings)
        data = instantiate_module(VideoDataModule, _without_videos(checkpoint_settings(known)["data"]))
        model.on_load_checkpoint(known)
        model.load_state_dict(known["state_dict"])
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    except Exception as error:  # settings of a damaged file may make a constructor fail in any way
        why = str(error).strip().rpartition("\n")[2].strip() or type(error).__name__
        raise InputError(
            f"{checkpoint} has settings that cnnbert {__version__} does not take; is it of this version, and can its "
            f"classes be imported here? {why}"
        ) from error
    model.data = data
    return model.eval()


def _without_videos(data: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint's data that hold for any videos."""
    return {name: value for name, value in data.items() if name not in ("source", "exclude", "mirrored", "cache")}


def instantiate(settings: dict[str, Any]) -> ActionRecognition:
    """Make a model as Lightning's command line does, so that its checkpoints hold its settings, not its objects."""
    with _given_hyperparameters_context(settings, "pytorch_lightning.cli.instantiate_module"):
        return instantiate_module(ActionRecognition, settings)
