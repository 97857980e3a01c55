"""`cnnbert bench-data` measures the loader, and its parts make up the whole."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA
from torch import Tensor

from cnnbert.bench import PARTS, Breakdown, Throughput, hints, measure_loader, measure_parts
from cnnbert.cli import main
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.sources import Folder
from cnnbert.data.transforms import EvalTransform
from cnnbert.machine import num_cores

SMALL = [*TINY_DATA, "--num-batches=2", "--num-videos=4"]


def folder(root: Path) -> list[str]:
    return ["--data=data/folder.yaml", f"--data.source.root={root}"]


def percentages(shown: str) -> list[float]:
    return [float(number) for number in re.findall(r" ([\d.]+) %$", shown, re.MULTILINE)]


@pytest.mark.parametrize(("split", "batches"), [("train", 3), ("val", 2), ("test", 2)])
def test_the_table(split: str, batches: int, workplace: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, f"--split={split}", "--data.batch_size=4", "--data.num_crops=3", f"--num-batches={batches}"]
    assert main(["bench-data", "--config=r2plus1d_bert.yaml", *folder(videos), *options]) == 0
    shown = capsys.readouterr().out
    number = {"train": 12, "val": 6, "test": 9}[split]
    assert shown.startswith(f"{split}: {number} videos; clips of 8 frames of 32x32\n\nthe loader, no workers: ")
    clips, of_videos, frames = map(float, re.findall(r"([\d.]+) (?:clips|videos|frames)/s", shown.replace(",", ""))[:3])
    assert clips > 0
    assert clips / of_videos == pytest.approx(3 if split == "test" else 1, rel=0.1)
    assert frames / clips == pytest.approx(8, rel=0.1)
    assert f"{batches} batches in " in shown
    assert "one process, 4 videos after 2 not counted" in shown
    *parts, whole = percentages(shown)
    assert len(parts) == len(PARTS)
    assert (round(sum(parts), 1), whole) == (100.0, 100.0)
    assert not Path("runs").exists()


def test_generated_clips_and_workers(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--data.source=GeneratedActions", "--data.source.num_clips=52", "--data.source.folder=clips"]
    options = [*SMALL, *source, "--data.num_workers=1", "--data.batch_size=2"]
    assert main(["bench-data", *options]) == 0
    shown = capsys.readouterr().out
    assert "the loader, 1 worker: " in shown
    assert "2 batches in" in shown and "after 1 that are not counted" in shown
    (sent,) = re.findall(r"sending batches .*?([\d.]+) %", shown)
    assert float(sent) > 0


class SlowTransform(EvalTransform):
    def crops(self, frames: Tensor) -> list[Tensor]:
        time.sleep(0.2)
        return super().crops(frames)


def test_the_slow_part_is_found(videos: Path) -> None:
    data = VideoDataModule(Folder(str(videos)), clip_length=4, frame_size=32, resize=32, batch_size=4, num_workers=0)
    data.setup("fit")
    dataset = data.datasets["train"]
    dataset.transform = SlowTransform(32, 32)
    threads = torch.get_num_threads()
    parts = measure_parts(dataset, data.train_dataloader(), 5)
    assert torch.get_num_threads() == threads
    assert (parts.clips, parts.videos, parts.height, parts.width) == (5, 5, 48, 48)
    assert sum(parts.shares.values()) == pytest.approx(1)
    assert parts.seconds["transform"] >= 5 * 0.2
    assert max(parts.shares, key=lambda name: parts.shares[name]) == "transform"
    assert min(parts.seconds[name] for name in ("open", "decode", "rest", "collate")) > 0
    assert parts.seconds["send"] == 0
    assert isinstance(dataset.transform, SlowTransform)  # the data set itself is left as it is


def test_several_epochs_are_taken_and_failures_counted(workplace: Path, videos: Path) -> None:
    for name in "ab":
        for number in range(2):
            path = workplace / "train" / name / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((videos / "train" / "red" / "1.mp4").read_bytes())
    shutil.copytree("train", "val")
    Path("train/a/0.mp4").write_text("no video")
    data = VideoDataModule(Folder("."), clip_length=4, frame_size=32, resize=32, batch_size=4)
    data.num_workers = 0
    data.setup("fit")
    speed = measure_loader(data.train_dataloader(), 3)
    assert (speed.videos, speed.clips, speed.failed, speed.batches, speed.warm_up) == (9, 9, 3, 3, 1)
    assert speed.seconds > 0


def told(worst: str, rate: float = 10, workers: int = 2, size: tuple[int, int] = (128, 170)) -> str:
    seconds = {name: 0.7 if name == worst else 0.06 for name in PARTS}
    speed = Throughput(int(rate * 10), int(rate * 10), 0, 20, 2, 10.0, workers)
    return " ".join(hints(speed, Breakdown(seconds, 10, 10, *size), VideoDataModule(Folder("."))))


def test_hints_follow_from_the_numbers() -> None:
    assert "frames have up to 1280x720 pixels" in told("decode", size=(720, 1280))
    assert "more key frames" in told("decode")
    assert "long files" in told("open")
    assert "clips of fewer frames" in told("rest")
    assert "less to be resized" in told("transform")
    assert "less to be copied" in told("send")
    assert "70%, goes into decoding frames" in told("decode")
    assert "more than 25.0 clips/s waits" in told("decode", 25)
    assert "more workers would not help" in told("decode", workers=num_cores())
    assert f"data.num_workers={num_cores()} would load more" in told("decode", workers=0)
    assert "something else holds them up" in told("decode", 0.5) and "something else" not in told("decode", 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config=nothing.yaml"], "no config 'nothing.yaml' here"),
        (["--data.source.root=absent"], "absent does not exist"),
        (["--data.batch_sighs=3"], "batch_sighs"),
        (["--split=predict"], "split='predict' is not one of train, val, test"),
        (["--num-batches=0"], "num_batches=0 must be at least 1"),
        (["--num-videos=0"], "num_videos=0 must be at least 1"),
        (["--data.source.root=broken"], "not one of 4 videos could be read: cannot"),
    ],
)
def test_mistakes_get_one_message(
    workplace: Path, videos: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        path = workplace / "broken" / "train" / name / "0.mp4"
        path.parent.mkdir(parents=True)
        path.write_text("no video")
    shutil.copytree("broken/train", "broken/val")
    assert main(["bench-data", "--config=r2plus1d_bert.yaml", *folder(videos), *SMALL, *options]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
