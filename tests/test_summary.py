"""The sizes of networks are the published ones, and they are shown in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

import cnnbert
from cnnbert.backbones import Backbone
from cnnbert.cli import main
from cnnbert.shipped import shipped_configs
from cnnbert.summary import network_size

TINY = ["model.backbone.depth=10", "model.backbone.width=8", "data.clip_length=8", "data.frame_size=32"]

# Parameters for 13, 51 and 101 classes; for 51 the G multiply-adds of convolutions and matrix products, and with what
# ptflops counts beside them. Source: the networks and the log of artest08/LateTemporalModeling3DCNN. In the last two
# rows 0.013 G are the LSTM's and 0.004 G those of the non-local block's attention, which convolutions and linear layers
# alone, 38.06 and 38.12 G, leave out.
ROWS = [
    ("resnext_tgap.yaml", [], (47_547_853, 47_625_715, 47_728_165), 38.27, 38.57),
    ("resnext_bert_frmb.yaml", [], (47_358_413, 47_377_907, 47_403_557), 38.07, 38.37),
    ("resnext_bert.yaml", [], (52_445_645, 52_465_139, 52_490_789), 38.40, 38.70),
    ("r2plus1d_tgap.yaml", [], (63_498_644, 63_518_138, 63_543_788), 152.36, 152.95),
    ("r2plus1d_bert.yaml", [], (66_654_100, 66_673_594, 66_699_244), 152.37, 152.97),
    ("r2plus1d_bert.yaml", ["data.clip_length=64"], (66_656_148, 66_675_642, 66_701_292), 304.74, 305.94),
    ("ltm/resnext_64f_tgap_frmb.yaml", [], (44_202_957, 44_222_451, 44_248_101), 38.06, 38.36),
    ("ltm/resnext_64f_concat.yaml", [], (47_392_401, 47_451_339, 47_528_889), 38.06, 38.36),
    ("ltm/resnext_64f_lstm.yaml", [], (47_560_951, 47_578_089, 47_600_639), 38.07, 38.37),
    ("ltm/resnext_64f_non_local.yaml", [], (47_309_949, 47_347_987, 47_398_037), 38.13, 38.43),
]


@pytest.mark.parametrize(("config", "settings", "parameters", "multiply_adds", "ptflops"), ROWS)
def test_published_sizes(
    config: str, settings: list[str], parameters: tuple[int, int, int], multiply_adds: float, ptflops: float
) -> None:
    sizes = [network_size(config, number, settings) for number in (13, 51, 101)]
    assert tuple(size.parameters for size in sizes) == parameters
    assert (round(sizes[1].multiply_adds / 1e9, 2), round(sizes[1].ptflops / 1e9, 2)) == (multiply_adds, ptflops)


def test_the_stages_are_the_network() -> None:
    size = network_size("resnext_bert.yaml")
    assert size.clip == (3, 64, 112, 112)
    assert [(stage.name, stage.shape) for stage in size.stages] == [
        ("backbone.conv1", (64, 64, 56, 56)),
        ("backbone.maxpool", (64, 32, 28, 28)),
        ("backbone.layer1", (256, 32, 28, 28)),
        ("backbone.layer2", (512, 16, 14, 14)),
        ("backbone.layer3", (1024, 8, 7, 7)),
        ("backbone.layer4", (2048, 4, 4, 4)),
        ("head.reduction", (512, 4, 4, 4)),
        ("head, the rest", (13,)),
    ]
    assert size.features == (512, 4, 4, 4)
    assert [size.part(name)[0] for name in ("backbone", "head")] == [47_521_216, 4_924_429]
    assert size.stages[0].parameters == 64 * 3 * 7**3 + 2 * 64  # with its BatchNorm
    assert size.stages[0].multiply_adds == 3 * 7**3 * 64 * 64 * 56 * 56
    assert size.multiply_adds == sum(size.part(name)[1] for name in ("backbone", "head"))


def test_sizes_follow_the_settings() -> None:
    size = network_size("r2plus1d_bert.yaml", 5, [*TINY, "model.head.num_heads=4"])
    assert (size.clip, size.features, size.stages[-1].shape) == ((3, 8, 32, 32), (64, 1, 2, 2), (5,))
    assert network_size("r2plus1d_bert.yaml", 5, [*TINY, "model.backbone.in_channels=2"]).clip == (2, 8, 32, 32)
    with torch.device("meta"):
        model = cnnbert.build("r2plus1d_bert.yaml", list("abcde"), TINY)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("config", [name for name in shipped_configs() if not name.startswith(("data/", "small/"))])
def test_every_config_is_shown(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "--config", config]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert max(len(line) for line in lines) <= 80
    stages = [line.split() for line in lines[4 : next(i for i, line in enumerate(lines) if line.startswith("---"))]]
    (total,) = (line.split() for line in lines if line.startswith("total"))
    assert sum(int(words[-2].replace(",", "")) for words in stages) == int(total[1].replace(",", ""))
    assert sum(float(words[-1]) for words in stages) == pytest.approx(float(total[2]), abs=0.005)  # each is rounded


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "--config=resnext_bert.yaml", "--num-classes=51", "--model.head.num_heads", "4"]) == 0
    assert capsys.readouterr().out == (
        """\
