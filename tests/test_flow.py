"""`cnnbert flow` makes the flow of a data set, goes on where it was stopped, and networks are trained on it."""

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
import torch
from conftest import SHARED, TINY_DATA, TINY_MODEL, TINY_RUN, write_video
from moving import write_moving
from PIL import Image
from test_optical_flow import raft  # noqa: F401  (a fixture)

import cnnbert
from cnnbert.attention_strip import attention_strip
from cnnbert.backbones import R2Plus1D
from cnnbert.cli import main
from cnnbert.clip_pictures import pictures
from cnnbert.data.flow import FlowReader
from cnnbert.data.flow_files import read_facts, read_table
from cnnbert.data.readers import PyAVReader
from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError
from cnnbert.features import check_features
from cnnbert.loading import config_settings
from cnnbert.previews import write_preview

FLOW = ["flow", "--num-workers=2"]
FARNEBACK = [*FLOW, "--method=farneback"]


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def mine(workplace: Path) -> str:
    """my_videos/{left,right}/*.mkv, whose pictures move to that side."""
    for label, right in {"left": -2, "right": 2}.items():
        for number in range(4):
            write_moving(Path("my_videos", label, f"{number}.mkv"), right, number - 2, 9, (48, 56))
    return "my_videos"


def test_flow_is_made_once_and_only_what_is_new_is_added(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FARNEBACK, mine, "--out=flow", "--bound=10"]) == 0
    assert capsys.readouterr().out == "8 of 8 videos have their flow in flow (farneback, bound 10)\n"
    (first, *_) = listed = rows("flow/flow.csv")
    assert len(listed) == 8 and not Path("flow/failed.csv").exists()
    assert (first["path"], first["flow"]) == ("../my_videos/left/0.mkv", "my_videos/left/0.mkv")
    assert (first["num_frames"], first["height"], first["width"], first["bound"]) == ("9", "48", "56", "10.0")
    made = {path: path.stat().st_mtime_ns for path in Path("flow").rglob("*.mkv")}
    assert len(made) == 8
    write_moving(Path("new_videos", "0.mkv"), 1, 1)
    write_moving(Path(mine, "left", "1.mkv"), 1, 1, 12, (48, 56))  # another one
    for words in ([mine], [mine], ["new_videos"]):
        assert main([*FLOW, *words, "--out=flow"]) == 0  # as the folder was made
    out = capsys.readouterr().out
    assert "7 of 8 videos have their flow already\n8 of 8" in out and "8 of 8 videos have their flow already\n8" in out
    after = {path: path.stat().st_mtime_ns for path in Path("flow").rglob("*.mkv")}
    changed = {str(path) for path in after if after[path] != made.get(path)}
    assert changed == {"flow/my_videos/left/1.mkv", "flow/new_videos/0.mkv"}
    assert len(rows("flow/flow.csv")) == 9
    assert {facts.num_frames for _, facts in read_table(Path("flow")).values()} == {6, 9, 12}


