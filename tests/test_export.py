"""Exported files give the model's scores, without torch where they are ONNX; and nothing wrong is left behind."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video
from exported import Patches, check_file, settle, small_model
from torch import Tensor

import cnnbert
from cnnbert.cli import main
from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError
from cnnbert.export import Format, export_model, random_clips
from cnnbert.heads import Head, TGAPHead
from cnnbert.loading import build_data
from cnnbert.shipped import find_config, shipped_configs
from cnnbert.tasks.recognition import ActionRecognition

EXAMPLE = Path(__file__).parents[1] / "docs" / "onnx_example.py"
RUNS = [name for name in shipped_configs() if not name.startswith(("data/", "small/"))]
ONE_A_HEAD = {re.findall(r"(\w+Head)\b", Path(find_config(name)).read_text())[-1]: name for name in RUNS}
SIZES = {
    "R2Plus1D": ["depth=10", "width=32"],
    "ResNeXt3D": ["depth=14", "width=32"],
    "ResNet3D": ["depth=10", "width=32"],
    "CSN": ["depth=26", "width=16"],
    "C3D": ["width=4"],
    "I3D": ["width=8"],
    "S3D": ["width=8"],
    "TorchvisionVideo": ["network=mc3_18"],
    "FrameCNN": ["network=shufflenet_v2_x0_5"],
    "FrameFusion": ["width=12"],
    "TwoStream": [f"{stream}.{size}" for stream in ("rgb", "flow") for size in ("depth=10", "width=32")],
}
"""What makes each backbone of the shipped configs small."""


@pytest.fixture(scope="module")
def checkpoint(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that tells the colours of the videos apart."""
    root = tmp_path_factory.mktemp("trained")
    source = ["--data=data/folder.yaml", f"--data.source.root={videos}"]
    recipe = [
        "--trainer.max_epochs=30",
        "--trainer.check_val_every_n_epoch=30",
        "--data.batch_size=4",
        "--model.optimizer=AdamW",
        "--model.optimizer.lr=3e-3",
    ]
    words = [*source, *TINY_MODEL, *TINY_DATA, *TINY_RUN, *recipe, "--trainer.logger=false"]
    assert main(["fit", *words, f"--trainer.default_root_dir={root}"]) == 0
    (path,) = root.glob("*/*/checkpoints/last.ckpt")
    return path


def scores(model: ActionRecognition, clips: Tensor) -> np.ndarray:
    """Return a model's own scores."""
    with torch.no_grad():
        return model.probabilities(model(clips)).numpy()


