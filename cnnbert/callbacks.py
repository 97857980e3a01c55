"""What a run leaves behind: its config, its predictions, and a table at its end."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.manifest import manifest
from cnnbert.errors import InputError
from cnnbert.loggers import run_facts
from cnnbert.machine import describe, known_faults
from cnnbert.outputs import whole_file, write_whole
from cnnbert.predictions import Predictions, write_predictions
from cnnbert.runs import CHECKPOINTS
from cnnbert.tasks.recognition import ActionRecognition

METRICS = {
    "top1": "video top-1",
    "top5": "video top-5",
    "mean_class_accuracy": "mean class accuracy",
    "clip_top1": "clip top-1",
    "map": "mAP",
    "micro_f1": "micro F1 at 0.5",
    "loss": "loss",
}
"""Names of the metrics in the table at a run's end."""


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved config into the run's folder and hands it to the loggers, with protocols and versions."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, folder: Path) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.folder = folder

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write `config.yaml`; called on one process."""
        text = self.parser.dump(self.config, skip_none=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "config.yaml", text)
        facts = run_facts(trainer.datamodule)  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # would write the same file once more
                logger.log_hyperparams({**yaml.safe_load(text), **facts})


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the highest accuracy, of equal ones the last, as LTM does.

    On small validation sets many epochs are equal, and the first of them has been trained the least.

    Args:
        folder: Where `best.ckpt` goes.
        metric: The accuracy, as it is logged.
    """

    def __init__(self, folder: Path, metric: str = "val/top1") -> None:
        super().__init__(folder, "best", monitor=metric, mode="max", enable_version_counter=False)

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        """Return whether a checkpoint with this value is to be kept."""
        best = self.best_model_score
        return current is not None and (best is None or bool(current >= best))


