"""LTM's checkpoints become ours and give its logits; anything else is refused, and nothing is written."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ltm_network
import pytest
import torch
import yaml
from conftest import SHARED
from ltm_network import Network
from torch import Tensor

import cnnbert
from cnnbert.cli import main
from cnnbert.shipped import find_config

NETWORKS = {
    "resnext_tgap.yaml": Network("resnext", "tgap"),
    "resnext_bert.yaml": Network("resnext", "bert", "frab"),
    "resnext_bert_frmb.yaml": Network("resnext", "bert", "frmb"),
    "r2plus1d_tgap.yaml": Network("r2plus1d", "tgap", frames=32, width=64),
    "r2plus1d_bert.yaml": Network("r2plus1d", "bert", frames=32, width=64),
    "ltm/resnext_64f_tgap_sgd.yaml": Network("resnext", "tgap"),
    "ltm/resnext_64f_tgap_adamw.yaml": Network("resnext", "tgap"),
    "ltm/resnext_64f_tgap_frmb.yaml": Network("resnext", "tgap", "frmb"),
    "ltm/resnext_64f_lstm.yaml": Network("resnext", "lstm", "frmb", hidden=450),
    "ltm/resnext_64f_non_local.yaml": Network("resnext", "non_local", "frmb", hidden=1000),
    "ltm/resnext_64f_concat.yaml": Network("resnext", "concat", "frmb"),
    "ltm/resnext_64f_bert_frab.yaml": Network("resnext", "bert", "frab"),
    "ltm/resnext_64f_bert_frmb.yaml": Network("resnext", "bert", "frmb"),
    "ltm/r2plus1d_32f_tgap_sgd.yaml": Network("r2plus1d", "tgap", frames=32, width=64),
    "ltm/r2plus1d_32f_bert.yaml": Network("r2plus1d", "bert", frames=32, width=64),
    "ltm/r2plus1d_64f_bert.yaml": Network("r2plus1d", "bert", frames=64, width=64),
}
PUBLISHED = {
    "artest08_r2plus1d_tgap": "r2plus1d_tgap.yaml",
    "artest08_r2plus1d_bert": "r2plus1d_bert.yaml",
    "artest08_resnext101_tgap": "resnext_tgap.yaml",
    "artest08_resnext101_bert_frmb": "resnext_bert_frmb.yaml",
    "artest08_resnext101_bert_frab": "resnext_bert.yaml",
}
SMALL = {"width": 16, "groups": 4, "reduced": 64, "hidden": 12, "heads": 4, "classes": 3}


def small(name: str) -> Network:
    """Return the network of a config with few channels, all its layers and all its frames."""
    return dataclasses.replace(NETWORKS[name], **SMALL)


def small_config(name: str, folder: Path) -> Path:
    """Write the shipped config with few channels."""
    network, config = small(name), yaml.safe_load(find_config(name).read_text())
    backbone, head = config["model"]["backbone"]["init_args"], config["model"]["head"].setdefault("init_args", {})
    backbone["width"] = network.width
    if network.trunk == "resnext":
        backbone["cardinality"] = network.groups
    if network.reduction == "frmb":
        backbone["last_block_channels"] = network.reduced
    if network.reduction == "frab":
        head["reduce_to"] = network.reduced
    if network.head == "bert":
        head["num_heads"] = network.heads
    if network.head in ("concat", "lstm", "non_local"):
        head["hidden_channels"] = network.hidden
    path = folder / Path(name).name
    path.write_text(yaml.safe_dump(config))
    return path


def write_checkpoint(path: Path, state: dict[str, Tensor], prefix: str = "module.", **options: Any) -> Path:
    """Write a file as LTM's code does."""
    checkpoint = {
        "epoch": 120,
        "arch": "rgb",
        "state_dict": {prefix + name: value for name, value in state.items()},
        "best_prec1": 77.25,
        "best_loss": 0.9,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5}]},
    }
    torch.save(checkpoint, path, **options)
    return path


def write_names(path: Path, number: int) -> Path:
    path.write_text("".join(f"class {i}\n" for i in range(number)))
    return path


