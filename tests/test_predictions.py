"""The predictions file is read as it was written, or refused with the place of what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnbert.errors import InputError
from cnnbert.predictions import read_predictions

HEADER = ["path", "start_seconds", "end_seconds", "label", "prediction"]


def write_predictions(path: Path, names: Sequence[str], rows: Sequence[tuple[str, str, str, Any]]) -> Path:
    """Write the file of a test: path, label, prediction and scores of every video, or its error in their place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([*HEADER, *(f"score:{name}" for name in names), "error"])
        for video, label, prediction, scores in rows:
            cells = [*[""] * len(names), scores] if isinstance(scores, str) else [*scores, ""]
            writer.writerow([video, 0.0, "", label, prediction, *cells])
    return path


def test_a_file_is_read_in_any_order(tmp_path: Path) -> None:
    rows = [("2.mp4", "b", "", "gone"), ("1.mp4", "a", "a", [0.7, 0.3])]
    read = read_predictions(write_predictions(tmp_path / "p.csv", "ab", rows))
    assert read.videos == (("1.mp4", "0.0", "", "a"), ("2.mp4", "0.0", "", "b"))
    assert (read.class_names, read.errors, read.label_separator) == (("a", "b"), ("", "gone"), None)
    assert (read.was_read.tolist(), read.is_right.tolist()) == ([True, False], [True, False])
    assert read.decided.tolist() == [[True, False], [False, False]]


def test_names_are_read_as_they_are(tmp_path: Path) -> None:
    videos = ['a"b.mp4', "new\nline.mp4", "caf\udce9.mp4", "a,b.mp4"]
    rows = [(video, "<b>", "<b>", [0.7, 0.3]) for video in videos]
    read = read_predictions(write_predictions(tmp_path / "p.csv", ["<b>", "a"], rows))
    assert [video[0] for video in read.videos] == sorted(videos)


@pytest.mark.parametrize(
    ("prediction", "scores"), [("b", [0.5, 0.5]), ("b", [0.500001, 0.499999]), ("a", [0.5, 0.5]), ("b", [1e-9, 1])]
)
def test_rounding_does_not_change_what_is_predicted(tmp_path: Path, prediction: str, scores: list[float]) -> None:
    read = read_predictions(write_predictions(tmp_path / "p.csv", "ab", [("1.mp4", "b", prediction, scores)]))
    assert read.is_right.tolist() == [prediction == "b"]
    np.testing.assert_allclose(read.scores, [scores], rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        (["run|jump", "sit"], "|"),
        (["run , jump", "run,jump,sit"], ","),
        (["run and jump", "sit"], "and"),
        (["|", "sit"], "|"),
        (["run;", "sit;jump"], ";"),
        (["run;", "sit"], ";"),
    ],
)
def test_what_parts_the_classes_in_labels_is_found(tmp_path: Path, labels: list[str], separator: str) -> None:
    rows = [(f"{i}.mp4", label, "", [0.1, 0.2, 0.3]) for i, label in enumerate(labels)]
    path = write_predictions(tmp_path / "p.csv", ["run", "jump", "sit"], rows)
    assert read_predictions(path).label_separator == separator


def test_several_classes(tmp_path: Path) -> None:
    """The probability 0.5 may have been more or less before it was rounded."""
    rows = [
        ("1", "a|b", "a", [0.5, 0.5]),
        ("2", "|", "", [0.4, 0.1]),
        ("3", "b", "a|b", [0.9, 0.5]),
        ("4", "b", "", "x"),
    ]
    read = read_predictions(write_predictions(tmp_path / "p.csv", "ab", rows))
    assert read.target.tolist() == [[True, True], [False, False], [False, True], [False, True]]
    assert read.decided.tolist() == [[True, False], [False, False], [True, True], [False, False]]
    assert read.is_right.tolist() == [False, True, False, False]


def test_a_separator_that_is_known(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "p.csv", "ab", [("1", "a", "b", [0.1, 0.7])])
    assert read_predictions(path, "|").decided.tolist() == [[False, True]]


FIRST = "path,start_seconds,end_seconds,label,prediction,score:a,score:b,error\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " is empty; give a predictions file of `cnnbert test`"),
        (FIRST, " names no video; give"),
        ("a,b\n1,2\n", ", line 1: no column path; give"),
        (FIRST.replace(",error", ""), ", line 1: no column error; give"),
        (FIRST.replace("score:", "s"), ", line 1: no two columns score:CLASS; give"),
        (FIRST.replace("score:b", "b"), ", line 1: no two columns score:CLASS; give"),
        (FIRST.replace(":b", ":a"), ", line 1: column score:a is there twice"),
        (FIRST + "x,0,,a,a,0.9,0.1,\ny,0,,,a,0.9,0.1,\n", ", line 3, column label: empty; only videos with labels"),
        (FIRST + "x,0,,c,a,0.9,0.1,\n", ", line 2, column label: 'c' has no column score:c"),
        (FIRST + "x,0,,ac,a,0.9,0.1,\n", ", line 2, column label: 'ac' has no column score:ac"),
        (FIRST + "x,0,,a,a,0.9,0.1,\ny,0,,a,a,0.9\n", ", line 3: 6 cells where the first line has 8; it is damaged"),
        (FIRST + "x,0,,a,a,0.9,zero,\n", ", line 2, column score:b: 'zero' is not a probability"),
        (FIRST + "x,0,,a,a,0.9,,\n", ", line 2, column score:b: '' is not a probability"),
        (FIRST + "x,0,,a,a,1.5,-0.5,\n", ", line 2, column score:a: '1.5' is not a probability"),
        (FIRST + "x,0,,a,a,nan,0.1,\n", ", line 2, column score:a: 'nan' is not a probability"),
        (FIRST + "x,soon,,a,a,0.9,0.1,\n", ", line 2, column start_seconds: 'soon' is not a number of seconds"),
        (FIRST + "x,0,inf,a,a,0.9,0.1,\n", ", line 2, column end_seconds: 'inf' is not a number of seconds"),
        (FIRST + "x,0,,a,b,0.9,0.1,\n", ", line 2, column prediction: 'b' is not what its scores say"),
        (FIRST + "x,0,,a,,0.9,0.1,\n", ", line 2, column prediction: '' is not what its scores say"),
        (FIRST + "x,0,,a|b,b,0.9,0.1,\n", ", line 2, column prediction: 'b' is not what its scores say"),
        (FIRST + "x,0,,a,a,0.9,0.6,\n", ", line 2: its scores add up to 1.5 instead of 1; it is damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read as predictions of `cnnbert test`: (No such|Is a dir)"):
            read_predictions(path)
