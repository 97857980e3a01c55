"""Files with odd names, links in a circle and things that are no files go through every command."""

from __future__ import annotations

import csv
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video

from cnnbert.cli import main
from cnnbert.data.sources import CSVManifest, Folder, videos_below
from cnnbert.predictions import read_predictions

NAMES = [
    "a\nb.mp4",
    "\r.mp4",
    'it\'s "quoted", `so`; $x.mp4',
    "-lead.mp4",
    "--out=x.mp4",
    " two  blanks .mp4",
    os.fsdecode(b"caf\xe9 \xff.mp4"),
    "{0} %s \\n <b>&amp;.mp4",
    "\u202etxt.mp4",
    "x" * 246 + ".mp4",
]
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes whose videos have odd names."""
    root = tmp_path_factory.mktemp("odd")
    for colour, value in COLOURS.items():
        good = write_video(root / f"{colour}.mp4", value, num_frames=20)
        (root / "videos" / colour).mkdir(parents=True)
        for name in NAMES:
            shutil.copy(good, root / "videos" / colour / name)
        good.unlink()
    return root / "videos"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, odd: Path) -> Path:
    """The run folder of a training on them."""
    root = tmp_path_factory.mktemp("runs")
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={odd}"]
    assert main(["fit", *TINY_MODEL, *data, *TINY_RUN, f"--trainer.default_root_dir={root}"]) == 0
    (run,) = root.glob("run/fit-*")
    return run


def all_paths(odd: Path) -> set[str]:
    return {str(odd / colour / name) for colour in COLOURS for name in NAMES}


def test_sources(odd: Path, workplace: Path) -> None:
    assert {record.path for record in Folder(str(odd)).records("predict")} == all_paths(odd)
    text = "path,label\n" + "".join(f'"{path.replace(chr(34), chr(34) * 2)}",x\n' for path in sorted(all_paths(odd)))
    Path("videos.csv").write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    assert {record.path for record in CSVManifest("videos.csv").records("predict")} == all_paths(odd)


def test_what_fit_leaves_is_read_again(odd: Path, trained: Path, workplace: Path) -> None:
    source = CSVManifest(str(trained / "videos.csv"))
    assert {record.path for record in source.records("predict")} == all_paths(odd)
    again = [*TINY_DATA, "--data.source=CSVManifest", f"--data.source.path={trained / 'videos.csv'}"]
    assert main(["fit", *TINY_MODEL, *again, *TINY_RUN]) == 0


def test_testing_and_its_report(odd: Path, trained: Path, workplace: Path) -> None:
    checkpoint = trained / "checkpoints" / "best.ckpt"
    fractions = ["--data.source.val_fraction=0", "--data.source.test_fraction=0.9"]
    assert main(["test", f"--ckpt_path={checkpoint}", *TINY_RUN[1:], *fractions]) == 0
    (path,) = Path("runs").glob("*/test-*/predictions.csv")
    found = read_predictions(path)
    assert {video for video, *_ in found.videos} <= all_paths(odd) and len(found.videos) == 18
    assert found.was_read.all()
    assert main(["report", str(path)]) == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert "<b>&amp;.mp4" not in page and "\u202e" not in page


def test_check(odd: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(odd), "--num_workers=2"]) == 0
    assert "20 of 20 videos are fine" in capsys.readouterr().out
    with Path("check.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert len(list(csv.DictReader(file))) == 20


def test_a_check_leaves_out_videos_of_any_name(workplace: Path) -> None:
    names = [*NAMES, "good.mp4"]
    for name in names:
        Path("videos", "a").mkdir(parents=True, exist_ok=True)
        Path("videos", "a", name).touch()
    write_video(Path("videos/a/good.mp4"), (220, 30, 30))
    from cnnbert.data.exclusion import Exclusion

    assert main(["check", "videos", "--num_workers=2"]) == 1
    kept = Exclusion("check.csv").kept("train", Folder("videos").records("predict"))
    assert [record.path for record in kept] == ["videos/a/good.mp4"]


def test_prepare(odd: Path, workplace: Path) -> None:
    assert main(["prepare", str(odd), "--out=made", "--num_workers=2"]) == 0
    records = CSVManifest("made/videos.csv").records("predict")
    assert len(records) == 20 and all(Path(record.path).is_file() for record in records)


def test_classify_and_scan(odd: Path, trained: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    assert main(["classify", checkpoint, str(odd), "--out=found.csv", "--num_clips=1"]) == 0
    assert main(["classify", checkpoint, str(odd), "--out=found.json", "--num_clips=1"]) == 0
    with Path("found.csv").open(newline="", encoding="utf-8") as file:
        assert len({row["path"] for row in csv.DictReader(file)}) == 20
    assert main(["scan", checkpoint, str(odd / "red"), "--out=scan.csv"]) == 0
    assert main(["scan", checkpoint, str(odd / "red"), "--out=scan.json"]) == 0
    os.chdir(odd / "red")
    out = str(workplace / "lead.csv")
    assert main(["classify", checkpoint, "./-lead.mp4", f"--out={out}", "--num_clips=1"]) == 0


def test_copies_with_words_in_them(
    odd: Path, trained: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    names = [str(odd / "red" / name) for name in NAMES[:-1]]
    assert main(["classify", checkpoint, *names, "--annotate", "--num_clips=1"]) == 0
    assert main(["scan", checkpoint, *names, "--annotate", "--timeline"]) == 0
    for name in NAMES[:-1]:
        for ending in (".labelled.mp4", ".scanned.mp4", ".timeline.png"):
            assert Path(Path(name).stem + ending).is_file()
    capsys.readouterr()
    assert main(["classify", checkpoint, str(odd / "red" / NAMES[-1]), "--annotate"]) == 1
    assert "cannot be written: File name too long" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_explain(odd: Path, trained: Path, workplace: Path, name: str) -> None:
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    video = odd / "red" / name
    outs = [] if len(name) < 200 else ["--out=x.png", "--out=x.html"]
    if name != NAMES[-1]:
        assert main(["explain", checkpoint, str(video)]) == 0
        assert Path(f"{video.stem}.explained.png").is_file()
    else:
        assert main(["explain", checkpoint, str(video), '--out=["x.png"]']) == 0, outs


def test_preview(odd: Path, workplace: Path) -> None:
    data = ["--data.source=Folder", f"--data.source.root={odd}", "--data.clip_length=8", "--data.frame_size=32"]
    for ending in ("png", "html"):
        assert main(["preview", f"--out=x.{ending}", *data, "--data.resize=32"]) == 0


@pytest.fixture
def maze(tmp_path: Path) -> Iterator[Path]:
    """A folder with two videos, links in circles, broken links, a pipe and a socket."""
    root = tmp_path / "maze"
    for colour, value in COLOURS.items():
        write_video(root / colour / "0.mp4", value)
    (root / "red" / "again").symlink_to(root / "red", target_is_directory=True)
    (root / "red" / "up").symlink_to("..", target_is_directory=True)
    (root / "blue" / "self.mp4").symlink_to("self.mp4")
    (root / "blue" / "one.mp4").symlink_to("two.mp4")
    (root / "blue" / "two.mp4").symlink_to("one.mp4")
    (root / "blue" / "gone.mp4").symlink_to("nowhere.mp4")
    (root / "loop").symlink_to(".", target_is_directory=True)
    (root / "ring").symlink_to("ring")
    os.mkfifo(root / "red" / "pipe.mp4")
    (root / "blue" / "folder.mp4").mkdir()
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(root / "red")  # paths of sockets are short
    server.bind("socket.mp4")
    os.chdir(here)
    yield root
    server.close()


REAL = ["blue/0.mp4", "red/0.mp4"]


def test_links_in_circles(maze: Path, trained: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [path.relative_to(maze).as_posix() for path in videos_below(maze)] == REAL
    assert [Path(r.path).relative_to(maze).as_posix() for r in Folder(str(maze)).records("predict")] == REAL
    assert Folder(str(maze)).class_names == ["blue", "red"]
    records = Folder(str(maze), val_fraction=0, test_fraction=0).records("train")
    assert [Path(r.path).relative_to(maze).as_posix() for r in records] == REAL
    assert main(["check", str(maze)]) == 0
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    assert main(["classify", checkpoint, str(maze), "--num_clips=1", "--out=found.csv"]) == 0
    assert len(Path("found.csv").read_text().splitlines()) == 3


def test_what_is_no_file_is_refused_at_once(
    maze: Path, trained: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(trained / "checkpoints" / "best.ckpt")
    names = ["red/pipe.mp4", "red/socket.mp4", "blue/self.mp4", "blue/gone.mp4"]
    for name in names:
        for command in (["check", str(maze / name)], ["classify", checkpoint, str(maze / name)]):
            assert main(command) == 1
    Path("videos.csv").write_text("path,label\n" + "".join(f"{maze / name},x\n" for name in [*names, *REAL]))
    assert main(["check", "videos.csv"]) == 1
    with Path("check.csv").open(newline="") as file:
        found = {Path(row["path"]).name: row["verdict"] for row in csv.DictReader(file)}
    assert found.pop("0.mp4") == "ok"
    assert set(found.values()) <= {"missing", "unreadable"}
    source = CSVManifest("videos.csv", missing="skip")
    assert len(source.records("predict")) == 2
    (maze / "list.csv").write_text("path,label\n" + "".join(f"{name},x\n" for name in [*names, *REAL]))
    assert len(CSVManifest(str(maze / "list.csv"), missing="skip").records("predict")) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read(tmp_path: Path) -> None:
    for colour, value in COLOURS.items():
        write_video(tmp_path / colour / "0.mp4", value)
    (tmp_path / "red").chmod(0)
    try:
        assert [path.name for path in videos_below(tmp_path)] == ["0.mp4"]
    finally:
        (tmp_path / "red").chmod(0o755)
