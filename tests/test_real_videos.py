"""Real videos: a small network learns them, and the paper's full-size networks train and test on them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from conftest import SHARED

from cnnbert.cli import main
from cnnbert.data.encoding import Encoding, encode_frames
from cnnbert.data.readers import PyAVReader
from cnnbert.shipped import find_config, shipped_configs

VIDEOS = SHARED / "videos"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"no videos in {VIDEOS}")]


def write_manifest(folder: str, splits: tuple[str, ...], per_class: int | None = None) -> None:
    """Write videos.csv from a folder's lists of `path label`; of each class the first `per_class`."""
    listed = []
    for split in splits:
        paths = [line.split()[0] for line in (VIDEOS / folder / f"{split}.txt").read_text().splitlines() if line]
        for name in sorted({path.split("/")[0] for path in paths}):
            chosen = [path for path in paths if path.startswith(f"{name}/")][:per_class]
            listed += [(VIDEOS / folder / path, name, split, Path(path).stem.split("_")[0]) for path in chosen]
    with open("videos.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *listed])


def test_a_small_network_learns_four_actions_of_new_people(workplace, capsys):
    write_manifest("weizmann4", ("train", "test"))
    network = ["--model.backbone=R2Plus1D", "--model.backbone.depth=10", "--model.backbone.width=16"]
    network += ["--model.head=BERTHead", "--model.head.num_heads=4", "--model.head.classifier_dropout=0.5"]
    optimizer = ["--model.optimizer=AdamW", "--model.optimizer.lr=1e-3", "--model.optimizer.weight_decay=0.05"]
    schedule = ["--model.scheduler=CosineAnnealingLR", "--model.scheduler.T_max=100", "--trainer.max_epochs=100"]
    data = ["--data.source=CSVManifest", "--data.source.path=videos.csv", "--data.source.val_fraction=0.2"]
    clips = ["--data.clip_length=16", "--data.stride=2", "--data.frame_size=56", "--data.resize=64"]
    clips += ["--data.cache=ram"]
    assert main(["fit", *network, *optimizer, *schedule, *data, *clips, "--trainer.check_val_every_n_epoch=5"]) == 0
    assert main(["test", "--ckpt_path=best"]) == 0
    (accuracy,) = re.findall(r"test: 24 videos.*\n  video top-1 +([\d.]+)", capsys.readouterr().out)
    assert float(accuracy) >= 0.80  # of 24 videos; other processors round otherwise
    use(capsys)


def use(capsys):
    """Put the trained model to every use, on real files that it has not seen, and on odd ones."""
    records = [row for row in rows("videos.csv") if row["split"] == "test"]
    paths = [row["path"] for row in records]
    assert main(["classify", "best", *paths, "--out", "classes.csv", "--num-clips", "4"]) == 0
    labels = {row["path"]: row["label_1"] for row in rows("classes.csv")}
    assert sum(labels[row["path"]] == row["label"] for row in records) >= 0.8 * len(records)

    assert main(["classify", "best", str(VIDEOS / "odd"), "--out", "odd.json", "--num-clips", "2"]) == 1
    odd = json.loads(Path("odd.json").read_text())
    assert sum(one["error"] is None for one in odd) > 60
    assert {Path(one["path"]).name for one in odd if one["error"]} >= {"corrupted.mp4", "empty.mp4"}

    truth = join(records[::3], Path("long.mp4"))
    Path("truth.csv").write_text("path,start_seconds,end_seconds,label\n" + "\n".join(truth) + "\n")
    capsys.readouterr()
    assert main(["scan", "best", "long.mp4", "--truth", "truth.csv", "--timeline", "--out", "segments.csv"]) == 0
    precision = re.findall(r"^  (0\.\d) +([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert [threshold for threshold, _ in precision] == ["0.3", "0.4", "0.5", "0.6", "0.7"]
    assert float(precision[0][1]) > 0.4
    assert Path("long.timeline.png").is_file()

    assert main(["explain", "best", paths[0], "--out", "why.png", "why.mp4", "why.html"]) == 0
    assert "attention to each moment" in capsys.readouterr().out

    (predictions,) = Path().glob("runs/*/test-*/predictions.csv")
    assert main(["report", str(predictions), "--out", "report.html"]) == 0
    assert Path("report.html").read_text().count("data:video/mp4") > 5

    for kind, name in {"onnx": "model.onnx", "torch-export": "model.pt2"}.items():
        assert main(["export", "best", "--format", kind, "--out", name]) == 0


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def join(records, target):
    """Write the videos of records one after the other into one, and return the lines of its true segments."""
    frames, lines = [], []
    for row in records:
        start = len(frames)
        with PyAVReader().open(row["path"]) as video:
            frames += list(video.frames(range(video.num_frames)).permute(0, 2, 3, 1).numpy())
        lines.append(f"{target},{start / 25},{len(frames) / 25},{row['label']}")
    encode_frames(target, frames, 25, Encoding())
    return lines


@pytest.mark.parametrize("config", ["resnext_bert.yaml", "r2plus1d_bert.yaml"])
def test_the_paper_networks_take_steps_at_full_size(workplace, capsys, config):
    write_manifest("hockey_fights", ("train", "val", "test"), per_class=1)
    options = ["--data=data/csv.yaml", "--data.source.path=videos.csv", "--data.batch_size=2"]
    options += ["--model.backbone.weights=null", "--trainer.max_epochs=1"]
    assert main(["fit", f"--config={config}", *options]) == 0
    assert main(["test", "--ckpt_path=best"]) == 0
    assert "test: 2 videos, protocol center_clip: centre clip x centre crop" in capsys.readouterr().out


@pytest.mark.parametrize("config", [name for name in shipped_configs() if name.startswith("small/")])
def test_every_system_takes_steps(workplace, config):
    """Those on optical flow have it from `cnnbert flow`."""
    write_manifest("hockey_fights", ("train", "val", "test"), per_class=2)
    data = ["--data=data/csv.yaml", "--data.source.path=videos.csv"]
    if "flow" in Path(find_config(config)).read_text():
        assert main(["flow", "--out=flow", "--method=farneback", *data]) == 0
    steps = ["--data.batch_size=2", "--data.num_workers=0", "--trainer.max_epochs=1", "--trainer.logger=false"]
    assert main(["fit", f"--config={config}", *data, *steps, "--trainer.limit_train_batches=2"]) == 0
    assert main(["test", "--ckpt_path=best", "--trainer.logger=false"]) == 0
    (results,) = workplace.glob("runs/*/test-*/results.json")
    assert json.loads(results.read_text())["num_videos"] == 4
