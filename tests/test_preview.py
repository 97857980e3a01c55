"""Contact sheets of clips as the network sees them."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_DATA, write_video
from PIL import Image

from cnnbert.cli import main
from cnnbert.data.readers import PyAVReader
from cnnbert.loading import build_data
from cnnbert.preview import _clips


def options(root: Path, *more: str) -> list[str]:
    return [*TINY_DATA, "--data.source=Folder", f"--data.source.root={root}", *more]


def test_the_clips_are_those_of_training(videos: Path, workplace: Path) -> None:
    """The first batch of an epoch: cropped, mirrored, and with the label that the mirrored clip has."""
    words = options(videos, "--data.mirrored={red: blue, blue: red}", "--data.batch_size=6")
    data = build_data(None, words)
    data.setup("fit")
    shown = _clips(data, "train", 6)
    batch = next(iter(data.train_dataloader()))
    for one, clip, label in zip(shown, batch["clip"], batch["label"].tolist(), strict=True):
        assert one.clip is not None and torch.equal(one.clip, clip[0])
        assert one.label == data.class_names[label]
    assert any(one.label != Path(one.path).parent.name for one in shown)  # mirrored ones


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_sheet(videos: Path, workplace: Path, capsys: pytest.CaptureFixture[str], split: str) -> None:
    assert main(["preview", *options(videos), "--num-videos", "4", "--split", split]) == 0
    number = {"train": 12, "val": 6, "test": 9}[split]
    assert f"preview.png: 4 of {number} {split} videos, 8 frames, stride 1, 32x32 pixels" in capsys.readouterr().out
    picture = np.asarray(Image.open("preview.png").convert("RGB")).astype(int)
    assert picture.shape[0] > 4 * 112 and picture.shape[1] > 8 * 112
    data = build_data(None, options(videos))
    data.setup("test" if split == "test" else "fit")
    for row, one in enumerate(_clips(data, split, 4)):
        assert one.clip is not None
        top = 34 + row * (24 + 112 + 10) + 24
        drawn = picture[top + 10 : top + 100, 20:110].mean((0, 1))
        seen = one.clip[:, 0].float().mean((1, 2)).numpy()
        assert np.abs(drawn - seen).max() < 3  # the first frame, enlarged


def test_a_page_plays_the_clips(videos: Path, workplace: Path) -> None:
    assert main(["preview", *options(videos), "--num-videos", "3", "--out", "x.html"]) == 0
    page = Path("x.html").read_text()
    played = re.findall(r'"data:video/mp4;base64,([^"]+)"', page)
    assert len(played) == 3
    assert not re.search(r"https?://", page)
    Path("x.mp4").write_bytes(base64.b64decode(played[0]))
    with PyAVReader().open("x.mp4") as video:
        assert video.num_frames == 8


def test_what_cannot_be_read_is_shown_as_such(workplace: Path) -> None:
    for name in ("<a>", "b"):
        for number in range(3):
            write_video(Path("v/train", name, f"{number}.mp4"), (220, 30, 30))
            write_video(Path("v/val", name, f"{number}.mp4"), (220, 30, 30))
    Path("v/val/<a>/0.mp4").write_text("no video")
    assert main(["preview", *options(Path("v")), "--split", "val", "--out", "x.html"]) == 0
    page = Path("x.html").read_text()
    assert page.count("<video") == 5
    assert page.count("cannot be read: FFmpeg finds no video in it") == 1
    assert page.count("<b>&lt;a&gt;</b>") == 3
    assert main(["preview", *options(Path("v")), "--split", "val", "--out", "x.png"]) == 0
    assert Image.open("x.png").size[0] > 8 * 112


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.gif"], "out=x.gif must end in .png or .html"),
        (["--out", "old.png"], "old.png is there already; give another name, or --force to replace it"),
        (["--num-videos", "0"], "num_videos=0 must be at least 1; try 12"),
    ],
)
def test_mistakes(
    videos: Path, workplace: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Path("old.png").write_text("old")
    assert main(["preview", *options(videos), *words]) == 1
    assert capsys.readouterr().err == f"cnnbert: error: {message}\n"
    assert Path("old.png").read_text() == "old"
