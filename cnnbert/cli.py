"""The command `cnnbert`: its overview, and what its mistakes look like."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import warnings

# Before torch is loaded: threads that wait for each other then sleep. If they spin instead, a network on the CPU runs
# several times slower as soon as another process, such as one that reads videos, needs a core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from cnnbert.commands import COMMANDS, RUN_COMMANDS, first_sentence, run_command
from cnnbert.errors import InputError, VideoReadError
from cnnbert.shipped import shipped_configs


def overview() -> str:
    """Return the help of `cnnbert` itself: its commands, a line each."""
    lines = RUN_COMMANDS | {name: first_sentence(name) for name in COMMANDS}
    width = max(map(len, lines))
    told = [
        textwrap.fill(text, 88, initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4))
        for name, text in lines.items()
    ]
    return "\n".join(
        [
            "usage: cnnbert COMMAND [OPTIONS]\n",
            "Train, test and use CNN+BERT video classifiers.\n",
            *told,
            "\ncnnbert COMMAND --help lists a command's options; the shipped configs are",
            textwrap.fill(", ".join(shipped_configs()), 88, initial_indent="  ", subsequent_indent="  "),
        ]
    )


def main(args: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 1 where the user has something to put right.

    Args:
        args: The words after `cnnbert`; those of the command line by default.
    """
    _quiet()
    args = sys.argv[1:] if args is None else args
    if args in ([], ["-h"], ["--help"]):
        print(overview())
        return 0
    report = None
    status = 0
    try:
        if args and args[0] in COMMANDS:
            status = run_command(args[0], args[1:])
        else:
            from cnnbert.run_cli import RunCLI  # and with it Lightning, which takes seconds

            report = RunCLI(args).report
    except KeyboardInterrupt:
        print("cnnbert: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        print(f"cnnbert: error: {mistake}", file=sys.stderr)
        return 1
    finally:
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            sys.modules["wandb"].finish()  # so that another run in this process gets a W&B run of its own
    if report is not None and report.table:
        print(f"\n{report.table}", flush=True)
    return status


def _mistake(error: BaseException | None) -> BaseException | None:
    """Return the user's mistake that an error comes from: jsonargparse makes errors of its own of those it meets."""
    while error is not None and not isinstance(error, (InputError, VideoReadError)):
        error = error.__cause__
    return error


def _quiet() -> None:
    """Drop what Lightning says about other products, and its warnings about what is meant to be so here."""
    for message in (
        ".*is not supported by the model summary",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        ".*callbacks used to create the checkpoint need to be provided",
        "The dirpath has changed from",
        "Using `DistributedSampler` with the dataloaders",
        "Checkpoint directory .* exists and is not empty",
        "You're resuming from a checkpoint that ended before the epoch ended",  # the loader goes on where it was
        "ReduceLROnPlateau conditioned on metric",  # which epochs without validation lack
    ):
        warnings.filterwarnings("ignore", message)
    rank_zero = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    if not rank_zero.filters:
        rank_zero.addFilter(lambda record: "Tip:" not in record.getMessage())
