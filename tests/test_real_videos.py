"""Real videos: a small network learns them, and the paper's full-size networks train and test on them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from conftest import SHARED

from cnnbert.cli import main

VIDEOS = SHARED / "videos"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"no videos in {VIDEOS}")]


def write_manifest(folder: str, splits: tuple[str, ...], per_class: int | None = None) -> None:
    """Write videos.csv from a folder's lists of `path label`; of each class the first `per_class`."""
    rows = []
    for split in splits:
        paths = [line.split()[0] for line in (VIDEOS / folder / f"{split}.txt").read_text().splitlines() if line]
        for name in sorted({path.split("/")[0] for path in paths}):
            chosen = [path for path in paths if path.startswith(f"{name}/")][:per_class]
            rows += [(VIDEOS / folder / path, name, split, Path(path).stem.split("_")[0]) for path in chosen]
    with open("videos.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *rows])


@pytest.mark.parametrize(
    ("epochs", "head"),
    [
        (60, ["--model.head=TGAPHead", "--model.head.classifier_dropout=0.5"]),
        (100, ["--model.head=BERTHead", "--model.head.num_heads=4", "--model.head.classifier_dropout=0.5"]),
    ],
    ids=["TGAP", "BERT"],
)
def test_a_small_network_learns_four_actions_of_new_people(workplace, capsys, epochs, head):
    write_manifest("weizmann4", ("train", "test"))
    network = ["--model.backbone=R2Plus1D", "--model.backbone.depth=10", "--model.backbone.width=16", *head]
    optimizer = ["--model.optimizer=AdamW", "--model.optimizer.lr=1e-3", "--model.optimizer.weight_decay=0.05"]
    schedule = [
        "--model.scheduler=CosineAnnealingLR",
        f"--model.scheduler.T_max={epochs}",
        f"--trainer.max_epochs={epochs}",
    ]
    data = ["--data.source=CSVManifest", "--data.source.path=videos.csv", "--data.source.val_fraction=0.2"]
    clips = ["--data.clip_length=16", "--data.stride=2", "--data.frame_size=56", "--data.resize=64"]
    assert main(["fit", *network, *optimizer, *schedule, *data, *clips, "--trainer.check_val_every_n_epoch=5"]) == 0
    assert main(["test", "--ckpt_path=best"]) == 0
    (accuracy,) = re.findall(r"test: 24 videos.*\n  video top-1 +([\d.]+)", capsys.readouterr().out)
    assert float(accuracy) >= 0.90


@pytest.mark.parametrize("config", ["resnext_bert.yaml", "r2plus1d_bert.yaml"])
def test_the_paper_networks_take_steps_at_full_size(workplace, capsys, config):
    write_manifest("hockey_fights", ("train", "val", "test"), per_class=2)
    options = ["--data=data/csv.yaml", "--data.source.path=videos.csv", "--data.batch_size=2"]
    options += ["--model.backbone.weights=null", "--trainer.max_epochs=1"]
    assert main(["fit", f"--config={config}", *options]) == 0
    assert main(["test", "--ckpt_path=best"]) == 0
    assert "test: 4 videos, protocol center_clip: centre clip x centre crop" in capsys.readouterr().out
