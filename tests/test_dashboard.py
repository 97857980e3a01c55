"""What W&B is told of a run, read back from the files that an offline run leaves."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import yaml
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from wandb_file import read_artifacts, read_facts, read_run, read_tables

import cnnbert
from cnnbert import dashboard
from cnnbert.cli import main
from cnnbert.dashboard import confusion_figure

NAMES = {"blue": "blue/%", "green": 'grün, "$x"', "red": "3.5"}
"""Names that W&B might take for something else."""

WANDB = ["--trainer.logger=WandbLogger", "--trainer.log_every_n_steps=1"]


def manifest(path: Path, videos: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for video in sorted(videos.rglob("*.mp4")):
            writer.writerow([video, NAMES[video.parent.name], video.parent.parent.name])
    return path


def run_file(root: Path, command: str) -> Path:
    (path,) = root.glob(f"runs/*/{command}-*/wandb/offline-run-*/run-*.wandb")
    return path


def history(path: Path) -> dict[str, list[Any]]:
    """Return all values that were logged under each key."""
    values: dict[str, list[Any]] = {}
    for row in read_run(path)[2]:
        for key, value in row.items():
            values.setdefault(key, []).append(value)
    return values


def last(path: Path, key: str) -> list[dict[str, Any]]:
    return read_tables(path, key)[-1]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Iterator[Path]:
    """A git repository with a run of fit, validate and test each."""
    root = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("WANDB_RUN_GROUP", raising=False)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DATA_DIR", str(root / ".wandb"))
        patch.setenv("WANDB_CACHE_DIR", str(root / ".wandb"))
        git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org"]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "start"], check=True)
        data = [*TINY_DATA, "--data.source=CSVManifest", f"--data.source.path={manifest(root / 'videos.csv', videos)}"]
        options = ["--trainer.max_epochs=4", "--data.batch_size=4", "--model.optimizer=AdamW"]
        options += ["--model.optimizer.lr=3e-3", "--model.backbone_lr_factor=0.1", "--model.warmup_steps=2"]
        Path("mine.yaml").write_text("seed_everything: 1")
        assert main(["fit", "--config=mine.yaml", *TINY_MODEL, *data, *TINY_RUN, *WANDB, *options]) == 0
        for command in ("validate", "test"):
            assert main([command, "--config=mine.yaml", "--ckpt_path=best", *TINY_RUN[1:], *WANDB]) == 0
        yield root


def test_scalars(logged):
    fit = history(run_file(logged, "fit"))
    shares = ("train/data_wait", "val/data_wait")
    assert {"train/loss", "train/clip_top1", "val/loss", "val/top1", "val/clip_top1"} <= set(fit)
    assert all(0 <= value <= 1 for key in shares for value in fit[key])
    assert all(value > 0 for key in ("train/clips_per_second", "val/clips_per_second") for value in fit[key])
    pairs = list(zip(fit["lr/head"], fit["lr/backbone"], strict=True))
    assert len(set(pairs)) > 2  # warming up
    assert all(backbone == pytest.approx(0.1 * head) for head, backbone in pairs)
    assert not any("lr-" in key or "warmup" in key for key in fit)
    assert max(fit["lr/head"]) == pytest.approx(3e-3)
    test = history(run_file(logged, "test"))
    assert {"test/loss", "test/top1", "test/clip_top1", "test/clips_per_second", "test/data_wait"} <= set(test)
    assert {"val/loss", "val/top1", "val/clips_per_second"} <= set(history(run_file(logged, "validate")))


def test_names_groups_and_facts(logged):
    for command in ("fit", "validate", "test"):
        path = run_file(logged, command)
        facts = read_facts(path)
        folder = path.parents[2]
        assert facts.display_name == f"mine/{folder.name}"
        assert (facts.run_group, facts.job_type, facts.project) == ("mine", command, "cnnbert")
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=logged, capture_output=True, text=True).stdout.strip()
        assert facts.git.commit == commit
        config = read_run(path)[1]
        assert config["model"]["head"]["init_args"]["num_heads"] == 4
        assert config["protocol"]["val"] == config["protocol"]["test"]
        assert config["protocol"]["val"] == "protocol center_clip: centre clip x centre crop, 8 frames, stride 1"
        versions = config["versions"]
        assert (versions["torch"], versions["cnnbert"]) == (torch.__version__, cnnbert.__version__)
        assert (versions["cuda"], versions["cudnn"]) == (torch.version.cuda, torch.backends.cudnn.version())


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_tables_are_those_of_the_videos(logged, command, split):
    path = run_file(logged, command)
    with next(logged.glob("runs/mine/test-*/predictions.csv")).open(newline="", encoding="utf-8") as file:
        predictions = list(csv.DictReader(file))
    classes = last(path, f"{split}/classes")
    assert [row["class"] for row in classes] == list(json.loads(json.dumps(sorted(NAMES.values()))))
    assert sum(row["videos"] for row in classes) == {"val": 6, "test": 9}[split]
    cells = last(path, f"{split}/confusion_matrix_table")
    assert len(cells) == 9
    if split == "test":
        for cell in cells:
            pair = (cell["Actual"], cell["Predicted"])
            assert cell["nPredictions"] == sum((row["label"], row["prediction"]) == pair for row in predictions)
        wrong = sum(row["label"] != row["prediction"] for row in predictions)
        assert sum(row["videos"] for row in last(path, "test/confused_pairs")) == wrong
    worst = last(path, f"{split}/worst_videos")
    assert len(worst) == {"val": 6, "test": 9}[split]
    losses = [row["loss"] for row in worst]
    assert losses == sorted(losses, reverse=True)
    for row in worst:
        with av.open(str(row["video"])) as container:
            assert 3 <= sum(1 for _ in container.decode(video=0)) <= 80
        with Image.open(row["attention"]) as picture:
            assert picture.width == 1000
        if split == "test":
            (known,) = (line for line in predictions if line["path"] == row["path"])
            assert (row["label"], row["prediction"]) == (known["label"], known["prediction"])
            assert row["probability of the label"] == pytest.approx(float(known[f"score:{row['label']}"]), abs=1e-4)


def test_training_ends_with_its_best_epoch(logged):
    """The tables come with every new best; the videos, the checkpoint and the config once."""
    path = run_file(logged, "fit")
    top1 = history(path)["val/top1"]
    bests = [value for number, value in enumerate(top1) if value >= max(top1[: number + 1])]
    assert history(path)["val/best_top1"] == pytest.approx(bests)
    assert len(read_tables(path, "val/classes")) == len(read_tables(path, "val/confusion_matrix_table")) == len(bests)
    for number, table in enumerate(read_tables(path, "val/confusion_matrix_table")):
        right = sum(row["nPredictions"] for row in table if row["Actual"] == row["Predicted"])
        assert right / 6 == pytest.approx(bests[number])
    (worst,) = read_tables(path, "val/worst_videos")
    assert sum(row["label"] == row["prediction"] for row in worst) / 6 == pytest.approx(bests[-1])
    ((name, files),) = read_artifacts(path, "model")
    folder = path.parents[2]
    assert name == f"mine-{folder.name}"
    assert files == {"best.ckpt": folder / "checkpoints" / "best.ckpt", "config.yaml": folder / "config.yaml"}
    assert yaml.safe_load(files["config.yaml"].read_text())["model"]["head"]["init_args"]["num_heads"] == 4
    assert not read_artifacts(run_file(logged, "test"), "model")


def test_lightning_may_log_the_checkpoint(workplace, videos):
    """WandbLogger's own option; the config is ours all the same, and nothing is sent twice."""
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}"]
    options = [*TINY_MODEL, *data, *TINY_RUN, *WANDB, "--trainer.logger.log_model=true"]
    assert main(["fit", *options, "--trainer.logger.group=other", "--trainer.logger.project=theirs"]) == 0
    path = run_file(workplace, "fit")
    assert (read_facts(path).run_group, read_facts(path).project) == ("other", "theirs")
    ((_, files),) = read_artifacts(path, "config")
    assert list(files) == ["config.yaml"]
    names = [sorted(files) for _, files in read_artifacts(path, "model")]
    assert names and all(name == ["model.ckpt"] for name in names)


