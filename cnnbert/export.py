"""Writes a trained network into one file that runs without this package, and runs that file before it says so."""

from __future__ import annotations

import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cnnbert import __version__
from cnnbert.errors import InputError
from cnnbert.loading import load
from cnnbert.outputs import new_file, whole_file
from cnnbert.runs import find_checkpoint
from cnnbert.tasks.recognition import ActionRecognition

Format = Literal["onnx", "torch-export"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
"""How the names of the files end; torch reads its own by no other."""

LARGEST_DIFFERENCE = 1e-4
"""The most by which a score of the file may differ from the model's own in float32."""

BATCH_SIZES = (1, 3)
"""How many clips the file is run with before it counts as exported."""

METADATA = "metadata.json"
"""The name of the metadata in a file of torch-export."""

MOST_CLASSES = 8
"""How many classes the report names."""


class Scorer(nn.Module):
    """Gives the probabilities of clips: what is exported.

    Args:
        model: The trained model, in evaluation mode.
    """

    def __init__(self, model: ActionRecognition) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.probabilities = model.probabilities

    def forward(self, clips: Tensor) -> Tensor:
        """Return probabilities (B, K) of clips, uint8 (B, C, T, H, W)."""
        return self.probabilities(self.head(self.backbone(clips)))


def export(checkpoint: str, *, out: str, format: Format = "onnx", force: bool = False) -> None:
    """Write a trained network into one file that runs without cnnbert, and run that file to see that it is right.

    The file takes clips as they are read, RGB, uint8 (B, 3, T, H, W), or of optical flow (B, 2, T, H, W), with any
    batch B and the clip length and frame size of the checkpoint, normalises them itself, and gives scores (B, K):
    probabilities, by softmax or, where a video may have several classes, by sigmoid. Class names, clip length, stride,
    frame size, channels and resizing are in its metadata.

    onnx: for ONNX Runtime and whatever else reads ONNX, without torch (pip install 'cnnbert[onnx]' to write it);
    docs/onnx_example.py runs it on a video. torch-export: for torch.export.load, without the code of the network.

    Before anything is kept, the file is run on random clips, 1 and 3 at a time. If a score differs from the model's own
    by more than 1e-4, nothing is written and the exit status is 1.

    Args:
        checkpoint: A file that fit wrote, or `best` or `last`, the newest such below runs.
        out: The file to write; its name ends in .onnx, or with torch-export in .pt2.
        format: What kind of file.
        force: Whether a file that is there may be replaced.
    """
    started = time.monotonic()
    if Path(out).suffix != SUFFIXES[format]:
        raise InputError(f"out={out} must end in {SUFFIXES[format]} for --format {format}")
    check_packages(format)
    target = new_file(out, force)
    source = find_checkpoint(checkpoint, Path("runs"), None)
    model = load(source)
    difference = export_model(model, target, format)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {source}")
    print("\n".join(report(model, difference)))
    print(f"  seconds  {time.monotonic() - started:.0f}", flush=True)


def check_packages(format: Format) -> None:
    """Raise `InputError` where packages that a format needs are not installed."""
    needed = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch-export": ()}[format]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise InputError(f"--format {format} needs {', '.join(missing)}; pip install 'cnnbert[{format}]'")


def export_model(model: ActionRecognition, target: Path, format: Format) -> float:
    """Write a model's network into a file and run the file.

    Args:
        model: A model with `data`, as `cnnbert.load` gives it: in evaluation mode, on the CPU, in float32. Its
            parameters take no gradients afterwards.
        target: The file, in a folder that exists; replaced if it is there.
        format: What kind of file.

    Returns:
        The largest difference of a score from the model's own.

    Raises:
        InputError: The network cannot be exported, its file gives other scores, or it cannot be written; nothing is.
    """
    scorer = Scorer(model).requires_grad_(False)  # so that what the file gives needs no gradient
    clips = random_clips(model, max(BATCH_SIZES))
    expected = [scorer(clips[:number]) for number in BATCH_SIZES]
    with whole_file(target) as part:
        try:
            with _quiet():
                content = _content(scorer, clips[:2], metadata(model), format)
            part.write_bytes(content)
            with _quiet():
                run = open_exported(part, format)
                found = [run(clips[:number]) for number in BATCH_SIZES]
        except OSError:
            raise
        except Exception as error:  # the exporters raise many kinds
            parts = f"{type(model.backbone).__name__} with {type(model.head).__name__}"
            raise InputError(f"{parts} cannot be exported as {format}: {_reason(error)}") from error
        if any(one.shape != other.shape for one, other in zip(found, expected, strict=True)):
            raise InputError(f"{target} is not written: its scores have the shape {tuple(found[-1].shape)}")
        difference = max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))
        if not difference <= LARGEST_DIFFERENCE:
            raise InputError(
                f"{target} is not written: its scores differ by up to {difference:.1e} from the model's own, and "
                f"{LARGEST_DIFFERENCE:g} is allowed; the network computes something else when exported as {format}"
            )
    return difference