def test_a_start_that_was_stopped_goes_on(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before there is a table, the files say how they were made."""
    assert main([*FARNEBACK, mine, "--out=flow"]) == 0
    Path("flow/flow.csv").unlink()
    Path("flow/my_videos/left/2.mkv").unlink()
    Path("flow/my_videos/left/2.mkv.999999999.part").write_text("of a process that is no more")
    kept = {path: path.stat().st_mtime_ns for path in Path("flow").rglob("*.mkv")}
    assert main([*FLOW, mine, "--out=flow", "--bound=9"]) == 1
    assert "the flow in flow was made with bound 20.0, not 9.0: leave the option out" in capsys.readouterr().err
    assert main([*FLOW, mine, "--out=flow"]) == 0
    assert "7 of 8 videos have their flow already" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert len(rows("flow/flow.csv")) == 8 and not list(Path("flow").rglob("*.part"))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_killed_it_leaves_whole_files(workplace: Path) -> None:
    for number in range(6):
        write_moving(Path("my_videos", f"{number}.mkv"), 1, 1, 40)

    command = [sys.executable, "-m", "cnnbert", *FARNEBACK, "my_videos", "--out=flow"]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and not list(Path("flow").rglob("*.mkv")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 30  # until the system has done with those that were killed
    while time.monotonic() < end and any(
        Path("/proc", part.suffixes[-2][1:]).exists() for part in Path("flow").rglob("*.part")
    ):
        time.sleep(0.1)
    there = list(Path("flow").rglob("*.mkv"))
    assert there and all(facts is not None and facts.num_frames == 40 for facts in map(read_facts, there))
    assert main([*FLOW, "my_videos", "--out=flow"]) == 0
    assert len(rows("flow/flow.csv")) == 6 and not list(Path("flow").rglob("*.part"))


def test_videos_that_cannot_be_read_stop_nothing(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(mine, "left", "text.mp4").write_text("no video")
    write_video(Path(mine, "left", "one.mp4"), (220, 30, 30), num_frames=1)
    Path("my.csv").write_text("path\nmy_videos/left/text.mp4\nmy_videos/left/one.mp4\ngone.mp4\nmy_videos/left/0.mkv\n")
    assert main([*FARNEBACK, "my.csv", "--out=flow"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == (
        "2 of 4 videos have their flow in flow (farneback, bound 20); 2 could not be read, see flow/failed.csv"
    )
    assert {Path(row["path"]).name: row["why"] for row in rows("flow/failed.csv")} == {
        "gone.mp4": "there is no such file",
        "text.mp4": "FFmpeg finds no video in it (Invalid data found when processing input)",
    }
    with FlowReader("flow").open("my_videos/left/one.mp4") as video:
        assert (video.frames([0]) == 128).all()
    Path(mine, "left", "text.mp4").unlink()
    assert main([*FARNEBACK, mine, "--out=flow"]) == 0
    assert not Path("flow/failed.csv").exists()


def test_runs_data_and_lists_are_taken(mine: str, workplace: Path) -> None:
    source = ["--data=data/folder.yaml", f"--data.source.root={mine}"]
    assert main([*FARNEBACK, "--out=a", *source]) == 0
    Path("my.txt").write_text("my_videos/left/0.mkv 0\nmy_videos/right/3.mkv 1\n")
    assert main([*FARNEBACK, "my.txt", "--out=b"]) == 0
    assert main([*FARNEBACK, "my_videos/left/0.mkv", "--out=c"]) == 0
    assert main([*FARNEBACK, "--out=d", "--data=data/list.yaml", "--data.source.train=my.txt"]) == 0
    assert [len(rows(f"{name}/flow.csv")) for name in "abcd"] == [8, 2, 1, 2]


def test_raft_with_weights_of_a_file(
    mine: str,
    raft: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main([*FLOW, "my_videos/left", "--out=flow", f"--weights={raft}", "--num-workers=1"]) == 0
    (row, *_) = rows("flow/flow.csv")
    assert row["method"] == "raft_small" and len(row["weights"]) == 8
    other = torch.load(raft)
    torch.save({name: value + 1 if value.is_floating_point() else value for name, value in other.items()}, "other.pth")
    assert main([*FLOW, mine, "--out=flow", "--weights=other.pth"]) == 1
    assert f"was made with weights whose SHA-256 begins with {row['weights']}, not those of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=flow"], "flow needs videos: give a folder, a list, or a run's settings such as --data"),
        (["nowhere", "--out=flow"], "nowhere does not exist; give a folder of videos, a video, or a file that lists"),
        (
            ["my_videos", "--out=flow", "--data=data/folder.yaml"],
            "give either my_videos or a run's config and settings",
        ),
        (["my_videos", "--out=my_videos/flow"], "out=my_videos/flow lies in my_videos, where its files would count as"),
        (
            ["--out=my_videos/flow", "--data=data/folder.yaml", "--data.source.root=my_videos"],
            "lies in my_videos, where",
        ),
        (["my_videos", "--out=flow", "--bound=0"], "bound=0.0 must be above 0"),
        (["my_videos", "--out=flow", "--short-side=8"], "short_side=8 must be at least 16 pixels, or 0"),
        (["my_videos", "--out=flow", "--num-workers=0"], "num_workers=0 must be at least 1"),
        (["my_videos", "--out=made", "--method=tvl1"], "the flow in made was made with method farneback, not tvl1:"),
        (["my_videos", "--out=made", "--short-side=32"], "was made with short_side 0, not 32: leave the option out"),
        (["my_videos", "--out=taken"], "taken/my_videos/left/0.mkv is there and is no whole file of cnnbert flow"),
        (["twin/my_videos", "--out=made"], "0.mkv; give another folder as out for that of"),
        (["my_videos", "--out=my.txt"], "out=my.txt cannot be written"),
    ],
)
def test_mistakes_are_told(mine: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, 4):
        for label in ("left", "right"):
            Path(mine, label, f"{number}.mkv").unlink()
    Path("my.txt").write_text("my_videos/left/0.mkv")
    assert main([*FARNEBACK, "my_videos", "--out=made"]) == 0
    shutil.copytree(mine, "taken/my_videos")
    shutil.copytree(mine, "twin/my_videos")
    before = sorted(Path(".").rglob("*"))
    method = [] if any("method" in word for word in arguments) else ["--method=farneback"]
    assert main([*FLOW, *method, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert before == sorted(Path(".").rglob("*"))


TWO_STREAM = [
    "--model.backbone=TwoStream",
    *(
        f"--model.backbone.{name}{option}"
        for name in ("rgb", "flow")
        for option in ("=R2Plus1D", ".depth=10", ".width=8")
    ),
    "--model.backbone.flow.in_channels=2",
    *TINY_MODEL[3:],
]


def trained(reader: str, *model: str) -> list[str]:
    return [
        "--data=data/folder.yaml",
        "--data.source.root=my_videos",
        "--data.source.val_fraction=0.25",
        "--data.source.test_fraction=0.25",
        f"--data.reader={reader}",
        "--data.reader.folder=flow",
        *(model or (*TINY_MODEL, "--model.backbone.in_channels=2")),
        *TINY_DATA,
        *TINY_RUN,
        "--trainer.logger=false",
    ]


@pytest.mark.parametrize(("reader", "channels", "model"), [("FlowReader", 2, []), ("RGBFlowReader", 5, TWO_STREAM)])
def test_the_whole_way(
    mine: str, reader: str, channels: int, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Flow, training, testing, and everything that is done with a checkpoint."""
    assert main([*FARNEBACK, mine, "--out=flow"]) == 0
    assert main(["fit", *trained(reader, *model)]) == 0
    assert main(["test", "--ckpt_path=best", "--data.test_protocol=all_clips_10_crops", "--trainer.logger=false"]) == 0
    capsys.readouterr()
    write_moving(Path("new_videos", "0.mkv"), -2, 0, 9, (48, 56))
    classify = ["classify", "best", "new_videos", "--num-crops=10", "--num-workers=0"]
    assert main(classify) == 1
    assert "there is no optical flow of it in flow; cnnbert flow VIDEOS --out flow makes it" in capsys.readouterr().out
    assert main([*FLOW, "new_videos", "--out=flow"]) == 0
    assert main(classify) == 0
    assert main(["explain", "best", "new_videos/0.mkv"]) == 0
    assert main(["scan", "best", "new_videos", "--out=segments.csv", "--annotate"]) == 0
    assert main(["export", "best", "--out=model.pt2", "--format=torch-export"]) == 0
    data = [option for option in trained(reader) if option.startswith("--data")]
    for kind in ("png", "html"):
        assert main(["preview", *data, f"--out=preview.{kind}"]) == 0
    assert main(["bench-data", *data, "--num-batches=1", "--num-videos=2"]) == 0
    assert main(["check", *data, "--num-workers=1"]) == 0
    assert capsys.readouterr().out.endswith("8 of 8 videos are fine\n")
    model = cnnbert.load("best")
    assert model.data.reader.channels == channels and set(model.classify("new_videos/0.mkv")) == {"left", "right"}
    with Image.open("preview.png") as sheet:
        assert sheet.height > 4 * (112 if channels == 2 else 224)


def test_features_know_their_flow(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FARNEBACK, mine, "--out=flow"]) == 0
    settings = [*trained("FlowReader"), "--seed_everything=0"]
    Path("tiny.yaml").write_text("seed_everything: 0\n")
    assert main(["features", "--config=tiny.yaml", "--out=features", "--train-views=1", *settings]) == 0
    shutil.rmtree("flow")
    assert main([*FARNEBACK, mine, "--out=flow", "--bound=9"]) == 0
    capsys.readouterr()
    heads = ["ablate", "--features=features", "--heads", "TGAPHead", "--seeds=1", "--trainer.logger=false"]
    assert main([*heads, "--trainer.max_epochs=1"]) == 1
    told = capsys.readouterr().err
    assert "the features in features are of another kind: optical flow was {'method': 'farneback'" in told
    assert "'bound': 20.0} and is " in told and "'bound': 9.0}; make them again with cnnbert features" in told


