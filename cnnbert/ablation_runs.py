"""One network after the other is trained and tested, in processes that may fail; what is done stays done."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytorch_lightning
import torch

import cnnbert
from cnnbert.ablation_table import Network, Result, duration
from cnnbert.errors import InputError
from cnnbert.head_training import train_head
from cnnbert.machine import best_device
from cnnbert.outputs import write_whole
from cnnbert.parallel import map_files
from cnnbert.runs import CHECKPOINTS

try:
    import fcntl
except ImportError:  # not on Windows, where two ablations in one folder go unnoticed
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Run:
    """How far the training and the test of one network with one seed have come; `run.json` in the run's folder.

    Attributes:
        state: `new`, `trained`, `finished`, or `failed` where training did.
        train_seconds: How long training took with its validation, over all starts.
        test_seconds: How long the test took.
        cut_off: Whether a start was killed without its time being taken.
        error: Why training or test failed.
        versions: What it ran with.
    """

    state: str = "new"
    train_seconds: float = 0.0
    test_seconds: float = 0.0
    cut_off: bool = False
    error: str = ""
    versions: str = ""


def lock_folder(folder: Path) -> IO[str]:
    """Take the folder for this process and those that it starts; no longer taken when all of them have ended.

    Raises:
        InputError: Another ablation, or a training that it left behind when it was killed, is at work there.
    """
    lock = (folder / "lock").open("w")
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InputError(
                f"{folder} is being worked on by another process, perhaps a training that a killed ablation left "
                "behind; wait for its end, or stop it"
            ) from None
    return lock


def train_and_test(folder: Path, network: Network, seed: int, lock: IO[str]) -> None:
    """Train and test a network with a seed, from where it stands."""
    place = run_folder(folder, network, seed)
    run = read_run(place)
    if run.state == "failed":
        shutil.rmtree(place)
        run = Run()
    place.mkdir(parents=True, exist_ok=True)
    quiet = [] if sys.stdout.isatty() else ["--trainer.enable_progress_bar=false"]
    given = [f"--config={network.config}", *quiet, *network.options, f"--seed_everything={seed}"]
    given += [f"--trainer.default_root_dir={place.parent}"]
    if logs_to_wandb(network.settings):
        given += [f"--trainer.logger.init_args.name={network.name}/seed{seed}"]
    if run.state == "new":
        last = _newest(place, f"fit-*/{CHECKPOINTS}/last.ckpt")
        resumed = [] if last is None else [f"--ckpt_path={last}"]
        start = time.monotonic()
        _write_run(place, replace(run, cut_off=True))  # so that it stands there if all is killed
        try:
            error = _process(["fit", *given, *resumed], place, folder.name, lock)
            run = replace(run, state="failed" if error else "trained", error=error, versions=_versions())
        finally:
            run = replace(run, train_seconds=run.train_seconds + time.monotonic() - start)
            _write_run(place, run)
    if run.state == "trained":
        best = _newest(place, f"fit-*/{CHECKPOINTS}/best.ckpt")
        start = time.monotonic()
        error = _process(["test", *given, f"--ckpt_path={best or 'best'}"], place, folder.name, lock)
        seconds = time.monotonic() - start
        _write_run(place, replace(run, state="trained" if error else "finished", test_seconds=seconds, error=error))
    for last in place.glob(f"fit-*/{CHECKPOINTS}/last.ckpt"):  # as large as the best one, and needed no more
        last.unlink()


def train_on_features(
    folder: Path, runs: Sequence[tuple[Network, int]], features: Path, class_names: Sequence[str]
) -> Iterator[tuple[Network, int]]:
    """Train networks' heads on stored features and test them, as many at a time as there are CPU cores; one on a GPU.

    Yields:
        Each run that has ended, in the order of ending.
    """
    train = partial(_train_on_features, folder=folder, features=features, class_names=class_names)
    on_cpu = all(best_device(network.settings["trainer"]["accelerator"]).type == "cpu" for network, _ in runs)
    for (network, seed), end in map_files(train, runs, None if on_cpu else 1, math.inf, "heads", "run"):
        if end is not None:  # its process died
            _write_run(run_folder(folder, network, seed), Run("failed", error=str(end), versions=_versions()))
        yield network, seed


def _train_on_features(run: tuple[Network, int], folder: Path, features: Path, class_names: Sequence[str]) -> None:
    """Train a network's head with a seed and test it, from the beginning."""
    network, seed = run
    place = run_folder(folder, network, seed)
    shutil.rmtree(place, ignore_errors=True)  # of a start that failed or was stopped
    place.mkdir(parents=True)
    start = time.monotonic()
    try:
        train_head(features, with_classes(network, class_names), seed, place)
    except Exception as error:  # whatever is wrong with one head, the others go on
        (place / "log.txt").write_text(traceback.format_exc(), encoding="utf-8")
        done = Run("failed", error=f"{type(error).__name__}: {error}", versions=_versions())
    else:
        done = Run("finished", versions=_versions())
    _write_run(place, replace(done, train_seconds=time.monotonic() - start))


