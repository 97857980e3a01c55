"""Settles what the user has left open about loggers."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import __version__ as lightning_version
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_only

import cnnbert
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.errors import InputError

FILE_LOGGERS = ("CSVLogger", "TensorBoardLogger")
"""Lightning's loggers that insist on a folder."""

HERE, UNNAMED = ".", "lightning_logs"
"""What Lightning's loggers have as folder and as name where the user chooses none."""


def logger_folder(name: str | None, args: Sequence[str]) -> list[str]:
    """Return the words that give a logger chosen by its name the folder which it insists on; none where it has one.

    Args:
        name: What was given as `--trainer.logger`.
        args: The words of the command line.
    """
    if str(name).rpartition(".")[2] not in FILE_LOGGERS:
        return []
    is_given = any(re.match(r"--trainer\.logger\.(init_args\.)?save_dir\b", word) for word in args)
    return [] if is_given else [f"--trainer.logger.save_dir={HERE}"]


def usual_logger() -> Namespace:
    """Return the settings of a logger that writes `metrics.csv`."""
    arguments = Namespace(save_dir=HERE, name=UNNAMED, version=None, prefix="", flush_logs_every_n_steps=100)
    return Namespace(class_path="pytorch_lightning.loggers.CSVLogger", init_args=arguments)


def complete_loggers(settings: Any, folder: Path, command: str) -> list[Namespace]:
    """Settle where and under which name loggers log.

    Args:
        settings: Those of the trainer's logger or list of loggers, which are changed; False for none.
        folder: The run's folder.
        command: `fit`, `validate`, `test` or `predict`.

    Returns:
        The settings of all loggers.

    Raises:
        InputError: A logger cannot be had here.
    """
    loggers = settings if isinstance(settings, list) else [settings] if settings else []
    for logger in loggers:
        name, arguments = logger.class_path.rpartition(".")[2], logger.init_args
        if name == "WandbLogger":
            _complete_wandb(arguments, folder, command)
        elif name in FILE_LOGGERS and arguments.save_dir == HERE:
            arguments.save_dir = str(folder)
            if (arguments.name, arguments.version) == (UNNAMED, None):
                arguments.name, arguments.version = "", _version(name, folder)
        if name == "TensorBoardLogger" and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
            raise InputError(
                "TensorBoardLogger needs the package tensorboard, which is not installed: pip install tensorboard"
            )
    return loggers


def _version(name: str, folder: Path) -> str:
    """Return the sub-folder that a logger writes into: none, or in a resumed run a new one for `metrics.csv`."""
    version, number = "", 1
    while name == "CSVLogger" and (folder / version / "metrics.csv").exists():
        number += 1
        version = f"resumed-{number}"
    return version


def _complete_wandb(arguments: Namespace, folder: Path, command: str) -> None:
    """Name the W&B run after its folder, group it by config, put it there, and log offline where no key is known."""
    import wandb

    own = {
        "name": ("WANDB_NAME", f"{folder.parent.name}/{folder.name}"),
        "group": ("WANDB_RUN_GROUP", folder.parent.name),
        "job_type": ("WANDB_JOB_TYPE", command),
        "project": ("WANDB_PROJECT", "cnnbert"),
    }
    for name, (variable, usual) in own.items():
        if not arguments.get(name):
            arguments[name] = os.environ.get(variable) or usual
    if arguments.save_dir == HERE:
        arguments.save_dir = str(folder.absolute())  # its process may have been started elsewhere
    # The other processes of a run may have named its folder by another second, and put nothing there.
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
    arguments.mode = arguments.get("mode") or os.environ.get("WANDB_MODE")
    if not (arguments.offline or arguments.mode or wandb.login(prompt=False, verify=False)):
        arguments.mode = "offline"
        rank_zero_info(
            f"W&B: no API key on this machine, so the run is logged offline; "
            f"to send it later: wandb sync {folder}/wandb/offline-run-*"
        )


def run_facts(data: VideoDataModule) -> dict[str, Any]:
    """Return what a run's config does not say: how videos are viewed, and the versions that it runs with."""
    return {
        "protocol": {split: data.protocol(split) for split in ("val", "test")},
        "versions": {
            "cnnbert": cnnbert.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "lightning": lightning_version,
        },
    }
