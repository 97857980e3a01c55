"""Where the order of the frames matters: accuracy by kind of class, with the frames in order and shuffled.

    python benchmarks/order.py ablation

Takes the trained networks of an ablation on generated clips, or its heads and the backbone whose features they were
trained on, all seeds together. Classes of two events in an order differ from their partner in nothing but that order;
those of one motion show it in any few frames; a swing goes both ways.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
import yaml
from pytorch_lightning.cli import instantiate_module
from torch import Tensor

import cnnbert
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.generated import ACTIONS
from cnnbert.data.loaders import Batch
from cnnbert.data.protocols import Average
from cnnbert.machine import best_device, best_precision
from cnnbert.tasks.metrics import average_views
from cnnbert.tasks.recognition import ActionRecognition

KINDS = {
    "two events": [name for name in ACTIONS if "_then_" in name],
    "one motion": [name for name in ACTIONS if "_then_" not in name and name != "swing"],
    "swing": ["swing"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of an ablation on generated clips")
    parser.add_argument("--per-class", action="store_true", help="a column a class instead of a kind")
    given = parser.parse_args()
    groups = {name: [name] for name in ACTIONS} if given.per_class else KINDS
    print("| network | frames | " + " | ".join([*groups, "all"]) + " |")
    print("| --- " * (3 + len(groups)) + "|")
    for name in sorted({path.parent.name for path in given.folder.glob("seed*/*/run.json")}):
        hits: dict[str, list[Tensor]] = {"in order": [], "shuffled": []}
        labels: list[Tensor] = []
        for place in sorted(given.folder.glob(f"seed*/{name}")):
            found, label = judge(place)
            labels.append(label)
            for way, right in found.items():
                hits[way].append(right)
        for way, right in hits.items():
            print(line(name, way, torch.cat(right), torch.cat(labels), groups), flush=True)


def trained(place: Path) -> tuple[ActionRecognition, Path]:
    """Return the model that a run has trained, and its config."""
    head = place / "head.ckpt"
    if head.is_file():
        return cnnbert.load(head), place / "config.yaml"
    (checkpoint,) = place.glob("fit-*/checkpoints/best.ckpt")
    return cnnbert.load(checkpoint), checkpoint.parent.parent / "config.yaml"


@torch.inference_mode()
def judge(place: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Return which test videos a model has right, frames in order and shuffled, bool (N,) each, and labels (N,)."""
    device = best_device()
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(best_precision(device))
    model, config = trained(place)
    model.to(device)
    batches, average = test_batches(json.dumps(yaml.safe_load(config.read_text(encoding="utf-8"))["data"]))
    shuffling = torch.Generator().manual_seed(0)
    hits: dict[str, list[Tensor]] = {"in order": [], "shuffled": []}
    labels = []
    for batch in batches:
        labels.append(batch["label"])
        clips = batch["clip"]  # (B, V, 3, T, H, W)
        shuffled = clips[:, :, :, torch.randperm(clips.shape[3], generator=shuffling)]
        for way, views in {"in order": clips, "shuffled": shuffled}.items():
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = model.view_logits(views.to(device))
            scores = average_views(logits.cpu(), average)
            hits[way].append(scores.argmax(1) == batch["label"])
    return {way: torch.cat(right) for way, right in hits.items()}, torch.cat(labels)


@cache
def test_batches(settings: str) -> tuple[list[Batch], Average]:
    """Return all test clips of a data module, read once for all models, and how their views are averaged."""
    data = instantiate_module(VideoDataModule, json.loads(settings))
    data.prepare_data()
    data.setup("test")
    return [*data.test_dataloader()], data.views("test").average


def line(name: str, way: str, right: Tensor, label: Tensor, groups: Mapping[str, Sequence[str]]) -> str:
    numbers = {action: number for number, action in enumerate(ACTIONS)}
    of_group = [torch.isin(label, torch.tensor([numbers[action] for action in group])) for group in groups.values()]
    shares = [right[members].float().mean() for members in of_group] + [right.float().mean()]
    return f"| {name} | {way} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |"


if __name__ == "__main__":
    main()
