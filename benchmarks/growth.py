"""Shows how a training step's time and memory grow with clip length, batch and frame size; writes a figure and a table.

    python benchmarks/growth.py --config r2plus1d_bert.yaml --out growth

Memory is the peak of the GPU, or on a CPU what the forward pass keeps for the backward pass, with and without gradient
checkpointing. Beside each line stands the straight line through its first two points: what linear growth would be.
OUT.png and OUT.md have the result.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from training import CLASSES, laid_out, wait

import cnnbert
from cnnbert.machine import (
    autocast,
    best_device,
    best_precision,
    describe,
    keep_freed_memory,
    prefers_channels_last,
)

SWEEPS = {
    "clip length (frames)": [{"length": length} for length in (16, 32, 64, 96, 128)],
    "batch (clips)": [{"batch": batch} for batch in (1, 2, 4, 8)],
    "frame size (pixels of a frame)": [{"size": size} for size in (56, 84, 112, 160)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="r2plus1d_bert.yaml")
    parser.add_argument("--out", type=Path, default=Path("growth"))
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    device = best_device()
    if device.type == "cpu":
        keep_freed_memory()
    precision = best_precision(device)
    machine = describe(device, precision, prefers_channels_last(device, precision))
    print(machine)
    rows = ["| what | value | seconds | GiB | GiB, gradient checkpointing |", "|---|---|---|---|---|"]
    figure = Figure(figsize=(11, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(SWEEPS))
    for column, (name, points) in enumerate(SWEEPS.items()):
        values, seconds, memory, less = [], [], [], []
        for point in points:
            sizes = {"length": 32, "batch": 1, "size": 112, **point}
            value = sizes["size"] ** 2 if "size" in point else next(iter(point.values()))
            took, kept = measured(given.config, sizes, False, given.rounds, device, precision)
            _, kept_less = measured(given.config, sizes, True, 1, device, precision)
            rows.append(f"| {name} | {value} | {took:.2f} | {kept:.2f} | {kept_less:.2f} |")
            print(rows[-1], flush=True)
            for some, one in zip((values, seconds, memory, less), (value, took, kept, kept_less), strict=True):
                some.append(one)
        draw(axes[0][column], values, {"": seconds}, "seconds a step" if column == 0 else "")
        told = {"all kept": memory, "gradient checkpointing": less}
        draw(axes[1][column], values, told, "GiB" if column == 0 else "")
        axes[1][column].set_xlabel(name, fontsize=9)
    axes[1][0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"{given.config}, 32 frames of 112x112, 1 clip where nothing else is said\n{machine}", fontsize=9)
    figure.savefig(given.out.with_suffix(".png"))
    given.out.with_suffix(".md").write_text("\n".join(rows) + "\n", encoding="utf-8")


def measured(
    config: str, sizes: dict[str, int], saving: bool, rounds: int, device: torch.device, precision: str
) -> tuple[float, float]:
    """Return the median seconds of a training step, and the GiB that it takes."""
    settings = [f"data.clip_length={sizes['length']}", f"model.gradient_checkpointing={str(saving).lower()}"]
    model = laid_out(cnnbert.build(config, CLASSES, settings), device, precision).train()
    shape = (sizes["batch"], 3, sizes["length"], sizes["size"], sizes["size"])
    clips = torch.randint(256, shape, dtype=torch.uint8).to(device)
    label = torch.arange(sizes["batch"], device=device) % len(CLASSES)
    kept: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds = []
    for _ in range(1 + rounds):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        wait(device)
        start = time.perf_counter()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(device, precision):
            loss = F.cross_entropy(model(clips).float(), label)
            told = sum(kept.values())
        loss.backward()
        wait(device)
        seconds.append(time.perf_counter() - start)
        model.zero_grad()
    if device.type == "cuda":
        told = torch.cuda.max_memory_allocated(device)
    return statistics.median(seconds[1:]), told / 2**30


def draw(axes: object, values: list[int], lines: dict[str, list[float]], label: str) -> None:
    """Draw what was measured, and straight lines."""
    for (name, measurements), colour in zip(lines.items(), ("#0072b2", "#d55e00"), strict=False):
        axes.plot(values, measurements, marker="o", color=colour, label=name)  # type: ignore[attr-defined]
        slope = (measurements[1] - measurements[0]) / (values[1] - values[0])
        straight = [measurements[0] + slope * (value - values[0]) for value in values]
        axes.plot(values, straight, color=colour, linewidth=0.8, linestyle=":")  # type: ignore[attr-defined]
    axes.set_ylim(bottom=0)  # type: ignore[attr-defined]
    axes.set_xlim(left=0)  # type: ignore[attr-defined]
    axes.set_ylabel(label, fontsize=9)  # type: ignore[attr-defined]
    axes.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]
    axes.tick_params(labelsize=8)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
