"""Every numbered split is trained and tested on, and the mean is that of the tests."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN

from cnnbert import folds
from cnnbert.cli import main

TINY = [*TINY_DATA, *TINY_MODEL, *TINY_RUN, "--model.backbone.weights=null", "--trainer.logger=false"]


@pytest.fixture
def manifest(videos: Path, tmp_path: Path) -> Path:
    """A CSV file with two divisions; the second tests on one video of each class but green."""
    lines = ["path,label,split1,split2"]
    for path in sorted(videos.glob("*/*/*.mp4")):
        split, label = path.parts[-3:-1]
        other = {"train": "train", "val": "val", "test": "test" if path.stem == "0" else "train"}[split]
        lines.append(f"{path},{label},{split},{'' if (other, label) == ('test', 'green') else other}")
    table = tmp_path / "videos.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_mean_is_that_of_two_runs(manifest: Path, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = ["--data", "data/csv.yaml", "--data.source.path", str(manifest)]
    assert main(["splits", "--config", "r2plus1d_bert.yaml", "--folds", "[1,2]", *source, *TINY]) == 0
    (folder,) = workplace.glob("runs/r2plus1d_bert/splits-*")
    accuracies = []
    for fold in (1, 2):
        (path,) = folder.glob(f"split{fold}/r2plus1d_bert/test-*/predictions.csv")
        videos = read(path)
        listed = [row["path"] for row in read(manifest) if row[f"split{fold}"] == "test"]
        assert [video["path"] for video in videos] == listed
        accuracies.append(sum(video["label"] == video["prediction"] for video in videos) / len(videos))
        assert len(list(folder.glob(f"split{fold}/r2plus1d_bert/fit-*/checkpoints/best.ckpt"))) == 1
    first, second = accuracies
    table = read(folder / "splits.csv")
    assert [(row["split"], row["videos"]) for row in table] == [("1", "9"), ("2", "2"), ("mean", ""), ("std", "")]
    expected = [first, second, (first + second) / 2, abs(first - second) / math.sqrt(2)]
    for name in ("top1", "clip_top1"):  # there is one clip a video
        assert [float(row[name]) for row in table] == pytest.approx(expected, abs=1e-6)
    assert list(table[0]) == ["split", "top1", "mean_class_accuracy", "clip_top1", "videos"]  # no top-5 of 3 classes
    shown = capfd.readouterr().out
    assert "\nsplit 1 (1 of 2): fit\n" in shown
    assert "\nsplit 2 (2 of 2): test\n" in shown
    assert f"\nmean        {expected[2]:.4f} " in shown
    assert f"the same in {folder.relative_to(workplace)}/splits.csv\n" in shown


def test_what_a_run_says_is_seen(manifest: Path, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = ["--data=data/csv.yaml", f"--data.source.path={manifest}"]
    assert main(["splits", "--config=r2plus1d_bert.yaml", "--folds=[3]", *source, *TINY]) == 1
    shown = capfd.readouterr().err
    assert f"fold=3, but {manifest} has no column split3; its split columns are split1, split2" in shown
    assert shown.endswith("cnnbert: error: split 3: fit ended with exit status 1; finished: no split\n")


class Runs:
    """Stands in for the processes: notes the commands and leaves the results of a test where it should.

    Args:
        ends: What a run of (command, split) ends with, where not with status 0.
    """

    def __init__(self, ends: dict[tuple[str, int], int | type[BaseException]] | None = None) -> None:
        self.ends = ends or {}
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str]) -> int:
        self.commands.append(command)
        given = dict(word.split("=", 1) for word in command[1:])
        fold = int(given["--data.source.fold"])
        end = self.ends.get((command[0], fold), 0)
        if not isinstance(end, int):
            raise end
        if command[0] == "test":
            folder = Path(given["--trainer.default_root_dir"]) / "name" / "test-20260101-000000"
            folder.mkdir(parents=True)
            values = {"top1": 0.77, "top5": 0.9, "mean_class_accuracy": 0.76, "clip_top1": 0.7, "loss": 1.2}
            results: dict[str, Any] = {name: value + fold / 100 for name, value in values.items()}
            results |= {"split": "test", "num_videos": 1530, "protocol": "protocol of a test"}
            (folder / "results.json").write_text(json.dumps(results))
        return end


def test_what_is_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs()
    monkeypatch.setattr(folds, "_run", runs)
    settings = ["--data", "data/csv.yaml", "--data.source.path", "a.csv", "--trainer.default_root_dir", "there"]
    assert main(["splits", "--config", "quickstart.yaml", "--folds=[2]", *settings]) == 0
    (folder,) = Path("there/quickstart").glob("splits-*")
    given = ["--config=quickstart.yaml", "--data=data/csv.yaml", "--data.source.path=a.csv"]
    given += ["--trainer.default_root_dir=there"]
    given += ["--data.source.fold=2", f"--trainer.default_root_dir={folder}/split2"]
    assert runs.commands == [["fit", *given], ["test", *given, "--ckpt_path=best"]]
    assert (folder / "splits.csv").read_text() == (
        "split,top1,top5,mean_class_accuracy,clip_top1,videos\n2,0.790000,0.920000,0.780000,0.720000,1530\n"
    )


def test_the_table(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(folds, "_run", Runs())
    assert main(["splits", "--config=quickstart.yaml"]) == 0
    (folder,) = Path("runs/quickstart").glob("splits-*")
    shown = capsys.readouterr().out
    assert shown.endswith(
        f"""
