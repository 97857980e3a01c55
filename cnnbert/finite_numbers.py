"""Stops a training whose numbers are none any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from cnnbert.checkpoint_io import CheckpointNotWritten
from cnnbert.data.loaders import Batch
from cnnbert.errors import InputError
from cnnbert.tensorfile import read_tensors

STATISTICS = ("running_mean", "running_var")
"""Names of the buffers of norms that must be finite too; others may well hold an infinity, as a mask does."""


class FiniteNumbers(Callback):
    """Stops a training whose loss or weights are no numbers any more, and keeps such weights out of checkpoints.

    The loss is looked at before it changes any weight, and the weights before they are saved, by all processes, which
    stop together; the first one says why. Gradients are not: in float16 infinite ones are normal, and their step is
    left out. A checkpoint that holds weights alone (`save_weights_only`) is not looked at, as Lightning asks no
    callback then.
    """

    def __init__(self) -> None:
        self.index: Tensor | None = None
        self.has_failed = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Keep in mind which videos the batch is of."""
        self.index = batch["index"]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop where the loss is NaN or infinite."""
        is_finite = bool(loss.isfinite())
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            value = loss.item()
            self._stop(trainer, f"the training loss is {value}" if not is_finite else None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop where a weight is NaN or infinite, before it replaces a good one."""
        if self.has_failed:  # the weights were looked at, and other processes may be gone
            return
        wrong = _not_finite(pl_module)
        if not trainer.strategy.reduce_boolean_decision(not wrong):
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            self._stop(trainer, f"weights are NaN or infinite ({wrong[0]}{others})" if wrong else None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save nothing on the way out that would do harm, nor where saving has just failed."""
        self.has_failed = True
        if isinstance(exception, CheckpointNotWritten) or _not_finite(pl_module):
            _save_no_more(trainer)

    def _stop(self, trainer: Trainer, what: str | None) -> None:
        """End the training; to be called by all processes, those with None where nothing is wrong with them."""
        found = [(what, self.index.tolist() if what and self.index is not None else [])]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, found[0])
            found = parts
        _save_no_more(trainer)
        if not trainer.is_global_zero:
            raise SystemExit(1)
        told = next(words for words, _ in found if words)
        videos = sorted({index for _, indices in found for index in indices})
        records = trainer.datamodule.datasets["train"].records  # type: ignore[attr-defined]
        paths = list(dict.fromkeys(records[index].path for index in videos))
        where = f"at step {trainer.global_step} (epoch {trainer.current_epoch})"
        lines = [f"{told} {where}, so the training stops. The videos of the batch:", *(f"  {path}" for path in paths)]
        raise InputError("\n".join([*lines, *_ways_on(trainer)]))


def _not_finite(task: LightningModule) -> list[str]:
    """Return the names of the weights, and of the statistics of norms, that hold NaN or infinity."""
    tensors: dict[str, Tensor] = dict(task.named_parameters())
    tensors |= {name: value for name, value in task.named_buffers() if name.rpartition(".")[2] in STATISTICS}
    if not tensors:
        return []
    finite = torch.stack([value.detach().isfinite().all() for value in tensors.values()]).tolist()
    return [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]


def _save_no_more(trainer: Trainer) -> None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.save_on_exception = False


def _ways_on(trainer: Trainer) -> list[str]:
    """Return in words what is left, and what to try."""
    rate = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
    options = {} if trainer.gradient_clip_val else {"--trainer.gradient_clip_val 1": "clipped gradients"}
    if trainer.precision != "32-true":
        options["--trainer.precision 32-true"] = "float32"
    lower = f"a learning rate below {rate:.3g} (lr of model.optimizer)"
    good = last_good_checkpoint(trainer)
    if good is None:
        return [f"No checkpoint was saved before. Train anew with {lower}{''.join(map(', {}'.format, options))}."]
    words = f" with {' and '.join(options.values())}" if options else ""
    return [
        f"The last good checkpoint is {good}. Go on from it{words}:",
        "  " + " ".join([f"cnnbert fit --ckpt_path {good}", *options]),
        f"or train anew with {lower}, as a checkpoint brings its own.",
    ]


def last_good_checkpoint(trainer: Trainer) -> Path | None:
    """Return the newest checkpoint of a training, or the one that it went on from, whose weights are all finite."""
    paths: list[Any] = [trainer.ckpt_path]
    for callback in trainer.checkpoint_callbacks:
        paths += [getattr(callback, name, None) for name in ("best_model_path", "last_model_path")]
    found = {path for path in map(Path, filter(None, paths)) if path.is_file()}
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        weights = read_tensors(path).get("state_dict", {})
        if all(bool(weight.isfinite().all()) for weight in weights.values()):
            return path
    return None
