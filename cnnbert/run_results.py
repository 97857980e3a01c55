"""What a run has left: its predictions, and the results beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cnnbert import report_numbers
from cnnbert.comparison import check_same_videos
from cnnbert.data.protocols import CountFailed
from cnnbert.errors import InputError
from cnnbert.outputs import shown
from cnnbert.predictions import Predictions, read_predictions


@dataclass(frozen=True)
class RunResults:
    """What a test or validation has left.

    Attributes:
        path: The predictions file.
        predictions: What it says.
        results: What stands in `results.json` beside it; empty where that is not there.
        count_failed: What videos are that could not be read.
    """

    path: Path
    predictions: Predictions
    results: dict[str, Any]
    count_failed: CountFailed

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The accuracies of videos; see `report_numbers.metrics`."""
        return report_numbers.metrics(self.predictions, self.count_failed)

    @property
    def num_failed(self) -> int:
        """Videos that could not be read."""
        return int((~self.predictions.was_read).sum())


def read_run_results(path: Path, like: RunResults | None = None) -> RunResults:
    """Read a predictions file, and `results.json` beside it.

    Args:
        path: The predictions file.
        like: A run that it is to be compared with.

    Raises:
        InputError: A file cannot be used, or it is of other videos or classes than `like`.
    """
    beside = path.with_name("results.json")
    results: Any = {}
    if path.is_file() and beside.is_file():
        try:
            results = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{beside} cannot be read ({error}); mend it or take it away") from error
    if not isinstance(results, dict) or results.get("count_failed", "wrong") not in ("wrong", "left_out"):
        raise InputError(f"{beside} is not the results of `cnnbert test`; take it away")
    separator = results.get("label_separator") or (like.predictions.label_separator if like else None)
    predictions = read_predictions(path, separator)
    if like is not None:
        check_same_videos(
            like.predictions.videos,
            like.predictions.class_names,
            predictions.videos,
            predictions.class_names,
            (str(like.path), str(path)),
        )
    if not predictions.was_read.any():
        raise InputError(f"{path}: none of its videos could be read, as of {shown(predictions.errors[0])}")
    run = RunResults(path, predictions, results, like.count_failed if like else results.get("count_failed", "wrong"))
    counted = report_numbers.counted(predictions, run.count_failed)
    if predictions.label_separator is not None and not predictions.target[counted].any():
        raise InputError(f"{path}: none of its videos has any class; there is nothing to judge by")
    return run
