"""The shipped sweep makes command lines that `cnnbert fit` takes: those of W&B's agent, without W&B's server."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_DATA, TINY_RUN
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb_file import read_run

from cnnbert import heads
from cnnbert.cli import main
from cnnbert.shipped import SWEEP, find_config, shipped_configs

SETTINGS: dict[str, Any] = yaml.safe_load(find_config(SWEEP).read_text(encoding="utf-8"))


def values(parameter: dict[str, Any]) -> list[Any]:
    """Return the values of a parameter that an agent may be told: all, or the ends and the middle of a range."""
    if "values" in parameter:
        return parameter["values"]
    assert parameter["distribution"] == "log_uniform_values"
    return [parameter["min"], math.sqrt(parameter["min"] * parameter["max"]), 1.2345678e-05, parameter["max"]]


def agent_command(chosen: dict[str, Any]) -> list[str]:
    """Return the words that W&B's agent starts (`_command_run` in wandb/wandb_agent.py)."""
    known = {**create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})}
    known["env"] = ["/usr/bin/env"]
    words: list[str] = []
    for word in create_sweep_command(list(SETTINGS["command"])):
        words += known[word[2:-1]] if re.fullmatch(r"\$\{.*\}", word) else [word]
    return words


COMMANDS = [
    agent_command(dict(zip(SETTINGS["parameters"], chosen, strict=True)))
    for chosen in itertools.product(*map(values, SETTINGS["parameters"].values()))
]


def test_it_is_about_heads_and_learning_rates() -> None:
    assert set(SETTINGS["parameters"]["model.head"]["values"]) <= set(heads.__all__)
    assert SETTINGS["metric"] == {"name": "val/best_top1", "goal": "maximize"}
    assert COMMANDS[0][:3] == ["/usr/bin/env", SETTINGS["program"], "fit"]
    assert SWEEP not in shipped_configs()


def test_every_command_is_taken(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([*words[2:], "--print_config"])
        assert stop.value.code == 0
        settings = yaml.safe_load(capsys.readouterr().out)
        chosen = dict(word.removeprefix("--").split("=") for word in words if "=" in word)
        assert settings["model"]["head"]["class_path"] == f"cnnbert.heads.{chosen['model.head']}"
        assert settings["model"]["optimizer"]["init_args"]["lr"] == float(chosen["model.optimizer.lr"])
        assert settings["trainer"]["logger"]["class_path"].endswith(".WandbLogger")


def test_a_command_runs(workplace: Path, videos: Path) -> None:
    """As a process; of small data in place of the config's, since an agent's words come last and win."""
    data = ["--data.source=Folder", f"--data.source.root={videos}", *TINY_DATA]
    small = ["--model.backbone.width=8", *data, *TINY_RUN, "--trainer.log_every_n_steps=1"]
    words = [*COMMANDS[-1], *small]
    assert words[1] == "cnnbert"
    subprocess.run([words[0], sys.executable, "-m", *words[1:]], check=True, capture_output=True)
    (path,) = workplace.glob("runs/quickstart/fit-*/wandb/offline-run-*/run-*.wandb")
    _, config, history = read_run(path)
    head = SETTINGS["parameters"]["model.head"]["values"][-1]
    assert config["model"]["head"]["class_path"] == f"cnnbert.heads.{head}"
    assert any(SETTINGS["metric"]["name"] in row for row in history)