def test_a_head_without_attention_and_a_video_without_preview(workplace, videos, monkeypatch, caplog):
    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(dashboard, "write_preview", fail)
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}"]
    model = [*TINY_MODEL[:3], "--model.head=TGAPHead"]
    assert main(["fit", *model, *data, *TINY_RUN, *WANDB]) == 0
    worst = last(run_file(workplace, "fit"), "val/worst_videos")
    assert len(worst) == 6
    assert all(row["video"] is None and "attention" not in row for row in worst)
    assert caplog.text.count("out of luck") == 6


def test_a_picture_that_cannot_be_drawn_stops_nothing(workplace, videos, monkeypatch, caplog):
    def fail(*_: Any) -> None:
        raise RuntimeError("no colours")

    monkeypatch.setattr(dashboard, "attention_strip", fail)
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}"]
    assert main(["fit", *TINY_MODEL, *data, *TINY_RUN, *WANDB]) == 0
    assert all(row["video"] is not None for row in last(run_file(workplace, "fit"), "val/worst_videos"))
    assert caplog.text.count("no picture of the attention for ") == 6


def test_several_classes_a_video(workplace, videos):
    lines = []
    for video in sorted(videos.rglob("*.mp4")):
        label = {"blue": "cold", "green": "cold|lush", "red": "|"}[video.parent.name]
        lines.append(f"{video},{label},{video.parent.parent.name}")
    Path("videos.csv").write_text("path,label,split\n" + "\n".join(lines))
    data = [*TINY_DATA, "--data.source=CSVManifest", "--data.source.path=videos.csv", "--data.label_separator=|"]
    assert main(["fit", *TINY_MODEL, *data, *TINY_RUN, *WANDB]) == 0
    path = run_file(workplace, "fit")
    classes = last(path, "val/classes")
    assert [(row["class"], row["videos"]) for row in classes] == [("cold", 4), ("lush", 2)]
    logged = history(path)
    mean = sum(row["average precision"] for row in classes) / 2
    assert mean == pytest.approx(logged["val/map"][-1], abs=1e-6)
    assert logged["val/best_map"] == pytest.approx(logged["val/map"])
    assert not any("confus" in key for key in logged)
    worst = last(path, "val/worst_videos")
    assert {row["label"] for row in worst} == {"cold", "cold|lush", "|"}
    assert all(row["probability of the label"] is None for row in worst)


