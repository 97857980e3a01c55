"""Lightning's command line as it is here: fit, validate, test and predict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins import Precision

import cnnbert.backbones
import cnnbert.data.benchmarks
import cnnbert.data.lists
import cnnbert.heads  # noqa: F401  (makes the classes known by their short names)
from cnnbert.callbacks import BestCheckpoint, PredictionsFile, RunReport, SaveRunConfig, VideosFile
from cnnbert.chance_level import ChanceLevel
from cnnbert.checkpoint_classes import check_config
from cnnbert.checkpoint_io import write_whole_checkpoints
from cnnbert.commands import RUN_COMMANDS
from cnnbert.dashboard import Dashboard
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data_wait import DataWait
from cnnbert.errors import InputError
from cnnbert.finite_numbers import FiniteNumbers
from cnnbert.full_memory import full_in_run, memory_told
from cnnbert.loading import with_inner_nulls
from cnnbert.loggers import complete_loggers, logger_folder, usual_logger
from cnnbert.machine import best_device, best_precision, keep_freed_memory
from cnnbert.processes import EndTogether
from cnnbert.resuming import GracefulStop, RandomState, RecentCheckpoint
from cnnbert.runs import (
    CHECKPOINTS,
    checkpoint_settings,
    find_checkpoint,
    new_run_folder,
    read_checkpoint,
    run_name,
)
from cnnbert.shipped import find_config
from cnnbert.speed import Speed
from cnnbert.tasks.recognition import ActionRecognition

CONFIG_OPTIONS = ("--config", "-c", "--data", "--model", "--trainer")


class RunCLI(LightningCLI):
    """Lightning's command line, with a folder for every run and settings that come out of the checkpoint."""

    folder: Path
    loggers: list[Namespace]
    report: RunReport

    def __init__(self, args: list[str]) -> None:
        self.processes = EndTogether()
        super().__init__(
            ActionRecognition,
            VideoDataModule,
            save_config_callback=SaveRunConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "cnnbert", **{name: {"description": told} for name, told in RUN_COMMANDS.items()}},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Leave out what our own report replaces."""
        commands = LightningCLI.subcommands()
        return {name: skip | {"verbose", "return_predictions"} for name, skip in commands.items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data tell the model its classes, its clip length and whether a video may have several classes."""
        parser.add_argument(
            "--checkpoint_minutes",
            type=NonNegativeFloat,
            default=10.0,
            help="Minutes between checkpoints inside of an epoch, at least 0; there is one at each epoch's end too.",
        )
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")
        parser.link_arguments("data.clip_length", "model.clip_length")
        parser.link_arguments("data.label_separator", "model.multi_label", lambda separator: separator is not None)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the options; those that a checkpoint brings come first, so that any other wins over them."""
        assert isinstance(args, list)
        args = with_inner_nulls(args)
        config = _option(args, CONFIG_OPTIONS[:2])
        self.name = None if config is None else Path(config).stem
        self.root = Path(_option(args, ("--trainer.default_root_dir",)) or "runs")
        self.resumed: Path | None = None
        _replace(args, CONFIG_OPTIONS, lambda name: str(find_config(name)) if name.endswith(".yaml") else name)
        wanted = _option(args, ("--ckpt_path",))
        if wanted is not None:
            checkpoint = find_checkpoint(wanted, self.root, self.name)
            _replace(args, ("--ckpt_path",), lambda _: str(checkpoint))
            known_state = read_checkpoint(checkpoint)
            if "fit" in args and "optimizer_states" not in known_state:
                raise InputError(
                    f"{checkpoint} holds a model and no training to go on with; "
                    f"a new training starts from its backbone with --model.backbone.weights {checkpoint}"
                )
            settings = checkpoint_settings(known_state)
            self.name = self.name or run_name(checkpoint)
            known = [json.dumps(settings)]
            run_config = checkpoint.absolute().parent.parent / "config.yaml"
            if "fit" in args and checkpoint.name == "last.ckpt" and run_config.is_file():
                check_config(run_config)
                self.resumed = run_config.parent
                classes = {"data": {"class_names": settings["data"]["class_names"]}}
                known = [str(run_config), json.dumps(classes)]
            after_command = 1 + min(args.index(name) for name in self.subcommands() if name in args)
            args[after_command:after_command] = [word for config in known for word in ("--config", config)]
        args += logger_folder(_option(args, ("--trainer.logger",)), args)
        self.config = parser.parse_args(args)
        command = self.config.subcommand
        if command != "fit" and self.config[command].ckpt_path is None:
            raise InputError(f"{command} needs a trained model; give --ckpt_path and a file, `last` or `best`")

    def _parse_ckpt_path(self) -> None:
        """Keep Lightning from letting the checkpoint's settings win over the command line's."""

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder, and loggers where the user has named none."""
        assert self.subcommand is not None
        self.folder = self.resumed or new_run_folder(self.root, self.name or "run", self.subcommand)
        self.given_config = self.config.clone()
        if self.subcommand == "fit":
            self.given_config.fit.ckpt_path = None  # else the saved config would go on instead of training anew
        trainer = self.config[self.subcommand].trainer
        if str(trainer.strategy).startswith("fsdp") and best_device(trainer.accelerator).type == "cpu":
            raise InputError(f"strategy={trainer.strategy} needs GPUs, and there are none; on CPUs there is ddp")
        device = best_device(trainer.accelerator)
        if device.type == "cpu" and self.subcommand == "fit":  # views of test videos would leave larger gaps
            keep_freed_memory()
        if trainer.logger is None or trainer.logger is True:
            trainer.logger = usual_logger()
        self.loggers = complete_loggers(trainer.logger, self.folder, self.subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks of every run, and choose a precision where neither it nor a plugin for it is given."""
        self.config = self.given_config  # what is saved can be run again, on another machine too
        options = self._get(self.config_init, "trainer")
        plugins = options["plugins"] if isinstance(options["plugins"], list) else [options["plugins"]]
        if options["precision"] is None and not any(isinstance(plugin, Precision) for plugin in plugins):
            options["precision"] = best_precision(best_device(options["accelerator"]))
        callbacks = options["callbacks"] or []
        self.report = RunReport(self.folder)
        given = callbacks if isinstance(callbacks, list) else [callbacks]
        # The numbers before what asks whether a checkpoint is saved on the way out.
        ours = [FiniteNumbers(), ChanceLevel(), self.report, DataWait(), Speed()]
        callbacks = [self.processes, *given, *ours]
        is_logged_already = any(logger.init_args.get("log_model") for logger in self.loggers)
        callbacks.append(Dashboard(self.folder, logs_checkpoint=not is_logged_already))
        if self.subcommand == "fit":
            callbacks += [RandomState(), GracefulStop()]
            if self.loggers and not any(isinstance(callback, LearningRateMonitor) for callback in callbacks):
                callbacks.append(LearningRateMonitor())
            folder = self.folder / CHECKPOINTS
            callbacks.append(VideosFile(self.folder))
            if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
                last = ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_exception=True)
                recent = RecentCheckpoint(folder, self._get(self.config_init, "checkpoint_minutes"))
                callbacks += [BestCheckpoint(folder, f"val/{self.model.main_metric}"), last, recent]
        else:
            callbacks.append(PredictionsFile(self.folder))
        self.save_config_kwargs = {"folder": self.folder}
        trainer = super().instantiate_trainer(callbacks=callbacks, default_root_dir=str(self.folder), **kwargs)
        write_whole_checkpoints(trainer)
        if options["sync_batchnorm"] and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
            raise InputError("sync_batchnorm needs GPUs: torch has it for no CPU; leave it out")
        return trainer

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what to do where a process fails or a device's memory is too small."""
        with self.processes.told(self.trainer), memory_told(lambda: full_in_run(self.trainer)):
            yield

    def fit(self, **kwargs: Any) -> None:
        """Train; a run that goes on has its weights from the checkpoint and needs no pretrained ones."""
        self.model.backbone.was_loaded |= kwargs.get("ckpt_path") is not None
        with self._told():
            self.trainer.fit(**kwargs)

    def validate(self, **kwargs: Any) -> None:
        """Validate without Lightning's table; the report prints ours."""
        with self._told():
            self.trainer.validate(verbose=False, **kwargs)

    def test(self, **kwargs: Any) -> None:
        """Test without Lightning's table; the report prints ours."""
        with self._told():
            self.trainer.test(verbose=False, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict into the predictions file."""
        with self._told():
            self.trainer.predict(return_predictions=False, **kwargs)


def _option(args: list[str], names: tuple[str, ...]) -> str | None:
    """Return the value of the last of the options in `args`, `--name value` or `--name=value`."""
    found: list[str] = []
    _replace(args, names, lambda value: found.append(value) or value)  # type: ignore[func-returns-value]
    return found[-1] if found else None


def _replace(args: list[str], names: tuple[str, ...], change: Any) -> None:
    """Change the values of options in place."""
    for i, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name in names and equals:
            args[i] = f"{name}={change(value)}"
        elif word in names and i + 1 < len(args):
            args[i + 1] = change(args[i + 1])
