"""Turns checkpoints of LTM's code into ours.

LTM is "Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition" (Kalfaoglu et al. 2020); its
code is artest08/LateTemporalModeling3DCNN.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning
import torch
from torch import Tensor

from cnnbert.backbones import Backbone, R2Plus1D, ResNeXt3D
from cnnbert.backbones.weights import unwrap
from cnnbert.errors import InputError
from cnnbert.loading import config_settings, instantiate
from cnnbert.tasks.recognition import ActionRecognition

TRUNKS: dict[type[Backbone], tuple[str, ...]] = {
    R2Plus1D: ("stem", "layer1", "layer2", "layer3", "layer4"),
    ResNeXt3D: ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
}
"""What LTM's `features.0`, `features.1`, ... are in ours."""

BLOCK = r"^bert\.transformer_blocks\.(\d+)\."
HEADS = {
    r"^mapper\.": "reduction.",
    r"^bert\.clsToken$": "cls",
    r"^bert\.embedding\.learnedPosition\.pe$": "positions",
    BLOCK + r"input_sublayer\.norm\.a_2$": r"blocks.\1.attention_norm.weight",
    BLOCK + r"input_sublayer\.norm\.b_2$": r"blocks.\1.attention_norm.bias",
    BLOCK + r"attention\.output_linear\.": r"blocks.\1.attention.out.",
    BLOCK + r"output_sublayer\.norm\.a_2$": r"blocks.\1.feedforward_norm.weight",
    BLOCK + r"output_sublayer\.norm\.b_2$": r"blocks.\1.feedforward_norm.bias",
    BLOCK + r"feed_forward\.w_1\.": r"blocks.\1.feedforward.0.",
    BLOCK + r"feed_forward\.w_2\.": r"blocks.\1.feedforward.3.",
    r"^NLB\.W_z\.": "block.out.",
    r"^NLB\.": "block.",
    r"^linear\.": "hidden.",
    r"^fc_action\.": "classifier.",
}
"""LTM's names, as patterns, and what they are in our heads; queries, keys and values are joined besides."""

QUERIES = re.compile(BLOCK + r"attention\.linear_layers\.0\.(weight|bias)$")


def import_checkpoint(source: str, output: str, *, config: str, class_names: str | None = None) -> None:
    """Turn a checkpoint of LTM's code into one that this package loads, tests and predicts with.

    LTM is "Late Temporal Modeling in 3D CNN Architectures with BERT for Action Recognition" (Kalfaoglu et al. 2020;
    artest08/LateTemporalModeling3DCNN). The network stays the same to the last bit of its weights. Nothing in the
    checkpoint is run, and nothing is written unless every tensor has found its place.

    Args:
        source: The checkpoint, such as model_best.pth.tar.
        output: The file to write, such as model.ckpt; it must not exist yet.
        config: The config of the same network: a path, or a shipped one such as r2plus1d_bert.yaml or
            ltm/r2plus1d_64f_bert.yaml.
        class_names: A text file with the names of the classes, one a line, in the order of the checkpoint's outputs.
    """
    target = Path(output).expanduser()
    if target.exists():
        raise InputError(f"{output} exists already; give another name, or remove it")
    state = unwrap(Path(source).expanduser())
    if "fc_action.weight" not in state:
        raise InputError(
            f"{source} is not a checkpoint of LTM's code, which has a classifier fc_action.weight; "
            "the weights of a backbone are taken by fit --model.backbone.weights"
        )
    names = _class_names(source, len(state["fc_action.weight"]), class_names)
    settings = config_settings(config, names)
    model = instantiate(settings["model"])
    model.load_state_dict(convert(state, model, source, config))
    data = {name: value for name, value in settings["data"].items() if name != "class_names"}
    checkpoint = {
        "pytorch-lightning_version": pytorch_lightning.__version__,
        "epoch": 0,
        "global_step": 0,
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "datamodule_hyper_parameters": data,
    }
    part = target.with_name(target.name + ".part")
    try:
        torch.save(checkpoint, part)
        os.replace(part, target)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a missing folder or a full disk
        part.unlink(missing_ok=True)
        raise InputError(f"{output} cannot be written: {error}") from None
    print(f"{target}: {len(names)} classes, {settings['data']['clip_length']} frames; to test it as LTM does:")
    print(f"  cnnbert test --ckpt_path {target} --data data/folder.yaml --data.source.root VIDEOS \\")
    print("    --data.test_protocol all_clips_10_crops --trainer.precision 32-true")


def convert(state: Mapping[str, Tensor], model: ActionRecognition, source: str, config: str) -> dict[str, Tensor]:
    """Return LTM's tensors under the names of `model`.

    Args:
        state: LTM's tensors by name.
        model: The network that they belong to.
        source: What to call the checkpoint in messages.
        config: What to call the network in messages.

    Raises:
        InputError: Tensors are missing, left over, or of another shape; the message names the first of them.
    """
    trunk = TRUNKS.get(type(model.backbone))
    if trunk is None:
        raise InputError(f"{config} has the backbone {type(model.backbone).__name__}, which LTM's code does not have")
    ours = model.state_dict()
    # Files of old torch versions lack these counters, which nothing here reads.
    found = {name: value for name, value in ours.items() if name.endswith(".num_batches_tracked")}
    theirs = {}
    for name, value in _join_projections(state).items():
        new = _rename(name, trunk)
        theirs[new], found[new] = name, value
    problems = {
        "missing": [name for name in ours if name not in found],
        "left over": [theirs[name] for name in found if name not in ours],
        "of another shape": [
            f"{theirs[name]} {tuple(found[name].shape)} instead of {tuple(ours[name].shape)}"
            for name in ours
            if name in found and found[name].shape != ours[name].shape
        ],
    }
    told = [f"{len(names)} tensors are {word} ({', '.join(names[:3])})" for word, names in problems.items() if names]
    if told:
        raise InputError(f"{source} is not of the network that {config} describes: {'; '.join(told)}")
    return found


def _rename(name: str, trunk: tuple[str, ...]) -> str:
    feature = re.match(r"features\.(\d+)\.", name)
    if feature and int(feature[1]) < len(trunk):
        return f"backbone.{trunk[int(feature[1])]}.{name[feature.end() :]}"
    for pattern, ours in HEADS.items():
        name, changed = re.subn(pattern, ours, name)
        if changed:
            break
    return f"head.{name}"


def _join_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with LTM's three projections of attention joined into one, queries first."""
    joined = dict(state)
    for name in state:
        match = QUERIES.match(name)
        names = [name.replace("linear_layers.0", f"linear_layers.{i}") for i in range(3)]
        if match and all(part in state for part in names):
            joined[f"blocks.{match[1]}.attention.qkv.{match[2]}"] = torch.cat([joined.pop(part) for part in names])
    return joined


def _class_names(source: str, num_classes: int, file: str | None) -> list[str]:
    if file is None:
        raise InputError(
            f"{source} has {num_classes} classes without names; give a text file with a name a line, in the order of "
            "its outputs, as --class-names"
        )
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the class names cannot be read from {file}: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != num_classes or len(set(names)) < len(names):
        raise InputError(
            f"{file} has {len(names)} names, {len(set(names))} of them different; {source} has {num_classes} classes: "
            "give a name a line for each"
        )
    return names