def test_two_processes_log_once(workplace, videos):
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", "--data.batch_size=2"]
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "cnnbert", "fit", *TINY_MODEL, *data, *TINY_RUN, *WANDB, *ddp]
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(list(workplace.glob("runs/*/*"))) == 1
    path = run_file(workplace, "fit")
    assert sum(row["videos"] for row in last(path, "val/classes")) == 6
    assert len(last(path, "val/worst_videos")) == 6
    assert len(read_artifacts(path, "model")) == 1


def test_400_classes(tmp_path, monkeypatch):
    """Their matrix is a picture, since W&B's charts have not so many cells."""
    names = [f"class {number}" for number in range(400)]
    counts = torch.eye(400, dtype=torch.int64) * 3
    import wandb

    assert isinstance(dashboard._wandb_confusion(counts, names), wandb.Image)
    chart = dashboard._wandb_confusion(counts[:50, :50], names[:50])
    assert [row for row in chart.table.data if row[2]] == [[name, name, 3.0] for name in names[:50]]


@pytest.mark.parametrize("number", [2, 21, 60])
def test_figure_of_a_matrix(number, tmp_path):
    counts = torch.eye(number, dtype=torch.int64)
    counts[0, 1] = 4
    figure = confusion_figure(counts, [f"$ a very long name of the class {place} $" for place in range(number)])
    figure.savefig(tmp_path / "figure.png")
    (axes, _) = figure.axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert (labels[0] == "$ a very long name of …") == (number <= 50)
    assert ("4" in [text.get_text() for text in axes.texts]) == (number <= 20)


def test_the_most_are_ten(workplace, videos, monkeypatch):
    """Even of a large data set."""
    many = workplace / "many"
    for split, number in {"train": 2, "val": 7}.items():
        for place in range(number):
            for name, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
                write_video(many / split / name / f"{place}.mp4", colour)
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={many}"]
    assert main(["fit", *TINY_MODEL, *data, *TINY_RUN, *WANDB]) == 0
    assert len(last(run_file(workplace, "fit"), "val/worst_videos")) == 10


class Stop(Callback):
    """Stops the training at its second epoch, as Ctrl-C does."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_a_training_that_is_stopped_is_logged_too(workplace, videos):
    options = [*TINY_MODEL, *TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", *TINY_RUN, *WANDB]
    with pytest.raises(SystemExit):
        main(["fit", *options, "--trainer.max_epochs=3", "--trainer.callbacks+=test_dashboard.Stop"])
    path = run_file(workplace, "fit")
    assert len(last(path, "val/worst_videos")) == 6
    ((name, files),) = read_artifacts(path, "model")
    assert name.startswith("run-fit-")
    assert sorted(files) == ["best.ckpt", "config.yaml"]
