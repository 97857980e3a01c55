"""Shows in W&B, and partly in TensorBoard, what a network gets right and what it gets wrong."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from cnnbert.attention_strip import attention_strip
from cnnbert.class_report import Rows, class_table, confused_pairs, confusion, worst_videos
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.records import VideoRecord
from cnnbert.heads.base import Head
from cnnbert.previews import write_preview
from cnnbert.tasks.metrics import ScoredVideos
from cnnbert.tasks.recognition import ActionRecognition

logger = logging.getLogger("cnnbert")

NUM_WORST = 10
"""Videos that are shown."""

MOST_IN_CHART = 50
"""Classes up to which W&B draws the confusion matrix: its charts take 10,000 cells, and names must be legible."""


MOST_LETTERS = 128
"""Letters of an artifact's name."""


@dataclass(frozen=True)
class ShownVideo:
    """A video that is to be shown.

    Attributes:
        record: Where it is.
        label: Its class or classes.
        prediction: What it was taken for.
        probability: The probability of the label, where it is one class.
        loss: Its loss.
        strip: The picture of the attention over its centre clip, uint8 (height, width, 3); None where there is none.
    """

    record: VideoRecord
    label: str
    prediction: str
    probability: float | None
    loss: float
    strip: np.ndarray | None


class Dashboard(Callback):
    """Logs confusion matrix, a table of classes, confused pairs and the worst videos.

    When training has made a new best checkpoint, and after `validate` and `test`. The worst videos, with a preview and
    what BERT looked at, follow for the best epoch at the end of training, with the best checkpoint and the config as an
    artifact. TensorBoard gets the confusion matrix, other loggers nothing.

    Args:
        folder: The run's folder.
        logs_checkpoint: Whether to log the best checkpoint as an artifact; to be left to the logger where it does.
    """

    def __init__(self, folder: Path, logs_checkpoint: bool = True) -> None:
        self.folder = folder
        self.logs_checkpoint = logs_checkpoint
        self.worst: list[ShownVideo] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation videos."""
        if trainer.sanity_checking or (trainer.state.fn == "fit" and not _is_new_best(trainer)):
            return
        self._log(trainer, pl_module, "val")
        if trainer.state.fn != "fit":
            self._log_worst(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the test videos."""
        self._log(trainer, pl_module, "test")
        self._log_worst(trainer, "test")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the worst videos of the best epoch, and its checkpoint."""
        self._log_worst(trainer, "val")
        self._log_artifact(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log the same where training was stopped by Ctrl-C: it was long enough, perhaps."""
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == "fit" and trainer.global_step > 0:
            self.on_fit_end(trainer, pl_module)

    def _log(self, trainer: Trainer, task: LightningModule, split: str) -> None:
        """Log what is computed from scores, and choose the videos to show."""
        assert isinstance(task, ActionRecognition)
        if not any(isinstance(one, (WandbLogger, TensorBoardLogger)) for one in trainer.loggers):
            return
        videos = task.scores.compute()  # by all processes together
        if not trainer.is_global_zero:
            return
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        names = task.class_names
        counts = None if task.multi_label else confusion(videos).cpu()
        tables = {"classes": class_table(videos, names, data.count_failed, task.multi_label)}
        if counts is not None:
            tables["confused_pairs"] = confused_pairs(counts, names)
        for one in trainer.loggers:
            if isinstance(one, WandbLogger):
                logged = {f"{split}/{key}": _wandb_table(table) for key, table in tables.items()}
                if counts is not None:
                    logged[f"{split}/confusion_matrix"] = _wandb_confusion(counts, names)
                if trainer.state.fn == "fit":
                    logged[f"val/best_{task.main_metric}"] = float(trainer.callback_metrics[f"val/{task.main_metric}"])
                one.log_metrics(logged, trainer.global_step)
            elif isinstance(one, TensorBoardLogger) and counts is not None:
                figure = confusion_figure(counts, names)
                one.experiment.add_figure(f"{split}/confusion_matrix", figure, trainer.global_step)
        if any(isinstance(one, WandbLogger) for one in trainer.loggers):
            self.worst = _worst(trainer, task, videos, split)

    @rank_zero_only
    def _log_worst(self, trainer: Trainer, split: str) -> None:
        """Log the videos that were chosen."""
        if not self.worst:
            return
        import wandb

        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        with TemporaryDirectory() as folder:
            previews = [_preview(Path(folder) / f"{i}.mp4", shown.record, data) for i, shown in enumerate(self.worst)]
            strips = any(shown.strip is not None for shown in self.worst)
            titles = ["video", *(["attention"] if strips else []), "label", "prediction", "probability of the label"]
            titles += ["loss", "path", "start_seconds", "end_seconds"]
            for one in trainer.loggers:
                if not isinstance(one, WandbLogger):
                    continue
                rows = []
                for shown, path in zip(self.worst, previews, strict=True):
                    strip = None if shown.strip is None else wandb.Image(shown.strip)
                    seen = [None if path is None else wandb.Video(str(path)), *([strip] if strips else [])]
                    judged = [shown.label, shown.prediction, shown.probability, shown.loss]
                    record = shown.record
                    rows.append([*seen, *judged, record.path, record.start_seconds, record.end_seconds])
                one.log_metrics({f"{split}/worst_videos": _wandb_table(Rows(titles, rows))}, trainer.global_step)
        self.worst = []

    @rank_zero_only
    def _log_artifact(self, trainer: Trainer) -> None:
        """Log the best checkpoint and the config, once."""
        best = _best_checkpoint(trainer)
        files = [self.folder / "config.yaml"]
        about: dict[str, Any] = {"folder": str(self.folder.absolute())}
        if self.logs_checkpoint and best is not None and best.best_model_path:
            files.append(Path(best.best_model_path))
            about |= {"metric": best.monitor, "value": float(best.best_model_score or 0)}
        name = re.sub(r"[^\w.-]", "-", f"{self.folder.parent.name}-{self.folder.name}", flags=re.ASCII)[-MOST_LETTERS:]
        for one in trainer.loggers:
            if isinstance(one, WandbLogger):
                import wandb

                artifact = wandb.Artifact(name, "model" if len(files) > 1 else "config", metadata=about)
                for file in files:
                    artifact.add_file(
                        str(file.absolute()), policy="immutable"
                    )  # it stays there, and no copy waits to be sent
                one.experiment.log_artifact(artifact, aliases=["latest", "best"])


