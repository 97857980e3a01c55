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

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from cnnbert.errors import InputError

PARENT = "CNNBERT_PARENT"
"""The environment variable by which a process knows which one started it for the same run."""

SECONDS_TO_NOTICE = 5
"""How long a process whose work has failed waits to see whether that is because another one has ended."""

SECONDS_TO_WAIT = 10
"""How long a process may go on waiting for one that has ended: as a rule its connection breaks at once."""

SECONDS_TO_END = 45
"""How long a process may take from an error to its end; meanwhile the first one saves a checkpoint."""


class EndTogether(Callback):
    """Ends a process of a run soon after it or another one on the machine has failed.

    Left alone, the others wait for it until torch.distributed loses patience, after half an hour. Those that Lightning
    started watch the process that started them, and that one watches them; `torchrun` and SLURM's `srun` watch theirs.
    What processes do together they cannot do any more, and so a checkpoint is saved by the first one alone.

    It is to come before callbacks that save checkpoints, and is made in every process as early as can be, since a
    process may fail before they have met.
    """

    def __init__(self) -> None:
        self.children: list[subprocess.Popen] = []
        self.has_ended = False
        self.error_time: float | None = None
        parent = os.environ.get(PARENT)
        self.parent = int(parent) if parent is not None and "LOCAL_RANK" in os.environ else None
        if self.parent is None:
            os.environ[PARENT] = str(os.getpid())
        else:
            self._watch()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the processes that this one has started, in place of Lightning, which would kill this one too."""
        launcher = trainer.strategy.launcher
        started = getattr(launcher, "procs", [])
        if started:
            self.children = [*started]
            started.clear()  # Lightning's observer has the same list, and ends when there is nothing to watch
            launcher.procs = self.children  # type: ignore[union-attr]
            self._watch()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let this process end without the others."""
        if trainer.world_size == 1:
            return
        self.error_time = time.monotonic()
        if not self._is_watching:
            self._watch()
        trainer.strategy.barrier = _no_barrier  # type: ignore[method-assign]
        if trainer.strategy.restore_checkpoint_after_setup:  # each process has but a part of the network
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    callback.save_on_exception = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the others end when they like: what is done together is done."""
        self.has_ended = True

    @contextmanager
    def told(self, trainer: Trainer) -> Iterator[None]:
        """Run what is inside; where it fails, raise what the user is to be told.

        Raises:
            InputError: The error of another process has made this one fail, or it is the user's mistake.
        """
        try:
            yield
        except Exception as error:
            if trainer.world_size == 1 or self.error_time is None:
                raise
            who = f"rank {trainer.global_rank} of {trainer.world_size}"
            is_mistake = isinstance(error, InputError)
            if self.parent is not None and (is_mistake or isinstance(error, RuntimeError)):
                if _happens(lambda: os.getppid() != self.parent, SECONDS_TO_NOTICE):
                    if is_mistake:  # rank 0 has told the same, as a rule
                        raise SystemExit(1) from error
                    raise InputError(f"{who} stops, since rank 0 has ended") from error
            elif isinstance(error, RuntimeError) and _happens(lambda: self._lost() is not None, SECONDS_TO_NOTICE):
                advice = "; to go on: cnnbert fit --ckpt_path last" if trainer.state.fn == "fit" else ""
                raise InputError(f"{self._lost()}, and the others with it{advice}") from error
            if is_mistake and trainer.global_rank > 0:
                raise InputError(f"{who}: {error}") from error
            raise

    def _watch(self) -> None:
        self._is_watching = True
        threading.Thread(target=self._end_in_time, name="end-together", daemon=True).start()

    _is_watching = False

    def _end_in_time(self) -> None:
        """End this process when another one has, or when its own end takes too long."""
        lost_time = None
        while not self.has_ended:
            time.sleep(0.5)
            now = time.monotonic()
            lost_time = lost_time or (now if self._lost() is not None else None)
            if self.error_time is not None:
                is_late = now - self.error_time > SECONDS_TO_END
            else:
                is_late = lost_time is not None and now - lost_time > SECONDS_TO_WAIT
            if is_late and not self.has_ended:
                print(f"cnnbert: error: {self._lost() or 'this process'} ...", file=sys.stderr, flush=True)
                os._exit(1)

    def _lost(self) -> str | None:
        """Return in words which other process has failed; None where none has."""
        if self.parent is not None and os.getppid() != self.parent:
            return "rank 0 has ended"
        for number, child in enumerate(self.children, start=1):
            status = child.poll()
            if status is not None and status < 0:
                return f"the process of local rank {number} was killed by {signal.Signals(-status).name}"
            if status:
                return f"the process of local rank {number} ended with exit status {status}, its error is above"
        return None


def _no_barrier(name: str | None = None) -> None:
    """Wait for nobody."""


def _happens(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
