"""Checkpoints, features and configs of strangers run nothing: one error says what is wrong."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY_RUN
from untrained import NAMES, untrained

import cnnbert
from cnnbert.backbones.weights import BACKBONE_DIGEST
from cnnbert.checkpoint_classes import check_classes, check_config
from cnnbert.cli import main
from cnnbert.errors import InputError
from cnnbert.runs import read_checkpoint

CALLS: list[tuple[Any, ...]] = []


def note(*given: Any, **named: Any) -> None:
    """Stand for any function that a checkpoint may name."""
    CALLS.append((given, named))


class Note(list):
    """Stands for any class that a checkpoint may name."""

    def __init__(self, *given: Any, **named: Any) -> None:
        note(*given, **named)

    def __call__(self, *given: Any, **named: Any) -> None:
        note(*given, **named)


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return untrained()


@pytest.fixture
def good(known: dict[str, Any]) -> dict[str, Any]:
    return deepcopy(known)


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def refused(content: Any, path: Path) -> str:
    """Return the one error of all ways in; nothing may have been called."""
    torch.save(content, path)
    told = []
    for read in (read_checkpoint, cnnbert.load):
        with pytest.raises(InputError) as error:
            read(path)
        told.append(str(error.value))
    assert not CALLS
    assert told[0] == told[1]
    return told[0]


def test_the_checkpoint_that_the_others_are_made_of_loads(good: dict[str, Any], tmp_path: Path) -> None:
    torch.save(good, tmp_path / "good.ckpt")
    assert cnnbert.load(tmp_path / "good.ckpt").class_names == NAMES


@pytest.mark.parametrize("place", ["alone", "state_dict", "hyper_parameters", "callbacks", "optimizer_states"])
def test_pickled_code_is_refused(good: dict[str, Any], tmp_path: Path, place: str) -> None:
    trace = tmp_path / "ran"
    code = Code(f"touch {trace}")
    told = refused(code if place == "alone" else {**good, place: {"x": code}}, tmp_path / "evil.ckpt")
    assert f"{tmp_path / 'evil.ckpt'} is refused: it wants to run code (" in told and ".system)" in told
    assert not trace.exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.ckpt", tmp_path / "ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"state_dict": Code(f"touch {trace}")}, protocol))
        with pytest.raises(InputError, match=r"evil\.ckpt is (refused|damaged)"):
            cnnbert.load(path)
    assert not trace.exists()


HERE = __name__
ARGUMENTS = {"args": ["touch", "ran"], "command": "touch ran"}


@pytest.mark.parametrize("what", ["os.system", "subprocess.Popen", "os.kill", f"{HERE}.note", f"{HERE}.Note"])
@pytest.mark.parametrize("part", ["model.backbone", "model.head", "model.optimizer", "model.scheduler", "data.reader"])
def test_functions_and_other_classes_are_refused(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    section, _, name = part.partition(".")
    values: dict[str, Any] = {
        "path": what,
        "class_path": {"class_path": what},
        "with arguments": {"class_path": what, "init_args": ARGUMENTS},
        "in YAML": f"{{class_path: {what}, init_args: {{args: [touch, ran]}}}}",
        "nested": {"class_path": "torch.nn.Sequential", "dict_kwargs": {"x": {"class_path": what}}},
    }
    for form, value in values.items():
        with pytest.raises(InputError) as error:
            check_classes({section: {name: value}}, tmp_path)
        shown = {"nested": "torch.nn.Sequential", "in YAML": "{class_path: "}.get(form, what)
        assert f" is refused: {part} names {shown}" in str(error.value)
        assert "nothing of it was called" in str(error.value)
    settings = good["hyper_parameters" if section == "model" else "datamodule_hyper_parameters"]
    settings[name] = values["with arguments"]
    assert f"evil.ckpt is refused: {part} names {what}, which is no " in refused(good, tmp_path / "evil.ckpt")
    assert not Path("ran").exists()


@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_command_line_refuses_them_too(
    good: dict[str, Any], workplace: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for part in ("head", "optimizer"):
        evil = {**good["hyper_parameters"], part: {"class_path": "os.system", "init_args": {"command": "touch ran"}}}
        torch.save({**good, "hyper_parameters": evil, "optimizer_states": []}, "evil.ckpt")
        assert main([command, "--ckpt_path=evil.ckpt", *TINY_RUN[1:]]) == 1
        told = f"cnnbert: error: evil.ckpt is refused: model.{part} names os.system, which is no "
        assert told in capsys.readouterr().err
    assert not Path("ran").exists()


def test_modules_of_python_are_not_imported(good: dict[str, Any], tmp_path: Path) -> None:
    assert "antigravity" not in sys.modules
    good["hyper_parameters"]["head"] = {"class_path": "antigravity.Head"}
    assert "names antigravity.Head, which is no Head" in refused(good, tmp_path / "evil.ckpt")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("what", ["os.system", "antigravity.Stream", f"{HERE}.Note", "torch.nn.Linear", "TGAPHead"])
@pytest.mark.parametrize("form", ["path", "class_path", "in YAML", "number", "deeper"])
def test_backbones_inside_of_others_are_checked(good: dict[str, Any], tmp_path: Path, form: str, what: str) -> None:
    stream = {"class_path": "R2Plus1D", "init_args": {"depth": 10}}
    model = good["hyper_parameters"]
    for short in (stream, "R2Plus1D", "cnnbert.backbones.r2plus1d.R2Plus1D"):
        model["backbone"] = {"class_path": "TwoStream", "init_args": {"rgb": short, "flow": stream}}
        check_classes({"model": model}, tmp_path)
    values: dict[str, Any] = {
        "path": what,
        "class_path": {"class_path": what, "init_args": ARGUMENTS},
        "in YAML": f"{{class_path: {what}, init_args: {{args: [touch, ran]}}}}",
        "number": 3,
        "deeper": {"class_path": "TwoStream", "init_args": {"rgb": stream}, "dict_kwargs": {"flow": what}},
    }
    model["backbone"]["init_args"]["flow"] = values[form]
    told = refused(good, tmp_path / "evil.ckpt")
    assert "evil.ckpt is refused: model.backbone.init_args.flow" in told
    assert ("which describes no class" if form == "number" else "which is no Backbone") in told
    assert "antigravity" not in sys.modules


def test_short_names_and_other_spellings(good: dict[str, Any], tmp_path: Path) -> None:
    model = good["hyper_parameters"]
    for head in ("TGAPHead", {"class_path": "TGAPHead"}, {"class_path": "cnnbert.heads.tgap.TGAPHead"}):
        check_classes({"model": {**model, "head": head}}, tmp_path)
    for head in ("Popen", "R2Plus1D", {"init_args": {}}, ["os.system"], 3, {"class_path": ["os.system"]}, "a b.c"):
        with pytest.raises(InputError, match=r"is refused: model\.head"):
            check_classes({"model": {"head": head}}, tmp_path)
    for name in ("head.class_path", "head+", "", "--x"):
        with pytest.raises(InputError, match="is no setting"):
            check_classes({"model": {name: "os.system"}}, tmp_path)


OWN = """
from torch import nn
from cnnbert.heads import Head

