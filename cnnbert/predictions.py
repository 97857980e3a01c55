"""Reads and writes the predictions of tested videos."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnbert.data.records import split_label
from cnnbert.errors import InputError
from cnnbert.outputs import whole_file

FACTS = ("path", "start_seconds", "end_seconds", "label")
SCORE = "score:"

# Scores are written with six digits, so that two that differ by less may look equal, or either the higher one.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Predictions:
    """What a run says of its test videos, N of them, K classes.

    Attributes:
        videos: Each video's path, start and end in seconds, and label, as they are written; sorted.
        class_names: The classes.
        scores: Probabilities, float64 (N, K); NaN where a video could not be read.
        errors: Why each video could not be read, "" where it could; empty where that is not known.
        label_separator: What parts the classes in a label; None where every video has one class.
    """

    videos: tuple[tuple[str, str, str, str], ...]
    class_names: tuple[str, ...]
    scores: NDArray[np.float64]
    errors: tuple[str, ...] = ()
    label_separator: str | None = None

    @cached_property
    def target(self) -> NDArray[np.bool_]:
        """Which classes each video has, (N, K)."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        target = np.zeros(self.scores.shape, np.bool_)
        for row, (*_, label) in zip(target, self.videos, strict=True):
            row[[numbers[name] for name in split_label(label, self.label_separator)]] = True
        return target

    @cached_property
    def decided(self) -> NDArray[np.bool_]:
        """Which classes each video is said to have, (N, K): that of the highest score, or with a separator those of
        at least 0.5; none where a video could not be read."""
        if self.label_separator is not None:
            return np.nan_to_num(self.scores, nan=-1.0) >= 0.5
        highest = np.nan_to_num(self.scores, nan=-1.0).argmax(1)
        return (highest[:, None] == np.arange(len(self.class_names))) & self.was_read[:, None]

    @cached_property
    def is_right(self) -> NDArray[np.bool_]:
        """Which videos are said to have the classes that they have and no others, (N,); none that could not be read."""
        return (self.decided == self.target).all(1) & self.was_read

    @cached_property
    def was_read(self) -> NDArray[np.bool_]:
        """Which videos could be read, (N,)."""
        return np.logical_not(np.isnan(self.scores).any(1))


def read_predictions(path: Path, label_separator: str | None = None) -> Predictions:
    """Read the file that `cnnbert test` writes.

    Args:
        path: The file.
        label_separator: What parts the classes in a label; where it is not given and labels are not classes
            themselves, it is what stands between the classes in them.

    Raises:
        InputError: It is no such file, it is damaged, or a video has no label; the message says where.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            class_names = _class_names(path, header)
            rows = [_Row(f"{path}, line {reader.line_num}", header, cells) for cells in reader if cells]
    except (OSError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read as predictions of `cnnbert test`: {why}") from error
    if not rows:
        raise InputError(f"{path} names no video; give a predictions file of `cnnbert test`")
    rows.sort(key=lambda row: [row[name] for name in FACTS])
    if label_separator is None:
        label_separator = _separator((text for row in rows for text in (row["label"], row["prediction"])), class_names)
    return Predictions(
        videos=tuple(row.facts(class_names, label_separator) for row in rows),
        class_names=class_names,
        scores=np.stack([row.decisive_scores(class_names, label_separator) for row in rows]),
        errors=tuple(row["error"] for row in rows),
        label_separator=label_separator,
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a predictions file, whole or not at all.

    Columns: path, start_seconds, end_seconds, label (empty where unknown), prediction, and `score:CLASS` for every
    class, its probability in [0, 1]; and error, which is why a video could not be read. Such a video has an error and
    neither prediction nor scores; all others have no error. Where a video may have several classes, the prediction is
    those of a probability of at least 0.5, with the separator between; there may be none.

    Args:
        path: The file, in a folder that exists.
        predictions: What is written, in its order.

    Raises:
        InputError: The file cannot be written.
    """
    names = predictions.class_names
    separator = predictions.label_separator or ""
    with (
        whole_file(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*FACTS, "prediction", *(f"{SCORE}{name}" for name in names), "error"])
        rows = zip(predictions.videos, predictions.decided, predictions.scores, predictions.errors, strict=True)
        for facts, decided, scores, error in rows:
            predicted = separator.join(name for name, is_it in zip(names, decided, strict=True) if is_it)
            writer.writerow([*facts, predicted, *("" if error else f"{score:.6g}" for score in scores), error])


