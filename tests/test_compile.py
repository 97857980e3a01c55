"""A compiled backbone trains as the plain one does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN

import cnnbert
from cnnbert.cli import main


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_backbone_trains_alike(
    workplace: Path, videos: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = ["--data.source=Folder", f"--data.source.root={videos}", "--data.batch_size=6", *TINY_DATA]
    run = [*TINY_RUN, "--trainer.precision=32-true", "--trainer.logger=false", "--model.memory_format=channels_first"]
    weights = {}
    for name in ("true", "false"):
        options = [f"--model.compile_backbone={name}", f"--trainer.default_root_dir={name}"]
        assert main(["fit", *TINY_MODEL, *data, *run, *options]) == 0
        (path,) = Path(name).glob("run/fit-*/checkpoints/last.ckpt")
        weights[name] = torch.load(path, weights_only=True)["state_dict"]
        assert cnnbert.load(path).compile_backbone is (name == "true")
        assert main(["test", f"--ckpt_path={path}", "--trainer.logger=false"]) == 0
    assert weights["true"].keys() == weights["false"].keys()
    for name, weight in weights["true"].items():
        # Sums are added up in another order, and AdamW turns the smallest gradients into steps of the learning rate.
        torch.testing.assert_close(weight, weights["false"][name], atol=5e-4, rtol=1e-3, msg=name)
    assert caplog.text.count("| compiled |") + capsys.readouterr().err.count("| compiled |") == 1
