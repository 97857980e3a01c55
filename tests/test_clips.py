"""`cnnbert clips` finds clips in longer videos, to the frame."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from data.barcode import read_barcode, write_barcodes

from cnnbert.cli import main
from cnnbert.data.dataset import piece
from cnnbert.data.readers import DecordReader
from cnnbert.data.sources import CSVManifest

RATE = Fraction(30000, 1001)


def rows(path: str = "clips.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def frames(path: str = "clips.csv") -> list[tuple[str, int, int]]:
    """Return what readers make of the clips: the video's name, the first frame shown and the last."""
    found = []
    for record in CSVManifest(path).records("predict"):
        with DecordReader().open(record.path) as video:
            first, end = piece(record, video)
            shown = video.frames([first, end - 1])
            found.append((Path(record.path).name, read_barcode(shown[0]), read_barcode(shown[1])))
    return found


@pytest.fixture
def long(workplace: Path) -> str:
    Path("long/walk").mkdir(parents=True)
    write_barcodes(workplace / "long" / "walk" / "a.avi", "mpeg4", num_frames=250, rate=RATE)
    write_barcodes(workplace / "long" / "b.mp4", num_frames=100, rate=RATE, b_frames=3)
    return "long"


def test_by_rule(long: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["clips", long, "--by=rule", "--window-seconds=2", "--num-workers=1"]
    assert main(command) == 0
    assert capsys.readouterr().out == "6 clips of 2 of 2 videos, listed in clips.csv; 1 shorter than 1 s are left out\n"
    assert frames() == [
        ("b.mp4", 0, 59),
        ("b.mp4", 60, 99),
        ("a.avi", 0, 59),
        ("a.avi", 60, 119),
        ("a.avi", 120, 179),
        ("a.avi", 180, 239),  # 10 frames are less than a second
    ]
    assert [(row["label"], row["group"]) for row in rows()] == [("", "b.mp4")] * 2 + [("walk", "walk/a.avi")] * 4
    assert main([*command, "--step-seconds=3", "--min-seconds=2"]) == 0
    assert frames() == [("b.mp4", 0, 59), ("a.avi", 0, 59), ("a.avi", 90, 149), ("a.avi", 180, 239)]
    assert main([*command, "--max-seconds=1"]) == 0
    assert frames()[:3] == [("b.mp4", 0, 29), ("b.mp4", 30, 59), ("b.mp4", 60, 79)]


def test_by_table(long: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["path,start,end,label", "walk/a.avi,1,0:02.5,jump", "b.mp4,0,0:00:01,run", "walk/a.avi,5,8.3,run"]
    Path("long/table.csv").write_text("\n".join(lines))
    assert main(["clips", "long/table.csv", "--by=table"]) == 0
    assert frames() == [("a.avi", 30, 74), ("a.avi", 150, 248), ("b.mp4", 0, 29)]
    assert [row["label"] for row in rows()] == ["jump", "run", "run"]
    source = CSVManifest("clips.csv", val_fraction=0.4, test_fraction=0)
    train, val = ({record.group for record in source.records(split)} for split in ("train", "val"))
    assert train.isdisjoint(val)


def test_clips_are_cut_to_the_frame(long: str) -> None:
    command = ["clips", long, "--by=rule", "--window-seconds=2", "--step-seconds=1", "--cut=cut", "--num-workers=1"]
    assert main(command) == 0
    assert len(rows()) == 11
    for row in rows():
        first, end = (int(number) for number in Path(row["path"]).stem.split("_")[-2:])
        assert Path(row["path"]).parent.name == (row["label"] or "cut")
        with DecordReader().open(row["path"]) as video:
            assert video.frames([0]).shape[2:] == (64, 64)
            assert [read_barcode(f) for f in video.frames([0, video.num_frames - 1])] == [first, end - 1]
            assert video.num_frames == end - first
    assert not list(Path("cut").rglob("*.part"))


def write_scenes(path: Path, lengths: list[int]) -> None:
    """Write a video of several scenes, each a grainy picture of its own that drifts."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for scene, length in enumerate(lengths):
            torch.manual_seed(scene)
            coarse = torch.rand(1, 3, 8, 10)
            picture = torch.nn.functional.interpolate(coarse, size=(130, 200), mode="bilinear")[0].permute(1, 2, 0)
            for number in range(length):
                shown = (picture[:120, number // 2 : number // 2 + 160] * 255).byte().numpy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), "rgb24")))
        container.mux(stream.encode())


def test_by_scene(workplace: Path) -> None:
    pytest.importorskip("scenedetect")
    write_scenes(workplace / "film.mp4", [40, 30, 10, 60])
    assert main(["clips", "film.mp4", "--num-workers=1"]) == 0
    times = [(float(row["start_seconds"]), float(row["end_seconds"])) for row in rows()]
    assert times == [(0, 1.6), (1.6, 2.8), (2.8, 5.6)]  # 10 frames are no scene
    assert main(["clips", "film.mp4", "--num-workers=1", "--min-seconds=0.2", "--max-seconds=1.3"]) == 0
    times = [(float(row["start_seconds"]), float(row["end_seconds"])) for row in rows()]
    assert times == [(0, 0.8), (0.8, 1.6), (1.6, 2.8), (2.8, 3.2), (3.2, 4.4), (4.4, 5.6)]


def test_without_pyscenedetect_the_remedy_is_told(
    long: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    assert main(["clips", long]) == 1
    assert "by=scene needs PySceneDetect" in capsys.readouterr().err
    assert not Path("clips.csv").exists()


def test_a_video_that_cannot_be_read_costs_only_itself(long: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("long/bad.mp4").write_text("no video")
    assert main(["clips", long, "--by=rule"]) == 1
    out = capsys.readouterr().out
    assert "cannot read long/bad.mp4: FFmpeg finds no video in it" in out
    assert "3 clips of 2 of 3 videos, listed in clips.csv" in out


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,start\nb.mp4,1", "has the columns path, start; it needs path, start, end and label"),
        ("path,start,end,label\nb.mp4,2,1,x", "line 2: end=1 is not after start=2"),
        ("path,start,end,label\nb.mp4,0,1,x\nc.mp4,0,1,x", "line 3: there is no video long/c.mp4"),
        ("path,start,end,label\nb.mp4,0,9,x", "line 2: end=9 is past the end of long/b.mp4, 3.34 s"),
        ("path,start,end,label\nb.mp4,soon,9,x", "line 2: start='soon' is no time; write seconds, or [h:]mm:ss"),
        ("path,start,end,label\nb.mp4,-1,9,x", "line 2: start='-1' is no time"),
        ("path,start,end,label\n", "lists no clip"),
        ("path,start,end,label\nb.mp4,0,1,caf\udce9", "table.csv cannot be read as CSV"),
    ],
)
def test_mistakes_in_a_table(long: str, table: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("long/table.csv").write_text(table, errors="surrogateescape")
    assert main(["clips", "long/table.csv", "--by=table"]) == 1
    assert message in capsys.readouterr().err
    assert not Path("clips.csv").exists()


def test_every_mistake_is_told_and_nothing_is_written(long: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["path,start,end,label", "walk/a.avi,0,1,x", "b.mp4,0,9,x", "b.mp4,1,8,x", "walk/a.avi,0,99,x"]
    Path("long/table.csv").write_text("\n".join(lines))
    before = set(Path().rglob("*"))
    assert main(["clips", "long/table.csv", "--by=table", "--cut=cut"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "cnnbert: error: long/table.csv, line 3: end=9 is past the end of long/b.mp4, 3.34 s",
        "long/table.csv, line 4: end=8 is past the end of long/b.mp4, 3.34 s",
        "long/table.csv, line 5: end=99 is past the end of long/walk/a.avi, 8.34 s",
        "nothing is written; correct the table",
    ]
    assert set(Path().rglob("*")) == before


def test_videos_of_like_names_keep_their_clips(long: str) -> None:
    shutil.copy("long/b.mp4", "long/walk_a.mp4")
    shutil.copy("long/b.mp4", "long/walk/a.mp4")
    assert main(["clips", long, "--by=rule", "--window-seconds=2", "--cut=cut"]) == 0
    names = [row["path"] for row in rows()]
    assert len(names) == len(set(names)) == 10
    groups = {row["group"]: Path(row["path"]).name[:-18] for row in rows()}
    assert groups == {"b.mp4": "b", "walk/a.avi": "walk_a", "walk/a.mp4": "walk_a-2", "walk_a.mp4": "walk_a-3"}
    assert all(Path(name).is_file() for name in names)


def test_parts_of_a_killed_run_are_removed(long: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    Path("cut").mkdir()
    for pid in (dead.pid, os.getpid()):
        Path("cut", f"x.mp4.{pid}.part").touch()
    assert main(["clips", f"{long}/b.mp4", "--by=rule", "--cut=cut"]) == 0
    assert [path.name for path in Path("cut").glob("*.part")] == [f"x.mp4.{os.getpid()}.part"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out=long"], "out=long is a folder; give another file"),
        (["--by=rule", "--out=b.mp4/clips.csv"], "out=b.mp4/clips.csv cannot be written"),
        (["--by=rule", "--cut=b.mp4"], "clips cannot be written to cut=b.mp4"),
        (["--by=rule", "--window-seconds=0"], "window_seconds=0 must be above 0"),
        (["--by=rule", "--step-seconds=-1"], "step_seconds=-1 must be above 0"),
        (["--by=rule", "--window-seconds=0.5"], "window_seconds=0.5 is less than min_seconds=1"),
        (
            ["--by=rule", "--min-seconds=3", "--max-seconds=2"],
            "min_seconds=3 must be at least 0 and at most max_seconds=2",
        ),
        (["--by=table"], "long is no file; by=table takes a CSV file"),
        (["--num-workers=0"], "num_workers=0 must be at least 1"),
        (["--timeout-seconds=0"], "timeout_seconds=0 must be above 0"),
    ],
)
def test_mistakes_in_the_options(
    long: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("long/b.mp4", "b.mp4")
    assert main(["clips", long, *options]) == 1
    assert message in capsys.readouterr().err
    assert not Path("clips.csv").exists()


def test_a_table_is_not_taken_for_a_video_nor_overwritten(long: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("clips.csv").write_text("path,start,end,label\nlong/b.mp4,0,1,x\n")
    for options, message in {
        "--by=table": "out=clips.csv is what is read; give another file",
        "--out=other.csv": "clips.csv is a table; add --by table",
    }.items():
        assert main(["clips", "clips.csv", options]) == 1
        assert message in capsys.readouterr().err
    assert Path("clips.csv").read_text().startswith("path,start,end")
    assert not Path("other.csv").exists()
