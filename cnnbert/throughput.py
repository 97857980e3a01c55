"""How many clips a second networks classify, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from cnnbert.machine import autocast, best_device, best_precision, prefers_channels_last
from cnnbert.tasks.recognition import ActionRecognition

ROUNDS = 5
SECONDS = 0.5


def clips_per_second(
    models: Mapping[str, ActionRecognition], frame_sizes: Mapping[str, int], batch_size: int = 8
) -> dict[str, float]:
    """Return how many clips a second each network classifies, in the machine's best precision and layout.

    The networks take turns, so that what else the machine does slows all of them down alike; the median of 5 rounds of
    at least half a second counts. Clips lie ready in memory: no video is read.

    Args:
        models: The networks by name, in evaluation mode; they end on the machine's best device.
        frame_sizes: Height and width of each network's clips.
        batch_size: Clips that go through a network at once, at least 1.
    """
    device = best_device()
    precision = best_precision(device)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for position in range(1 + ROUNDS):  # the first warms up
        for name, model in models.items():
            model.to(device)
            if position == 0 and prefers_channels_last(device, precision):
                model.lay_out_channels_last()
            size = frame_sizes[name]
            clips = torch.zeros(
                batch_size, model.backbone.in_channels, model.clip_length, size, size, dtype=torch.uint8
            )
            clips = clips.to(device)
            start, number = time.perf_counter(), 0
            with torch.inference_mode(), autocast(device, precision):
                while number == 0 or (position > 0 and time.perf_counter() - start < SECONDS):
                    model(clips).sum().item()  # waits for the device
                    number += batch_size
            if position > 0:
                rates[name].append(number / (time.perf_counter() - start))
    return {name: statistics.median(measured) for name, measured in rates.items()}
