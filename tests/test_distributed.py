"""Several processes give what one gives, end together, and wait for nobody in vain."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video

import cnnbert
from cnnbert.cli import main

TESTS = Path(__file__).parent
DEVICES = "--trainer.devices=2"
EXACT = "--trainer.precision=32-true"
QUIET = ["--trainer.enable_model_summary=false", "--trainer.logger=false"]
SHARDED = '--trainer.strategy={"class_path": "cpu_shards.CPUShards"}'
COLOURS = ["blue", "green", "red"]


def environment() -> dict[str, str]:
    """Return an environment in which processes find the modules beside this file."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}


def started(words: Sequence[str], log: Path, more: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start Python with more variables, and with what it says going to a file."""
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *words],
            stdout=file,
            stderr=file,
            text=True,
            env={**environment(), **(more or {})},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )


def several(commands: Sequence[Sequence[str]], devices: str = DEVICES, timeout: float = 600) -> None:
    """Run commands of ours by one start of two processes."""
    Path("commands.json").write_text(json.dumps([[*command, devices] for command in commands]))
    with started(["-m", "several_runs", "commands.json"], Path("log.txt")) as process:
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
    assert status == 0, Path("log.txt").read_text()


def source(root: Path) -> list[str]:
    return [*TINY_DATA, "--data.source=Folder", f"--data.source.root={root}"]


def root(name: str) -> str:
    return f"--trainer.default_root_dir={name}"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def only(place: str, pattern: str) -> Path:
    (path,) = Path(place).glob(f"*/*/{pattern}")
    return path


def last_checkpoint(place: str = "runs") -> dict[str, Any]:
    return torch.load(only(place, "checkpoints/last.ckpt"), weights_only=True)


def some_videos(folder: Path, number: int) -> list[Path]:
    """Write videos of which no two are alike, every other one red."""
    colours = [(200, 20, 9 * i) if i % 2 else (9 * i, 30, 220) for i in range(number)]
    return [write_video(folder / f"{i}.mp4", colour, 8 + i) for i, colour in enumerate(colours)]


def assert_same_results(one: str, two: str) -> None:
    """Compare what a run of one process and one of two left, scores but for rounding."""
    first, second = (json.loads(only(place, "results.json").read_text()) for place in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name


def assert_same_predictions(one: str, two: str) -> None:
    first, second = (read(only(place, "predictions.csv")) for place in (one, two))
    assert len(first) == len(second)
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if name.startswith("score:") and value:
                assert float(value) == pytest.approx(float(theirs[name]), rel=1e-3)
            else:
                assert value == theirs[name]


@pytest.mark.slow
@pytest.mark.parametrize("separator", [None, "|"])
def test_every_remainder(separator: str | None, workplace: Path) -> None:
    """8 + 1 to 8 + 5 videos in batches of two a process, readable or not, the repeated one among them."""
    some_videos(workplace / "good", 13)
    shutil.copytree("good", "bad")
    for number in (0, 5, 8):
        Path("bad", f"{number}.mp4").write_bytes(b"no video")
    several_labels = ["red", "blue|red", "blue", "|"]
    labels = ["red", "blue"] if separator is None else several_labels
    for folder in ("good", "bad"):
        for number in range(9, 14):
            lines = [f"{i}.mp4,{labels[i % len(labels)]},test,val" for i in range(number)]
            Path(folder, f"{number}.csv").write_text("\n".join(["path,label,split1,split2", *lines]))
    training = [f"good/{i}.mp4,{labels[i % len(labels)]},{'val' if i > 7 else 'train'}" for i in range(13)]
    Path("training.csv").write_text("\n".join(["path,label,split", *training]))
    kind = [] if separator is None else [f"--data.label_separator={separator}"]
    start = ["--data.source=CSVManifest", "--data.source.path=training.csv", "--data.class_names=[blue,red]", *kind]
    options = ["--trainer.max_steps=4", "--trainer.num_sanity_val_steps=0", root("start")]
    assert main(["fit", *TINY_MODEL, *TINY_DATA, *start, *TINY_RUN, *QUIET, *options]) == 0
    checkpoint = f"--ckpt_path={only('start', 'checkpoints/last.ckpt')}"

    commands = {}
    for number in range(9, 14):
        for command, fold, folder in (
            ("test", 1, "bad"),
            ("validate", 2, "good"),
            ("predict", 1, ("bad", "good")[number % 2]),
        ):
            data = [f"--data.source.path={folder}/{number}.csv", f"--data.source.fold={fold}", "--data.batch_size=2"]
            commands[f"{folder}-{number}-{command}"] = [command, checkpoint, *data, *TINY_RUN[1:], *QUIET, EXACT]
    for name, words in commands.items():
        assert main([*words, root(f"one/{name}")]) == 0
    several([[*words, root(f"two/{name}")] for name, words in commands.items()])
    for name, words in commands.items():
        one, two = f"one/{name}", f"two/{name}"
        if words[0] != "validate":
            assert_same_predictions(one, two)
        if words[0] != "predict":
            assert_same_results(one, two)
    results = json.loads(only("two/bad-9-test", "results.json").read_text())
    assert (results["num_videos"], results["num_failed"]) == (9, 3)
    assert len(read(only("two/good-13-predict", "predictions.csv"))) == 13


@pytest.mark.slow
def test_nobody_waits_for_batches(workplace: Path, videos: Path) -> None:
    """Twelve videos, or eleven, where the processes get five or six, and some none in a batch of theirs."""
    shutil.copytree(videos, "eleven")
    Path("eleven/train/red/3.mp4").unlink()
    shutil.copytree("eleven", "broken")
    for path in ("broken/train/red/0.mp4", "broken/train/blue/1.mp4", "broken/train/green/2.mp4"):
        Path(path).write_bytes(b"no video")
    shutil.copytree("broken", "odd")
    Path("odd/val/red/1.mp4").unlink()
    Path("odd/val/blue/0.mp4").write_bytes(b"no video")
    many = "--data.max_failed_share=0.5"
    cases = {  # options, videos a process, videos a batch of one process
        "eleven": (["--data.batch_size=4"], 6, 4),
        "balanced": (["--data.batch_size=5", "--data.balanced_sampling=true"], 6, 5),
        "clips": (["--data.batch_size=8", "--data.clips_per_video=2"], 6, 4),
        "broken": (["--data.batch_size=1", many], 6, 1),
        "odd": (["--data.batch_size=4", "--data.clips_per_video=4", many, "--data.balanced_sampling=true"], 6, 1),
        "accumulated": (["--data.batch_size=1", many, "--trainer.accumulate_grad_batches=4"], 6, 4),
    }
    folders = {"broken": "broken", "odd": "odd", "accumulated": "broken"}
    commands = []
    for name, (options, *_) in cases.items():
        data = source(Path(folders.get(name, "eleven")))
        always = [*TINY_MODEL, *data, *TINY_RUN, *QUIET, "--trainer.max_epochs=2"]
        commands.append(["fit", *always, *options, root(f"two/{name}")])
    several(commands)
    for name, (_, share, batch) in cases.items():
        last = last_checkpoint(f"two/{name}")
        assert (last["epoch"], last["global_step"]) == (1, 2 * math.ceil(share / batch)), name
        assert all(weight.isfinite().all() for weight in last["state_dict"].values())


class DyingRun:
    """A training of two processes without end, one of which can be told to fail; see `dying_reader`."""

    def __init__(self, *options: str, log: str) -> None:
        self.log = Path(log)
        before = self._times()
        self.process = started(["-u", "-m", "cnnbert", "fit", *options], self.log)
        self._until(lambda: self._times() > before)

    @staticmethod
    def _times() -> list[int]:
        return [path.stat().st_mtime_ns for path in Path("runs").glob("*/*/checkpoints/last.ckpt")]

    def _until(self, condition: Callable[[], bool]) -> None:
        """Wait, and stop everything where it takes too long."""
        end = time.monotonic() + 300
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()  # its child notices
                pytest.fail(self.log.read_text())
            time.sleep(0.1)

    def fail(self, rank: int, how: str) -> tuple[int, str]:
        """Let a process fail, and return the exit status and what was said; within a minute, and of all of them."""
        children = self.children()
        assert len(children) == 1
        if how == "interrupted":  # as a terminal does it
            for pid in (self.process.pid, *children):
                os.kill(pid, signal.SIGINT)
        else:
            Path("order").write_text(how)
            Path("order").rename(f"die-{rank}")
        try:
            status = self.process.wait(60)
            end = time.monotonic() + 30
            while any(map(is_running, children)):
                assert time.monotonic() < end, "rank 1 goes on"
                time.sleep(0.1)
        finally:
            for pid in [self.process.pid] * (self.process.poll() is None) + children:
                if is_running(pid):
                    os.kill(pid, signal.SIGKILL)
        assert not Path(f"die-{rank}").exists()
        return status, self.log.read_text()

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are looked up in /proc")
def test_all_end_when_one_fails(workplace: Path, videos: Path) -> None:
    """Within a minute, with the error told, and the run goes on from its checkpoint every time."""
    options = [*TINY_MODEL, *source(videos), *TINY_RUN, "--data.reader=dying_reader.DyingReader", DEVICES]
    new = [*options, *QUIET, "--data.batch_size=2", "--trainer.max_epochs=1000"]

    status, said = DyingRun(*new, log="1").fail(1, "killed")
    assert status == 1 and "Traceback" not in said
    hint = "was ended by SIGKILL, by hand or because memory ran out"
    (told,) = re.findall(rf"cnnbert: error: rank 0 of 2 stops, since rank 1 {hint}; to go on: cnnbert (.*)\n", said)
    again = told.split(" ")
    assert again[0] == "fit" and Path(again[2]).samefile(only("runs", "checkpoints/last.ckpt"))

    status, said = DyingRun(*again[1:], log="2").fail(1, "raises")
    assert status == 1
    assert "[rank1]: RuntimeError: the disk is on fire\n" in said and said.count("(most recent call last)") == 1
    own = "ended with exit status 1 after an error of its own; to go on: cnnbert fit --ckpt_path "
    assert f"cnnbert: error: rank 0 of 2 stops, since rank 1 {own}" in said

    status, said = DyingRun("--ckpt_path=last", log="3").fail(0, "killed")
    assert status == -signal.SIGKILL and "Traceback" not in said
    assert said.endswith("cnnbert: error: rank 1 of 2 stops, since rank 0 has ended\n")

    status, said = DyingRun("--ckpt_path=last", log="4").fail(0, "raises")
    assert status == 1
    assert "[rank0]: RuntimeError: the disk is on fire\n" in said and said.count("(most recent call last)") == 1
    assert "cnnbert: error: rank 1 of 2 stops, since rank 0 has ended\n" in said

    status, said = DyingRun("--ckpt_path=last", log="5").fail(0, "interrupted")
    assert status == 1 and "Traceback" not in said
    assert "\nstopped; to go on: cnnbert fit --ckpt_path " in said

    epoch = last_checkpoint()["epoch"]
    with started(["-m", "cnnbert", "fit", "--ckpt_path=last", f"--trainer.max_epochs={epoch + 2}"], Path("6")) as run:
        assert run.wait(300) == 0, Path("6").read_text()
    assert last_checkpoint()["epoch"] == epoch + 1
    assert only("runs", "checkpoints/last.ckpt").parent.parent.is_dir()  # one run, six times


@pytest.mark.slow
def test_sharded_networks(workplace: Path, videos: Path) -> None:
    """FSDP trains, goes on, validates and tests; its checkpoints are those of any run."""
    torch.manual_seed(1)
    made = cnnbert.build("r2plus1d_tgap.yaml", COLOURS, ["model.backbone.depth=10", "model.backbone.width=8"])
    torch.save(made.backbone.state_dict(), "weights.pth")
    shutil.copytree(videos, "mine")
    Path("mine/train/red/0.mp4").write_bytes(b"no video")
    Path("mine/test/red/1.mp4").write_bytes(b"no video")
    options = [*TINY_RUN, *QUIET, EXACT, SHARDED]
    new = ["--data.batch_size=1", "--data.max_failed_share=0.2", "--model.backbone.weights=weights.pth"]
    still = ["--model.optimizer=SGD", "--model.optimizer.lr=0"]
    fit = ["fit", *TINY_MODEL, *source(Path("mine")), *options, *new]
    several([[*fit, *still, root("still")], [*fit, root("fits")]])
    pretrained = torch.load("weights.pth", weights_only=True)
    kept = last_checkpoint("still")["state_dict"]
    frozen = {name: value for name, value in pretrained.items() if name.endswith("weight")}
    assert all(torch.equal(kept[f"backbone.{name}"], value) for name, value in frozen.items())
    path = only("fits", "checkpoints/last.ckpt")
    Path("weights.pth").unlink()
    judged = [f"--ckpt_path={path}", *TINY_RUN[1:], *QUIET, EXACT]
    go_on = ["fit", "--ckpt_path=last", root("fits"), "--trainer.max_epochs=2"]
    several([go_on, *([name, *judged, SHARDED, root(f"two/{name}")] for name in ("validate", "test"))])
    last = last_checkpoint("fits")
    assert (last["epoch"], last["global_step"]) == (1, 12)
    assert cnnbert.load(path).class_names == COLOURS
    for name in ("validate", "test"):
        assert main([name, *judged, root(f"one/{name}")]) == 0
        assert_same_results(f"one/{name}", f"two/{name}")
    assert_same_predictions("one/test", "two/test")


@pytest.mark.slow
def test_two_nodes(workplace: Path, videos: Path) -> None:
    """Two groups of processes, started by torchrun, make one run, and one W&B run."""
    fit = [*TINY_MODEL, *source(videos), *TINY_RUN, EXACT, "--data.batch_size=2", "--trainer.logger=WandbLogger"]
    on_nodes(["fit", *fit, root("runs")])
    assert len(list(Path("runs/run").iterdir())) == 1
    assert len(list(Path("runs").glob("*/*/wandb/offline-run-*"))) == 1
    assert last_checkpoint()["global_step"] == 3
    best = only("runs", "checkpoints/best.ckpt")
    test = ["test", f"--ckpt_path={best}", *TINY_RUN[1:], EXACT, "--data.batch_size=2", *QUIET]
    assert main([*test, root("one")]) == 0
    on_nodes([*test, root("two")])
    by_slurm([*test, root("slurm")])
    for place in ("two", "slurm"):
        assert len(list(Path(place, "run").iterdir())) == 1
        assert_same_results("one", place)
        assert_same_predictions("one", place)


def on_nodes(command: list[str]) -> None:
    """Run a command on two nodes with a process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    words += [f"--master_port={port}"]
    ours = ["-m", "cnnbert", *command, "--trainer.num_nodes=2", "--trainer.devices=1"]
    all_end_well([started([*words, f"--node_rank={rank}", *ours], Path(f"node{rank}.txt")) for rank in (0, 1)])


def by_slurm(command: list[str]) -> None:
    """Run a command as `srun` does on two nodes, by the variables that it sets."""
    job = {"JOB_ID": str(os.getpid()), "JOB_NAME": "train", "NTASKS": 2, "NTASKS_PER_NODE": 1, "NNODES": 2}
    nodes = []
    for rank in (0, 1):
        variables = {**job, "PROCID": rank, "LOCALID": 0, "NODEID": rank, "NODELIST": "127.0.0.1"}
        ours = ["-m", "cnnbert", *command, "--trainer.num_nodes=2", "--trainer.devices=1"]
        more = {f"SLURM_{name}": str(value) for name, value in variables.items()}
        nodes.append(started(ours, Path(f"node{rank}.txt"), more))
    all_end_well(nodes)


def all_end_well(nodes: Sequence[subprocess.Popen[str]]) -> None:
    try:
        statuses = [node.wait(300) for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # it ends its own
    assert statuses == [0, 0], Path("node0.txt").read_text() + Path("node1.txt").read_text()


@pytest.mark.gpu
def test_on_gpus(workplace: Path, videos: Path) -> None:
    """BatchNorm over all GPUs, and FSDP as it is called by its name; on as many GPUs as there are."""
    if not torch.cuda.is_available():
        (pytest.fail if os.environ.get("REQUIRE_GPU") == "1" else pytest.skip)("no GPU")
    always = [*TINY_MODEL, *source(videos), *TINY_RUN, *QUIET, "--trainer.accelerator=gpu", "--data.batch_size=2"]
    synchronized = ["--trainer.strategy=ddp", "--trainer.sync_batchnorm=true", "--data.max_failed_share=0"]
    commands = [
        ["fit", *always, *synchronized, root("synchronized")],
        ["fit", *always, "--trainer.strategy=fsdp", root("sharded")],
    ]
    commands += [
        ["fit", "--ckpt_path=last", "--trainer.max_epochs=2", root(name)] for name in ("synchronized", "sharded")
    ]
    several(commands, f"--trainer.devices={torch.cuda.device_count()}")
    for name in ("synchronized", "sharded"):
        assert last_checkpoint(name)["epoch"] == 1
        path = only(name, "checkpoints/last.ckpt")
        assert main(["test", f"--ckpt_path={path}", *QUIET, root(f"{name}/test")]) == 0
        assert not any("Sync" in type(module).__name__ for module in cnnbert.load(path).modules())


def test_a_process_that_hangs_ends_too() -> None:
    """Such as one that waits on a GPU, and learns nothing of a broken connection."""
    hang = "import time; from cnnbert import processes; processes.SECONDS_TO_FAIL = 1; both = processes.EndTogether(); "
    first = f"import subprocess, sys, types; {hang} kill = 'import os; os.kill(os.getpid(), 9)'; "
    first += "launcher = types.SimpleNamespace(procs=[subprocess.Popen([sys.executable, '-c', kill])]); "
    first += "strategy = types.SimpleNamespace(launcher=launcher); "
    first += "both.setup(types.SimpleNamespace(strategy=strategy, global_rank=0, world_size=2), None, 'fit'); "
    done = subprocess.run(
        [sys.executable, "-c", f"{first} time.sleep(99)"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    told = "rank 0 of 2 is stopped, since rank 1 was ended by SIGKILL, by hand or because memory ran out"
    assert done.stderr == f"cnnbert: error: {told}\n"

    child = [sys.executable, "-c", f"{hang} time.sleep(99)"]
    first = "import subprocess; from cnnbert.processes import EndTogether\n"
    first += f"with EndTogether().told(None): subprocess.Popen({child!r})"
    done = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True, timeout=120)  # until both end
    assert (done.returncode, done.stderr) == (0, "cnnbert: error: this process is stopped, since rank 0 has ended\n")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--trainer.strategy=fsdp"], "strategy=fsdp needs GPUs, and there are none; on CPUs there is ddp"),
        (["--trainer.sync_batchnorm=true"], "sync_batchnorm needs GPUs: torch has it for no CPU; leave it out"),
    ],
)
def test_what_needs_gpus(options: list[str], told: str, workplace: Path, videos: Path, capsys: Any) -> None:
    assert main(["fit", *TINY_MODEL, *source(videos), *TINY_RUN, DEVICES, *options]) == 1
    assert f"cnnbert: error: {told}\n" in capsys.readouterr().err
    assert list(workplace.iterdir()) == []
