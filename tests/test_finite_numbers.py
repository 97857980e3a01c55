"""Numbers that are none stop a training with one message, and never get into a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins import MixedPrecision

from cnnbert.backbones import R2Plus1D
from cnnbert.cli import main
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.sources import Folder
from cnnbert.errors import InputError
from cnnbert.finite_numbers import FiniteNumbers
from cnnbert.heads import TGAPHead
from cnnbert.runs import read_checkpoint
from cnnbert.tasks.recognition import ActionRecognition

STEPS = 3
"""Steps of an epoch: 12 training videos, 4 at a time."""


def moody(videos: Path, mood: str, step: int, *options: str) -> list[str]:
    """Return the words of a training of a network that goes wrong at a step."""
    network = ["--model.backbone=moody_network.MoodyNetwork", f"--model.backbone.mood={mood}"]
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", "--data.batch_size=4"]
    run = [*TINY_RUN, "--trainer.max_epochs=4", "--trainer.logger=false", *options]
    return ["fit", *network, f"--model.backbone.step={step}", *TINY_MODEL[3:], *data, *run]


def weights(path: Path) -> list[torch.Tensor]:
    return list(read_checkpoint(path)["state_dict"].values())


def checkpoints(root: Path) -> dict[str, dict[str, Any]]:
    """Return the checkpoints of the one run."""
    (folder,) = root.glob("runs/*/fit-*/checkpoints")
    assert {path.name for path in folder.iterdir()} <= {"best.ckpt", "last.ckpt"}
    return {path.stem: read_checkpoint(path) for path in folder.iterdir()}


def test_a_loss_that_is_none_stops_the_training(workplace, videos, capsys):
    step = STEPS + 1
    assert main(moody(videos, "nan", step)) == 1
    err = capsys.readouterr().err
    assert f"cnnbert: error: the training loss is nan at step {step} (epoch 1), so the training stops." in err
    assert err.count("error:") == 1 and "Traceback" not in err
    told = [line.strip() for line in err.splitlines() if line.endswith(".mp4")]
    assert len(told) == 4 and all(Path(path).parent.parent == videos / "train" for path in told)
    (last,) = workplace.glob("runs/*/*/checkpoints/last.ckpt")
    assert f"The last good checkpoint is {last}. Go on from it with clipped gradients" in err
    going_on = f"cnnbert fit --ckpt_path {last} --trainer.gradient_clip_val 1"
    assert going_on in err
    assert "or train anew with a learning rate below 0.0001 (lr of model.optimizer)" in err
    found = checkpoints(workplace)
    assert set(found) == {"best", "last"}
    assert all(weight.isfinite().all() for one in found.values() for weight in one["state_dict"].values())
    assert found["last"]["global_step"] == STEPS  # not that of the step that went wrong
    # The printed line goes on, and the network that is well again gets to the end.
    line = next(line.strip() for line in err.splitlines() if "--ckpt_path" in line)
    assert main([*line.split()[1:], "--model.backbone.step=999"]) == 0
    assert checkpoints(workplace)["last"]["epoch"] == 3


def test_a_first_step_that_goes_wrong_leaves_no_checkpoint(workplace, videos, capsys):
    assert main(moody(videos, "nan", 0, "--trainer.precision=32-true", "--trainer.gradient_clip_val=1")) == 1
    err = capsys.readouterr().err
    assert "the training loss is nan at step 0 (epoch 0)" in err
    end = "No checkpoint was saved before. Train anew with a learning rate below 0.0001 (lr of model.optimizer)."
    assert end in err
    assert not list(workplace.glob("runs/*/*/checkpoints/*"))


def test_a_learning_rate_that_is_far_too_high(workplace, videos, capsys):
    words = moody(videos, "nan", 999, "--model.optimizer=SGD", "--model.optimizer.lr=1e38")
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "at step 1 (epoch 0), so the training stops" in err and "a learning rate below 1e+38" in err


@pytest.mark.parametrize("step", [2 * STEPS - 1, 2 * STEPS - 2])
def test_weights_that_are_none_replace_no_good_ones(workplace, videos, capsys, step):
    """The step that breaks the weights has a finite loss: in the last one of an epoch, saving is what notices."""
    assert main(moody(videos, "nan_weights", step)) == 1
    err = capsys.readouterr().err
    if step == 2 * STEPS - 1:
        assert "error: weights are NaN or infinite (backbone." in err and f"at step {step + 1} (epoch 1)" in err
    else:
        assert f"error: the training loss is nan at step {step + 1} (epoch 1)" in err
    assert err.count("error:") == 1 and "The last good checkpoint is" in err
    found = checkpoints(workplace)
    assert found["last"]["global_step"] == STEPS
    assert all(weight.isfinite().all() for one in found.values() for weight in one["state_dict"].values())


class Stop(Callback):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def test_ctrl_c_saves_no_weights_that_are_none(workplace, videos):
    stop = ["--trainer.callbacks+=test_finite_numbers.Stop", f"--trainer.callbacks.step={STEPS + 2}"]
    with pytest.raises(SystemExit):
        main([*moody(videos, "nan_weights", STEPS + 1), *stop])
    assert checkpoints(workplace)["last"]["global_step"] == STEPS
    with pytest.raises(SystemExit):  # while a good one is saved
        main([*moody(videos, "nan", 999, f"--trainer.default_root_dir={workplace / 'well'}"), *stop])
    (last,) = workplace.glob("well/*/*/checkpoints/last.ckpt")
    assert read_checkpoint(last)["global_step"] == STEPS + 2


@pytest.mark.parametrize(("mood", "step"), [("nan", 3), ("nan_weights", 2)])
def test_all_processes_stop_together(workplace, videos, mood, step):
    """Only the second process has a loss that is none; the first one says so."""
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=3", "--model.backbone.rank=1"]
    command = [sys.executable, "-m", "cnnbert", *moody(videos, mood, step, *ddp)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert f"the training loss is nan at step {3} (epoch 1), so the training stops. The videos" in done.stderr
    told = [line.strip() for line in done.stderr.splitlines() if line.endswith(".mp4")]
    assert len(told) == (3 if mood == "nan" else 6)
    assert checkpoints(workplace)["last"]["global_step"] == 2


def test_infinite_gradients_are_normal_in_float16(tmp_path, videos):
    """The scaler of gradients leaves their step out, and nothing else comes of it."""
    from moody_network import MoodyNetwork

    data = VideoDataModule(Folder(str(videos)), clip_length=8, frame_size=32, resize=32, num_workers=0, batch_size=4)
    network = MoodyNetwork("inf_grad", step=1)
    task = ActionRecognition(network, TGAPHead, ["blue", "green", "red"], clip_length=8)
    precision = MixedPrecision("16-mixed", "cpu")
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, plugins=[precision], callbacks=[FiniteNumbers()], **options)
    trainer.fit(task, datamodule=data)
    assert network.num_steps_done == 2 * STEPS - 1
    assert precision.scaler.get_scale() <= 2**15  # halved, at least once
    assert all(weight.isfinite().all() for weight in task.parameters())


def test_statistics_of_norms_count_and_masks_do_not(tmp_path, videos):
    class Masked(TGAPHead):
        def __init__(self, in_channels: int, num_classes: int) -> None:
            super().__init__(in_channels, num_classes)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    class Spoil(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking and trainer.current_epoch == 1:
                pl_module.backbone.stem[1].running_var[0] = torch.inf

    data = VideoDataModule(Folder(str(videos)), clip_length=8, frame_size=32, resize=32, num_workers=0, batch_size=4)
    task = ActionRecognition(R2Plus1D(10, 8), Masked, ["blue", "green", "red"], clip_length=8)
    options = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    trainer = Trainer(max_epochs=3, callbacks=[FiniteNumbers(), Spoil()], **options)
    with pytest.raises(InputError, match=r"infinite \(backbone\.stem\.1\.running_var\) at step 6 \(epoch 1\)"):
        trainer.fit(task, datamodule=data)
    (kept,) = tmp_path.glob("checkpoints/*.ckpt")
    assert kept.name == "epoch=0-step=3.ckpt"
