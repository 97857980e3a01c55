"""The protocols score the views that they name, and average what they say, from the video files to `results.json`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video
from pytorch_lightning import Trainer
from torch import Tensor
from torchvision.transforms.v2 import functional as F

import cnnbert
from cnnbert.callbacks import METRICS
from cnnbert.cli import main
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.readers import DecordReader
from cnnbert.data.sources import Folder
from cnnbert.tasks.recognition import ActionRecognition

LENGTHS = (6, 10, 20, 40)
PLACES = {1: [(2, 6)], 3: [(2, 0), (2, 6), (2, 12)], 10: [(2, 6), (0, 0), (0, 12), (4, 0), (4, 12)]}
"""Where crops of 32 x 32 lie in frames of 36 x 44."""


@pytest.fixture(scope="module")
def patterned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos of several lengths, whose pictures differ from place to place."""
    root = tmp_path_factory.mktemp("patterned")
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("coarse", "fine"):
            side = 12 if name == "coarse" else 4
            for number in LENGTHS if split == "test" else LENGTHS[1:3]:
                blocks = generator.integers(0, 256, (48 // side, 48 // side, 3))
                picture = blocks.repeat(side, 0).repeat(side, 1)
                write_video(root / split / name / f"{number}.mp4", picture, number)
    return root


def clip_starts(protocol: str, num_frames: int) -> list[int]:
    """The first frame of every clip of 8 frames, counted from 0."""
    room = num_frames - 8
    if room < 1:
        return [0] * (10 if protocol == "10_clips_3_crops" else 1)
    if protocol == "center_clip":
        return [room // 2]
    if protocol == "10_clips_3_crops":
        return [int(i * room / 9 + 0.5) for i in range(10)]
    return {10: [0], 20: [2, 10], 40: [4, 12, 20, 28]}[num_frames]


def views(path: Path, protocol: str) -> Tensor:
    """Return the views of a video, uint8 (V, 3, T, H, W), cut out of its frames by hand."""
    num_crops = {"center_clip": 1, "all_clips_10_crops": 10, "10_clips_3_crops": 3}[protocol]
    with DecordReader().open(str(path)) as video:
        frames = F.resize(video.frames(range(video.num_frames)), [36, 44], antialias=True)  # (N, 3, H, W)
    clips = []
    for start in clip_starts(protocol, len(frames)):
        clip = frames[[(start + i) % len(frames) for i in range(8)]]
        for pictures in [clip, clip.flip(-1)][: 2 if num_crops == 10 else 1]:
            clips += [pictures[..., y : y + 32, x : x + 32] for y, x in PLACES[num_crops]]
    return torch.stack(clips).transpose(1, 2)


def spread(model: ActionRecognition, root: Path) -> None:
    """Change the classifier so that views disagree, and the two averages with them."""
    layer = model.head.classifier
    with torch.no_grad():
        every = torch.cat([model(views(path, "all_clips_10_crops")) for path in sorted(root.glob("test/*/*.mp4"))])
        layer.weight *= 5 / every.std(0)[:, None]
        layer.bias.copy_((layer.bias - every.mean(0)) * 5 / every.std(0))


def softmax_of_mean(logits: Tensor) -> Tensor:
    return logits.mean(0).softmax(0)


def mean_of_softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1).mean(0)


PROTOCOLS: list[tuple[dict[str, Any], str, Callable[[Tensor], Tensor]]] = [
    ({}, "center_clip", softmax_of_mean),
    ({"test_protocol": "all_clips_10_crops"}, "all_clips_10_crops", softmax_of_mean),
    ({"test_protocol": "all_clips_10_crops", "average": "probabilities"}, "all_clips_10_crops", mean_of_softmax),
    ({"test_protocol": "10_clips_3_crops"}, "10_clips_3_crops", mean_of_softmax),
    ({"num_clips": 10, "num_crops": 3}, "10_clips_3_crops", softmax_of_mean),
]


@pytest.mark.parametrize(("arguments", "protocol", "average"), PROTOCOLS)
def test_scores_are_those_counted_by_hand(
    patterned: Path, arguments: dict[str, Any], protocol: str, average: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    tiny = ["model.backbone.depth=10", "model.backbone.width=8", "data.clip_length=8"]
    model = cnnbert.build("r2plus1d_bert.yaml", ["coarse", "fine"], [*tiny, "model.memory_format=channels_first"])
    spread(model, patterned)
    data = VideoDataModule(
        Folder(str(patterned)), clip_length=8, frame_size=32, resize=(36, 44), num_workers=0, **arguments
    )
    switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(accelerator="cpu", **dict.fromkeys(switches, False))
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    videos = model.scores.compute()

    paths = [Path(record.path) for record in data.datasets["test"].records]
    label = [path.parent.name == "fine" for path in paths]
    with torch.no_grad():
        logits = [model(views(path, protocol)) for path in paths]
    expected = torch.stack([average(view) for view in logits])
    # 1e-4: logits of the order of 10, from float32 convolutions over other numbers of clips.
    torch.testing.assert_close(videos.video_logits.softmax(1), expected, atol=1e-4, rtol=0)
    assert videos.num_views.tolist() == [len(view) for view in logits]
    hits = [int((view.argmax(1) == answer).sum()) for view, answer in zip(logits, label, strict=True)]
    assert videos.num_hits.tolist() == hits
    assert metrics["test/clip_top1"] == pytest.approx(sum(hits) / sum(len(view) for view in logits))
    right = (expected.argmax(1) == torch.tensor(label)).float().mean().item()
    assert metrics["test/top1"] == pytest.approx(right)
    if protocol != "center_clip":
        other = mean_of_softmax if average is softmax_of_mean else softmax_of_mean
        assert (torch.stack([other(view) for view in logits]) - expected).abs().max() > 0.01

    probabilities = trainer.predict(model, datamodule=data)
    listed = {
        record.path: row for record, row in zip(data.datasets["predict"].records, torch.cat(probabilities), strict=True)
    }
    torch.testing.assert_close(torch.stack([listed[str(path)] for path in paths]), expected, atol=1e-4, rtol=0)

    trainer.validate(model, datamodule=data, verbose=False)
    with torch.no_grad():
        centre = [model(views(Path(record.path), "center_clip"))[0] for record in data.datasets["val"].records]
    # 1e-3: as above, before the softmax.
    torch.testing.assert_close(model.scores.compute().video_logits, torch.stack(centre), atol=1e-3, rtol=0)


def test_the_command_line_and_what_it_leaves(
    workplace: Path, patterned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={patterned}", "--data.resize=[36,44]"]
    assert main(["fit", *TINY_MODEL, *data, *TINY_RUN, "--data.validate_on_test=true"]) == 0
    out = capsys.readouterr().out
    words = "protocol center_clip: centre clip x centre crop, 8 frames, stride 1, on the test videos"
    assert f"val: 8 videos, {words}\n" in out
    assert "results" not in out

    options = ["--ckpt_path=last", "--data.test_protocol=all_clips_10_crops", "--trainer.precision=32-true"]
    assert main(["test", *options, *TINY_RUN[1:]]) == 0
    out = capsys.readouterr().out
    words = "protocol all_clips_10_crops: all clips x 10 crops, 8 frames, stride 1, mean of logits"
    (folder,) = workplace.glob("runs/run/test-*")
    assert f"test: 8 videos, {words}\n  video top-1 " in out
    assert f"  results              {folder.relative_to(workplace) / 'results.json'}" in out
    results = json.loads((folder / "results.json").read_text())
    facts = {"split": "test", "num_videos": 8, "num_failed": 0, "count_failed": "wrong", "protocol": words}
    assert list(results) == [*facts, *(key for key in METRICS if key not in ("top5", "map", "micro_f1"))]
    assert facts.items() <= results.items()
    assert f"  video top-1          {results['top1']:.4f}\n" in out
    assert f"  clip top-1           {results['clip_top1']:.4f}\n" in out
    assert not list(folder.glob("*.part"))

    model = cnnbert.load(next(workplace.glob("runs/*/*/checkpoints/last.ckpt")))
    expect_results(model, results, folder)

    assert main(["validate", "--ckpt_path=last", *TINY_RUN[1:]]) == 0
    (folder,) = workplace.glob("runs/run/validate-*")
    results = json.loads((folder / "results.json").read_text())
    words = "protocol center_clip: centre clip x centre crop, 8 frames, stride 1, on the test videos"
    assert (results["split"], results["num_videos"], results["protocol"]) == ("val", 8, words)


def expect_results(model: ActionRecognition, results: dict[str, Any], folder: Path) -> None:
    """Check the results and the predictions against the model's outputs, averaged by hand."""
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    hits, losses = [], []
    for row in rows:
        with torch.no_grad():
            logits = model(views(Path(row["path"]), "all_clips_10_crops"))
        scores = softmax_of_mean(logits)
        # 1e-3: float32 convolutions in another layout.
        assert [float(row[f"score:{name}"]) for name in ("coarse", "fine")] == pytest.approx(scores.tolist(), abs=1e-3)
        answer = ("coarse", "fine").index(row["label"])
        hits.append((logits.argmax(1) == answer).float())
        losses.append(-scores[answer].log().item())
    assert results["loss"] == pytest.approx(np.mean(losses), abs=1e-3)
    assert results["clip_top1"] == pytest.approx(torch.cat(hits).mean().item())
    assert results["top1"] == pytest.approx(np.mean([row["label"] == row["prediction"] for row in rows]))