def test_small_pictures_of_flow(mine: str) -> None:
    """What a report or W&B shows of a video that moves to the left is bluish, to the right reddish."""
    assert main([*FARNEBACK, mine, "--out=flow"]) == 0
    for label, strongest in {"left": 2, "right": 0}.items():
        path = f"my_videos/{label}/2.mkv"
        write_preview(Path("small.mp4"), VideoRecord(path), FlowReader("flow"))
        with PyAVReader().open("small.mp4") as video:
            frame = video.frames([1])[0].float()
        assert frame.shape == (3, 48, 56) and int(frame.mean((1, 2)).argmax()) == strongest
        with FlowReader("flow").open(path) as video:
            strip = attention_strip(video.frames(range(8)).transpose(0, 1), torch.full((2,), 0.5))
        assert strip.ndim == 3 and strip.shape[2] == 3
        colours = strip[: strip.shape[0] // 4].reshape(-1, 3).mean(0)
        assert int(colours.argmax()) == strongest


@pytest.mark.parametrize(
    ("reader", "model", "message"),
    [
        ("FlowReader", TINY_MODEL, "clips have 2 channels, but R2Plus1D takes 3; in_channels=2 makes one that fits"),
        ("RGBFlowReader", TINY_MODEL, "clips have 5 channels, but R2Plus1D takes 3; in_channels=5 makes one that fits"),
        ("FlowReader", TWO_STREAM, "clips have 2 channels, but TwoStream takes 5, those of colours and flow; --data."),
        (
            "RGBFlowReader",
            [*TWO_STREAM, "--model.backbone.rgb.in_channels=2"],
            "the rgb stream (R2Plus1D) takes 2 channels instead of 3; set in_channels to 3 (--model.backbone.rgb.in",
        ),
    ],
)
def test_networks_refuse_clips_of_other_channels(
    mine: str, reader: str, model: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any weights are loaded or fetched."""
    assert main([*FARNEBACK, mine, "--out=flow"]) == 0
    assert main(["fit", *trained(reader, *model)]) == 1
    assert message in capsys.readouterr().err


def test_two_streams_start_from_weights_and_go_on(mine: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also features know their weights by what they are, not by where they lay; and a whole is taken up again."""
    assert main([*FARNEBACK, mine, "--out=flow"]) == 0
    for name, channels in {"rgb": 3, "flow": 2}.items():
        torch.save(R2Plus1D(depth=10, width=8, in_channels=channels).state_dict(), f"{name}.pth")
    weights = [f"--model.backbone.{name}.weights={name}.pth" for name in ("rgb", "flow")]
    still = ["--model.optimizer=SGD", "--model.optimizer.lr=0"]
    run = trained("RGBFlowReader", *TWO_STREAM, *weights)
    assert main(["fit", *run, *still]) == 0
    for name in ("rgb", "flow"):
        assert f"{name}: weights {name}.pth: loaded 126 tensors into R2Plus1D" in caplog.text
        state, stream = torch.load(f"{name}.pth"), getattr(cnnbert.load("best").backbone, name)
        assert all(torch.equal(value, state[key]) for key, value in stream.named_parameters())
    Path("tiny.yaml").write_text("seed_everything: 0\n")
    assert main(["features", "--config=tiny.yaml", "--out=features", "--train-views=1", *run]) == 0
    for name in ("rgb", "flow"):
        Path(f"{name}.pth").rename(f"moved_{name}.pth")
    assert main(["fit", "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0
    moved = [f"--model.backbone.{name}.weights=moved_{name}.pth" for name in ("rgb", "flow")]
    check_features(Path("features"), config_settings("tiny.yaml", [], [*run, *moved]))
    changed = [*run, *moved, "--model.backbone.fusion=concat"]
    with pytest.raises(InputError, match="of another kind: backbone was"):
        check_features(Path("features"), config_settings("tiny.yaml", [], changed))
    best = next(Path("runs").glob("*/fit-*/checkpoints/best.ckpt"))
    assert main(["fit", *run, f"--model.backbone.weights={best}"]) == 0
    assert "tensors into TwoStream; not loaded: head.cls" in caplog.text


def test_flow_is_shown_as_colours() -> None:
    """Still pictures are white, and what moves to one side has another colour than what moves to the other."""
    still = torch.full((3, 2, 4, 6), 128, dtype=torch.uint8)
    assert (pictures(still) == 255).all() and (pictures(255 - still) == 255).all()
    moving = still.clone()
    moving[:, 0, :2], moving[:, 0, 2:] = 255, 0
    right, left = pictures(moving)[0, :, 0, 0].int(), pictures(moving)[0, :, 3, 0].int()
    assert right[0] > right[2] and left[2] > left[0]  # red to the right, blue to the left
    clip = torch.cat([torch.randint(256, (3, 3, 4, 6), dtype=torch.uint8), moving], 1)
    both = pictures(clip)
    assert both.shape == (3, 3, 8, 6)
    assert torch.equal(both[:, :, :4], clip[:, :3]) and torch.equal(both[:, :, 4:], pictures(moving))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real videos")
def test_two_streams_of_real_clips_tell_actions_apart(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on six people, tested on three others, among four classes: three in four at least, by flow and fused."""
    videos = SHARED / "videos" / "weizmann4"
    assert main([*FARNEBACK, str(videos), "--out=flow"]) == 0
    data = ["--data=data/list.yaml", f"--data.source.train={videos}/train.txt", f"--data.source.test={videos}/test.txt"]
    sizes = ["--data.clip_length=16", "--data.stride=2", "--data.cache=null", "--trainer.logger=false"]
    epochs = ["--trainer.max_epochs=20", "--model.scheduler.T_max=20"]
    for stream in ("r2plus1d_bert", "r2plus1d_flow_bert"):
        assert main(["fit", f"--config=small/{stream}.yaml", *data, *sizes, *epochs]) == 0
        for judge in ("validate", "test"):
            assert main([judge, "--ckpt_path=best", "--trainer.logger=false"]) == 0
    tested, validated = (
        [str(path) for path in sorted(workplace.glob(f"runs/*/{judge}-*/predictions.csv"))]
        for judge in ("test", "validate")
    )
    capsys.readouterr()
    assert main(["fuse", *tested, "--validation", *validated]) == 0
    rows = {line.split()[0]: line.split("%")[0].split()[-1] for line in capsys.readouterr().out.splitlines()[1:4]}
    assert len(tested) == 2 and float(rows["fused.csv"]) >= 75
    assert float(next(value for path, value in rows.items() if "_flow_" in path)) >= 75
