"""Several networks and seeds are trained, tested and compared; what is done stays done."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from conftest import TINY_DATA, TINY_RUN
from PIL import Image
from wandb_file import read_run

from cnnbert import ablate, ablation_runs
from cnnbert.cli import main
from cnnbert.errors import InputError

CONFIG = """
model:
  backbone:
    class_path: {backbone}
    init_args: {arguments}
  head: {head}
"""
SMALL_R2PLUS1D = "{depth: 10, width: 8}"
SMALL_RESNEXT = "{depth: 14, width: 8, cardinality: 8}"


def write_config(name: str, backbone: str, head: str) -> str:
    arguments = SMALL_R2PLUS1D if backbone == "R2Plus1D" else SMALL_RESNEXT
    Path(name).write_text(CONFIG.format(backbone=backbone, arguments=arguments, head=head))
    return name


class Processes:
    """Runs the commands in this process, which spares two starts a run, and notes them.

    Args:
        ends: What a command ends with instead of being run, by its name, its network and its seed.
    """

    def __init__(self) -> None:
        self.ends: dict[tuple[str, str, int], str | type[BaseException]] = {}
        self.commands: list[tuple[str, str, int]] = []
        self.words: list[list[str]] = []

    def __call__(self, command: list[str], place: Path, group: str, lock: IO[str]) -> str:
        (seed,) = (word.partition("=")[2] for word in command if word.startswith("--seed_everything="))
        done = (command[0], place.name, int(seed))
        self.commands.append(done)
        self.words.append(command)
        end = self.ends.get(done, "")
        if not isinstance(end, str):
            raise end
        if end:
            return end
        os.environ["WANDB_RUN_GROUP"] = group
        try:
            assert main(command) == 0
        finally:
            del os.environ["WANDB_RUN_GROUP"]
        return ""


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    runs = Processes()
    monkeypatch.setattr(ablation_runs, "_process", runs)
    return runs


@pytest.fixture
def data(workplace: Path, videos: Path) -> Iterator[list[str]]:
    """Options for tiny videos and short runs, and the configs `tgap.yaml` and `bert.yaml`."""
    write_config("tgap.yaml", "R2Plus1D", "TGAPHead")
    write_config("bert.yaml", "R2Plus1D", "BERTHead")
    source = ["--data", "data/folder.yaml", "--data.source.root", str(videos), "--data.test_protocol=10_clips_3_crops"]
    yield [*source, *TINY_DATA, *TINY_RUN, "--data.num_clips=1", "--data.num_crops=1"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def accuracy(path: Path) -> float:
    lines = read(path)
    return sum(line["label"] == line["prediction"] for line in lines) / len(lines)


def test_tables_are_those_of_the_runs(
    data: list[str], processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", "--configs", "tgap.yaml", "bert.yaml", "--seeds", "2", "--out", "there", *data]
    assert main(words) == 0
    expected = [(step, name, seed) for seed in (0, 1) for name in ("tgap", "bert") for step in ("fit", "test")]
    assert processes.commands == expected
    tgap, bert = read(Path("there/table.csv"))
    found = {}
    for name, line in (("tgap", tgap), ("bert", bert)):
        values = [accuracy(next(Path(f"there/seed{s}/{name}").glob("test-*/predictions.csv"))) for s in (0, 1)]
        found[name] = values
        assert [float(line["top1_seed0"]), float(line["top1_seed1"])] == pytest.approx(values, abs=1e-6)
        assert float(line["mean"]) == pytest.approx(statistics.mean(values), abs=1e-6)
        assert float(line["std"]) == pytest.approx(statistics.stdev(values), abs=1e-6)
        assert float(line["clips_per_second"]) > 0 and float(line["train_seconds"]) > 0
        assert (line["num_videos"], line["num_failed_videos"], line["failed_runs"]) == ("9", "0", "0")
    assert (tgap["baseline"], bert["baseline"]) == ("", "tgap")
    difference = statistics.mean(found["bert"]) - statistics.mean(found["tgap"])
    assert float(bert["difference"]) == pytest.approx(difference, abs=1e-6)
    assert float(bert["low"]) <= difference <= float(bert["high"])
    assert int(bert["parameters"]) > int(tgap["parameters"])
    shown = capsys.readouterr().out
    assert "\ntgap, seed 0: 1 of 4\n" in shown
    assert "\nbert, seed 1: 4 of 4; about " in shown
    table = Path("there/table.md").read_text()
    assert f"\n{table}\nthe same in there/table.md\n" in shown
    assert table.startswith("    cnnbert ablate --configs tgap.yaml bert.yaml --seeds 2 --out there --data=data/folder")
    assert "9 test videos, protocol custom: centre clip x centre crop, 8 frames" in table
    with Image.open("there/figure.png") as figure:
        assert figure.width > 1000 and len(figure.convert("RGB").getcolors(2**24) or []) > 20
    assert not list(Path("there").rglob("last.ckpt"))
    assert len(list(Path("there").rglob("best.ckpt"))) == 4


def test_what_is_finished_stays_and_more_can_be_added(
    data: list[str], processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.ends = {("test", "bert", 0): KeyboardInterrupt}
    words = ["ablate", "--configs", "tgap.yaml", "bert.yaml", "--seeds=1", *data]
    assert main(words) == 1
    assert capsys.readouterr().err == ("cnnbert: error: stopped after 1 of 2 runs; the same command goes on\n")
    assert "- 1 of 2 runs are not finished." in Path("ablation/table.md").read_text()
    processes.ends, processes.commands = {}, []
    assert main(words) == 0
    assert processes.commands == [("test", "bert", 0)]
    table = Path("ablation/table.md").read_text()
    assert "- No interval where one of the two has fewer than two finished seeds" in table
    assert read(Path("ablation/table.csv"))[1]["low"] == ""

    processes.commands = []
    write_config("max.yaml", "R2Plus1D", "TGAPHead")
    words[words.index("bert.yaml") + 1 : words.index("bert.yaml") + 2] = ["max.yaml", "--seeds=2"]
    assert main(words) == 0
    assert processes.commands == [
        (step, name, seed)
        for name, seed in (("max", 0), ("tgap", 1), ("bert", 1), ("max", 1))
        for step in ("fit", "test")
    ]
    processes.commands = []
    assert main(words) == 0
    assert processes.commands == []


def test_a_failed_run_stops_nothing_and_is_tried_again(
    data: list[str], processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "fit ended with exit status 1: out of luck"
    processes.ends = {("fit", "tgap", 0): why}
    words = ["ablate", "--configs", "tgap.yaml", "bert.yaml", "--seeds=1", *data]
    assert main(words) == 1
    assert f"- Failed: tgap, seed 0: {why}\n" in Path("ablation/table.md").read_text()
    tgap, bert = read(Path("ablation/table.csv"))
    assert (tgap["mean"], tgap["failed_runs"], bert["failed_runs"]) == ("", "1", "0")
    assert (bert["difference"], bert["mean"] != "") == ("", True)
    processes.ends, processes.commands = {}, []
    assert main(words) == 0
    assert processes.commands == [("fit", "tgap", 0), ("test", "tgap", 0)]
    assert read(Path("ablation/table.csv"))[1]["difference"] != ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_bars_are_for_terminals(
    is_terminal: bool, data: list[str], processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.ends = {("fit", "tgap", 0): "fit ended with exit status 1: out of luck"}
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    barless = "--trainer.enable_progress_bar=false"
    assert main(["ablate", "--configs", "tgap.yaml", "--seeds=1", *(word for word in data if word != barless)]) == 1
    assert (barless in processes.words[0]) == (not is_terminal)


def test_a_failed_test_leaves_its_training(data: list[str], processes: Processes) -> None:
    processes.ends = {("test", "tgap", 0): "test ended with exit status -9: it said nothing"}
    words = ["ablate", "--configs", "tgap.yaml", "--seeds=1", *data]
    assert main(words) == 1
    assert (
        "- Failed: tgap, seed 0: test ended with exit status -9: it said nothing\n"
        in Path("ablation/table.md").read_text()
    )
    processes.ends, processes.commands = {}, []
    assert main(words) == 0
    assert processes.commands == [("test", "tgap", 0)]
    assert "Failed" not in Path("ablation/table.md").read_text()


def test_changed_settings_are_refused(
    data: list[str], processes: Processes, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", "--configs=tgap.yaml", "--seeds=1", *data]
    assert main(words) == 0
    capsys.readouterr()
    processes.commands = []
    assert main([*words, "--model.warmup_steps=3", "--data.num_workers=1"]) == 1
    shown = capsys.readouterr().err
    assert shown == (
        "cnnbert: error: ablation holds runs with other settings, which would be mixed with these; give --out another "
        "folder; changed: tgap: model.warmup_steps=0 before, 3 now\n"
    )
    other = Path(shutil.copytree(videos, "other"))
    (other / "train" / "red" / "0.mp4").unlink()
    assert main([*words, "--data.source.root=other"]) == 1
    shown = capsys.readouterr().err
    assert "train videos: 12 (" in shown and ") before, 11 (" in shown
    assert processes.commands == []
    assert main([*words, "--data.num_workers=1"]) == 0  # does not touch what is learnt


def test_what_cannot_be_compared_is_refused_before_any_training(
    data: list[str], processes: Processes, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = Path(shutil.copytree(videos, "fewer"))
    (fewer / "test" / "red" / "2.mp4").unlink()
    text = Path("bert.yaml").read_text()
    source = "data: {source: {class_path: Folder, init_args: {root: %s}}}\n"
    Path("bert.yaml").write_text(text + source % "fewer")
    Path("tgap.yaml").write_text(Path("tgap.yaml").read_text() + source % videos)
    assert main(["ablate", "--configs", "tgap.yaml", "bert.yaml", "--seeds=1", *TINY_DATA, *TINY_RUN]) == 1
    shown = capsys.readouterr().err
    assert "tgap and bert do not go together, since their videos differ: 9 only in tgap, such as " in shown
    assert processes.commands == []
    assert not Path("ablation").exists()


def test_each_network_is_compared_with_the_average_of_its_own_backbone(
    data: list[str], processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(backbone, head) for backbone in ("R2Plus1D", "ResNeXt3D") for head in ("BERTHead", "TGAPHead")]
    configs = [write_config(f"{backbone}_{head}.yaml", backbone, head) for backbone, head in rows]
    given = {Path(config).stem: (Path(config), ()) for config in configs}
    networks = ablate._networks(given, (), ())
    assert [network.baseline for network in networks] == ["R2Plus1D_TGAPHead", "", "ResNeXt3D_TGAPHead", ""]
    networks = ablate._networks(given, ("ResNeXt3D_BERTHead",), ())
    assert [network.baseline for network in networks] == ["ResNeXt3D_BERTHead"] * 2 + ["", "ResNeXt3D_BERTHead"]
    networks = ablate._networks(dict([*given.items()][::2]), (), ())
    assert [network.baseline for network in networks] == ["", "R2Plus1D_BERTHead"]


def test_the_group_in_wandb(data: list[str], processes: Processes) -> None:
    logger = "--trainer.logger=WandbLogger"
    words = ["ablate", "--configs", "tgap.yaml", "bert.yaml", "--seeds=1", "--out=mine", *data, logger]
    assert main([*words, "--trainer.logger.project=tests"]) == 0
    runs = {}
    for path in Path("mine").rglob("run-*.wandb"):
        name, _, history = read_run(path)
        runs.setdefault(name, []).append(history)
    assert sorted(runs) == ["bert/seed0", "mine/table", "tgap/seed0"]
    (table,) = runs["mine/table"][0]
    assert any(key.startswith("ablation") for key in table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds=0"], "seeds=0 must be at least 1; with 5 one sees how much is chance"),
        (
            ["--configs", "tgap.yaml", "there/tgap.yaml"],
            "configs=tgap.yaml, there/tgap.yaml must be files of different",
        ),
        (["--configs=nothing.yaml"], "no config 'nothing.yaml' here; the shipped ones are "),
        (["--configs=tgap.yaml", "--baseline=bert"], "baseline=bert is not among the networks tgap"),
        (["--configs=tgap.yaml", "--out=full"], "full holds other files; give --out a new folder"),
        (["--configs=tgap.yaml", "--out=broken"], "broken/ablation.json cannot be read (JSONDecodeError("),
    ],
)
def test_bad_input_is_named(
    options: list[str], message: str, data: list[str], processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("full/thesis.txt", "broken/ablation.json"):
        Path(name).parent.mkdir()
        Path(name).write_text("mine")
    assert main(["ablate", *options, *data]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"cnnbert: error: {message}")
    assert processes.commands == []


def test_a_terminated_ablation_ends_its_training(data: list[str]) -> None:
    words = [sys.executable, "-m", "cnnbert", "ablate", "--configs=tgap.yaml", "--seeds=1", *data]
    process = subprocess.Popen([*words, "--trainer.max_epochs=1000"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    for line in process.stdout:
        if b"precision" in line:  # the training has begun
            break
    process.terminate()
    process.stdout.read()
    assert process.wait() == 143
    ablation_runs.lock_folder(Path("ablation")).close()  # nobody holds it


@pytest.mark.slow
@pytest.mark.soak
def test_processes_killed_at_any_moment(data: list[str]) -> None:
    """Real processes: all of them killed a few seconds after the start, then run on to the same results.

    The networks draw nothing in training, since a training that goes on draws other numbers.
    """
    write_config("tgap.yaml", "R2Plus1D", "{class_path: TGAPHead, init_args: {classifier_dropout: 0}}")
    write_config("max.yaml", "R2Plus1D", "{class_path: MaxPoolHead, init_args: {classifier_dropout: 0}}")
    more = ["--trainer.max_epochs=6", "--configs", "tgap.yaml", "max.yaml"]
    words = [sys.executable, "-m", "cnnbert", "ablate", *data, *more, "--seeds=1"]
    subprocess.run([*words, "--out=whole"], check=True, capture_output=True)
    log = b""
    for number in range(30):
        process = subprocess.Popen(
            [*words, "--out=killed"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            log, _ = process.communicate(timeout=11 + 3 * number)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            log, _ = process.communicate()
            continue
        break
    assert (number > 0, process.returncode) == (True, 0), log.decode()
    cut_off = []
    for name in ("tgap", "max"):
        scores = [
            Path(next(Path(f"{folder}/seed0/{name}").glob("test-*/predictions.csv"))).read_text()
            for folder in ("whole", "killed")
        ]
        assert scores[0] == scores[1]
        run = json.loads(Path(f"killed/seed0/{name}/run.json").read_text())
        assert run["state"] == "finished"
        cut_off.append(run["cut_off"])
    assert ("| > " in Path("killed/table.md").read_text()) == any(cut_off)


def test_an_interrupted_process_may_save_its_checkpoint(workplace: Path) -> None:
    """What a process prints after the interrupt is shown and kept, however much it is."""
    place = workplace / "place"
    place.mkdir()
    code = (
        "import sys, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell's children ignore it
        "print('started', flush=True)\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('x' * 200_000); print('saved', flush=True)\n"
    )
    outer = (
        "import sys, pathlib, signal\nfrom cnnbert import ablation_runs\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.executable = {str(workplace / 'python')!r}\n"
        f"ablation_runs._process(['fit'], pathlib.Path({str(place)!r}), 'group', open('lock', 'w'))\n"
    )
    script = workplace / "python"
    script.write_text(f"#!{sys.executable}\n{code}")
    script.chmod(0o755)
    process = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert shown.endswith(b"saved\n") and process.returncode != 0
    assert (place / "log.txt").read_bytes() == b"started\n" + shown


def test_a_training_left_behind_keeps_the_folder(workplace: Path, data: list[str], processes: Processes) -> None:
    """The process that ablate starts holds the folder after ablate itself has been killed."""
    script = workplace / "python"
    script.write_text("#!/bin/sh\necho started\nexec sleep 60\n")
    script.chmod(0o755)
    outer = (
        "import sys, pathlib\nfrom cnnbert import ablation_runs\n"
        f"sys.executable = {str(script)!r}\n"
        "folder = pathlib.Path('ablation')\n"
        "ablation_runs._process(['fit'], folder, 'group', ablation_runs.lock_folder(folder))\n"
    )
    Path("ablation").mkdir()
    process = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    process.kill()
    process.wait()
    with pytest.raises(InputError, match="ablation is being worked on by another process"):
        ablation_runs.lock_folder(Path("ablation"))
    os.killpg(process.pid, signal.SIGKILL)
    for _ in range(100):  # until the other has ended too
        with suppress(InputError):
            ablation_runs.lock_folder(Path("ablation")).close()
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the folder is still taken")