def decay(epoch: int) -> float:
    return 0.9**epoch

class OwnHead(Head):
    def __init__(self, in_channels: int, num_classes: int, norm: nn.Module | None = None) -> None:
        super().__init__(in_channels, num_classes)
"""


def test_functions_of_ones_own_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    norm = {"class_path": "torch.nn.LayerNorm", "init_args": {"normalized_shape": 8}}
    head = {"class_path": "own_parts.OwnHead", "init_args": {"norm": norm}}
    check_classes({"model": {"head": head}}, tmp_path)
    norm["class_path"] = "torch.save"
    with pytest.raises(InputError, match=r"model\.head\.init_args\.norm names torch\.save"):
        check_classes({"model": {"head": head}}, tmp_path)
    for function, is_own in {"own_parts.decay": True, "os._exit": False, "torch.set_num_threads": False}.items():
        schedule = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": [function]}}
        if is_own:
            check_classes({"model": {"scheduler": schedule}}, tmp_path)
            continue
        with pytest.raises(InputError, match=r"init_args\.lr_lambda names .*; only functions of your own modules"):
            check_classes({"model": {"scheduler": schedule}}, tmp_path)


WIDE = {"class_path": "R2Plus1D", "init_args": {"depth": 10, "width": 1500}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": [1]}, "its state_dict cannot be used"),
        ({"state_dict": {"x": 1}}, "its state_dict cannot be used"),
        ({"state_dict": {"x": torch.zeros(2).to_sparse()}}, "its state_dict cannot be used"),
        ({"class_names": None}, "its class_names cannot be used"),
        ({"class_names": [1, 2]}, "its class_names cannot be used"),
        ({"class_names": ["a"]}, "evil.ckpt: the checkpoint is of another model"),
        ({"clip_length": 2.5}, "its clip_length cannot be used"),
        ({"clip_length": 10**12}, "its clip_length cannot be used"),
        ({"warmup_steps": torch.zeros(3)}, "its hyper_parameters cannot be used"),
        ({"multi_label": "yes"}, "its hyper_parameters cannot be used"),
        ({"warmup_steps": "soon"}, "has settings that cnnbert"),
        ({"nothing": 1}, "has settings that cnnbert"),
        ({"datamodule_hyper_parameters": 3}, "its datamodule_hyper_parameters cannot be used"),
        ({"backbone_sha256": torch.zeros(3)}, "its backbone_sha256 cannot be used"),
        ({"backbone_sha256": "0"}, "a head without its backbone, whose weights were random ones"),
        ({"datamodule_hyper_parameters": {"clip_lengths": 3}}, "has settings that cnnbert"),
        ({"backbone": {"class_path": "R2Plus1D", "init_args": {"depth": 10, "width": 1500}}}, "far larger network"),
        ({"head": {"class_path": "BERTHead", "init_args": {"num_heads": 4, "num_layers": 10**9}}}, "far larger"),
        ({"backbone": {"class_path": "TwoStream", "init_args": dict.fromkeys(("rgb", "flow"), WIDE)}}, "far larger"),
        ({"backbone": {"class_path": "TwoStream", "init_args": {"rgb": "R2Plus1D"}}}, "has settings that cnnbert"),
    ],
)
def test_damaged_content_is_told(good: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    for name, value in changes.items():
        (good if name in (*good, BACKBONE_DIGEST) else good["hyper_parameters"])[name] = value
    torch.save(good, tmp_path / "evil.ckpt")
    with pytest.raises(InputError) as error:
        cnnbert.load(tmp_path / "evil.ckpt")
    assert message in str(error.value)


def test_configs_beside_checkpoints_and_features_are_checked(
    good: dict[str, Any], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = {"model": {"head": {"class_path": "os.system", "init_args": {"command": "touch ran"}}}}
    run = Path("run")
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(evil))
    torch.save({**good, "optimizer_states": []}, run / "checkpoints" / "last.ckpt")
    assert main(["fit", f"--ckpt_path={run}/checkpoints/last.ckpt", *TINY_RUN[1:]]) == 1
    assert "config.yaml is refused: model.head names os.system, which is no Head" in capsys.readouterr().err
    Path("stored").mkdir()
    (run / "config.yaml").rename("stored/config.yaml")
    Path("stored/features.json").write_text('{"splits": {}, "key": {}}')
    assert main(["ablate", "--features=stored", "--out=made"]) == 1
    assert "config.yaml is refused: model.head names os.system, which is no Head" in capsys.readouterr().err
    logger = {"trainer": {"logger": {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {}}}}
    Path("good.yaml").write_text(yaml.safe_dump(logger))
    check_config(Path("good.yaml"))
    for text in ("model: other.yaml", "[1]", "a: [", "trainer: {logger: {class_path: subprocess.Popen}}"):
        Path("bad.yaml").write_text(text)
        with pytest.raises(InputError, match=r"^bad\.yaml "):
            check_config(Path("bad.yaml"))
    assert not Path("ran").exists()
