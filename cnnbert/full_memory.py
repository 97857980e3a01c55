"""Says what to do where a device's memory is too small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning import Trainer

from cnnbert.data.datamodule import VideoDataModule
from cnnbert.errors import InputError
from cnnbert.layers.block import Block
from cnnbert.machine import best_precision
from cnnbert.tasks.recognition import CLIPS_AT_ONCE, ActionRecognition


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device had too little memory."""
    is_said = isinstance(error, RuntimeError) and "out of memory" in str(error)  # by cuDNN, and by Apple's GPUs
    return isinstance(error, torch.OutOfMemoryError) or is_said


@contextmanager
def memory_told(tell: Callable[[], str]) -> Iterator[None]:
    """Turn running out of a device's memory into a message.

    Args:
        tell: Returns the message; called when it has happened.

    Raises:
        InputError: It has happened.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(tell()) from error


def full_in_run(trainer: Trainer) -> str:
    """Return what to do where a run of fit, validate, test or predict has run out of memory."""
    data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
    device, precision = trainer.strategy.root_device, str(trainer.precision)
    size, steps = data.batch_size, trainer.accumulate_grad_batches
    now = [f"data.batch_size {size}"]
    tries = []
    if trainer.state.fn == "fit":
        now.append(f"trainer.accumulate_grad_batches {steps}")
        smaller = smaller_batch(size, data.clips_per_video)
        if smaller is not None:
            option = f"--data.batch_size {smaller} --trainer.accumulate_grad_batches {steps * size // smaller}"
            tries.append(f"{option} (the optimizer sees the same {steps * size} clips a step)")
        if not any(isinstance(part, Block) and part.is_recomputed for part in trainer.lightning_module.modules()):
            tries.append("--model.gradient_checkpointing true (keeps less for the gradients and computes it twice)")
    else:
        views = data.views("val" if trainer.state.fn == "validate" else "test")
        several = views.num_clips is None or views.num_clips * views.num_crops > 1
        now.append(f"at most {CLIPS_AT_ONCE} clips at once")
        if min(size, CLIPS_AT_ONCE) > 1:
            tries.append(f"--data.batch_size {min(size, CLIPS_AT_ONCE) // 2}")
        if several:
            tries.append("--data.num_clips 1 --data.num_crops 1 (another protocol: accuracies may be lower)")
    if precision == "32-true" and best_precision(device) != precision:
        tries.append(f"--trainer.precision {best_precision(device)}")
    tries.append("shorter clips (--data.clip_length) or smaller frames (--data.frame_size)")
    now += [f"precision {precision}", f"data.clip_length {data.clip_length}", f"data.frame_size {data.frame_size}"]
    return _full(device, now, tries)


def full_in_use(task: ActionRecognition, num_clips: int, precision: str, remedy: str) -> str:
    """Return what to do where a model that is used has run out of memory.

    Args:
        task: The model.
        num_clips: Clips that were to go through it.
        precision: What it computes in.
        remedy: What makes them fewer.
    """
    data = task.data
    clips = f"{min(num_clips, CLIPS_AT_ONCE)} clips at once of {data.clip_length} frames of {data.frame_size} pixels"
    cpu = "CUDA_VISIBLE_DEVICES= before the command (it then runs on the CPU)"
    return _full(task.device, [clips, f"precision {precision}"], [remedy, cpu])


def smaller_batch(size: int, multiple_of: int = 1) -> int | None:
    """Return the largest batch, at most half of `size`, of which a whole number makes `size`; None if there is none."""
    fitting = [half for half in range(multiple_of, size // 2 + 1, multiple_of) if size % half == 0]
    return fitting[-1] if fitting else None


def _full(device: torch.device, now: list[str], tries: list[str]) -> str:
    told = "the device has run out of memory"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        taken = torch.cuda.max_memory_reserved(device)
        told = f"the GPU has run out of memory: {card.name}, {card.total_memory / 2**30:.1f} GiB, "
        told += f"of which this process took {taken / 2**30:.1f} GiB"
    return "\n".join([f"{told}. It ran with {', '.join(now)}. Try", *(f"  {one}" for one in tries)])
