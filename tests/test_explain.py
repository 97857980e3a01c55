"""Which moments and places of a video an answer rests on."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_DATA, TINY_RUN, write_video
from PIL import Image
from torch import Tensor, nn

import cnnbert
from cnnbert.backbones import Backbone
from cnnbert.cli import main
from cnnbert.data.readers import PyAVReader
from cnnbert.explain import explain_video
from cnnbert.explanation import explain_clip, grad_cam, log_odds
from cnnbert.heads import LSTMHead, TGAPHead
from cnnbert.tasks.recognition import ActionRecognition

HEADS = {"attention": "BERTHead", "places": "EfficientBERTHead", "none": "TGAPHead", "recurrent": "LSTMHead"}


class Colours(Backbone):
    """Gives the mean of each colour in cells of 4 frames and 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__(3, 3, temporal_stride=4, spatial_stride=8, mean=(0, 0, 0), std=(1, 1, 1))
        self.pool = nn.AvgPool3d((4, 8, 8))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.pool(x)


def colour_model(multi_label: bool = False) -> ActionRecognition:
    """A network that is sure of red, green and blue by how much of them there is."""
    model = ActionRecognition(Colours(), TGAPHead, ["red", "green", "blue"], 16, multi_label=multi_label).eval()
    with torch.no_grad():
        model.head.classifier.weight.copy_(100 * torch.eye(3))  # type: ignore[union-attr]
        model.head.classifier.bias.zero_()  # type: ignore[union-attr, operator]
    return model


def spot(colour: int = 0) -> Tensor:
    """A clip, uint8 (3, 16, 32, 32), that is black but for a spot of one colour: frames 8 to 11, below on the left."""
    clip = torch.zeros(3, 16, 32, 32, dtype=torch.uint8)
    clip[colour, 8:12, 24:32, 0:8] = 255
    return clip


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("colour", [0, 1, 2])
def test_the_spot_is_found_in_space_and_time(colour: int, multi_label: bool) -> None:
    found = explain_clip(colour_model(multi_label), spot(colour))
    assert found.target == colour
    assert found.heat.shape == (16, 4, 4)
    frame, row, column = np.unravel_index(int(found.heat.argmax()), found.heat.shape)
    assert (8 <= frame < 12, row, column) == (True, 3, 0)
    assert found.heat.max() == 1
    assert found.heat[[0, 15]].max() == 0
    assert found.time_attention is None and found.occlusion is not None
    assert found.occlusion.argmax() == 2
    assert found.moments is found.occlusion


def test_another_class_is_explained_on_request() -> None:
    found = explain_clip(colour_model(), spot(0) + spot(1).roll(-8, 1), target=1)
    assert found.target == 1
    assert found.heat.flatten(1).amax(1).argmax() < 4
    assert found.moments.argmax() == 0


def test_what_speaks_against_a_class_is_left_out() -> None:
    model = colour_model()
    with torch.no_grad():
        model.head.classifier.weight.neg_()  # type: ignore[union-attr, operator]
    assert explain_clip(model, spot(0), target=0).heat.abs().max() == 0


def test_grad_cam_of_an_average_is_its_classifier_at_every_place() -> None:
    """There Grad-CAM is the class activation map (Zhou et al. 2016), divided by the number of places."""
    head = TGAPHead(6, 4).double().eval()
    features = torch.randn(2, 6, 3, 2, 5, dtype=torch.float64)
    expected = torch.einsum("c,bcthw->bthw", head.classifier.weight[2], features).relu() / 30
    torch.testing.assert_close(grad_cam(head, features, 2), expected.detach())


def test_grad_cam_leaves_the_head_alone() -> None:
    head = LSTMHead(6, 4).eval().requires_grad_(False)
    with torch.inference_mode(False), torch.no_grad():
        assert grad_cam(head, torch.randn(1, 6, 3, 2, 2), 1).shape == (1, 3, 2, 2)
    assert all(parameter.grad is None for parameter in head.parameters())


def test_log_odds() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    p = logits.softmax(1)[0, 2]
    torch.testing.assert_close(log_odds(colour_model(), logits, 2)[0], (p / (1 - p)).log())
    p = logits.sigmoid()[0, 2]
    torch.testing.assert_close(log_odds(colour_model(True), logits, 2)[0], (p / (1 - p)).log())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> dict[str, Path]:
    """Models with heads of every kind, barely trained."""
    found = {}
    for name, head in HEADS.items():
        root = tmp_path_factory.mktemp(name)
        model = ["--model.backbone=R2Plus1D", "--model.backbone.depth=10", "--model.backbone.width=8"]
        model += [f"--model.head={head}", *(["--model.head.num_heads=4"] if head == "BERTHead" else [])]
        data = [*TINY_DATA, "--data.clip_length=16", "--data.source=Folder", f"--data.source.root={videos}"]
        assert main(["fit", *model, *data, *TINY_RUN, f"--trainer.default_root_dir={root}"]) == 0
        (found[name],) = root.glob("run/fit-*/checkpoints/best.ckpt")
    return found


