"""A device whose memory is too small gets one message, with what runs and what to try."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN

from cnnbert.cli import main
from cnnbert.errors import InputError
from cnnbert.full_memory import is_out_of_memory, memory_told, smaller_batch


def full(videos: Path, step: int = -1) -> list[str]:
    network = ["--model.backbone=moody_network.MoodyNetwork", "--model.backbone.mood=full"]
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", "--trainer.logger=false"]
    run = [*TINY_RUN, "--trainer.precision=32-true"]
    return [*network, f"--model.backbone.step={step}", *TINY_MODEL[3:], *data, *run]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.count("error:") == 1 and "Traceback" not in err
    return err.split("error: ")[1]


def test_training(workplace, videos, capsys, monkeypatch):
    monkeypatch.setattr("cnnbert.full_memory.best_precision", lambda device: "16-mixed")
    assert main(["fit", *full(videos, 1), "--data.batch_size=6", "--trainer.accumulate_grad_batches=2"]) == 1
    assert told(capsys) == (
        "the device has run out of memory. It ran with data.batch_size 6, trainer.accumulate_grad_batches 2, "
        "precision 32-true, data.clip_length 8, data.frame_size 32. Try\n"
        "  --data.batch_size 3 --trainer.accumulate_grad_batches 4 (the optimizer sees the same 12 clips a step)\n"
        "  --model.gradient_checkpointing true (keeps less for the gradients and computes it twice)\n"
        "  --trainer.precision 16-mixed\n"
        "  shorter clips (--data.clip_length) or smaller frames (--data.frame_size)\n"
    )


def test_the_card_is_named(workplace, videos, capsys, monkeypatch):
    card = SimpleNamespace(name="Tesla V100", total_memory=32 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 31 * 2**30)
    from cnnbert.full_memory import _full

    message = _full(torch.device("cuda", 0), ["data.batch_size 6"], ["less"])
    assert message == (
        "the GPU has run out of memory: Tesla V100, 32.0 GiB, of which this process took 31.0 GiB. "
        "It ran with data.batch_size 6. Try\n  less"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_full_one_says_so(workplace, videos, rank):
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp", f"--model.backbone.rank={rank}", "--data.batch_size=2"]
    command = [sys.executable, "-m", "cnnbert", "fit", *full(videos, 1), *ddp]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1
    assert done.stderr.count("the device has run out of memory. It ran with data.batch_size 2") == 1
    assert "--data.batch_size 1 --trainer.accumulate_grad_batches 2 (the optimizer sees the same 2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation(workplace, videos, capsys, command):
    assert main(["fit", *full(videos, 999)]) == 0
    (last,) = workplace.glob("runs/*/*/checkpoints/last.ckpt")
    capsys.readouterr()
    views = ["--data.num_clips=2", "--data.num_crops=3"] if command == "test" else []
    options = ["--model.backbone.step=-1", "--trainer.logger=false", "--trainer.accelerator=cpu", *views]
    videos_of = [f"--data.source.root={videos / 'test'}"] if command == "predict" else []
    assert main([command, f"--ckpt_path={last}", *options, *videos_of]) == 1
    message = told(capsys)
    assert "It ran with data.batch_size 8, at most 32 clips at once, precision" in message
    assert "\n  --data.batch_size 4\n" in message and "checkpointing" not in message
    assert ("--data.num_clips 1 --data.num_crops 1 (another protocol" in message) == (command == "test")


def test_classify(workplace, videos, capsys):
    assert main(["fit", *full(videos, 999)]) == 0
    (last,) = workplace.glob("runs/*/*/checkpoints/last.ckpt")
    state = torch.load(last, weights_only=True)
    state["hyper_parameters"]["backbone"]["init_args"]["step"] = -1
    torch.save(state, last)
    capsys.readouterr()
    assert main(["classify", str(last), str(videos / "test"), "--num-workers=0"]) == 1
    message = told(capsys)
    assert "It ran with 10 clips at once of 8 frames of 32 pixels, precision" in message
    assert "\n  --num-clips 1, or --num-crops 1: fewer clips of each video\n  CUDA_VISIBLE_DEVICES= before" in message


@pytest.mark.parametrize(
    ("size", "multiple_of", "smaller"),
    [(16, 1, 8), (6, 1, 3), (9, 1, 3), (7, 1, 1), (1, 1, None), (8, 4, 4), (4, 4, None)],
)
def test_a_smaller_batch_makes_the_same_step(size, multiple_of, smaller):
    assert smaller_batch(size, multiple_of) == smaller


def test_only_memory_is_told_of():
    for error in (
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory"),
    ):
        assert is_out_of_memory(error)
        with pytest.raises(InputError, match=r"^told$"), memory_told(lambda: "told"):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), memory_told(lambda: "told"):
        raise RuntimeError("shapes do not match")
