"""Runs have folders of their own, and their checkpoints are found again."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from cnnbert import runs
from cnnbert.errors import InputError


def write_checkpoint(path: Path, age: float) -> Path:
    """Write an empty file, `age` seconds old."""
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_a_run_folder_is_never_used_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.time, "strftime", lambda _: "20250102-030405")
    folders = []
    for _ in range(3):
        folders.append(runs.new_run_folder(tmp_path, "mine", "fit"))
        assert not folders[-1].exists()
        folders[-1].mkdir(parents=True)
    names = ["fit-20250102-030405", "fit-20250102-030405-2", "fit-20250102-030405-3"]
    assert folders == [tmp_path / "mine" / name for name in names]


def test_a_run_folder_is_named_after_the_moment(tmp_path: Path) -> None:
    assert re.fullmatch(r"test-\d{8}-\d{6}", runs.new_run_folder(tmp_path, "mine", "test").name)


def test_run_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tmp_path / "runs" / "mine" / "fit-1" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    assert runs.run_name(last) == "mine"
    assert runs.run_name(tmp_path / "model.ckpt") == "model"
    assert runs.run_name(tmp_path / "elsewhere" / "best.ckpt") == "best"
    monkeypatch.chdir(last.parents[1])  # inside the run's folder
    assert runs.run_name(Path("checkpoints/last.ckpt")) == "mine"


def test_the_newest_checkpoint_is_found(tmp_path: Path) -> None:
    ages = {"a/fit-1": 30, "a/fit-2": 20, "a/fit-3": 40, "b/fit-1": 10}
    paths = {run: write_checkpoint(tmp_path / run / "checkpoints" / "last.ckpt", age) for run, age in ages.items()}
    assert runs.find_checkpoint("last", tmp_path, "a") == paths["a/fit-2"]
    assert runs.find_checkpoint("last", tmp_path, "b") == paths["b/fit-1"]
    assert runs.find_checkpoint("last", tmp_path, None) == paths["b/fit-1"]
    best = write_checkpoint(tmp_path / "c" / "fit-1" / "checkpoints" / "best.ckpt", 50)
    assert runs.find_checkpoint("best", tmp_path, None) == best


def test_brackets_in_a_runs_name_are_no_pattern(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "lr[1]" / "fit-1" / "checkpoints" / "last.ckpt", 0)
    assert runs.find_checkpoint("last", tmp_path, "lr[1]") == path


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.touch()
    assert runs.find_checkpoint(str(path), tmp_path, None) == path


@pytest.mark.parametrize(
    ("name", "run", "message"),
    [
        ("last", "mine", "there is no checkpoint {root}/mine/*/checkpoints/last.ckpt; run `cnnbert fit` first"),
        ("best", None, "there is no checkpoint {root}/*/*/checkpoints/best.ckpt; run `cnnbert fit` first"),
        ("nothing.ckpt", None, "there is no checkpoint nothing.ckpt; give a file, `last` or `best`"),
    ],
)
def test_a_missing_checkpoint_is_named(tmp_path: Path, name: str, run: str | None, message: str) -> None:
    with pytest.raises(InputError) as error:
        runs.find_checkpoint(name, tmp_path, run)
    assert message.format(root=tmp_path) in str(error.value)


def test_settings_of_a_checkpoint() -> None:
    model = {"class_names": ["a", "b"], "clip_length": 16, "head": "x", "_instantiator": "i"}
    data = {"stride": 2, "clip_length": 8, "class_names": None, "_instantiator": "i"}
    settings = runs.checkpoint_settings({"hyper_parameters": model, "datamodule_hyper_parameters": data})
    assert settings["model"] == {"head": "x"}
    assert settings["data"] == {"stride": 2, "clip_length": 16, "class_names": ["a", "b"]}
    assert runs.checkpoint_settings({"hyper_parameters": model})["data"] == {
        "clip_length": 16,
        "class_names": ["a", "b"],
    }


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match="is not a checkpoint of `cnnbert fit`: it does not hold the model's settings"):
        runs.read_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(InputError, match=r"is damaged, or not a file that torch\.save wrote"):
        runs.read_checkpoint(path)


def save_checkpoint(path: Path) -> bytes:
    """Write a checkpoint and return its bytes."""
    torch.save({"hyper_parameters": {"_instantiator": "i"}, "state_dict": {"weight": torch.ones(10_000)}}, path)
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_cut_off_checkpoint_is_named_as_such(tmp_path: Path, kept: float) -> None:
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    whole = save_checkpoint(last)
    last.write_bytes(whole[: int(kept * len(whole))])
    told = f"it is cut off: only its first {int(kept * len(whole))} bytes are there" if kept else "it is empty"
    damaged = f"{last} is damaged, or not a file that torch.save wrote ({told}); copy it again from where it is whole"
    with pytest.raises(InputError) as error:
        runs.read_checkpoint(last)
    assert str(error.value) == damaged
    save_checkpoint(best)
    with pytest.raises(InputError) as error:
        runs.read_checkpoint(last)
    assert str(error.value) == f"{damaged}, or take {best}"


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    whole = save_checkpoint(last)
    place = len(whole) // 2  # among the weights
    last.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(InputError, match=r"last\.ckpt is damaged: what it holds as last/data/0 has changed since"):
        runs.read_checkpoint(last)
