"""`cnnbert check` names the videos that training cannot use, and shows what a data set is like."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_video

from cnnbert.check import report
from cnnbert.cli import main
from cnnbert.data.inspection import VERDICTS, Inspection


def rows(name: str = "check.csv") -> list[dict[str, str]]:
    with Path(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def verdicts() -> dict[str, str]:
    return {Path(row["path"]).name: row["verdict"] for row in rows()}


def test_a_good_folder_is_fine(workplace: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(videos), "--num-workers=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "class     train       val      test",
        "blue          4         2         3",
        "green         4         2         3",
        "red           4         2         3",
        "all 3        12         6         9",
    ]
    assert lines[6] == "length         least    median      most           sum"
    assert lines[7].startswith("seconds         0.50      0.83      1.50 ")
    assert lines[8] == "frames             6        10        18           282"
    assert "size        48x48 (27)" in lines
    assert "frames/s    12 (27)" in lines
    assert lines[-2:] == ["a line a file in check.csv", "27 of 27 videos are fine"]
    written = rows()
    assert [row["path"] for row in written] == [str(path) for path in sorted(videos.rglob("*.mp4"))]
    assert {row["verdict"] for row in written} == {"ok"}
    assert (written[-1]["splits"], written[-1]["labels"]) == ("val", "red")


def test_what_is_wrong_costs_only_its_own_file(
    workplace: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["good", "hangs", "crashes", "raises", "shifted", "also_good"]
    for place, name in enumerate(names):
        shutil.copy(videos / "train" / "red" / f"{place % 4}.mp4", f"{name}.mp4")
    Path("text.mp4").write_text("no video")
    Path("my.csv").write_text("path,label\n" + "".join(f"{name}.mp4,a\n" for name in [*names, "text", "good"]))
    data = ["--data=data/csv.yaml", "--data.source.path=my.csv", "--data.reader=moody_reader.MoodyReader"]
    assert main(["check", *data, "--timeout-seconds=4", "--num-workers=2"]) == 1
    assert verdicts() == {
        "good.mp4": "ok",
        "hangs.mp4": "timeout",
        "crashes.mp4": "crash",
        "raises.mp4": "crash",
        "shifted.mp4": "wrong_frames",
        "also_good.mp4": "ok",
        "text.mp4": "unreadable",
    }
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "2 of 7 videos are fine; 1 unreadable, 1 wrong_frames, 1 timeout, 2 crash"
    assert "hangs.mp4: it took longer than timeout_seconds=4 and was stopped\n" in out
    assert "crashes.mp4: the process died of SIGSEGV\n" in out
    assert "raises.mp4: RuntimeError: a bug\n" in out


def test_lists_are_checked_with_what_is_not_there(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(workplace / "a b.mp4", (220, 30, 30))
    write_video(workplace / "c.mp4", (30, 30, 220))
    Path("list.txt").write_text("a b.mp4\nc.mp4 7\nabsent.mp4 8\n\n")
    assert main(["check", "--csv", "list.csv", "--num-workers=1", "list.txt"]) == 1
    assert [(Path(row["path"]).name, row["verdict"], row["labels"]) for row in rows("list.csv")] == [
        ("a b.mp4", "ok", ""),
        ("c.mp4", "ok", "7"),
        ("absent.mp4", "missing", "8"),
    ]
    assert capsys.readouterr().out.endswith("2 of 3 videos are fine; 1 missing\n")
    Path("table.csv").write_text("path,label,split,more\nc.mp4,7,train,\nabsent.mp4,8,dev,x\nc.mp4,7,dev,\n")
    assert main(["check", "table.csv"]) == 1
    assert [(row["verdict"], row["splits"]) for row in rows()] == [("ok", "train; dev"), ("missing", "dev")]
    out = capsys.readouterr().out
    assert "class     train       dev\n7             1         1\n8             0         1\n" in out
    assert "look better than they are (1):\n  c.mp4 (train, dev, 7)\n" in out
    assert main(["check", "c.mp4"]) == 0
    assert verdicts() == {"c.mp4": "ok"}


def test_names_that_are_no_text(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        Path(os.fsdecode(b"caf\xe9.mp4")).write_text("no video")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes only UTF-8")
    assert main(["check", "."]) == 1
    assert list(verdicts().items()) == [("caf\\udce9.mp4", "unreadable")]
    assert "caf\\udce9.mp4: " in capsys.readouterr().out


def test_copies_are_named(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in {
        "train/red/a": (220, 30, 30),
        "train/blue/b": (30, 30, 220),
        "val/red/v": (90, 30, 30),
    }.items():
        write_video(workplace / "my" / f"{name}.mp4", colour)
    write_video(workplace / "my" / "test" / "blue" / "t.mp4", (30, 90, 220))
    Path("my/test/red").mkdir()
    shutil.copy("my/train/red/a.mp4", "my/test/red/leak.mp4")
    shutil.copy("my/train/blue/b.mp4", "my/train/blue/again.mp4")
    shutil.copy("my/val/red/v.mp4", "my/train/blue/mistaken.mp4")
    assert main(["check", "my"]) == 0
    out = capsys.readouterr().out
    assert (
        out[out.index("the same video") :]
        == """\
