"""Videos that cannot be read are left out of training and listed in evaluation, and never replaced by another."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN

import cnnbert
from cnnbert.cli import main

TWO_PROCESSES = ["--trainer.devices=2", "--trainer.strategy=ddp"]
NO_VIDEO = "FFmpeg finds no video in it (Invalid data found when processing input)"
CENTRE = "protocol center_clip: centre clip x centre crop, 8 frames, stride 1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A working directory with a trained run."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["fit", *TINY_MODEL, *source(videos), *TINY_RUN]) == 0
    return root


@pytest.fixture
def checkpoint(trained: Path) -> str:
    return f"--ckpt_path={next(trained.glob('runs/*/fit-*/checkpoints/last.ckpt'))}"


@pytest.fixture
def mine(videos: Path, workplace: Path) -> Path:
    """A copy of the videos, to be damaged."""
    return shutil.copytree(videos, workplace / "mine")


def source(root: Path) -> list[str]:
    return [*TINY_DATA, "--data.source=Folder", f"--data.source.root={root}"]


def damage(*paths: Path) -> None:
    """Leave text, and half a video, and text, ..."""
    for number, path in enumerate(paths):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if number % 2 else b"no video")


def run_folder(command: str) -> Path:
    return sorted(Path().glob(f"runs/*/{command}-*"), key=lambda path: path.stat().st_mtime)[-1]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def in_a_process(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cnnbert", *args], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_without_them(
    workers: int, mine: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Also through batches that have no other video, and when the same videos fail in every epoch."""
    broken = [mine / "train" / "red" / "1.mp4", mine / "train" / "blue" / "0.mp4"]
    damage(*broken)
    options = ["--data.batch_size=1", "--data.max_failed_share=0.2", f"--data.num_workers={workers}"]
    assert main(["fit", *TINY_MODEL, *source(mine), *TINY_RUN, *options, "--trainer.max_epochs=3"]) == 0
    for path in broken:
        assert caplog.text.count(f"cannot read {path}: {NO_VIDEO}; it is left out of the training\n") == 1
    expected = f"val: 6 videos, {CENTRE}\n  2 of 12 training videos could not be read: left out\n  video top-1 "
    assert expected in capsys.readouterr().out
    counts = [row["train/failed_videos"] for row in read(run_folder("fit") / "metrics.csv")]
    assert [float(count) for count in counts if count] == [2, 2, 2]