def convert(
    name: str, folder: Path, network: Network, config: Path | str, prefix: str = "module."
) -> dict[str, Tensor]:
    """Import a random checkpoint of a network into `folder`/out.ckpt and return its tensors."""
    state = ltm_network.random_state(network)
    source = write_checkpoint(folder / "model_best.pth.tar", state, prefix)
    names = write_names(folder / "names.txt", network.classes)
    words = ["import-checkpoint", str(source), "--config", str(config), "--class-names", str(names)]
    assert main([*words, str(folder / "out.ckpt")]) == 0
    return state


@torch.no_grad()
def compare(network: Network, state: dict[str, Tensor], checkpoint: Path, batch: int = 2, size: int = 40) -> None:
    model = cnnbert.load(checkpoint).double()
    assert model.class_names == [f"class {i}" for i in range(network.classes)]
    assert model.clip_length == network.frames and not model.training
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, network.frames, size, size, generator=generator, dtype=torch.float64)
    mean, std = model.backbone.mean.view(3, 1, 1, 1), model.backbone.std.view(3, 1, 1, 1)
    clips = x * std + mean  # reaches far outside [0, 1]
    assert clips.min() < -0.1 or clips.max() > 1.1 or network.trunk == "resnext"
    expected = ltm_network.logits(network, state, x)
    assert expected.std() > 0.05  # the logits say something
    torch.testing.assert_close(model(clips), expected, rtol=1e-6, atol=1e-6)
    single = model.float()(clips.float()).double()
    # Float32 keeps seven digits, and a hundred layers lose some.
    torch.testing.assert_close(single, expected, rtol=5e-3, atol=5e-3)


def test_every_config_has_a_network() -> None:
    shipped = {path.relative_to(find_config("resnext_bert.yaml").parent).as_posix() for path in all_configs()}
    of_ltm = {name for name in shipped if name.startswith(("ltm/", "resnext_", "r2plus1d_"))}
    assert set(NETWORKS) == of_ltm - {"r2plus1d_flow_bert.yaml"}