def run_without(modules: str, code: str, *args: object) -> str:
    """Run Python in a process of its own that cannot import some modules, and return what it prints."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({modules.split()}))\n{code}"
    run = subprocess.run([sys.executable, "-c", blocked, *map(str, args)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_onnx(checkpoint: Path, videos: Path, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file, its report, and the example without torch on real videos."""
    capfd.readouterr()
    assert main(["export", str(checkpoint), "--out=model.onnx"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    difference = re.findall(r"own scores (\S+)\n  seconds  \d+\n$", shown.out)
    assert len(difference) == 1 and float(difference[0]) < 1e-5
    assert shown.out.splitlines()[:7] == [
        f"model.onnx: {Path('model.onnx').stat().st_size / 1e6:.1f} MB, {checkpoint}",
        "  network  R2Plus1D, BERTHead",
        "  input    clips: uint8 (B, 3, 8, 32, 32), any B",
        "           8 frames, stride 1; scaled to short side 32, centre crop",
        "  output   scores: float32 (B, 3), softmax",
        "  classes  blue, green, red",
        f"  checked  run with 1 and 3 clips; largest difference from the model's own scores {difference[0]}",
    ]
    assert str(Path(cnnbert.__file__).parent).encode() not in Path("model.onnx").read_bytes()

    model, session = cnnbert.load(checkpoint), onnxruntime.InferenceSession("model.onnx")
    known = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert known == {
        "class_names": ["blue", "green", "red"],
        "clip_length": 8,
        "stride": 1,
        "frame_size": 32,
        "channels": 3,
        "resize": 32,
        "antialias": True,
        "multi_label": False,
        "cnnbert_version": cnnbert.__version__,
    }
    onnx.checker.check_model("model.onnx", full_check=True)
    assert [(one.name, one.type, one.shape) for one in (*session.get_inputs(), *session.get_outputs())] == [
        ("clips", "tensor(uint8)", ["batch", 3, 8, 32, 32]),
        ("scores", "tensor(float)", ["batch", 3]),
    ]
    clips = random_clips(model, 5)
    for batch in (1, 5):
        (found,) = session.run(None, {"clips": clips[:batch].numpy()})
        np.testing.assert_allclose(found, scores(model, clips[:batch]), rtol=0, atol=1e-5)

    paths = [str(path) for path in sorted(videos.rglob("test/*/1.mp4"))]
    paths.append(str(write_video(workplace / "wide.mp4", np.arange(64 * 64 * 3).reshape(64, 64, 3) % 251, 40, 64)))
    dataset = model.data.dataset("predict", [VideoRecord(path) for path in paths])
    code = "import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    for number, path in enumerate(paths):
        expected = scores(model, dataset[number]["clip"])[0]
        lines = run_without("torch torchvision cnnbert", code, EXAMPLE, "model.onnx", path).splitlines()
        found = {line.split()[1]: float(line.split()[0]) for line in lines}
        assert next(iter(found)) == model.class_names[expected.argmax()]
        if "wide" not in path:
            assert next(iter(found)) == Path(path).parent.name  # the network has learned something
        # As the example says: sizes are rounded in another way.
        np.testing.assert_allclose([found[name] for name in model.class_names], expected, rtol=0, atol=0.01)


def test_torch_export(checkpoint: Path, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file is run without this package."""
    capfd.readouterr()
    assert main(["export", str(checkpoint), "--format", "torch-export", "--out", "model.pt2"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    assert "  input    clips: uint8 (B, 3, 8, 32, 32), any B\n" in shown.out
    model = cnnbert.load(checkpoint)
    clips = random_clips(model, 5)
    np.save("clips.npy", clips.numpy())
    code = """
import numpy, torch
known = {"metadata.json": ""}
run = torch.export.load("model.pt2", extra_files=known).module()
clips = torch.from_numpy(numpy.load("clips.npy"))
numpy.savez("scores.npz", *(run(clips[:batch]).numpy() for batch in (1, 5)))
print(known["metadata.json"])
"""
    known = json.loads(run_without("cnnbert pytorch_lightning", code))
    assert (known["class_names"], known["clip_length"], known["resize"]) == (["blue", "green", "red"], 8, 32)
    found = np.load("scores.npz")
    for name, batch in (("arr_0", 1), ("arr_1", 5)):
        np.testing.assert_allclose(found[name], scores(model, clips[:batch]), rtol=0, atol=1e-5)


def test_several_classes_a_video(tmp_path: Path) -> None:
    """Each class has a probability of its own; frames are of two sizes, and of two channels."""
    settings = ["data.label_separator=|", "data.clip_length=8", "data.frame_size=32", "data.resize=[40,60]"]
    network = ["model.backbone.depth=10", "model.backbone.width=8", "model.backbone.in_channels=2"]
    model = cnnbert.build("quickstart.yaml", ["run", "jump"], [*settings, *network])
    model.data = build_data("quickstart.yaml", settings)
    export_model(model, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    known = session.get_modelmeta().custom_metadata_map
    assert (known["multi_label"], known["resize"], session.get_inputs()[0].shape[1]) == ("true", "[40, 60]", 2)
    clips = random_clips(model, 2)
    (found,) = session.run(None, {"clips": clips.numpy()})
    np.testing.assert_allclose(found, model(clips).sigmoid().detach(), rtol=0, atol=1e-5)
    assert abs(found.sum(1) - 1).max() > 1e-3


class Twofold(TGAPHead):
    """Computes something else when it is exported."""

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return super().forward(features) * (20 if torch.compiler.is_compiling() else 1)


class Branching(TGAPHead):
    """Does what depends on numbers."""

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return super().forward(features if features.mean() > 0 else -features)


class Counting(TGAPHead):
    """Keeps the batch that it was traced with."""

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return super().forward(features) * (int(features.shape[0]) if len(features) == 2 else 1)


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            Twofold,
            r"model\.xyz is not written: its scores differ by up to \d\.\de-0[12] from the model's own, and 0\.0001",
        ),
        (
            Branching,
            r'Patches with Branching cannot be exported as .*data-dependent .*test_export\.py", line \d+, in forw',
        ),
        (
            Counting,
            "Patches with Counting cannot be exported as .*batch as dynamic but your code specialized it to be a",
        ),
    ],
)
def test_nothing_wrong_is_written(
    kind: Format, head: type[Head], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "model.xyz"
    path.write_text("old")
    with pytest.raises(InputError, match=message):
        export_model(small_model(Patches(16), head, 16, 16), path, kind)
    assert ([path], "old") == (list(tmp_path.iterdir()), path.read_text())
    shown = capfd.readouterr()
    assert "def forward" not in shown.out + shown.err  # exporters print what they have traced


def test_a_full_disk(checkpoint: Path, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files fails in the middle of writing, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        capfd.readouterr()
        assert main(["export", str(checkpoint), "--out=model.pt2", "--format=torch-export"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = "cnnbert: error: model.pt2 cannot be written: File too large; nothing is left of it\n"
    assert capfd.readouterr().err == told
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.ckpt", "--out=a.onnx"], "there is no checkpoint none.ckpt; give a file, `last` or `best`"),
        (["best", "--out=a.onnx"], "there is no checkpoint runs/*/*/checkpoints/best.ckpt; run `cnnbert fit` first"),
        (["text.ckpt", "--out=a.onnx"], "text.ckpt is damaged, or not a file that torch.save wrote"),
        (["tensors.ckpt", "--out=a.onnx"], "tensors.ckpt is not a checkpoint of `cnnbert fit`"),
        (["none.ckpt", "--out=old.onnx"], "old.onnx is there already; give another name, or --force to replace it"),
        (["none.ckpt", "--out=no/a.onnx"], "no/a.onnx cannot be written: No such file or directory"),
        (["none.ckpt", "--out=a.pt2"], "out=a.pt2 must end in .onnx for --format onnx"),
        (["none.ckpt", "--out=a", "--format=torch-export"], "out=a must end in .pt2 for --format torch-export"),
    ],
)
def test_bad_input(words: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.ckpt").write_text("no checkpoint")
    Path("old.onnx").write_text("old")
    torch.save({"a": torch.zeros(1)}, "tensors.ckpt")
    assert main(["export", *words]) == 1
    assert capsys.readouterr().err.startswith(f"cnnbert: error: {message}")
    assert {path.name for path in workplace.iterdir()} == {"text.ckpt", "old.onnx", "tensors.ckpt"}
    assert Path("old.onnx").read_text() == "old"


def test_an_unknown_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", "none.ckpt", "--out=a.xml", "--format=xml"])
    assert end.value.code == 2
    assert "Literal['onnx', 'torch-export']. Got value: xml" in capsys.readouterr().err


def test_packages_that_are_not_there(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["export", "none.ckpt", "--out=a.onnx"]) == 1
    told = "cnnbert: error: --format onnx needs onnxscript, onnxruntime; pip install 'cnnbert[onnx]'\n"
    assert capsys.readouterr().err == told
    assert main(["export", "none.ckpt", "--out=a.pt2", "--format=torch-export"]) == 1
    assert "there is no checkpoint none.ckpt" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("config", ONE_A_HEAD.values(), ids=ONE_A_HEAD)
def test_a_config_of_each_head_made_small(config: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        cls = type(cnnbert.build(config, ["run"]).backbone).__name__
    sizes = [f"model.backbone.{size}" for size in SIZES[cls]]
    model = cnnbert.build(config, ["run", "walk", "jump"], sizes)
    pixels = max(32, model.backbone.least_pixels)
    model.data = build_data(config, [*sizes, f"data.frame_size={pixels}", f"data.resize={pixels}"])
    settle(model)
    export_model(model, tmp_path / "model.onnx", "onnx")  # refuses what differs from the model


@pytest.mark.slow
@pytest.mark.parametrize("config", ["resnext_bert.yaml", "r2plus1d_bert.yaml"])
def test_the_papers_networks(config: str, tmp_path: Path) -> None:
    """Not settled: rounding then grows over 101 random layers until float32 itself is off by nearly 1e-4."""
    torch.manual_seed(0)
    model = cnnbert.build(config, [f"class {number}" for number in range(13)])
    model.data = build_data(config)
    check_file(model, tmp_path)