resnext_bert.yaml: ResNeXt3D and BERTHead, 51 classes
a clip of 3 x 64 x 112 x 112: channels x frames x height x width

stage               output                  parameters   multiply-adds (G)
backbone.conv1      64 x 64 x 56 x 56           65,984              13.218
backbone.maxpool    64 x 32 x 28 x 28                0               0.000
backbone.layer1     256 x 32 x 28 x 28         233,472               5.767
backbone.layer2     512 x 16 x 14 x 14       1,344,512               5.626
backbone.layer3     1024 x 8 x 7 x 7        29,562,880              12.270
backbone.layer4     2048 x 4 x 4 x 4        16,314,368               1.386
head.reduction      512 x 4 x 4 x 4          1,762,304               0.113
head, the rest      51 logits                3,181,619               0.016
--------------------------------------------------------------------------
total                                       52,465,139              38.396
  backbone                                  47,521,216              38.268
  head                                       4,943,923               0.128

time steps    4 of 512 channels (+ the class token)
multiply-adds 38.40 G a clip, in convolutions and matrix products;
              38.70 G as ptflops counts, with BatchNorm (twice), ReLU, pooling:
              the GFlops in the log of LTM (artest08/LateTemporalModeling3DCNN)
"""
    )


def test_small_networks_are_shown_in_millions(capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--{setting}" for setting in TINY]
    assert main(["summary", "--config=r2plus1d_tgap.yaml", *settings]) == 0
    shown = capsys.readouterr().out
    assert "multiply-adds (M)" in shown
    assert "time steps    1 of 64 channels\n" in shown


def test_the_command_line_of_a_training_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is read, so that the videos need not be there."""
    words = ["--data", "data/csv.yaml", "--data.source.path", "absent.csv", "--trainer.max_epochs", "3"]
    assert main(["summary", "--config", "r2plus1d_bert.yaml", *words, "--seed_everything", "7"]) == 0
    assert "total                                       66,654,100" in capsys.readouterr().out


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["summary", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "Show the stages of a network with their output, parameters and multiply-adds." in shown
    assert "--num_classes NUM_CLASSES Classes K." in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config=nothing.yaml"], "no config 'nothing.yaml' here; the shipped ones are "),
        (["--config=resnext_bert.yaml", "--data=data/nothing.yaml"], "no config 'data/nothing.yaml' here"),
        (["--config=resnext_bert.yaml", "--model.head.num_headz=3"], "num_headz"),
        (["--config=resnext_bert.yaml", "--model.head.num_heads=3"], "num_heads=3 must divide the width 512; try 2"),
        (["--config=resnext_bert.yaml", "--num-classes=0"], "num_classes=0 must be at least 1"),
        (["--config=resnext_bert.yaml", "--data.clip_length=8"], "clip_length=8 is too short for ResNeXt3D"),
        (["--config=resnext_bert.yaml", "--data.frame_size=24"], "frames of 24x24 are too small for ResNeXt3D"),
    ],
)
def test_bad_input_is_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", *options]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("cnnbert: error: ")
    assert message in shown.err
    assert shown.out == ""


