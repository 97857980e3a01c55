"""Finding what happens when in long videos."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image
from torch import Tensor, nn

from cnnbert.backbones import Backbone, FrameCNN
from cnnbert.cli import main
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.encoding import Encoding, encode_frames
from cnnbert.data.pyav_video import PyAVVideo
from cnnbert.data.readers import PyAVReader
from cnnbert.errors import InputError, VideoReadError
from cnnbert.heads import ConvLSTMHead, Head, LSTMHead, TGAPHead
from cnnbert.scanning import Scores, scan_video, segments
from cnnbert.tasks.recognition import ActionRecognition

COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}


class Colours(Backbone):
    """Gives the mean colour of each frame."""

    is_framewise = True

    def __init__(self) -> None:
        super().__init__(3, 3, temporal_stride=1, spatial_stride=16, mean=(0, 0, 0), std=(1, 1, 1))
        self.gain = nn.Parameter(torch.ones(()))
        self.num_seen = 0

    def forward_features(self, x: Tensor) -> Tensor:
        self.num_seen += x.shape[0] * x.shape[2]
        return self.gain * x.mean((3, 4), keepdim=True)


def colour_model(length: int = 8, stride: int = 1, multi_label: bool = False) -> ActionRecognition:
    """A network that knows colours, and takes clips of 32x32 pixels."""
    model = ActionRecognition(Colours(), TGAPHead, list(COLOURS), length, multi_label=multi_label).eval()
    with torch.no_grad():
        model.head.classifier.weight.copy_(20 * torch.eye(3))  # type: ignore[union-attr]
        model.head.classifier.bias.fill_(-10 if multi_label else 0)  # type: ignore[union-attr, operator]
    model.data = VideoDataModule(clip_length=length, stride=stride, frame_size=32, resize=32, class_names=list(COLOURS))
    return model


def write_colours(path: Path, parts: Sequence[tuple[str, int]], fps: float = 10) -> Path:
    """Write a video of so many frames of each colour one after the other."""
    frames = [
        np.full((48, 64, 3), COLOURS.get(name, (0, 0, 0)), np.uint8) for name, number in parts for _ in range(number)
    ]
    encode_frames(path, frames, fps, Encoding(crf=10, gop=7))
    return path


def clips_by_hand(model: ActionRecognition, path: Path, hop: int) -> Tensor:
    """Return the probabilities of every window, each read by itself."""
    length, stride = model.data.clip_length, model.data.stride
    with PyAVReader().open(str(path)) as video:
        frames = video.frames(range(video.num_frames))
    starts = list(range(0, len(frames) - (length - 1) * stride, hop))
    last = (len(frames) - (length - 1) * stride - 1) // stride * stride
    starts += [last] if last > starts[-1] else []
    small = torch.nn.functional.interpolate(frames[..., 8:56].float(), (32, 32), mode="bilinear", antialias=True)
    small = small.round().to(torch.uint8).transpose(0, 1)
    with torch.no_grad():
        return torch.cat([model(small[None, :, s : s + (length - 1) * stride + 1 : stride]) for s in starts]).softmax(1)


@pytest.mark.parametrize(("stride", "hop", "number"), [(1, 2, 100), (1, 3, 101), (2, 4, 90), (3, 3, 77), (1, 50, 100)])
def test_windows_are_those_clips(tmp_path: Path, stride: int, hop: int, number: int) -> None:
    """Each moment has the scores of the window whose middle is nearest."""
    model = colour_model(8, stride)
    path = write_colours(tmp_path / "x.mp4", [("red", 30), ("green", 20), ("blue", number - 50)])
    scores = scan_video(model, str(path), hop / 10)
    windows = clips_by_hand(model, path, hop)
    starts = [min(i * hop, (number - 7 * stride - 1) // stride * stride) for i in range(len(windows))]
    centres = np.array(starts) + (7 * stride + 1) / 2
    assert scores.probabilities.shape == (-(-number // hop), 3)
    assert scores.moment_seconds == pytest.approx(hop / 10)
    assert scores.num_seconds == pytest.approx(number / 10)
    for moment, row in enumerate(scores.probabilities):
        nearest = np.abs(centres - (moment + 0.5) * hop).argmin()
        assert (row - windows[nearest]).abs().max() < 0.03  # the scan computes in bfloat16 where it can
    assert scores.probabilities.std(0).max() > 0.2


def test_frames_go_through_a_framewise_backbone_once(tmp_path: Path) -> None:
    path = write_colours(tmp_path / "x.mp4", [("red", 30), ("green", 30), ("blue", 30)])
    shared, alone = colour_model(), colour_model()
    alone.backbone.is_framewise = False
    first, second = scan_video(shared, str(path), 0.1), scan_video(alone, str(path), 0.1)
    torch.testing.assert_close(first.probabilities, second.probabilities, atol=0.02, rtol=0)
    assert (shared.backbone.num_seen, alone.backbone.num_seen) == (90, 83 * 8)


@pytest.mark.parametrize("head", [LSTMHead, ConvLSTMHead])
def test_frame_networks_give_each_window_the_scores_of_its_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: type[Head]
) -> None:
    """Features that overlapping windows share are those of each window alone, and each frame's are made once."""
    torch.manual_seed(0)
    monkeypatch.setattr("cnnbert.scanning.best_precision", lambda device: "32-true")
    path = write_colours(tmp_path / "x.mp4", [("red", 9), ("green", 9), ("blue", 9)])
    model = ActionRecognition(FrameCNN("shufflenet_v2_x0_5"), head, list(COLOURS), 8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all that is seen; else random weights make all scores alike
    model.train()(torch.rand(9, 3, 8, 1, 1).expand(-1, -1, -1, 32, 32))
    model.eval()
    model.data = VideoDataModule(clip_length=8, frame_size=32, resize=32, class_names=list(COLOURS))
    seen: list[int] = []
    hook = model.backbone.register_forward_hook(lambda _, __, output: seen.append(output.shape[2]))
    scores = scan_video(model, str(path), 0.2)
    hook.remove()
    assert sum(seen) == 27
    windows = clips_by_hand(model, path, 2)
    starts = [*range(0, 20, 2), 19]
    nearest = [int(np.abs(np.array(starts) + 4 - (moment + 0.5) * 2).argmin()) for moment in range(14)]
    torch.testing.assert_close(scores.probabilities, windows[nearest], rtol=1e-4, atol=1e-5)
    assert windows.std(0).max() > 1e-3


def test_frames_of_a_stream_are_those_that_are_read(tmp_path: Path) -> None:
    path = str(write_colours(tmp_path / "x.mp4", [("red", 13), ("green", 8)]))
    with PyAVReader().open(path) as video:
        assert isinstance(video, PyAVVideo)
        streamed = np.stack(list(video.stream()))
        assert np.array_equal(streamed, video.frames(range(21)).permute(0, 2, 3, 1).numpy())


ODD = SHARED / "videos" / "odd"


@pytest.mark.skipif(not ODD.is_dir(), reason="needs the real videos")
def test_streams_of_odd_videos() -> None:
    """Every file is streamed as it is read, frame by frame, or refused by both."""
    num_streamed = 0
    for path in sorted(path for path in ODD.rglob("*") if path.is_file() and path.stat().st_size < 300_000):
        try:
            with PyAVReader().open(str(path)) as video:
                if video.num_frames > 400:
                    continue
                expected = video.frames(range(video.num_frames)).permute(0, 2, 3, 1).numpy()
        except VideoReadError:
            with pytest.raises(VideoReadError), PyAVReader().open(str(path)) as video:
                assert isinstance(video, PyAVVideo)
                list(video.stream())
            continue
        with PyAVReader().open(str(path)) as video:
            assert isinstance(video, PyAVVideo)
            assert np.array_equal(np.stack(list(video.stream())), expected), path
        num_streamed += 1
    assert num_streamed > 10


def test_a_short_video_is_looped(tmp_path: Path) -> None:
    model = colour_model(16)
    scores = scan_video(model, str(write_colours(tmp_path / "x.mp4", [("green", 5)])))
    assert scores.probabilities.shape == (1, 3)
    assert scores.probabilities[0].argmax() == 1
    assert (scores.moment_seconds, scores.num_seconds, scores.num_frames) == (0.5, 0.5, 5)


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """What the windows keep of a video is bounded by a window and what is read at once."""
    import cnnbert.scanning as scanning

    kept: list[int] = []
    add = scanning._Windows.add

    def noted(self: scanning._Windows, frames: Tensor) -> None:
        add(self, frames)
        kept.append(len(self.kept))

    path = write_colours(tmp_path / "x.mp4", [("red", 300), ("green", 300)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning._Windows, "add", noted)
        scan_video(colour_model(), str(path), 0.4)
    assert sum(kept) > 0 and max(kept) < 8 + 16


def scores_of(rows: list[list[float]], moment_seconds: float = 1.0) -> Scores:
    return Scores("x", moment_seconds, len(rows) * moment_seconds, 10 * len(rows), torch.tensor(rows))


def test_moments_become_segments() -> None:
    rows = [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.45, 0.55], [0.2, 0.8], [0.9, 0.1]]
    found = segments(scores_of(rows), ["a", "b"], threshold=0.58)
    assert [(one.label, one.start_seconds, one.end_seconds) for one in found] == [
        ("a", 0, 2),
        ("b", 2, 3),
        ("b", 4, 5),
        ("a", 5, 6),
    ]
    assert [one.score for one in found] == pytest.approx([0.8, 0.6, 0.8, 0.9])
    assert [one.label for one in segments(scores_of(rows), ["a", "b"], threshold=0.58, min_seconds=1.5)] == ["a"]
    assert {one.label for one in segments(scores_of(rows), ["a", "b"], background=["a"])} == {"b"}
    both = segments(scores_of([[0.9, 0.6], [0.9, 0.2]]), ["a", "b"], multi_label=True)
    assert [(one.label, one.end_seconds) for one in both] == [("b", 1), ("a", 2)]


def test_smoothing_is_the_mean_of_what_is_near() -> None:
    rows = [[1.0], [0.0], [0.0], [1.0], [0.0]]
    assert scores_of(rows).smoothed(0).probabilities[:, 0].tolist() == [1, 0, 0, 1, 0]
    assert scores_of(rows).smoothed(2).probabilities[:, 0].tolist() == pytest.approx(
        [1 / 2, 1 / 3, 1 / 3, 1 / 3, 1 / 2]
    )


@pytest.fixture
def checkpoint(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that needs no training, behind the name of a checkpoint."""
    import cnnbert.scan as scan

    monkeypatch.setattr(scan, "load", lambda name: colour_model())
    return "colours.ckpt"


PARTS = [("red", 40), ("green", 30), ("red", 30), ("blue", 50)]
TRUE = [("red", 0, 4), ("green", 4, 7), ("red", 7, 10), ("blue", 10, 15)]


def write_truth(path: str = "truth.csv", video: str = "long.mp4") -> None:
    lines = [f"{video},{label},{start},{end}" for label, start, end in TRUE]
    Path(path).write_text("path,label,start_seconds,end_seconds\n" + "\n".join(lines) + "\n")


def test_segments_are_found(checkpoint: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_colours(Path("long.mp4"), PARTS)
    write_truth()
    words = ["long.mp4", "--out", "long.csv", "--truth", "truth.csv", "--timeline", "--annotate"]
    assert main(["scan", checkpoint, *words]) == 0
    with Path("long.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["red", "green", "red", "blue"]
    for row, (_, start, end) in zip(rows, TRUE, strict=True):
        assert row["path"] == "long.mp4"
        assert float(row["start_seconds"]) == pytest.approx(start, abs=0.21)  # a moment
        assert float(row["end_seconds"]) == pytest.approx(end, abs=0.21)
        assert 0.8 < float(row["score"]) <= 1
    out = capsys.readouterr().out
    assert "long.mp4, 0:00:15.0: 4 segments\n  0:00:00.0 to 0:00:0" in out
    assert [float(value) for value in re.findall(r"^  0\.\d +([\d.]+)$", out, re.MULTILINE)] == [1.0] * 5
    assert "  mean  1.0000\n" in out
    picture = Image.open("long.timeline.png")
    assert picture.size[0] > 1000 and np.asarray(picture.convert("RGB")).std() > 20
    with PyAVReader().open("long.scanned.mp4") as copy, PyAVReader().open("long.mp4") as original:
        assert copy.num_frames == original.num_frames == 150
        change = (copy.frames([20]).int() - original.frames([20]).int()).abs().float()
        assert change[..., 36:, :].mean() > 20 and change[..., :20, :].mean() < 5


def test_several_videos_and_a_broken_one(checkpoint: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("v").mkdir()
    write_colours(Path("v/a.mp4"), [("red", 30)])
    write_colours(Path("v/c.mp4"), [("blue", 30)])
    Path("v/b.mp4").write_text("no video")
    assert main(["scan", checkpoint, "v", "--out", "x.json", "--background", "red"]) == 1
    out = capsys.readouterr().out
    assert "v/b.mp4\n  cannot be read: FFmpeg finds no video in it" in out
    assert out.endswith("x.json: 1 segments of 2 videos\n1 of 3 videos could not be read\n")
    rows = {row["path"]: row for row in json.loads(Path("x.json").read_text())}
    assert [one["label"] for one in rows["v/c.mp4"]["segments"]] == ["blue"]
    assert rows["v/a.mp4"]["segments"] == rows["v/b.mp4"]["segments"] == []
    assert rows["v/a.mp4"]["error"] is None and rows["v/b.mp4"]["error"].startswith("FFmpeg")


def test_damage_in_the_middle(checkpoint: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_colours(Path("x.mp4"), [("red", 60), ("green", 60)]).read_bytes()
    Path("x.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    assert main(["scan", checkpoint, "x.mp4", "--annotate", "--timeline", "--out", "x.csv"]) == 1
    assert "x.mp4\n  cannot be read: " in capsys.readouterr().out
    assert {path.name for path in workplace.iterdir()} == {"x.mp4", "x.csv"}
    assert Path("x.csv").read_text().splitlines() == ["path,start_seconds,end_seconds,label,score"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.mp4"], "none.mp4 does not exist; give videos, or folders of videos"),
        (["long.mp4", "--threshold", "1.5"], "threshold=1.5 must be in [0, 1]; try 0.5"),
        (["long.mp4", "--hop-seconds", "0"], "hop_seconds=0 must be above 0"),
        (["long.mp4", "--smooth-seconds", "-1"], "smooth_seconds=-1 must not be negative"),
        (["long.mp4", "--min-seconds", "-1"], "min_seconds=-1 must not be negative"),
        (["long.mp4", "--background", "x"], "background=x is not one of the model's classes, red, green, blue"),
        (["long.mp4", "--out", "x.txt"], "out=x.txt must end in .csv or .json"),
        (["long.mp4", "--out", "old.csv"], "old.csv is there already; give another name, or --force to replace it"),
        (["long.mp4", "--timeline"], "long.timeline.png is there already; give another name, or --force to replace it"),
        (["long.mp4", "--truth", "none.csv"], "none.csv does not exist or is not a file; give a CSV file"),
        (["long.mp4", "--truth", "other.csv"], "other.csv has no segment of these videos, such as long.mp4"),
        (["long.mp4", "--truth", "label.csv"], "label.csv has a segment with the label pink, which is not one of the "),
        (["long.mp4", "--truth", "open.csv"], "open.csv has a segment of long.mp4 without end_seconds"),
    ],
)
def test_mistakes(
    checkpoint: str, workplace: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    write_colours(Path("long.mp4"), [("red", 20)])
    write_colours(Path("other.mp4"), [("red", 20)])
    for name in ("old.csv", "long.timeline.png"):
        Path(name).write_text("old")
    write_truth("other.csv", "other.mp4")
    Path("label.csv").write_text("path,label,start_seconds,end_seconds\nlong.mp4,pink,0,1\n")
    Path("open.csv").write_text("path,label,start_seconds,end_seconds\nlong.mp4,red,0,\n")
    before = {path.name: path.read_bytes() for path in workplace.iterdir()}
    assert main(["scan", checkpoint, *words]) == 1
    assert capsys.readouterr().err.startswith(f"cnnbert: error: {message}")
    assert {path.name: path.read_bytes() for path in workplace.iterdir()} == before


def test_a_model_that_was_only_built(tmp_path: Path) -> None:
    model = colour_model()
    model._data = None
    with pytest.raises(InputError, match=r"take one that cnnbert\.load made"):
        scan_video(model, "x.mp4")


def test_several_classes_at_a_moment(tmp_path: Path) -> None:
    model = colour_model(multi_label=True)
    path = write_colours(tmp_path / "x.mp4", [("red", 20), ("none", 20), ("blue", 20)])
    found = segments(scan_video(model, str(path), 0.1).smoothed(0), list(COLOURS), multi_label=True)
    assert [one.label for one in found] == ["red", "blue"]
    assert found[0].end_seconds == pytest.approx(2, abs=0.3) and found[1].start_seconds == pytest.approx(4, abs=0.3)
