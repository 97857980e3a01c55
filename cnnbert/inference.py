"""Names the classes of videos with a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cnnbert.data.protocols import Protocol
from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError, VideoReadError
from cnnbert.full_memory import full_in_use, memory_told
from cnnbert.machine import autocast, best_precision, prefers_channels_last
from cnnbert.tasks.metrics import average_views
from cnnbert.tasks.recognition import ActionRecognition

VIEWS = Protocol(10, 1, "probabilities")
"""What is seen of a video unless something else is asked for: ten clips spread evenly, the centre of each."""

FEWER_VIEWS = "--num-clips 1, or --num-crops 1: fewer clips of each video"


def video_scores(
    model: ActionRecognition, records: Sequence[VideoRecord], views: Protocol = VIEWS, num_workers: int | None = None
) -> Iterator[tuple[VideoRecord, Tensor | VideoReadError]]:
    """Yield videos with the probabilities of their classes, as soon as they are there.

    A video is decoded once for all of its views. Videos go through the network in batches of about as many clips as in
    training, on the model's device, in the precision that is best there.

    Args:
        model: A model that `cnnbert.load` made.
        records: The videos.
        views: Which views of a video are scored, and what is averaged over them.
        num_workers: Processes that read videos; by default as many as suit the machine, 0 for a single video.

    Yields:
        A video of `records`, and its probabilities, float32 (K,) in [0, 1], on the CPU, or why it cannot be read.
        Videos that cannot be read come before the others of their batch.

    Raises:
        InputError: The model does not know which clips it was trained on.
    """
    data, device = copy(model.data), model.device
    precision = best_precision(device)
    if prefers_channels_last(device, precision):
        model.lay_out_channels_last()
    model.eval()
    data.test_protocol = views
    data.datasets = {"predict": data.dataset("predict", records)}
    data.num_workers = num_workers if num_workers is not None or len(records) > 1 else 0
    for batch in data.predict_dataloader():
        for failure in batch["failures"]:
            yield records[failure["index"]], failure["failure"]
        if len(batch["index"]) == 0:
            continue
        clips = batch["clip"]
        full = partial(full_in_use, model, clips.shape[0] * clips.shape[1], precision, FEWER_VIEWS)
        with memory_told(full), torch.inference_mode(), autocast(device, precision):
            logits = average_views(model.view_logits(clips.to(device)), views.average, model.multi_label)
        for index, row in zip(batch["index"].tolist(), model.probabilities(logits).cpu(), strict=True):
            yield records[index], row


def ranked(model: ActionRecognition, probabilities: Tensor, top_k: int | None = None) -> dict[str, float]:
    """Return the most probable classes with their probabilities, the highest first.

    Args:
        model: Knows the names of the K classes.
        probabilities: (K,), in [0, 1].
        top_k: How many; None for all, and no more than there are.
    """
    order = probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
    return {model.class_names[number]: float(probabilities[number]) for number in order}


def views_of(num_clips: int, num_crops: Literal[1, 3, 10]) -> Protocol:
    """Return the protocol of so many clips spread evenly, and so many crops of each.

    Raises:
        InputError: There is no such number.
    """
    if num_clips < 1:
        raise InputError(f"num_clips={num_clips} must be at least 1; try {VIEWS.num_clips}")
    if num_crops not in (1, 3, 10):
        raise InputError(f"num_crops={num_crops} must be 1, 3 or 10")
    return Protocol(num_clips, num_crops, VIEWS.average)
