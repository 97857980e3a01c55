"""Memory, open files and threads of a long training, after every epoch and of every process; on Linux.

    python benchmarks/long_run.py --epochs 50

A small R(2+1)D with BERT is trained on generated clips with the processes that read them kept from epoch to epoch, as
is usual. Resident memory is what the system counts for each process; pages that several share count in each, those of
`--data.cache ram` as soon as a process has met the video. Other words go to `cnnbert fit`, such as `--data.cache ram`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

MIB = 2**20


@dataclass(frozen=True)
class Process:
    """A process at a moment: its number, resident bytes, open file descriptors and threads."""

    pid: int
    resident: int
    num_files: int
    num_threads: int


def look_at(pid: int) -> Process:
    """Return what a process of this user holds."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident = int(status["VmRSS"].split()[0]) * 1024
    return Process(pid, resident, len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]))


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run, the oldest first, with all of theirs."""
    found = []
    with suppress(FileNotFoundError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError):  # this thread has ended
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *children(child)]
    return sorted(found)


class Watch(Callback):
    """Writes a line of a table after every epoch.

    Args:
        table: The file that it goes to.
    """

    def __init__(self, table: str) -> None:
        self.table = Path(table)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at all processes, which have done an epoch of training and of validation by now."""
        if trainer.current_epoch > 0:
            self._look(trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at all processes once more."""
        self._look(trainer.current_epoch)

    def _look(self, epoch: int) -> None:
        found = [look_at(os.getpid()), *map(look_at, children(os.getpid()))]
        columns = [[f"{process.resident / MIB:.1f}" for process in found]]
        columns += [[str(process.num_files) for process in found], [str(process.num_threads) for process in found]]
        with self.table.open("a") as file:
            file.write(f"| {epoch} | {' | '.join(', '.join(column) for column in columns)} |\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--clips", type=int, default=260)
    given, others = parser.parse_known_args()
    from cnnbert.cli import main as cnnbert

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "table.md")
        watch = ["--trainer.callbacks+=long_run.Watch", f"--trainer.callbacks.table={table}"]
        options = [f"--trainer.max_epochs={given.epochs}", f"--data.source.num_clips={given.clips}"]
        options += ["--data.num_workers=2", "--trainer.enable_progress_bar=false", "--trainer.logger=CSVLogger"]
        run = [f"--trainer.default_root_dir={folder}", f"--trainer.logger.save_dir={folder}", *watch]
        status = cnnbert(["fit", "--config=quickstart.yaml", *options, *run, *others])
        print("\nOf the main process and of those that read, validation's before training's:\n")
        print("| epoch | resident MiB | open files | threads |\n|---|---|---|---|")
        print(table.read_text(), end="")
    return status


if __name__ == "__main__":
    sys.exit(main())