def with_classes(network: Network, class_names: Sequence[str]) -> dict[str, Any]:
    """Return all settings of a network, with the names of the classes."""
    return {**network.settings, "model": {**network.settings["model"], "class_names": [*class_names]}}


def _versions() -> str:
    versions = f"cnnbert {cnnbert.__version__}, torch {torch.__version__}, Lightning {pytorch_lightning.__version__}"
    return f"{versions}, Python {platform.python_version()}, {platform.machine()}"


def _process(command: Sequence[str], place: Path, group: str, lock: IO[str]) -> str:
    """Run a command of ours in a process of its own, show and keep what it prints, and return why it failed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "WANDB_RUN_GROUP": group}
    words = [sys.executable, "-m", "cnnbert", *command]
    kept = () if fcntl is None else (lock.fileno(),)
    with (place / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=kept
        )
        try:
            _show(process, log)
        except KeyboardInterrupt:
            _show(process, log)  # the terminal interrupts it too, and it saves its checkpoint
            raise
        finally:
            process.kill()  # does nothing to one that has ended
    if process.returncode == 0:
        return ""
    lines = [line.strip() for line in (place / "log.txt").read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "it said nothing")
    return f"{command[0]} ended with exit status {process.returncode}: {last}"


def _show(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Show and keep what a process prints until it ends."""
    assert process.stdout is not None
    while piece := os.read(process.stdout.fileno(), 65536):
        log.write(piece)
        sys.stdout.write(piece.decode(errors="replace"))
        sys.stdout.flush()
    process.wait()


def results_of(folder: Path, runs: Sequence[tuple[Network, int]]) -> list[Result]:
    """Return what there is of each run."""
    results = []
    for network, seed in runs:
        place = run_folder(folder, network, seed)
        run = read_run(place)
        path = None
        if run.state == "finished":
            path = _newest(place, "test-*/results.json") or place / "results.json"
        results.append(
            Result(
                network=network.name,
                seed=seed,
                metrics={} if path is None else json.loads(path.read_text(encoding="utf-8")),
                predictions=None if path is None else path.with_name("predictions.csv"),
                train_seconds=run.train_seconds,
                is_cut_off=run.cut_off,
                error=run.error,
                versions=run.versions,
            )
        )
    return results


def time_left(folder: Path, runs: Sequence[tuple[Network, int]]) -> str:
    """Return in words how long the runs that are not finished will take one after the other, by those that are."""
    known = {(network.name, seed): read_run(run_folder(folder, network, seed)) for network, seed in runs}
    taken: dict[str, list[float]] = {}
    for (name, _), run in known.items():
        if run.state == "finished":
            taken.setdefault(name, []).append(run.train_seconds + run.test_seconds)
    if not taken:
        return ""
    means = {name: statistics.mean(seconds) for name, seconds in taken.items()}
    usual = statistics.mean(means.values())
    left = sum(means.get(name, usual) for (name, _), run in known.items() if run.state != "finished")
    return f"; about {duration(left)} left"


def run_folder(folder: Path, network: Network, seed: int) -> Path:
    """Return the folder of a run."""
    return folder / f"seed{seed}" / network.name


def is_finished(folder: Path, network: Network, seed: int) -> bool:
    """Return whether a run is trained and tested."""
    return read_run(run_folder(folder, network, seed)).state == "finished"


def _newest(place: Path, pattern: str) -> Path | None:
    return max(place.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)


def read_run(place: Path) -> Run:
    """Return how far the run in a folder has come."""
    path = place / "run.json"
    return Run(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else Run()


def _write_run(place: Path, run: Run) -> None:
    place.mkdir(parents=True, exist_ok=True)
    write_whole(place / "run.json", json.dumps(asdict(run), indent=1) + "\n")


def logs_to_wandb(settings: Mapping[str, Any]) -> bool:
    """Return whether the only logger of a network's settings is W&B's."""
    logger = settings["trainer"]["logger"]
    return isinstance(logger, Mapping) and str(logger.get("class_path")).endswith(".WandbLogger")