def all_configs() -> list[Path]:
    folder = find_config("resnext_bert.yaml").parent
    return [*folder.glob("*.yaml"), *folder.glob("ltm/*.yaml")]


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_ltms(name: str, tmp_path: Path) -> None:
    config = small_config(name, tmp_path)
    state = convert(name, tmp_path, small(name), config, prefix="module." if "tgap" in name else "")
    compare(small(name), state, tmp_path / "out.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("name", {network: name for name, network in NETWORKS.items()}.values())
def test_full_size_logits_are_ltms(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]
    compare(network, convert(name, tmp_path, network, name), tmp_path / "out.ckpt", batch=1)


@pytest.mark.parametrize("table", PUBLISHED)
def test_layouts_are_the_published_ones(table: str) -> None:
    """The checkpoints made here have the names and shapes of LTM's own."""
    path = SHARED / "checkpoint_keys" / f"{table}.json"
    if not path.is_file():
        pytest.skip("the tables of published checkpoints are not here")
    network = dataclasses.replace(NETWORKS[PUBLISHED[table]], classes=13)
    published = {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    assert ltm_network.shapes(network) == published


@pytest.mark.parametrize("variant", ["no positions", "post-norm", "torch's LayerNorm", "class token masked"])
def test_the_yardstick_tells_other_berts_apart(variant: str) -> None:
    """What LTM's BERT is not gives other logits than allowed above."""
    network = small("r2plus1d_bert.yaml")
    state = {name: value.double() for name, value in ltm_network.random_state(network).items()}
    steps = torch.randn(2, network.steps, network.channels, dtype=torch.float64)
    plain = ltm_network.bert(state, steps, network.heads)
    other = ltm_network.bert(state, steps, network.heads, variant)
    # LayerNorm's biased variance alone changes the tokens by half a percent at 128 channels.
    assert (plain - other).abs().max() > 1e-3


def test_what_is_imported_tests_and_predicts(workplace: Path, videos: Path, capsys: pytest.CaptureFixture) -> None:
    name = "r2plus1d_bert.yaml"
    config = small_config(name, workplace)
    convert(name, workplace, small(name), config)
    names = ["blue", "green", "red"]
    Path("names.txt").write_text("\n".join(names) + "\n\n")
    Path("out.ckpt").unlink()
    assert main(f"import-checkpoint model_best.pth.tar --config {config} --class-names names.txt out.ckpt".split()) == 0
    told = capsys.readouterr().out
    assert "out.ckpt: 3 classes, 32 frames; to test it as LTM does:\n  cnnbert test --ckpt_path out.ckpt" in told
    assert "--data.test_protocol all_clips_10_crops --trainer.precision 32-true\n" in told
    data = ["--data", "data/folder.yaml", f"--data.source.root={videos}", "--data.num_workers=0"]
    tiny = ["--data.frame_size=32", "--data.resize=32", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    assert main(["test", "--ckpt_path", "out.ckpt", *data, *tiny]) == 0
    assert main(["predict", "--ckpt_path", "out.ckpt", *data, *tiny]) == 0
    assert "test: 9 videos" in capsys.readouterr().out
    assert len(list(Path("runs").glob("out/*/predictions.csv"))) == 2
    assert main(["fit", "--ckpt_path", "out.ckpt", *data, *tiny]) == 1
    assert "out.ckpt holds a model and no training to go on with" in capsys.readouterr().err


def test_old_files_without_counters_are_read(tmp_path: Path) -> None:
    name = "r2plus1d_bert.yaml"
    config, network = small_config(name, tmp_path), small(name)
    state = ltm_network.random_state(network)
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    source = write_checkpoint(tmp_path / "old.pth.tar", old, "module.", _use_new_zipfile_serialization=False)
    names = write_names(tmp_path / "names.txt", 3)
    words = ["import-checkpoint", str(source), f"--config={config}", f"--class-names={names}"]
    assert main([*words, str(tmp_path / "out.ckpt")]) == 0
    compare(network, state, tmp_path / "out.ckpt")


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


def deeper(state: dict[str, Tensor]) -> None:
    state["features.3.6.conv1.0.0.weight"] = state["features.3.5.conv1.0.0.weight"]


def shallower(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.startswith("features.3.5.")]:
        del state[name]


def wider(state: dict[str, Tensor]) -> None:
    state["features.0.3.weight"] = torch.zeros(20, *state["features.0.3.weight"].shape[1:])


def longer(state: dict[str, Tensor]) -> None:
    pe = "bert.embedding.learnedPosition.pe"
    state[pe] = torch.zeros(1, 9, state[pe].shape[2])


def without_keys(state: dict[str, Tensor]) -> None:
    del state["bert.transformer_blocks.0.attention.linear_layers.1.weight"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (deeper, "1 tensors are left over (features.3.6.conv1.0.0.weight)"),
        (shallower, "20 tensors are missing (backbone.layer3.5.conv1.0.0.weight, "),
        (wider, "1 tensors are of another shape (features.0.3.weight (20, 11, 3, 1, 1) instead of (16, 11, 3, 1, 1))"),
        (longer, "(bert.embedding.learnedPosition.pe (1, 9, 128) instead of (1, 5, 128))"),
        (without_keys, "1 tensors are missing (head.blocks.0.attention.qkv.weight); 2 tensors are left over (bert."),
    ],
)
def test_another_network_is_refused(
    change: Callable[[dict[str, Tensor]], None], told: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    name = "r2plus1d_bert.yaml"
    config, state = small_config(name, tmp_path), ltm_network.random_state(small(name))
    change(state)
    source, names = write_checkpoint(tmp_path / "in.pth.tar", state), write_names(tmp_path / "names.txt", 3)
    refused(capsys, tmp_path, [source, f"--config={config}", f"--class-names={names}"], told)
    refused(capsys, tmp_path, [source, f"--config={config}", f"--class-names={names}"], "is not of the network that")


def refused(capsys: pytest.CaptureFixture, folder: Path, words: list[Any], *told: str) -> None:
    """Check that a command ends with one clear message, and leaves nothing."""
    before = sorted(folder.iterdir())
    capsys.readouterr()
    assert main(["import-checkpoint", *map(str, words), str(folder / "out.ckpt")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cnnbert: error: ") and err.count("\n") == 1 and "Traceback" not in err
    for text in told:
        assert text in err
    assert sorted(folder.iterdir()) == before


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = "r2plus1d_bert.yaml"
    config, network = small_config(name, tmp_path), small(name)
    state, names = ltm_network.random_state(network), write_names(tmp_path / "names.txt", 3)
    options = [f"--config={config}", f"--class-names={names}"]

    source = write_checkpoint(tmp_path / "good.pth.tar", state)
    for kept in (0.3, 0.9):
        cut = tmp_path / f"cut_{kept}.pth.tar"
        cut.write_bytes(source.read_bytes()[: int(kept * source.stat().st_size)])
        refused(capsys, tmp_path, [cut, *options], "is damaged, or not a file that torch.save wrote")
    text = tmp_path / "text.pth.tar"
    text.write_text("no checkpoint at all\n" * 9)
    refused(capsys, tmp_path, [text, *options], "is damaged, or not a file that torch.save wrote")
    refused(capsys, tmp_path, [tmp_path / "nothing.pth.tar", *options], "there is no file")
    refused(capsys, tmp_path, [tmp_path, *options], "there is no file")

    code = tmp_path / "code.pth.tar"
    torch.save({"state_dict": state, "arch": Code(f"touch {tmp_path / 'ran'}")}, code)
    refused(capsys, tmp_path, [code, *options], "is refused: it wants to run code (posix.system)")
    assert not (tmp_path / "ran").exists()

    backbone = tmp_path / "backbone.pth"
    torch.save({"stem.0.weight": torch.zeros(1)}, backbone)
    refused(capsys, tmp_path, [backbone, *options], "is not a checkpoint of LTM's code", "--model.backbone.weights")
    torch.save([1, 2], backbone)
    refused(capsys, tmp_path, [backbone, *options], "holds no tensors by name")
    torch.save({"state_dict": {}}, backbone)
    refused(capsys, tmp_path, [backbone, *options], "holds no tensors by name")


def test_class_names_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = "r2plus1d_tgap.yaml"
    config = small_config(name, tmp_path)
    source = write_checkpoint(tmp_path / "in.pth.tar", ltm_network.random_state(small(name)))
    words = [source, f"--config={config}"]
    refused(capsys, tmp_path, words, "in.pth.tar has 3 classes without names; give a text file with a name a line")
    names = write_names(tmp_path / "names.txt", 2)
    refused(capsys, tmp_path, [*words, f"--class-names={names}"], "names.txt has 2 names, 2 of them different; ")
    names.write_text("a\nb\na\n")
    refused(capsys, tmp_path, [*words, f"--class-names={names}"], "names.txt has 3 names, 2 of them different; ")
    refused(capsys, tmp_path, [*words, "--class-names=nothing.txt"], "the class names cannot be read from nothing.txt")


def test_other_configs_and_outputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = "r2plus1d_tgap.yaml"
    config = small_config(name, tmp_path)
    source = write_checkpoint(tmp_path / "in.pth.tar", ltm_network.random_state(small(name)))
    names = write_names(tmp_path / "names.txt", 3)
    refused(capsys, tmp_path, [source, "--config=nothing.yaml", f"--class-names={names}"], "no config 'nothing.yaml'")
    out = tmp_path / "out.ckpt"
    out.write_text("precious")
    refused(capsys, tmp_path, [source, f"--config={config}", f"--class-names={names}"], "out.ckpt exists already")
    assert out.read_text() == "precious"
    words = ["import-checkpoint", str(source), f"--config={config}", f"--class-names={names}"]
    assert main([*words, str(tmp_path / "no folder" / "out.ckpt")]) == 1
    assert "no folder/out.ckpt cannot be written: " in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["import-checkpoint", "--help"])
    told = capsys.readouterr().out
    assert end.value.code == 0
    assert "usage: cnnbert import-checkpoint" in told and "model_best.pth.tar" in told