@pytest.mark.parametrize(("share", "number"), [("0", 1), ("0.05", 1), ("0.1", 2), ("0.3", 4)])
def test_training_stops_over_too_many(share: str, number: int, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [*mine.glob("train/*/1.mp4"), mine / "train" / "blue" / "0.mp4"]
    damage(*broken[:number])
    assert main(["fit", *TINY_MODEL, *source(mine), *TINY_RUN, f"--data.max_failed_share={share}"]) == 1
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cnnbert: error")]
    listed = ", ".join(f"{path} ({NO_VIDEO})" for path in sorted(broken[:number])[:3])
    assert told == (
        f"cnnbert: error: {number} of 12 training videos cannot be read: {listed}{' and 1 more' * (number > 3)}; "
        f"that is more than max_failed_share={share} allows: repair or remove them, or raise it"
    )


def test_a_stopped_training_goes_on(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With more failures allowed, or when the videos have been repaired."""
    assert main(["fit", *TINY_MODEL, *source(mine), *TINY_RUN, "--data.batch_size=2"]) == 0
    red = mine / "train" / "red" / "1.mp4"
    whole = red.read_bytes()
    damage(red)
    again = ["fit", "--ckpt_path=last"]
    assert main([*again, "--trainer.max_epochs=2"]) == 1
    assert "1 of 12 training videos cannot be read" in capsys.readouterr().err
    assert main([*again, "--trainer.max_epochs=3", "--data.max_failed_share=0.1"]) == 0
    assert "1 of 12 training videos could not be read: left out" in capsys.readouterr().out
    red.write_bytes(whole)
    assert main([*again, "--trainer.max_epochs=4"]) == 0
    assert "could not be read" not in capsys.readouterr().out


def test_two_processes_train_without_them(mine: Path) -> None:
    """At one step the first has nothing to compute, at another the second; neither waits for ever."""
    broken = [mine / "train" / "red" / "1.mp4", mine / "train" / "blue" / "0.mp4"]
    damage(*broken)
    options = ["--data.batch_size=1", "--data.max_failed_share=0.2", "--trainer.max_epochs=3", *TWO_PROCESSES]
    done = in_a_process("fit", *TINY_MODEL, *source(mine), *TINY_RUN, *options)
    assert done.returncode == 0, done.stderr
    assert "  2 of 12 training videos could not be read: left out\n" in done.stdout
    for path in broken:
        assert done.stderr.count(str(path)) == 1
    last = cnnbert.load(next(Path().glob("runs/*/fit-*/checkpoints/last.ckpt")))
    assert all(weight.isfinite().all() for weight in last.parameters())


def test_two_processes_stop_together(mine: Path) -> None:
    """Each reads but half of the videos, and stops over the failures of both."""
    damage(*sorted(mine.glob("train/*/1.mp4")), mine / "train" / "blue" / "0.mp4")
    done = in_a_process(
        "fit",
        *TINY_MODEL,
        *source(mine),
        *TINY_RUN,
        "--data.batch_size=12",
        "--data.max_failed_share=0.3",
        *TWO_PROCESSES,
    )
    assert done.returncode == 1
    assert "cnnbert: error: 4 of 12 training videos cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("counted", "processes"), [("wrong", []), ("left_out", []), ("wrong", TWO_PROCESSES)])
def test_testing_lists_them(counted: str, processes: list[str], mine: Path, checkpoint: str) -> None:
    """Nine videos do not divide by two, so that two processes repeat one: the first, which is broken."""
    broken = [mine / "test" / "blue" / "0.mp4", mine / "test" / "green" / "2.mp4"]
    damage(*broken)
    options = [*TINY_RUN[1:], "--data.batch_size=2", f"--data.count_failed={counted}", *processes]
    done = in_a_process("test", checkpoint, f"--data.source.root={mine}", *options)
    assert done.returncode == 0, done.stderr
    words = {"wrong": "counted as wrong, left out of clip top-1 and loss", "left_out": "left out"}[counted]
    assert f"test: 9 videos, {CENTRE}\n  2 of 9 videos could not be read: {words}\n  video top-1 " in done.stdout

    rows = read(run_folder("test") / "predictions.csv")
    assert [row["path"] for row in rows] == [str(path) for path in sorted(mine.glob("test/*/*.mp4"))]
    assert list(rows[0])[-2:] == ["score:red", "error"]
    for row in rows:
        scores = [row[f"score:{name}"] for name in ("blue", "green", "red")]
        if Path(row["path"]) in broken:
            assert (row["prediction"], scores, row["error"]) == ("", ["", "", ""], NO_VIDEO)
        else:
            assert row["prediction"] and all(scores) and row["error"] == ""

    results = json.loads((run_folder("test") / "results.json").read_text())
    assert list(results)[:5] == ["split", "num_videos", "num_failed", "count_failed", "protocol"]
    assert (results["num_videos"], results["num_failed"], results["count_failed"]) == (9, 2, counted)
    right = {
        name: [row["prediction"] == name for row in rows if row["label"] == name] for name in ("blue", "green", "red")
    }
    sizes = {"wrong": (3, 3, 3), "left_out": (2, 2, 3)}[counted]
    hits = [sum(some) for some in right.values()]
    assert results["top1"] == pytest.approx(sum(hits) / sum(sizes))
    recalls = [hit / size for hit, size in zip(hits, sizes, strict=True)]
    assert results["mean_class_accuracy"] == pytest.approx(sum(recalls) / 3)
    assert results["clip_top1"] == pytest.approx(sum(hits) / 7)
    losses = [-math.log(float(row[f"score:{row['label']}"])) for row in rows if not row["error"]]
    assert results["loss"] == pytest.approx(sum(losses) / 7, rel=1e-4)  # of scores with six digits


def test_predicting_lists_them(
    mine: Path, checkpoint: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    damage(mine / "test" / "blue" / "1.mp4")
    assert main(["predict", checkpoint, f"--data.source.root={mine}/test", *TINY_RUN[1:]]) == 0
    assert "\n  1 of 9 videos could not be read: named in the predictions\n" in capsys.readouterr().out
    rows = read(run_folder("predict") / "predictions.csv")
    assert [row["error"] for row in rows] == ["", NO_VIDEO] + [""] * 7
    assert [not row["prediction"] for row in rows] == [bool(row["error"]) for row in rows]
    assert f"cannot read {mine}/test/blue/1.mp4: {NO_VIDEO}\n" in caplog.text


def test_predicting_nothing_but_them(mine: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(*mine.glob("test/*/*.mp4"))
    assert main(["predict", checkpoint, f"--data.source.root={mine}/test", *TINY_RUN[1:]]) == 0
    assert "\n  9 of 9 videos could not be read: named in the predictions\n" in capsys.readouterr().out
    assert all(row["error"] for row in read(run_folder("predict") / "predictions.csv"))


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_accuracies_need_one_video(
    command: str, mine: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    split = "test" if command == "test" else "val"
    broken = sorted(mine.glob(f"{split}/*/*.mp4"))
    damage(*broken)
    start = TINY_MODEL if command == "fit" else [checkpoint]
    assert main([command, *start, *source(mine), *(TINY_RUN if command == "fit" else TINY_RUN[1:])]) == 1
    number = len(broken)
    names = {"val": "validation", "test": "test"}
    err = capsys.readouterr().err
    told = f"{number} of {number} {names[split]} videos cannot be read: {broken[0]} ("
    assert f"cnnbert: error: there is nothing to judge by: {told}" in err and err.endswith(f" and {number - 3} more\n")
    assert "Traceback" not in err


def test_the_check_before_training_may_see_none(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes two batches, here the two blue videos."""
    damage(*mine.glob("val/blue/*.mp4"))
    assert main(["fit", *TINY_MODEL, *source(mine), *TINY_RUN, "--data.batch_size=1"]) == 0
    words = "2 of 6 videos could not be read: counted as wrong, left out of clip top-1 and loss"
    assert f"val: 6 videos, {CENTRE}\n  {words}\n  video top-1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "options", "counts"),
    [
        ("test", ["--data.batch_size=2", "--trainer.limit_test_batches=2"], (4, 1)),
        ("test", ["--data.batch_size=2", "--trainer.limit_test_batches=0.5"], (4, 1)),
        ("validate", ["--data.batch_size=1", "--trainer.limit_val_batches=3"], (3, 0)),
        ("predict", ["--data.batch_size=3", "--trainer.limit_predict_batches=2"], (6, 1)),
    ],
)
def test_only_videos_that_were_tried_count(
    command: str, options: list[str], counts: Any, mine: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(mine / "test" / "blue" / "1.mp4", mine / "test" / "red" / "1.mp4")
    root = mine / "test" if command == "predict" else mine
    assert main([command, checkpoint, f"--data.source.root={root}", *options, *TINY_RUN[1:]]) == 0
    out = capsys.readouterr().out
    split = "val" if command == "validate" else command
    assert f"{split}: {counts[0]} videos, " in out
    assert (f"  {counts[1]} of {counts[0]} videos could not be read" in out) == (counts[1] > 0)
    if command == "predict":
        assert len(read(run_folder(command) / "predictions.csv")) == counts[0]
    else:
        results = json.loads((run_folder(command) / "results.json").read_text())
        assert (results["num_videos"], results["num_failed"]) == counts


def test_training_without_validation_claims_none(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.limit_val_batches=0", "--model.scheduler=null"]
    assert main(["fit", *TINY_MODEL, *source(mine), *TINY_RUN, *options]) == 0
    assert f"val: 0 videos, {CENTRE}\n  run folder " in capsys.readouterr().out
