"""Trains and tests on every numbered split of a data set, and averages the results."""

from __future__ import annotations

import csv
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnbert.callbacks import METRICS
from cnnbert.errors import InputError
from cnnbert.outputs import write_whole
from cnnbert.runs import new_run_folder
from cnnbert.shipped import find_config

COLUMNS = ("top1", "top5", "mean_class_accuracy", "clip_top1", "map", "micro_f1")
ROOT = "--trainer.default_root_dir"


def splits(*, config: str, folds: tuple[int, ...] = (1, 2, 3), settings: Sequence[str] = ()) -> None:
    """Train and test on every numbered split of a data set, and show the results and their mean.

    Results on UCF101 and HMDB51 are means over the splits 1 to 3. The videos come from a source that has the setting
    `fold`: UCF101, HMDB51, or a CSV file with columns split1, split2 and split3. All settings of fit are taken too:
    --data data/ucf101.yaml --data.source.root ucf101. Each training and each test is a process of its own; the best
    checkpoint of the training is tested.

    Args:
        config: A run's config: a path, or a shipped one such as resnext_bert.yaml.
        folds: The numbers of the splits.
        settings: Settings that win over the config's, such as --data.source.path=ucf101.csv.
    """
    if not folds or min(folds) < 1 or len(set(folds)) < len(folds):
        raise InputError(f"folds={list(folds)} must be different numbers from 1 on, such as [1,2,3]")
    find_config(config)
    roots = [setting.partition("=")[2] for setting in settings if setting.startswith(f"{ROOT}=")]
    folder = new_run_folder(Path(roots[-1] if roots else "runs"), Path(config).stem, "splits")
    results: dict[int, dict[str, Any]] = {}
    for fold in folds:
        root = folder / f"split{fold}"
        given = [f"--config={config}", *settings, f"--data.source.fold={fold}", f"{ROOT}={root}"]
        for command in (["fit", *given], ["test", *given, "--ckpt_path=best"]):
            print(f"\nsplit {fold} ({len(results) + 1} of {len(folds)}): {command[0]}", flush=True)
            try:
                status = _run(command)
            except KeyboardInterrupt:
                raise InputError(f"split {fold}: {command[0]} was stopped; {_finished(results, folder)}") from None
            if status != 0:
                told = f"split {fold}: {command[0]} ended with exit status {status}"
                raise InputError(f"{told}; {_finished(results, folder)}")
        (path,) = root.glob("*/test-*/results.json")
        results[fold] = json.loads(path.read_text(encoding="utf-8"))
    lines = _lines(results)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(_words(line, 6) for line in lines)
    write_whole(folder / "splits.csv", text.getvalue())
    print(f"\n{config}, {results[folds[0]]['protocol']}\n")
    titles = [METRICS.get(name, name) for name in lines[0]]
    for line in (titles, *lines[1:]):
        words = zip(_words(line, 4)[1:], titles[1:], strict=True)
        print(f"{line[0]:<5}" + "".join(f"{word:>{len(title) + 2}}" for word, title in words).rstrip())
    print(f"\nthe same in {folder / 'splits.csv'}", flush=True)


def _lines(results: Mapping[int, Mapping[str, Any]]) -> list[list[Any]]:
    """Return the results as a table: a header, a line a split, and where there are several the mean and deviation."""
    names = [name for name in COLUMNS if all(name in result for result in results.values())]
    lines = [[fold, *(result[name] for name in names), result["num_videos"]] for fold, result in results.items()]
    if len(lines) > 1:
        columns = list(zip(*lines, strict=True))[1:-1]
        lines.append(["mean", *map(statistics.mean, columns), ""])
        lines.append(["std", *map(statistics.stdev, columns), ""])
    return [["split", *names, "videos"], *lines]


def _words(line: list[Any], digits: int) -> list[str]:
    return [f"{value:.{digits}f}" if isinstance(value, float) else str(value) for value in line]


def _finished(results: Mapping[int, Any], folder: Path) -> str:
    return f"finished: {', '.join(f'{folder}/split{fold}' for fold in results) or 'no split'}"


def _run(command: list[str]) -> int:
    """Run a command of ours in a process of its own and return its exit status."""
    process = subprocess.Popen([sys.executable, "-m", "cnnbert", *command])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal interrupts it too, and it saves its checkpoint
        raise