class VideosFile(Callback):
    """Writes `videos.csv` before training: the videos of each split, as they were divided.

    `CSVManifest` reads it, on another machine too, where the same videos then have the same division. Test videos are
    listed if the source has any. With `validate_on_test` validation videos are listed as what they are, test videos.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "videos.csv"

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        splits = {split: list(data.datasets[split].records) for split in ("train", "val")}
        if data.validate_on_test:
            splits["test"] = splits.pop("val")
        else:
            with suppress(InputError):  # no test videos, or not here
                splits["test"] = data.records("test")
        rows = [(split, record) for split, records in splits.items() for record in records]
        absolute = [({"split": split}, replace(record, path=os.path.abspath(record.path))) for split, record in rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as part:
            part.write_text(manifest(absolute), encoding="utf-8", errors="surrogateescape", newline="")


class PredictionsFile(Callback):
    """Writes `predictions.csv` after `validate`, `test` and `predict`; see `write_predictions`.

    The probability of a class is averaged over the video's views as the protocol says.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "predictions.csv"

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation videos, if there is no training."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test videos."""
        self._write(trainer, pl_module, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predicted videos."""
        self._write(trainer, pl_module, "predict")

    def _write(self, trainer: Trainer, task: LightningModule, split: str) -> None:
        assert isinstance(task, ActionRecognition)
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        videos = task.scores.compute()  # by all processes together
        failures = data.all_failures(split)
        if not trainer.is_global_zero:
            return
        records = [data.datasets[split].records[index] for index in videos.index.tolist()]
        ends = ["" if record.end_seconds is None else str(record.end_seconds) for record in records]
        was_read = zip(videos.index.tolist(), videos.was_read.tolist(), strict=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(
            self.path,
            Predictions(
                videos=tuple(
                    (record.path, str(record.start_seconds), end, record.label or "")
                    for record, end in zip(records, ends, strict=True)
                ),
                class_names=tuple(task.class_names),
                scores=task.probabilities(videos.video_logits).double().cpu().numpy(),
                errors=tuple("" if is_read else failures[index].why for index, is_read in was_read),
                label_separator=data.label_separator,
            ),
        )


class RunReport(Callback):
    """Says at the start what the run computes with, and at its end how accurate it is and where everything lies.

    After validating and testing it writes the accuracies and the protocol into `results.json` too.

    Args:
        folder: The run's folder.

    Attributes:
        table: What is to be printed when the run has ended; empty before, and on all processes but the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = ""
        self.num_videos = 0
        self.num_failed = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print one line on the machine, and what is known to be wrong with it."""
        assert isinstance(pl_module, ActionRecognition)
        device = trainer.strategy.root_device
        compiled = pl_module.compile_backbone and stage == "fit"
        rank_zero_info(describe(device, str(trainer.precision), pl_module.channels_last, compiled))
        for fault in known_faults(device, str(trainer.precision)):
            rank_zero_warn(fault)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the videos."""
        if not trainer.sanity_checking:
            self._count(pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the videos."""
        self._count(pl_module)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the videos."""
        self._count(pl_module)

    def _count(self, task: LightningModule) -> None:
        assert isinstance(task, ActionRecognition)
        was_read = task.scores.compute().was_read  # by all processes together
        self.num_videos, self.num_failed = len(was_read), int((~was_read).sum())

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how to go on with an interrupted training."""
        last = self.folder / CHECKPOINTS / "last.ckpt"
        saves = any(getattr(callback, "save_on_exception", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if saves and isinstance(exception, KeyboardInterrupt) and trainer.state.fn == "fit" and trainer.global_step > 0:
            print(f"\nstopped; to go on: cnnbert fit --ckpt_path {last}", flush=True)

    @rank_zero_only
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the table: the accuracies of the run's last evaluation, and its files; and the results."""
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        split = {"fit": "val", "validate": "val", "test": "test", "predict": "predict"}[stage]
        protocol = data.protocol(split)
        logged = trainer.callback_metrics
        metrics = {key: float(logged[f"{split}/{key}"]) for key in METRICS if f"{split}/{key}" in logged}
        if stage in ("validate", "test"):
            counts = {"num_videos": self.num_videos, "num_failed": self.num_failed, "count_failed": data.count_failed}
            several = {} if data.label_separator is None else {"label_separator": data.label_separator}
            results = {"split": split, **counts, "protocol": protocol, **several, **metrics}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "results.json", json.dumps(results, indent=2) + "\n")
        lines = [f"{split}: {self.num_videos} videos, {protocol}", *self._failures(data, stage)]
        lines += [f"  {METRICS[key]:<20} {value:.4f}" for key, value in metrics.items()]
        self.table = "\n".join(lines + [f"  {name:<20} {path}" for name, path in self._files(trainer)])

    def _failures(self, data: VideoDataModule, stage: str) -> list[str]:
        lines = []
        if self.num_failed:
            wrong = "counted as wrong, left out of clip top-1 and loss"
            if data.label_separator is not None:
                wrong = "their classes counted as never found, left out of loss"
            counted = {"wrong": wrong, "left_out": "left out"}
            told = "named in the predictions" if stage == "predict" else counted[data.count_failed]
            lines.append(f"  {self.num_failed} of {self.num_videos} videos could not be read: {told}")
        if stage == "fit" and data.failures["train"]:
            counts = f"{len(data.failures['train'])} of {len(data.datasets['train'])}"
            lines.append(f"  {counts} training videos could not be read: left out")
        return lines

    def _files(self, trainer: Trainer) -> list[tuple[str, str]]:
        files = [("run folder", _short(self.folder))]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
                path = _short(Path(callback.best_model_path))
                if callback.monitor is None:
                    files.append(("last checkpoint", path))
                else:
                    files.append(("best checkpoint", f"{path} ({callback.monitor} {callback.best_model_score:.4f})"))
        written = {"predictions": self.folder / "predictions.csv", "results": self.folder / "results.json"}
        return files + [(name, _short(path)) for name, path in written.items() if path.is_file()]


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
