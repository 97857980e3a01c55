"""Models are built from configs and loaded from checkpoints, in Python and without the internet."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY_DATA, TINY_RUN
from pytorch_lightning import Trainer

import cnnbert
from cnnbert.cli import main
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.readers import PyAVReader
from cnnbert.data.sources import Folder
from cnnbert.errors import InputError
from cnnbert.loading import with_inner_nulls
from cnnbert.shipped import shipped_configs

NAMES = ["blue", "green", "red"]
TINY = ["model.backbone.depth=10", "model.backbone.width=8", "model.backbone.weights=null", "data.clip_length=8"]

# Parameters for 13, 51 and 101 classes; source: the networks of artest08/LateTemporalModeling3DCNN.
ROWS = {
    "resnext_tgap.yaml": (47_547_853, 47_625_715, 47_728_165),
    "resnext_bert_frmb.yaml": (47_358_413, 47_377_907, 47_403_557),
    "resnext_bert.yaml": (52_445_645, 52_465_139, 52_490_789),
    "r2plus1d_tgap.yaml": (63_498_644, 63_518_138, 63_543_788),
    "r2plus1d_bert.yaml": (66_654_100, 66_673_594, 66_699_244),
}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every use of the network an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def clips(number: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (number, 3, 8, 32, 32), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(clips())


@pytest.mark.parametrize("config", ROWS)
def test_the_papers_networks_have_their_parameters(offline: None, config: str) -> None:
    for number, expected in zip((13, 51, 101), ROWS[config], strict=True):
        with torch.device("meta"):
            model = cnnbert.build(config, [str(i) for i in range(number)])
        assert sum(parameter.numel() for parameter in model.parameters()) == expected
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert (len(model.class_names), model.training) == (number, False)


def test_the_other_configs_are_built_offline(offline: None) -> None:
    runs = {name for name in shipped_configs() if not name.startswith(("data/", "small/"))}
    assert set(ROWS) < runs
    for name in runs - set(ROWS):
        with torch.device("meta"):
            assert cnnbert.build(name, NAMES).class_names == NAMES


def test_a_built_model_takes_clips_and_gives_gradients() -> None:
    model = cnnbert.build("r2plus1d_bert.yaml", NAMES, TINY)
    output = model(clips())
    assert (output.shape, output.dtype) == ((2, 3), torch.float32)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.equal(logits(model), logits(model))  # in evaluation mode: no dropout


@pytest.mark.parametrize("dashes", ["", "--"])
def test_overrides_win(dashes: str) -> None:
    overrides = ["model.head.num_heads=4", "model.head.classifier_dropout=0.5", "model.label_smoothing=0.1"]
    model = cnnbert.build("r2plus1d_bert.yaml", NAMES, [dashes + override for override in (*TINY, *overrides)])
    assert model.backbone.out_channels == 64
    assert model.head.classifier_dropout.p == 0.5
    assert model.loss.label_smoothing == 0.1
    assert model.hparams["head"]["init_args"]["num_heads"] == 4


def test_null_elsewhere_is_left_as_it_is() -> None:
    names = ("backbone.weights", "backbone.init_args.weights", "head.norm.eps", "scheduler", "backbone.rgb.init_args")
    words = ["--model.backbone.rgb.weights=nullable", "fit", "null", *(f"--model.{name}=null" for name in names)]
    assert with_inner_nulls(words) == words


@pytest.mark.parametrize("path", ["backbone.flow.weights", "backbone.init_args.flow.init_args.weights"])
def test_null_arrives_in_a_stream(path: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [f"model.backbone.{name}.{size}" for name in ("rgb", "flow") for size in ("depth=10", "width=8")]
    model = cnnbert.build("two_stream_bert.yaml", NAMES, [*sizes, f"model.{path}=null"])
    assert (model.backbone.rgb.weights, model.backbone.flow.weights) == ("ig65m_clip32_359", None)
    assert (model.backbone.rgb.out_channels, model.backbone.flow.in_channels) == (64, 2)
    for words in ([f"--model.{path}", "null"], [f"--model.{path}=null"]):
        with pytest.raises(SystemExit):
            main(["fit", "--config=two_stream_bert.yaml", *words, "--print_config"])
        backbone = yaml.safe_load(capsys.readouterr().out)["model"]["backbone"]["init_args"]
        flow = backbone["flow"]["init_args"]
        assert (flow["weights"], flow["in_channels"], backbone["fusion"]) == (None, 2, "conv3d")


def test_the_clip_length_sizes_the_positions() -> None:
    for clip_length, num_tokens in ((8, 2), (32, 5), (64, 9)):
        model = cnnbert.build("r2plus1d_bert.yaml", NAMES, [*TINY, f"data.clip_length={clip_length}"])
        assert model.head.positions.shape == (1, num_tokens, 64)


@pytest.mark.parametrize("names", [["no", "1", "null"], ["a: b", "c, d", "'e'"], [f"class {i}" for i in range(120)]])
def test_any_class_names(names: list[str]) -> None:
    assert cnnbert.build("r2plus1d_bert.yaml", names, TINY).class_names == names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.head.num_headz=3", "num_headz"),
        ("--modle.head=TGAPHead", "unrecognized arguments: --modle.head=TGAPHead"),
        ("model.head=NoHead", "NoHead"),
        ("model.warmup_steps=soon", "soon"),
        ("model.head.num_heads=3", "num_heads=3 must divide the width 64; try 2"),
    ],
)
def test_unknown_overrides_are_named(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as error:
        cnnbert.build("r2plus1d_bert.yaml", NAMES, [*TINY, override])
    assert message in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_unknown_configs_are_named() -> None:
    message = "no config 'nothing.yaml' here; the shipped ones are .*data/csv.yaml, .*, resnext_tgap.yaml"
    with pytest.raises(InputError, match=message):
        cnnbert.build("nothing.yaml", NAMES)


def test_a_config_of_ones_own(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    model_settings = "model: {backbone: {class_path: R2Plus1D, init_args: {depth: 10, width: 8}}, head: TGAPHead}"
    config.write_text(model_settings)
    model = cnnbert.build(config, NAMES)
    assert (type(model.head).__name__, model.clip_length) == ("TGAPHead", 32)
    config.write_text(f"{model_settings}\nmodle: {{width: 8}}")
    with pytest.raises(InputError, match=r"mine.yaml: .*modle"):
        cnnbert.build(config, NAMES)


def datamodule(videos: Path, **arguments: Any) -> VideoDataModule:
    sizes: dict[str, Any] = {"clip_length": 8, "frame_size": 32, "resize": 32, "num_workers": 0, "batch_size": 4}
    return VideoDataModule(Folder(str(videos)), reader=PyAVReader(), **{**sizes, **arguments})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> tuple[Path, torch.Tensor]:
    """A checkpoint saved by a plain trainer, and the logits of the model that it holds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Loaded weights are not laid out anew, and another layout means sums in another order.
    overrides = [*TINY, "model.head.num_heads=4", "model.memory_format=channels_first"]
    model = cnnbert.build("r2plus1d_bert.yaml", NAMES, overrides)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(model, datamodule=datamodule(videos))
    path = tmp_path_factory.mktemp("plain") / "model.ckpt"
    trainer.save_checkpoint(path)
    expected = logits(model.eval())
    torch.set_num_threads(threads)
    return path, expected