@pytest.mark.parametrize("kind", HEADS)
def test_a_picture_a_video_and_a_page(
    checkpoints: dict[str, Path], workplace: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    write_video(Path("my clip.mp4"), (220, 30, 30), num_frames=24)
    assert main(["explain", str(checkpoints[kind]), "my clip.mp4"]) == 0
    assert sorted(path.name for path in workplace.iterdir()) == [
        "my clip.explained.html",
        "my clip.explained.mp4",
        "my clip.explained.png",
        "my clip.mp4",
    ]
    out = capsys.readouterr().out
    assert "my clip.mp4, 0.33 to 1.58 s\n" in out  # frames 4 to 19 of 24, 12 a second
    assert ("attention to each moment:" in out) == (kind in ("attention", "places"))
    assert len(re.findall(r"from +\d\.\d\d s", out)) == 2
    picture = Image.open("my clip.explained.png")
    assert min(picture.size) > 400
    assert np.asarray(picture.convert("RGB")).std() > 20
    with PyAVReader().open("my clip.explained.mp4") as video:
        assert (video.num_frames, round(video.fps)) == (16, 12)
        assert video.frames([0]).shape[3] == 2 * 224
    page = Path("my clip.explained.html").read_text()
    assert page.count("data:video/mp4;base64,") == page.count("data:image/png;base64,") == 1
    assert not re.search(r"https?://", page)


def test_attention_is_that_of_the_head(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = cnnbert.load(checkpoints["attention"])
    path = str(write_video(tmp_path / "x.mp4", (220, 30, 30), num_frames=24))
    explained = explain_video(model, path)
    with PyAVReader().open(path) as video:
        frames = video.frames(range(4, 20))
    clip = torch.nn.functional.interpolate(frames.float(), (32, 32), mode="bilinear", antialias=True)
    clip = clip.round().to(torch.uint8).transpose(0, 1)[None]
    with torch.no_grad():
        expected = model.head.time_attention(model.backbone(clip))
        probabilities = model(clip).softmax(1)[0]
    assert expected is not None and explained.explanation.time_attention is not None
    torch.testing.assert_close(explained.explanation.time_attention, expected[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(explained.explanation.probabilities, probabilities, atol=1e-3, rtol=0)
    assert float(explained.explanation.moments.sum()) == pytest.approx(1)
    assert explained.seconds[0] == pytest.approx(4 / 12)
    assert explained.target == next(iter(explained.classes))


class Texts(HTMLParser):
    """Collects tags and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_stay_text(workplace: Path) -> None:
    names = ["<script>alert(1)</script>", 'a & "b" $x_1$', "{c}"]
    for number in range(3):
        for i in range(5):
            write_video(Path("v", f"{number}{i}.mp4"), (220, 30, 90 * number))
    splits = ["train", "train", "train", "val", "test"]
    rows = [f"v/{n}{i}.mp4,{n},{splits[i]}" for n in range(3) for i in range(5)]
    Path("list.csv").write_text("path,label,split\n" + "\n".join(rows))
    data = [*TINY_DATA, "--data.source=CSVManifest", "--data.source.path=list.csv"]
    assert main(["fit", "--model.backbone=R2Plus1D", "--model.backbone.depth=10", "--model.backbone.width=8",
                 "--model.head=TGAPHead", *data, *TINY_RUN]) == 0  # fmt: skip
    (path,) = Path().glob("runs/run/fit-*/checkpoints/best.ckpt")
    known = torch.load(path, weights_only=True)
    known["hyper_parameters"]["class_names"] = names
    torch.save(known, "odd.ckpt")
    write_video(Path("<b>$x$.mp4"), (220, 30, 30))
    assert main(["explain", "odd.ckpt", "<b>$x$.mp4", "--label", names[0], "--out", "x.html", "x.png"]) == 0
    page = Texts()
    page.feed(Path("x.html").read_text())
    assert "script" not in page.tags and "b" not in page.tags
    for name in names:
        assert name in page.text
    assert Image.open(io.BytesIO(Path("x.png").read_bytes())).format == "PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "violet"], "label=violet is not one of the model's classes, blue, green, red"),
        (["--start-seconds", "2.5"], "start_seconds=2.5 must be in [0, 1.00), the video's length"),
        (["--start-seconds", "-1"], "start_seconds=-1 must be in [0, 1.00), the video's length"),
        (["--out", "x.gif"], "out=x.gif must end in .png, .mp4 or .html"),
        (["--out", "x.mp4"], "x.mp4 is there already; give another name, or --force to replace it"),
        (["--out", "no/x.png"], "no/x.png cannot be written: No such file or directory; nothing is left of it"),
    ],
)
def test_mistakes(
    checkpoints: dict[str, Path], workplace: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    before = write_video(Path("x.mp4"), (220, 30, 30)).read_bytes()
    assert main(["explain", str(checkpoints["none"]), "x.mp4", *words]) == 1
    assert capsys.readouterr().err == f"cnnbert: error: {message}\n"
    assert list(workplace.iterdir()) == [workplace / "x.mp4"]
    assert Path("x.mp4").read_bytes() == before


def test_no_video(checkpoints: dict[str, Path], workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.mp4").write_text("no video")
    assert main(["explain", str(checkpoints["none"]), "x.mp4"]) == 1
    assert capsys.readouterr().err.startswith("cnnbert: error: cannot read x.mp4: FFmpeg finds no video in it")
    assert list(workplace.iterdir()) == [workplace / "x.mp4"]


def test_a_clip_from_somewhere_else(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """From near the end the clip goes on at the beginning, as clips of short videos do."""
    path = str(write_video(tmp_path / "x.mp4", (220, 30, 30), num_frames=24))
    model = cnnbert.load(checkpoints["none"])
    assert explain_video(model, path, start_seconds=0.5).seconds == pytest.approx([n / 12 for n in range(6, 22)])
    late = explain_video(model, path, start_seconds=1.5)
    assert late.seconds == pytest.approx([n % 24 / 12 for n in range(18, 34)])
