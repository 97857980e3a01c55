"""Long trainings do not grow, and stopped ones leave no process, shared memory or temporary file behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "long_run.py"

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes as Linux shows them")

GROWTH_MIB = 16
"""What a reading process may gain after its second epoch.

In 50 epochs none gained more than 8 MiB, and the main one went up and down by 14. What is kept by mistake is more: the
78 training clips of an epoch are 12 MiB, and their videos decoded 300 MiB, which eight epochs make eight times as much.
"""

STEP_MIB = 200
"""What the main process may gain: steps that the memory of freed tensors has made it take were up to 121 MiB."""


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("long_run", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["long_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize(("options", "first"), [([], 2), (["--data.cache=ram", "--data.cache_gib=1"], 6)])
def test_nothing_grows(workplace: Path, temporary: Path, options: list[str], first: int) -> None:
    """With a cache, a process grows by the shared frames of videos that it meets: 1 of 32 is new after 6 epochs.

    The main process keeps the memory of freed tensors, and what lies between those in use may cost it a step of a large
    tensor's size in any epoch; what is lost for good costs one in every epoch.
    """
    words = ["--epochs=10", "--clips=130", "--trainer.accelerator=cpu", *options]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, env=environment(temporary))
    assert done.returncode == 0, done.stderr
    rows = [row.strip("| \n").split(" | ") for row in done.stdout.splitlines() if row[:3].strip("| ").isdigit()]
    assert [int(row[0]) for row in rows] == list(range(1, 11))
    resident, files, threads = ([[float(cell) for cell in row[i].split(", ")] for row in rows] for i in (1, 2, 3))
    assert len(resident[0]) == 5  # the main process, two that read for training and two for validation
    for late in resident[first:]:
        assert all(now - then < GROWTH_MIB for now, then in zip(late[1:], resident[first - 1][1:], strict=True)), (
            resident
        )
        assert late[0] - resident[first - 1][0] < STEP_MIB, resident
    steps = [now[0] - then[0] for then, now in pairwise(resident[first - 1 :])]
    assert statistics.median(steps) < 1, resident
    assert all(late == files[1] for late in files[2:])
    assert all(now <= then for late in threads[2:] for now, then in zip(late, threads[1], strict=True))


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files, with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def environment(temporary: Path) -> dict[str, str]:
    """Return the environment of a process whose temporary files go to this folder."""
    return os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_training_leaves_nothing_behind(
    workplace: Path, temporary: Path, videos: Path, how: signal.Signals
) -> None:
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", "--data.num_workers=2"]
    command = [sys.executable, "-m", "cnnbert", "fit", *TINY_MODEL, *data, *TINY_RUN, "--trainer.max_epochs=100000"]
    shared = set(os.listdir("/dev/shm"))
    with subprocess.Popen(
        [*command, "--trainer.logger=false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(temporary),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        try:
            end = time.monotonic() + 180
            readers: list[int] = []
            # Linux may leave out children of a process that runs on while they are listed.
            while len(readers) < 4 or not list(workplace.glob("runs/*/*/checkpoints/last.ckpt")):
                assert process.poll() is None and time.monotonic() < end
                readers = script().children(process.pid)
                time.sleep(0.1)
            assert list(temporary.iterdir())  # the sockets that batches come by
            process.send_signal(how)
            process.wait(60)
        finally:
            process.kill()
    end = time.monotonic() + 30  # they look every 5 s whether the main process is still there
    while time.monotonic() < end and any(Path(f"/proc/{reader}").exists() for reader in readers):
        time.sleep(0.1)
    assert not [reader for reader in readers if Path(f"/proc/{reader}").exists()]
    # A cache that torch shares between all its processes stays, and now and then a folder of a reader's socket.
    assert not [path for path in temporary.iterdir() if not path.name.startswith(("torchinductor_", "pymp-"))]
    # Others share the folder: only names that PyTorch and Python give count.
    left = set(os.listdir("/dev/shm")) - shared
    assert not [name for name in left if name.startswith((f"torch_{process.pid}_", "psm_", "sem.mp"))]