def test_a_plain_trainers_checkpoint_loads_again(offline: None, trained: tuple[Path, torch.Tensor]) -> None:
    path, expected = trained
    for model in (cnnbert.load(path), cnnbert.load(str(path))):
        assert (model.class_names, model.clip_length, model.training) == (NAMES, 8, False)
        assert torch.equal(logits(model), expected)
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_plain_trainers_checkpoint_holds_settings_alone(trained: tuple[Path, torch.Tensor]) -> None:
    checkpoint = torch.load(trained[0], weights_only=True)
    assert checkpoint["hyper_parameters"]["head"]["init_args"]["num_heads"] == 4
    data = checkpoint["datamodule_hyper_parameters"]
    assert (data["frame_size"], data["batch_size"]) == (32, 4)
    assert not {"source", "reader"} & set(data)


def test_the_command_line_tests_a_plain_trainers_checkpoint(
    trained: tuple[Path, torch.Tensor], videos: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it was trained with comes out of the checkpoint; only the videos have to be named."""
    source = ["--data.source=Folder", f"--data.source.root={videos}"]
    assert main(["test", f"--ckpt_path={trained[0]}", *source, *TINY_RUN[1:]]) == 0
    assert "test: 9 videos, protocol center_clip: centre clip x centre crop, 8 frames" in capsys.readouterr().out


def test_the_config_that_a_run_leaves_is_built(workplace: Path, videos: Path) -> None:
    options = ["--config=r2plus1d_bert.yaml", "--trainer.logger=false", f"--data.source.root={videos}"]
    options += [*TINY_DATA, *TINY_RUN, "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    options += [f"--{override}" for override in TINY]
    assert main(["fit", "--data.source=Folder", *options]) == 0
    (config,) = workplace.glob("runs/*/fit-*/config.yaml")
    model = cnnbert.build(config, NAMES)
    (checkpoint,) = workplace.glob("runs/*/fit-*/checkpoints/last.ckpt")
    assert model.state_dict().keys() == cnnbert.load(checkpoint).state_dict().keys()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "there is no checkpoint {path}"),
        ("text", "{path} is damaged, or not a file that torch.save wrote ("),
        ("truncated", "{path} is damaged, or not a file that torch.save wrote ("),
        ("weights", "{path} is not a checkpoint of `cnnbert fit`: it does not hold the model's settings"),
        ("tensor", "{path} is not a checkpoint of `cnnbert fit`"),
    ],
)
def test_broken_checkpoints_are_named(
    trained: tuple[Path, torch.Tensor], tmp_path: Path, damage: str, message: str
) -> None:
    path = tmp_path / "broken.ckpt"
    if damage == "text":
        path.write_text("hello")
    elif damage == "truncated":
        whole = trained[0].read_bytes()
        path.write_bytes(whole[: len(whole) * 9 // 10])
    elif damage != "missing":
        torch.save({"state_dict": {}} if damage == "weights" else torch.zeros(3), path)
    with pytest.raises(InputError) as error:
        cnnbert.load(path)
    assert str(error.value).startswith(message.format(path=path))


@pytest.mark.parametrize(
    "backbone",
    [
        {"class_path": "FrameCNN", "init_args": {"network": "shufflenet_v2_x0_5"}},
        {"class_path": "FrameCNN", "init_args": {"network": "regnet_y_400mf"}},
        {"class_path": "FrameFusion", "init_args": {"fusion": "late", "width": 3, "cells": 2}},
        # Made with fully connected layers far larger than what is kept.
        {"class_path": "FrameCNN", "init_args": {"network": "alexnet"}},
        pytest.param({"class_path": "FrameCNN", "init_args": {"network": "vgg11"}}, marks=pytest.mark.slow),
        pytest.param({"class_path": "FrameCNN", "init_args": {"network": "vgg19_bn"}}, marks=pytest.mark.slow),
        pytest.param({"class_path": "FrameCNN", "init_args": {"network": "googlenet"}}, marks=pytest.mark.slow),
    ],
)
def test_checkpoints_of_networks_on_frames_load(offline: None, tmp_path: Path, backbone: dict[str, Any]) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": {"backbone": backbone, "head": "SnippetPoolHead"}}))
    settings = ["hidden_channels=8", "pooling=local", "window=2", "stride=2"]
    overrides = ["data.clip_length=20", *(f"model.head.{setting}" for setting in settings)]
    model = cnnbert.build(tmp_path / "mine.yaml", NAMES, overrides)
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = cnnbert.load(tmp_path / "model.ckpt")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


PARTS = '''
"""A backbone that looks at single frames, and a head that takes the strongest moment."""

from torch import nn

from cnnbert.backbones import Backbone
from cnnbert.heads import Head


class FrameNet(Backbone):
    def __init__(self, width: int = 4):
        super().__init__(3, width, temporal_stride=2, spatial_stride=4, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
        self.conv = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.BatchNorm3d(width)
        self.pool = nn.AvgPool3d((2, 1, 1))

    def forward_features(self, x):
        frames = self.conv(x.transpose(1, 2).flatten(0, 1))
        return self.norm(self.pool(frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)))


class StrongestHead(Head):
    def __init__(self, in_channels: int, num_classes: int, scale: float = 1.0):
        super().__init__(in_channels, num_classes)
        self.classifier = nn.Linear(in_channels, num_classes)
        self.scale = scale

    def forward(self, features):
        return self.scale * self.classifier(features.mean((3, 4)).amax(2))
'''


def test_a_users_own_backbone_and_head(
    workplace: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(workplace))
    model = ["--model.backbone=my_parts.FrameNet", "--model.backbone.width=6"]
    model += ["--model.head=my_parts.StrongestHead", "--model.head.scale=0.5"]
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}"]
    try:
        assert main(["fit", *model, *data, *TINY_RUN]) == 0
        assert main(["test", "--ckpt_path=best", *TINY_RUN[1:]]) == 0
        assert "test: 9 videos, protocol center_clip: centre clip x centre crop, 8 frames" in capsys.readouterr().out
        (checkpoint,) = workplace.glob("runs/run/fit-*/checkpoints/best.ckpt")
        network = cnnbert.load(checkpoint)
        assert (type(network.backbone).__name__, network.backbone.out_channels) == ("FrameNet", 6)
        assert (type(network.head).__name__, network.head.scale) == ("StrongestHead", 0.5)
        assert logits(network).shape == (2, 3)
    finally:
        sys.modules.pop("my_parts", None)


def run_python(code: str, folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder).stdout


def test_importing_the_package_is_quick(tmp_path: Path) -> None:
    code = "import sys, cnnbert; print(cnnbert.__version__, {'torch', 'pytorch_lightning', 'numpy'} & set(sys.modules))"
    assert run_python(code, tmp_path) == f"{cnnbert.__version__} set()\n"


def test_the_parts_are_attributes_of_the_package(tmp_path: Path) -> None:
    code = """
import sys, cnnbert
print(cnnbert.data.readers.DecordReader.__name__, cnnbert.data.samplers.UniformClips.__name__)
print(cnnbert.backbones.R2Plus1D.__name__, cnnbert.backbones.ResNeXt3D.__name__)
print(cnnbert.heads.BERTHead.__name__, cnnbert.heads.TGAPHead.__name__)
print('pytorch_lightning' in sys.modules)
print(cnnbert.build.__name__, cnnbert.load.__name__, cnnbert.data.datamodule.VideoDataModule.__name__)
"""
    assert run_python(code, tmp_path).splitlines() == [
        "DecordReader UniformClips",
        "R2Plus1D ResNeXt3D",
        "BERTHead TGAPHead",
        "False",  # reading videos and running networks needs no Lightning
        "build load VideoDataModule",
    ]


@pytest.mark.parametrize("module", ["cnnbert", "cnnbert.data"])
def test_unknown_attributes_are_named(module: str) -> None:
    __import__(module)
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        sys.modules[module].nothing  # noqa: B018
