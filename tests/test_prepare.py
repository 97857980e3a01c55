"""`cnnbert prepare` makes a training copy, and goes on wherever it was stopped."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from data.barcode import write_barcodes

from cnnbert.cli import main
from cnnbert.data.sources import CSVManifest, Folder

PREPARE = ["prepare", "--num-workers=2", "--preset=ultrafast", "--short-side=32"]


def files(folder: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def mine(workplace: Path, videos: Path) -> str:
    shutil.copytree(videos, "mine")
    return "mine"


def test_the_copy_is_listed_as_the_original_is(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat() for path in Path(mine).rglob("*.mp4")}
    assert main([*PREPARE, mine, "--out=small"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "27 of 27 videos are listed in small/videos.csv"
    copies = {name for name in files("small") if name.endswith(".mp4")}
    assert copies == {name for name in files(mine) if name.endswith(".mp4")}
    assert not Path("small/failed.csv").exists()
    originals, prepared = Folder(mine), CSVManifest("small/videos.csv")
    assert prepared.class_names == originals.class_names
    for split in ("train", "val", "test"):
        a, b = originals.records(split), prepared.records(split)
        assert [(Path(r.path).relative_to(mine), r.label) for r in a] == [
            (Path(r.path).relative_to("small"), r.label) for r in b
        ]
    after = {path: path.stat() for path in Path(mine).rglob("*.mp4")}
    assert all((a.st_size, a.st_mtime_ns) == (after[p].st_size, after[p].st_mtime_ns) for p, a in before.items())


def test_nothing_is_made_twice_and_changes_are_seen(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PREPARE, mine, "--out=small"]) == 0
    made = {path: path.stat().st_mtime_ns for path in Path("small").rglob("*.mp4")}
    assert main([*PREPARE, mine, "--out=small"]) == 0
    assert "27 of 27 videos have their copies already" in capsys.readouterr().out
    assert made == {path: path.stat().st_mtime_ns for path in Path("small").rglob("*.mp4")}
    changed = Path(mine, "train", "red", "0.mp4")
    changed.write_bytes(Path(mine, "train", "blue", "1.mp4").read_bytes())
    assert main([*PREPARE, mine, "--out=small"]) == 0
    out = capsys.readouterr().out
    assert "1 copies were made of other originals or by other settings, and are made anew" in out
    assert "26 of 27 videos have their copies already" in out
    assert main([*PREPARE, mine, "--out=small", "--gop=4"]) == 0
    assert "27 copies were made of other originals or by other settings" in capsys.readouterr().out


def test_pieces_groups_and_one_video_in_several_lines(
    mine: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("mine/train/red/0.mp4", "mine/train/red/0.avi")  # of the same stem
    lines = ["train/red/0.mp4,red,train,0,0.25,x", "train/red/0.mp4,red,train,0.25,,x", "train/red/0.avi,red,val,0,,y"]
    lines += ["train/blue/1.mp4,blue,test,0,,z", "train/text.mp4,blue,train,0,,"]
    Path("mine/train/text.mp4").write_text("no video")
    Path("mine/my.csv").write_text("\n".join(["path,label,split,start_seconds,end_seconds,group", *lines]))
    assert main([*PREPARE, "mine/my.csv", "--out=small"]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"cannot read {workplace}/mine/train/text.mp4: FFmpeg finds no video in it "
        "(Invalid data found when processing input)",
        "3 of 4 videos are listed in small/videos.csv; 1 could not be read, see small/failed.csv",
    ]
    assert [
        (r["path"], r["split"], r["start_seconds"], r["end_seconds"], r["group"]) for r in rows("small/videos.csv")
    ] == [
        ("red/0.mp4.mp4", "train", "0.0", "0.25", "x"),
        ("red/0.mp4.mp4", "train", "0.25", "", "x"),
        ("red/0.avi.mp4", "val", "0.0", "", "y"),
        ("blue/1.mp4", "test", "0.0", "", "z"),
    ]
    (failed,) = rows("small/failed.csv")
    assert (failed["path"], failed["verdict"]) == (str(workplace / "mine/train/text.mp4"), "unreadable")


def test_settings_of_a_run_are_taken(mine: str) -> None:
    source = ["--data=data/folder.yaml", f"--data.source.root={mine}"]
    assert main([*PREPARE, "--out=small", *source]) == 0
    assert len(CSVManifest("small/videos.csv").records("test")) == 9


def test_numbered_divisions_are_kept(mine: str) -> None:
    names = [path.relative_to(mine).as_posix() for path in sorted(Path(mine, "train").rglob("*.mp4"))]
    divisions = ["train,test,train", "train,train,", "train,test,test", "test,train,train"]
    lines = [f"{name},{name.split('/')[1]},{divisions[place % 4]}" for place, name in enumerate(names)]
    Path("mine/my.csv").write_text("path,label,split1,split2,split3\n" + "\n".join(lines))
    assert main([*PREPARE, "mine/my.csv", "--out=small"]) == 0
    assert list(rows("small/videos.csv")[0]) == [
        *("path", "label", "split1", "split2", "split3", "start_seconds", "end_seconds", "group")
    ]
    for fold in (1, 2, 3):
        original, prepared = CSVManifest("mine/my.csv", fold=fold), CSVManifest("small/videos.csv", fold=fold)
        for split in ("train", "val", "test"):
            assert {Path(r.path).relative_to("small") for r in prepared.records(split)} == {
                Path(r.path).relative_to("mine/train") for r in original.records(split)
            }
    source = ["--data=data/csv.yaml", "--data.source.path=mine/my.csv", "--data.source.fold=2"]
    assert main([*PREPARE, "--out=small", *source]) == 0
    assert [row["split"] for row in rows("small/videos.csv")] == [row["split2"] for row in rows("small/videos.csv")]


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are no text, and links")
def test_names_that_are_no_text_and_links(mine: str, workplace: Path) -> None:
    red = Path(mine, "train", "red")
    shutil.copy(red / "0.mp4", os.fsencode(red) + b"/\xff.mp4")
    (red / "link.mp4").symlink_to("1.mp4")
    assert main([*PREPARE, mine, "--out=small"]) == 0
    listed = [row["path"] for row in rows("small/videos.csv")]
    assert len(listed) == len(set(listed)) == 29
    assert "train/red/\\udcff.mp4" in listed and "train/red/link.mp4" in listed
    assert all(Path("small", path).is_file() for path in listed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out=small"], "nowhere does not exist; give a folder of videos, or a CSV file"),
        (["--out=small"], "prepare needs videos: give a folder, a CSV file, or a run's settings"),
        (["mine", "--out=small", "--data=data/folder.yaml"], "give either mine or a run's config and settings"),
        (
            ["mine", "--out=mine"],
            "out=mine lies in mine, where its folders would count as classes; give another folder",
        ),
        (["mine", "--out=mine/small"], "out=mine/small lies in mine, where its folders would count as classes"),
        (["mine.csv", "--out=mine"], "mine/train/red/0.mp4 would take the place of an original or of another's copy"),
        (["list/videos.csv", "--out=list"], "the list of the copies would take the place of list/videos.csv"),
        (["mine", "--out=mine.csv"], "out=mine.csv cannot be written"),
        (["mine", "--out=other"], "0.mp4 is there and was not made by cnnbert prepare"),
        (["mine", "--out=small", "--crf=99"], "crf=99 must be in [0, 51]"),
        (["mine", "--out=small", "--timeout-seconds=0"], "timeout_seconds=0 must be above 0"),
        (["mine", "--out=small", "--num-workers=0"], "num_workers=0 must be at least 1"),
    ],
)
def test_mistakes_are_told(mine: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("mine", "other")
    Path("list").mkdir()
    for path, place in {"mine.csv": "mine", "list/videos.csv": "../mine"}.items():
        Path(path).write_text(f"path,label\n{place}/train/red/0.mp4,red\n{place}/test/red/0.mp4,red\n")
    before = files(".")
    assert main(["prepare", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert before == files(".")


def run(arguments: list[str]) -> None:
    """Run the command in a process group of its own, and end with its status."""
    os.setsid()
    os._exit(main(arguments))


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_killed_at_any_moment_it_goes_on(workplace: Path) -> None:
    """Twenty runs, each killed with all its processes at a random moment, then one to the end."""
    for number in range(24):
        folder = workplace / "mine" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_barcodes(folder / f"{number}.mp4", size=(240, 320), num_frames=40)
    command = ["prepare", "mine", "--num-workers=2", "--preset=slow"]
    # Not fork: the server that tests before have started would be no child of the process.
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cnnbert.prepare", "test_prepare"])

    def start(out: str) -> Any:
        left = set(Path(out).rglob("*.part"))
        process = context.Process(target=run, args=([*command, f"--out={out}"],))
        process.start()
        while process.is_alive() and not set(Path(out).rglob("*.part")) - left:
            time.sleep(0.01)
        return process, time.monotonic()

    process, begin = start("undisturbed")
    process.join()
    seconds = time.monotonic() - begin
    whole = files("undisturbed")
    assert process.exitcode == 0 and len(whole) == 25
    draw = random.Random(0)
    num_killed = 0
    seen: list[int] = []
    while num_killed < 20:
        process, begin = start("small")
        process.join(draw.uniform(0, 0.3) * seconds)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            num_killed += 1
        there = files("small")
        seen.append(sum(name.endswith(".mp4") for name in there))
        assert all(whole[name] == data for name, data in there.items() if not name.endswith(".part"))
        if len(there) == len(whole):
            shutil.rmtree("small")
    process, _ = start("small")
    process.join()
    assert files("small") == whole
    assert len(set(seen)) > 5  # it was killed while copies were made