split 3 (3 of 3): test

quickstart.yaml, protocol of a test

split  video top-1  video top-5  mean class accuracy  clip top-1  videos
1           0.7800       0.9100               0.7700      0.7100    1530
2           0.7900       0.9200               0.7800      0.7200    1530
3           0.8000       0.9300               0.7900      0.7300    1530
mean        0.7900       0.9200               0.7800      0.7200
std         0.0100       0.0100               0.0100      0.0100

the same in {folder}/splits.csv
"""
    )


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({("fit", 1): 2}, "split 1: fit ended with exit status 2; finished: no split"),
        ({("fit", 2): 1}, "split 2: fit ended with exit status 1; finished: {folder}/split1"),
        ({("test", 3): -9}, "split 3: test ended with exit status -9; finished: {folder}/split1, {folder}/split2"),
        ({("fit", 2): KeyboardInterrupt}, "split 2: fit was stopped; finished: {folder}/split1"),
    ],
)
def test_a_run_that_fails_ends_all(
    ends: dict[tuple[str, int], int | type[BaseException]],
    message: str,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = Runs(ends)
    monkeypatch.setattr(folds, "_run", runs)
    monkeypatch.setattr(folds, "new_run_folder", lambda root, name, command: root / name / command)
    assert main(["splits", "--config=quickstart.yaml"]) == 1
    assert capsys.readouterr().err == f"cnnbert: error: {message.format(folder='runs/quickstart/splits')}\n"
    ((command, fold),) = ends
    assert (runs.commands[-1][0], f"--data.source.fold={fold}" in runs.commands[-1]) == (command, True)
    assert not Path("runs/quickstart/splits/splits.csv").exists()


def test_an_interrupted_run_may_save_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            assert command[1:] == ["-m", "cnnbert", "fit"]

        def wait(self) -> int:
            waits.append("waited")
            if len(waits) == 1:
                raise KeyboardInterrupt
            return 1

    monkeypatch.setattr(subprocess, "Popen", Process)
    with pytest.raises(KeyboardInterrupt):
        folds._run(["fit"])
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config=nothing.yaml"], "no config 'nothing.yaml' here; the shipped ones are "),
        (["--config=quickstart.yaml", "--folds=[]"], "folds=[] must be different numbers from 1 on, such as [1,2,3]"),
        (["--config=quickstart.yaml", "--folds=[2,2]"], "folds=[2, 2] must be different numbers from 1 on"),
        (["--config=quickstart.yaml", "--folds=[0,1]"], "folds=[0, 1] must be different numbers from 1 on"),
    ],
)
def test_bad_input_is_named(
    options: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["splits", *options]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"cnnbert: error: {message}")
    assert shown.out == ""
    assert list(workplace.iterdir()) == []


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["splits", "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Train and test on every numbered split of a data set, and show the results and their mean." in shown
    assert "The numbers of the splits." in shown