def metadata(model: ActionRecognition) -> dict[str, Any]:
    """Return what a user of the file must know to make clips and to read the scores."""
    data = model.data
    return {
        "class_names": model.class_names,
        "clip_length": model.clip_length,
        "stride": data.stride,
        "frame_size": data.frame_size,
        "channels": model.backbone.in_channels,
        "resize": data.resize,
        "antialias": data.antialias,
        "multi_label": model.multi_label,
        "cnnbert_version": __version__,
    }


def open_exported(path: Path, format: Format) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an exported file: scores (B, K) of clips, uint8 (B, C, T, H, W), both on the CPU."""
    if format == "torch-export":
        return torch.export.load(path).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["scores"], {"clips": clips.numpy()})[0])


def random_clips(model: ActionRecognition, number: int) -> Tensor:
    """Return uint8 (number, C, T, H, W), the same every time: patches of random colours that change with every frame.

    Noise of single pixels would look alike in all clips once convolved, and patches do not.
    """
    frames = (number, model.backbone.in_channels, model.clip_length)
    patches = torch.randint(256, (*frames, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    places = torch.arange(model.data.frame_size) * 4 // model.data.frame_size
    return patches[..., places, :][..., places]


def report(model: ActionRecognition, difference: float) -> list[str]:
    """Return the lines that say what was exported and how well."""
    known = metadata(model)
    length, stride, size, resize = (known[name] for name in ("clip_length", "stride", "frame_size", "resize"))
    scaled = f"short side {resize}" if isinstance(resize, int) else "{}x{}".format(*resize)
    names = model.class_names
    others = f", and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    return [
        f"  network  {type(model.backbone).__name__}, {type(model.head).__name__}",
        f"  input    clips: uint8 (B, {model.backbone.in_channels}, {length}, {size}, {size}), any B",
        f"           {length} frames, stride {stride}; scaled to {scaled}, centre crop",
        f"  output   scores: float32 (B, {len(names)}), {'sigmoid' if model.multi_label else 'softmax'}",
        f"  classes  {', '.join(names[:MOST_CLASSES])}{others}",
        f"  checked  run with {' and '.join(map(str, BATCH_SIZES))} clips; "
        f"largest difference from the model's own scores {difference:.1e}",
    ]


def _content(scorer: Scorer, clips: Tensor, known: dict[str, Any], format: Format) -> bytes:
    """Return the bytes of the file of a network that is traced with clips (2, C, T, H, W)."""
    program = torch.export.export(scorer, (clips,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    if format == "torch-export":
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={METADATA: json.dumps(known)})
        return file.getvalue()
    exported = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["clips"],
        output_names=["scores"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert exported is not None
    network = exported.model_proto
    for name, value in known.items():
        network.metadata_props.add(key=name, value=json.dumps(value))
    return network.SerializeToString()


def _reason(error: BaseException) -> str:
    """Return what an error comes from, and the line of code where it says so; exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    place = [line.partition(". If")[0] for line in lines[1:] if line.startswith(("- You marked", 'File "'))]
    return "; ".join([lines[0], *(line.removeprefix("- ") for line in place[:1])])


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the exporters print, log and warn of; what is wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