class _Row:
    """A line of the file."""

    def __init__(self, place: str, header: Sequence[str], cells: Sequence[str]) -> None:
        self.place = place
        if len(cells) != len(header):
            raise InputError(f"{place}: {len(cells)} cells where the first line has {len(header)}; it is damaged")
        self.texts = {name: cell for name, cell in zip(header, cells, strict=True) if not name.startswith(SCORE)}
        scores = [(name, cell) for name, cell in zip(header, cells, strict=True) if name.startswith(SCORE)]
        if self["error"]:
            self.scores = np.full(len(scores), np.nan)
        else:
            self.scores = np.array([self._number(name, cell, 1.0, "a probability") for name, cell in scores])

    def __getitem__(self, name: str) -> str:
        return self.texts[name]

    def facts(self, class_names: Sequence[str], label_separator: str | None) -> tuple[str, str, str, str]:
        """Return the video's path, start, end and label."""
        if not self["label"]:
            raise InputError(f"{self.place}, column label: empty; only videos with labels can be judged")
        unknown = [name for name in split_label(self["label"], label_separator) if name not in class_names]
        if unknown:
            raise InputError(f"{self.place}, column label: {unknown[0]!r} has no column {SCORE}{unknown[0]}")
        for name in ("start_seconds", "end_seconds"):
            if self[name] or name == "start_seconds":
                self._number(name, self[name], sys.float_info.max, "a number of seconds")
        return self["path"], self["start_seconds"], self["end_seconds"], self["label"]

    def decisive_scores(self, class_names: Sequence[str], label_separator: str | None) -> NDArray[np.float64]:
        """Return the probabilities, (K,), such that the classes that they decide for are those in `prediction`.

        Rounding may have made a score the highest, or 0.5, which it was not; it is moved by the least that is possible.
        """
        if self["error"]:
            return self.scores
        scores = self.scores.copy()
        names = set(split_label(self["prediction"], label_separator))
        predicted = np.array([name in names for name in class_names])
        if label_separator is None:
            highest = scores.max()
            fits = predicted.any() and scores[predicted][0] >= highest * (1 - ROUNDING)
            scores = np.where(predicted, highest, np.minimum(scores, np.nextafter(highest, 0)))
        else:
            fits = np.abs(scores - 0.5)[predicted != (scores >= 0.5)].max(initial=0) <= ROUNDING
            scores = np.where(predicted, np.maximum(scores, 0.5), np.minimum(scores, np.nextafter(0.5, 0)))
        if not fits:
            raise InputError(f"{self.place}, column prediction: {self['prediction']!r} is not what its scores say")
        if label_separator is None and abs(self.scores.sum() - 1) > 0.01:
            raise InputError(f"{self.place}: its scores add up to {self.scores.sum():.3g} instead of 1; it is damaged")
        return scores

    def _number(self, name: str, cell: str, most: float, what: str) -> float:
        try:
            number = float(cell)
        except ValueError:
            number = float("nan")
        if not 0 <= number <= most:
            raise InputError(f"{self.place}, column {name}: {cell!r} is not {what}")
        return number


def _class_names(path: Path, header: Sequence[str]) -> tuple[str, ...]:
    if not header:
        raise InputError(f"{path} is empty; give a predictions file of `cnnbert test`")
    missing = [name for name in (*FACTS, "prediction", "error") if name not in header]
    if missing:
        raise InputError(f"{path}, line 1: no column {missing[0]}; give a predictions file of `cnnbert test`")
    twice = [name for place, name in enumerate(header) if name in header[:place]]
    if twice:
        raise InputError(f"{path}, line 1: column {twice[0]} is there twice")
    class_names = tuple(name.removeprefix(SCORE) for name in header if name.startswith(SCORE))
    if len(class_names) < 2:
        raise InputError(f"{path}, line 1: no two columns {SCORE}CLASS; give a predictions file of `cnnbert test`")
    return class_names


def _separator(texts: Iterable[str], class_names: Sequence[str]) -> str | None:
    """Return what parts classes in labels and predictions: None if each of these is a class or empty.

    It is what stands between two classes in one of them, or what one holds beside a class, if that has no letters or
    digits; such that all of them are classes with it between.
    """
    joined = sorted({text for text in texts if text and text not in class_names}, key=len)
    for text in joined:
        rests = [text[len(name) :] for name in class_names if text.startswith(name)]
        between = {rest[: rest.find(name)].strip() for rest in rests for name in class_names if name in rest}
        beside = {rest.strip() for rest in (text, *rests) if not any(letter.isalnum() for letter in rest)}
        for separator in sorted((between | beside) - {""}, key=len):
            if all(set(split_label(one, separator)) <= {*class_names} for one in joined):
                return separator
    return None
