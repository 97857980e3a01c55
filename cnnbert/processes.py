"""Ends all processes of a run when one of them has failed, and says which and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from cnnbert.errors import InputError

PARENT = "CNNBERT_PARENT"
"""The environment variable by which a process knows the one that has started it for the same run."""

SECONDS_TO_NOTICE = 5
"""How long a process that has failed waits to see whether that is because another one has ended."""

SECONDS_TO_FAIL = 10
"""How long a process may go on without one that has ended: as a rule their connection breaks at once, and it fails."""

SECONDS_TO_END = 45
"""How long a process that has failed may take to its end; meanwhile the first one saves a checkpoint."""


class EndTogether(Callback):
    """Ends a process of a run soon after it, or another one on the machine, has failed.

    Left alone, the others wait for it until torch.distributed loses patience, after half an hour. A process that
    Lightning has started watches the one that started it, and is watched by it; `torchrun` and `srun` watch theirs.
    What processes do together they cannot do any more, and so the first one alone saves a checkpoint.

    It is to come before callbacks that save checkpoints, and to be made as early as can be, since a process may fail
    before the processes have met.
    """

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[Any]] = []
        self.name = "this process"
        self.first_rank, self.num_ranks = 0, 1
        self.error_time: float | None = None
        self.is_done = self.is_watching = False
        self.parent = int(os.environ[PARENT]) if PARENT in os.environ else None
        if self.parent is not None:
            self._watch()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the processes that this one has started, in place of Lightning, which would kill this one too."""
        self.first_rank, self.num_ranks = trainer.global_rank, trainer.world_size
        self.name = f"rank {self.first_rank} of {self.num_ranks}"
        launcher: Any = trainer.strategy.launcher
        started = getattr(launcher, "procs", [])
        if started:
            self.children = [*started]
            started.clear()  # Lightning's observer has this very list, and ends when there is nothing to watch
            launcher.procs = self.children
            self._watch()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let this process end without the others."""
        if trainer.world_size == 1:
            return
        self.error_time = time.monotonic()
        self._watch()
        trainer.strategy.barrier = _wait_for_nobody  # type: ignore[method-assign]
        if trainer.strategy.restore_checkpoint_after_setup:  # each process has but a part of the network
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    callback.save_on_exception = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let each process end when it likes: what is done together is done."""
        self.is_done = True

    @contextmanager
    def told(self, trainer: Trainer) -> Iterator[None]:
        """Run what is inside, which starts the other processes; where it fails, raise what the user is to be told.

        Raises:
            InputError: It has failed because another process did, or by the user's mistake.
        """
        if self.parent is None:
            os.environ[PARENT] = str(os.getpid())
        try:
            yield
        except Exception as error:
            if self.error_time is None:
                raise
            is_mistake = isinstance(error, InputError)
            may_be_lost = is_mistake or isinstance(error, RuntimeError)  # lost connections are RuntimeErrors
            if self.parent is not None and may_be_lost and _happens(lambda: self._lost() is not None):
                if is_mistake:  # rank 0 has made it too, and told it
                    raise SystemExit(1) from error
                raise InputError(f"{self.name} stops, since {self._lost()}") from error
            if self.children and may_be_lost and not is_mistake and _happens(lambda: self._lost() is not None):
                saved = [path for path in map(_last, trainer.checkpoint_callbacks) if path]
                advice = f"; to go on: cnnbert fit --ckpt_path {saved[0]}" if saved else ""
                raise InputError(f"{self.name} stops, since {self._lost()}{advice}") from error
            if is_mistake and self.first_rank > 0:
                raise InputError(f"{self.name}: {error}") from error
            raise
        finally:
            if self.parent is None:
                del os.environ[PARENT]

    def _watch(self) -> None:
        if not self.is_watching:
            self.is_watching = True
            threading.Thread(target=self._end_in_time, name="end-together", daemon=True).start()

    def _end_in_time(self) -> None:
        """End this process where another one has failed, or itself, and it does not end by itself."""
        lost_time = None
        while not self.is_done:
            time.sleep(0.5)
            now = time.monotonic()
            lost_time = lost_time or (now if self._lost() is not None else None)
            if self.error_time is not None:
                is_late = now - self.error_time > SECONDS_TO_END
            else:
                is_late = lost_time is not None and now - lost_time > SECONDS_TO_FAIL
            if is_late and not self.is_done:
                why = self._lost() or f"it has not ended {SECONDS_TO_END} s after its error"
                print(f"cnnbert: error: {self.name} is stopped, since {why}", file=sys.stderr, flush=True)
                os._exit(1)

    def _lost(self) -> str | None:
        """Return in words which other process has failed; None where none has."""
        if self.parent is not None and os.getppid() != self.parent:
            return "rank 0 has ended"
        for rank, child in enumerate(self.children, start=self.first_rank + 1):
            status = child.poll()
            if status is not None and status < 0:
                hint = ", by hand or because memory ran out" if status == -signal.SIGKILL else ""
                return f"rank {rank} was ended by {signal.Signals(-status).name}{hint}"
            if status:
                return f"rank {rank} ended with exit status {status} after an error of its own"
        return None


def _wait_for_nobody(name: str | None = None) -> None:
    """Do nothing where processes wait for each other."""


def _last(callback: object) -> str:
    """Return the last checkpoint that a callback has saved, if it is for going on."""
    return callback.best_model_path if isinstance(callback, ModelCheckpoint) and callback.monitor is None else ""


def _happens(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + SECONDS_TO_NOTICE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