def _best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that keeps the best checkpoint, if there is one."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return next((callback for callback in callbacks if callback.monitor is not None), None)


def _is_new_best(trainer: Trainer) -> bool:
    """Return whether the checkpoint that is about to be kept is the best one yet."""
    checkpoint = _best_checkpoint(trainer)
    if checkpoint is None or checkpoint.monitor not in trainer.callback_metrics:
        return False
    value, best = trainer.callback_metrics[checkpoint.monitor], checkpoint.best_model_score
    return best is None or bool(value >= best if checkpoint.mode == "max" else value <= best)


def _worst(trainer: Trainer, task: ActionRecognition, videos: ScoredVideos, split: str) -> list[ShownVideo]:
    """Return the videos of the highest loss."""
    data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
    chosen = []
    for place, loss in worst_videos(videos, NUM_WORST, task.multi_label):
        record = data.datasets[split].records[int(videos.index[place])]
        probabilities = task.probabilities(videos.video_logits[place][None])[0]
        probability = None
        if task.multi_label:
            there = (probabilities >= 0.5).nonzero()[:, 0].tolist()
            prediction = str(data.label_separator).join(task.class_names[number] for number in there)
        else:
            prediction = task.class_names[int(probabilities.argmax())]
            probability = float(probabilities[int(videos.label[place])])
        strip = _strip(trainer, task, record)
        chosen.append(ShownVideo(record, record.label or "", prediction, probability, loss, strip))
    return chosen


def _strip(trainer: Trainer, task: ActionRecognition, record: VideoRecord) -> np.ndarray | None:
    """Return a picture of what BERT looks at in the centre clip of a video, if it can be had."""
    sharded = trainer.strategy.restore_checkpoint_after_setup  # no process has the whole network
    if sharded or type(task.head).time_attention is Head.time_attention:
        return None
    data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
    try:
        sample = data.dataset("val", [record])[0]
        if "failure" in sample:
            raise sample["failure"]
        clip = sample["clip"][:1]  # (1, C, T, H, W)
        with trainer.precision_plugin.forward_context():
            shares = task.head.time_attention(task.backbone(clip.to(task.device)))
        return None if shares is None else attention_strip(clip[0], shares[0].float().mean(0))
    except Exception as error:  # whatever it is, the run goes on
        logger.warning("no picture of the attention for %s: %s", record.path, error)
        return None


def _preview(target: Path, record: VideoRecord, data: VideoDataModule) -> Path | None:
    """Write a preview of a video and return its path, or None where there is none."""
    try:
        write_preview(target, record, data.reader)
        return target
    except Exception as error:  # whatever it is, the run goes on
        logger.warning("no preview of %s: %s", record.path, error)
        return None


def _wandb_table(table: Rows) -> Any:
    import wandb

    return wandb.Table(columns=[*table.titles], data=table.rows)


def _wandb_confusion(counts: Tensor, names: Sequence[str]) -> Any:
    """Return a chart of W&B's, or for many classes a picture."""
    import wandb

    if len(names) > MOST_IN_CHART:
        return wandb.Image(confusion_figure(counts, names))
    cells = torch.cartesian_prod(*[torch.arange(len(names))] * 2).repeat_interleave(counts.flatten(), dim=0)
    label, prediction = cells.T.tolist()
    return wandb.plot.confusion_matrix(y_true=label, preds=prediction, class_names=list(names), title="videos")


def confusion_figure(counts: Tensor, names: Sequence[str]) -> Any:
    """Draw how the videos of each class (row) were divided among the predictions (column).

    Args:
        counts: Numbers of videos, int64 (K, K).
        names: The K classes; they stand at the axes where there is room for them.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    number = len(names)
    side = min(12.0, 3.0 + 0.25 * number)
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    norm = PowerNorm(1 if number <= MOST_IN_CHART else 0.4, vmin=0, vmax=1)  # else rare confusions are not seen
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the label's videos")
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    if number <= MOST_IN_CHART:
        short = [name if len(name) <= 24 else f"{name[:22]}…" for name in names]
        plain: dict[str, Any] = {"parse_math": False, "fontsize": 8}  # a $ in a name is a $
        axes.set_xticks(range(number), short, rotation=90, **plain)
        axes.set_yticks(range(number), short, **plain)
    if number <= 20:
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = str(int(counts[row, column]))
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return figure