class Pools(Backbone):
    """Has every operation that ptflops counts by its elements, and parameters outside of stages."""

    def __init__(self) -> None:
        super().__init__(3, 2, temporal_stride=2, spatial_stride=4, mean=(0, 0, 0), std=(1, 1, 1))
        self.scale = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm3d(3)  # 2 x 384 elements; before any stage
        self.conv = nn.Conv3d(3, 2, 1, bias=False)
        self.relu = nn.ReLU()  # 256
        self.max = nn.MaxPool3d((1, 2, 2))  # 256
        self.average = nn.AvgPool3d((2, 1, 1))  # 64
        self.adaptive = nn.AdaptiveAvgPool3d((1, 2, 2))  # 32
        self.unused = nn.Linear(4, 4)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.scale * self.adaptive(self.average(self.max(self.relu(self.conv(self.norm(x))))))


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("model: {backbone: test_summary.Pools, head: TGAPHead}\ndata: {clip_length: 2, frame_size: 8}")
    size = network_size(str(config), 3)
    assert [(stage.name, stage.shape, stage.parameters) for stage in size.stages] == [
        ("backbone.conv", (2, 2, 8, 8), 6),
        ("backbone.max", (2, 2, 4, 4), 0),
        ("backbone.average", (2, 1, 4, 4), 0),
        ("backbone.adaptive", (2, 1, 2, 2), 0),
        ("backbone, the rest", (2, 1, 2, 2), 1 + 6 + 20),
        ("head", (3,), 9),
    ]
    assert size.multiply_adds == 3 * 2 * 2 * 8 * 8 + 2 * 3
    assert size.elementwise == 2 * 384 + 256 + 256 + 64 + 32 + 8  # the last are the head's
    assert size.features == (2, 1, 2, 2)


@pytest.mark.parametrize("network", ["resnet18", "alexnet"])
def test_an_image_network_takes_its_published_operations_for_every_frame(network: str) -> None:
    weights: Any = get_model_weights(network)
    size = network_size("lrcn.yaml", 5, [f"model.backbone.network={network}", "data.clip_length=2"])
    classifier = {"resnet18": 512 * 1000, "alexnet": 256 * 6 * 6 * 4096 + 4096 * 4096 + 4096 * 1000}[network]
    published = weights.DEFAULT.meta["_ops"]  # of one image of 224x224, in billions with three digits
    assert size.part("backbone")[1] / 2 + classifier == pytest.approx(published * 1e9, abs=5e5)


def test_ptflops_of_an_image_network() -> None:
    """AlexNet's five ReLUs and three poolings; the head's average over space."""
    arguments = ["model.backbone.network=alexnet", "data.clip_length=1", "model.head.hidden_channels=1"]
    size = network_size("lrcn.yaml", 5, arguments)
    convolved = [64 * 55 * 55, 192 * 27 * 27, 384 * 13 * 13, 256 * 13 * 13, 256 * 13 * 13]
    assert size.elementwise == sum(convolved) + sum(convolved[i] for i in (0, 1, 4)) + 256 * 6 * 6


def test_the_inside_of_a_head_is_not_the_features() -> None:
    """A convolutional LSTM's gates see one time step after the other."""
    assert network_size("videolstm.yaml").features == (512, 16, 7, 7)
    assert network_size("actionvlad.yaml", 5, ["model.head.reduce_to=64"]).features == (64, 25, 7, 7)