the same video in different splits, which makes results look better than they are (2):
  my/test/red/leak.mp4 (test, red) = my/train/red/a.mp4 (train, red)
  my/train/blue/mistaken.mp4 (train, blue) = my/val/red/v.mp4 (val, red)
the same video with different labels (1):
  my/train/blue/mistaken.mp4 (train, blue) = my/val/red/v.mp4 (val, red)
the same video twice or more, not in different splits (1):
  my/train/blue/again.mp4 (train, blue) = my/train/blue/b.mp4 (train, blue)

a line a file in check.csv
7 of 7 videos are fine
"""
    )


def test_a_run_is_checked_as_it_divides_its_videos(
    workplace: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--data=data/folder.yaml", f"--data.source.root={videos / 'train'}", "--data.source.test_fraction=0"]
    assert main(["check", "--config=r2plus1d_bert.yaml", *folder, "--data.source.val_fraction=0.25"]) == 0
    out = capsys.readouterr().out
    assert "class     train       val\nblue          3         1\n" in out
    Path("my.csv").write_text("path,label,split\n" + "".join(f"{videos}/train/{c}/0.mp4,{c},train\n" for c in ("red",)))
    assert main(["check", "--data.source=CSVManifest", "--data.source.path=my.csv"]) == 0
    out = capsys.readouterr().out
    assert "no test split: my.csv has a split column but no line with split=test\n" in out
    assert "\nclass     train\nred           1\n" in out


def test_many_classes_and_faults_are_cut_short() -> None:
    files = {str(i): Inspection(str(i), "damaged" if i < 15 else "ok", frames=i + 1, fps=25) for i in range(100)}
    listed = {path: [(f"v/{path}.mp4", None, f"class {int(path) // 2}")] for path in files}
    lines = report(files, listed)
    assert "... 26 classes between the largest and the smallest ..." in lines
    assert "all 50         100" in lines
    assert "damaged (15): some of it does not decode, or only with faults" in lines
    assert "  and 5 more" in lines
    assert max(map(len, lines)) <= 120


def test_stopping_keeps_what_is_done(workplace: Path, videos: Path) -> None:
    for name in ("good", "hangs"):
        shutil.copy(videos / "train" / "red" / "1.mp4", f"{name}.mp4")
    Path("my.csv").write_text("path,label\ngood.mp4,a\nhangs.mp4,b\n")
    Path("moody_reader.py").write_bytes((Path(__file__).parent / "moody_reader.py").read_bytes())
    data = ["--data.source=CSVManifest", "--data.source.path=my.csv", "--data.reader=moody_reader.MoodyReader"]
    with subprocess.Popen(
        [sys.executable, "-m", "cnnbert", "check", *data, "--num-workers=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        while not Path("hangs.open").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped after 1 of 2 files; check.partial.csv has those, check.csv is not written" in out
    assert "Traceback" not in out
    assert [row["verdict"] for row in rows("check.partial.csv")] == ["ok"]
    assert not Path("check.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "check needs videos: give a folder, a list, or a run's settings such as --data"),
        (["absent"], "absent does not exist; give a folder of videos, a video, or a file that lists videos"),
        (["."], ". holds no video"),
        ([".", "--data=data/csv.yaml"], "give either . or a run's config and settings, not both"),
        (["empty.txt"], "empty.txt lists no video"),
        (["columns.csv"], "columns.csv has the columns file, label; it needs one with the name path"),
        ([".", "--csv=absent/check.csv"], "csv=absent/check.csv cannot be written: absent must be a folder"),
        ([".", "--timeout-seconds=0"], "timeout_seconds=0 must be above 0"),
        ([".", "--num-workers=0"], "num_workers=0 must be at least 1"),
        (["--data=data/nothing.yaml"], "no config 'data/nothing.yaml' here"),
        (["--data.sauce=Folder"], "sauce"),
        (["--config=nothing.yaml"], "no config 'nothing.yaml' here"),
        (["--data.source=Folder", "--data.source.root=absent"], "absent does not exist"),
    ],
)
def test_mistakes_get_one_message(
    workplace: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty.txt").write_text("\n")
    Path("columns.csv").write_text("file,label\na.mp4,b\n")
    assert main(["check", *options]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not Path("check.csv").exists()


def test_help_names_every_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(verdict in shown for verdict in VERDICTS)
