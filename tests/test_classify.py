"""Naming the classes of videos with a trained model."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video

import cnnbert
from cnnbert import annotate, classify
from cnnbert.cli import main
from cnnbert.data.readers import PyAVReader
from cnnbert.errors import InputError, VideoReadError
from cnnbert.inference import VIEWS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A model that tells red, green and blue videos apart."""
    root = tmp_path_factory.mktemp("trained")
    data = [*TINY_DATA, "--data.source=Folder", f"--data.source.root={videos}", "--data.batch_size=4"]
    run = [*TINY_RUN, "--trainer.max_epochs=30", "--trainer.check_val_every_n_epoch=30"]
    words = [*TINY_MODEL, *data, *run, "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=3e-3"]
    assert main(["fit", *words, "--model.scheduler=null", f"--trainer.default_root_dir={root}"]) == 0
    (path,) = root.glob("run/fit-*/checkpoints/best.ckpt")
    return path


def test_a_loaded_model_classifies(checkpoint: Path, videos: Path) -> None:
    model = cnnbert.load(checkpoint)
    for colour in ("red", "green", "blue"):
        found = model.classify(str(videos / "test" / colour / "1.mp4"), top_k=2)
        assert len(found) == 2
        assert next(iter(found)) == colour
        assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(model.classify(str(videos / "test/red/1.mp4"), top_k=None).values()) == pytest.approx(1, abs=1e-5)
    assert model.classify(str(videos / "test/red/1.mp4"), top_k=50).keys() == set(model.class_names)


def test_several_views_are_averaged(checkpoint: Path, videos: Path) -> None:
    """By hand: ten clips spread evenly, the centre of each, the mean of their probabilities."""
    model = cnnbert.load(checkpoint)
    path = str(videos / "test/green/2.mp4")  # 14 frames
    with PyAVReader().open(path) as video:
        frames = video.frames(range(video.num_frames))
    starts = [round(i * 6 / 9) for i in range(10)]
    small = torch.nn.functional.interpolate(frames.float(), (32, 32), mode="bilinear", antialias=True)
    clips = torch.stack([small[start : start + 8].transpose(0, 1) for start in starts])
    with torch.inference_mode():
        expected = model(clips.round().to(torch.uint8)).softmax(1).mean(0)
    found = model.classify(path, top_k=None)
    for name, probability in zip(model.class_names, expected.tolist(), strict=True):
        assert found[name] == pytest.approx(probability, abs=0.02)  # the command computes in bfloat16 where it can


def test_predict_gives_the_same(checkpoint: Path, videos: Path, workplace: Path) -> None:
    words = [f"--ckpt_path={checkpoint}", "--data.source=Folder", f"--data.source.root={videos}", *TINY_RUN[1:]]
    views = ["--data.num_clips=10", "--data.num_crops=1", "--data.average=probabilities"]
    assert main(["test", *words, *views]) == 0
    (path,) = workplace.glob("runs/*/test-*/predictions.csv")
    assert main(["classify", str(checkpoint), str(videos / "test"), "--out", "x.csv", "--top-k", "1"]) == 0
    with path.open() as predicted, Path("x.csv").open() as classified:
        rows = {row["path"]: row for row in csv.DictReader(predicted)}
        for row in csv.DictReader(classified):
            assert row["label_1"] == rows[row["path"]]["prediction"]
            assert float(row["score_1"]) == pytest.approx(float(rows[row["path"]][f"score:{row['label_1']}"]), abs=1e-3)


def test_only_the_checkpoint_is_needed(checkpoint: Path, videos: Path, workplace: Path) -> None:
    Path("model.ckpt").write_bytes(checkpoint.read_bytes())
    write_video(Path("new.mp4"), (220, 30, 30))
    code = "import cnnbert; print(next(iter(cnnbert.load('model.ckpt').classify('new.mp4'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "red\n"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_folder_with_a_broken_video(
    checkpoint: Path, workplace: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    colours = {"a/red.mp4": (220, 30, 30), "a/b/green.mp4": (30, 200, 30), "blue.mp4": (30, 30, 220)}
    for name, colour in colours.items():
        write_video(Path("clips", name), colour)
    Path("clips/broken.mp4").write_bytes(b"no video")
    Path("clips/notes.txt").write_text("no video either")
    words = ["classify", str(checkpoint), "clips", "clips/blue.mp4", "--num-workers", workers]
    assert main([*words, "--out", "x.json"]) == 1
    out = capsys.readouterr().out
    assert "clips/broken.mp4\n  cannot be read: FFmpeg finds no video in it" in out
    assert out.endswith("x.json: 4 of 4 videos\n1 of 4 videos could not be read\n")
    rows = {row["path"]: row for row in json.loads(Path("x.json").read_text())}
    assert list(rows) == ["clips/a/b/green.mp4", "clips/a/red.mp4", "clips/blue.mp4", "clips/broken.mp4"]
    assert rows["clips/broken.mp4"]["classes"] == []
    assert rows["clips/broken.mp4"]["error"].startswith("FFmpeg finds no video in it")
    for name in colours:
        assert rows[f"clips/{name}"]["error"] is None
        assert rows[f"clips/{name}"]["classes"][0]["label"] == Path(name).stem
        assert len(rows[f"clips/{name}"]["classes"]) == 3


def test_odd_names(checkpoint: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("odd")
    names = ['a "b", c.mp4', "[d].mp4", "e\nf.mp4", os.fsdecode(b"g\xff.mp4")]
    for name in names:
        write_video(folder / "x.mp4", (220, 30, 30)).rename(folder / name)
    assert main(["classify", str(checkpoint), *(str(folder / name) for name in names), "--out", "x.csv"]) == 0
    assert r"odd/g\udcff.mp4" in capsys.readouterr().out
    with Path("x.csv").open(newline="", encoding="utf-8") as file:
        found = {row["path"]: row["label_1"] for row in csv.DictReader(file)}
    assert found == {f"odd/{name}".replace("\udcff", r"\udcff"): "red" for name in names}


def test_an_annotated_copy(checkpoint: Path, workplace: Path) -> None:
    for folder in ("a", "b"):
        write_video(Path(folder, "x.mp4"), (220, 30, 30), num_frames=20, size=128)
    assert main(["classify", str(checkpoint), "a/x.mp4", "b/x.mp4", "--annotate"]) == 0
    original, copy, other = Path("a/x.mp4"), Path("x.labelled.mp4"), Path("x-2.labelled.mp4")
    assert other.is_file()
    with PyAVReader().open(str(original)) as before, PyAVReader().open(str(copy)) as after:
        assert (before.num_frames, before.fps) == (after.num_frames, after.fps)
        change = (before.frames(range(20)).int() - after.frames(range(20)).int()).abs().float()
    assert change[:, :, 100:].mean() > 20  # the band with the words
    assert change[:, :, :60].mean() < 4  # the rest, but for encoding anew


def test_captions_are_drawn() -> None:
    picture = np.full((120, 200, 3), 90, np.uint8)
    assert annotate.with_caption(picture, "") is picture
    short, long = (annotate.with_caption(picture, words) for words in ("run 93 %", "a rather long name of a class 9 %"))
    for drawn in (short, long):
        assert drawn.max() > 200  # light words
        assert (drawn[:60] == 90).all()
        assert (drawn[:, -1] <= 90).all()  # that end before the edge
        assert drawn[-1, 0].max() < 90  # on a dark band
    assert (picture == 90).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.mp4"], "none.mp4 does not exist; give videos, or folders of videos"),
        (["empty"], "there is no video in the folder empty"),
        (["x.mp4", "--top-k", "0"], "top_k=0 must be at least 1; try 5"),
        (["x.mp4", "--num-clips", "0"], "num_clips=0 must be at least 1; try 10"),
        (["x.mp4", "--out", "x.txt"], "out=x.txt must end in .csv or .json"),
        (["x.mp4", "--out", "old.csv"], "old.csv is there already; give another name, or --force to replace it"),
        (
            ["x.mp4", "--out", "no/x.csv"],
            "no/x.csv cannot be written: No such file or directory; nothing is left of it",
        ),
        (["x.mp4", "--annotate"], "x.labelled.mp4 is there already; give another name, or --force to replace it"),
    ],
)
def test_mistakes_are_said_before_the_work(
    checkpoint: Path,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    Path("x.mp4").touch()
    Path("x.labelled.mp4").touch()
    Path("old.csv").write_text("old")
    Path("empty").mkdir()

    def never(*_: object) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(classify, "video_scores", never)
    assert main(["classify", str(checkpoint), *words]) == 1
    assert capsys.readouterr().err.startswith(f"cnnbert: error: {message}")
    assert Path("old.csv").read_text() == "old"


def test_force_replaces(checkpoint: Path, workplace: Path, videos: Path) -> None:
    Path("old.csv").write_text("old")
    assert main(["classify", str(checkpoint), str(videos / "test/red/0.mp4"), "--out", "old.csv", "--force"]) == 0
    assert Path("old.csv").read_text().startswith("path,label_1,score_1,")


def test_a_checkpoint_without_classes(checkpoint: Path, workplace: Path) -> None:
    known = torch.load(checkpoint, weights_only=True)
    known["hyper_parameters"]["class_names"] = []
    torch.save(known, "nameless.ckpt")
    with pytest.raises(InputError, match=r"^nameless.ckpt does not say what its classes are; it cannot name any$"):
        cnnbert.load("nameless.ckpt")


def test_a_checkpoint_of_another_version(checkpoint: Path, workplace: Path) -> None:
    known = torch.load(checkpoint, weights_only=True)
    known["hyper_parameters"]["head"]["init_args"]["colour"] = 1
    torch.save(known, "other.ckpt")
    with pytest.raises(InputError) as caught:
        cnnbert.load("other.ckpt")
    assert str(caught.value).startswith(f"other.ckpt has settings that cnnbert {cnnbert.__version__} does not take; ")
    assert "Option 'colour' is not accepted" in str(caught.value)


def test_a_model_that_was_only_built(videos: Path) -> None:
    model = cnnbert.build("quickstart.yaml", ["a", "b"])
    with pytest.raises(InputError, match=r"take one that cnnbert\.load made"):
        model.classify(str(videos / "test/red/0.mp4"))


def test_what_cannot_be_read_raises(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(VideoReadError, match="FFmpeg finds no video in it"):
        cnnbert.load(checkpoint).classify(str(tmp_path / "x.mp4"))


def test_several_classes_a_video(workplace: Path) -> None:
    rows = ["path,label,split"]
    for number in range(6):
        for label, colour in {"red": (220, 30, 30), "red|green": (220, 200, 30), "|": (20, 20, 20)}.items():
            path = write_video(Path("v", f"{label.replace('|', '-')}{number}.mp4"), colour)
            rows.append(f"{path},{label},{'val' if number == 5 else 'train'}")
    Path("list.csv").write_text("\n".join(rows))
    data = [*TINY_DATA, "--data.source=CSVManifest", "--data.source.path=list.csv", "--data.label_separator=|"]
    assert main(["fit", *TINY_MODEL, *data, *TINY_RUN]) == 0
    (path,) = Path().glob("runs/run/fit-*/checkpoints/best.ckpt")
    model = cnnbert.load(path)
    found = model.classify("v/red-green5.mp4")
    assert found.keys() == {"red", "green"}
    assert all(0 < value < 1 for value in found.values())
    assert sum(found.values()) != pytest.approx(1, abs=1e-4)  # each class by itself


def test_what_was_classified_before_a_full_disk_is_kept(
    checkpoint: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        write_video(Path(f"{name}.mp4"), (220, 30, 30))
    write = annotate.encode

    def full(video: str, *arguments: object, **options: object) -> None:
        if video == "b.mp4":
            raise OSError(28, "No space left on device")
        write(video, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(annotate, "encode", full)
    words = ["a.mp4", "b.mp4", "c.mp4", "--out", "x.csv", "--annotate"]
    assert main(["classify", str(checkpoint), *words]) == 1
    told = capsys.readouterr()
    assert told.err == "cnnbert: error: b.labelled.mp4 cannot be written: No space left on device\n"
    assert told.out.endswith("x.csv: 1 of 3 videos\n")
    assert Path("x.csv").read_text().splitlines()[1].startswith("a.mp4,red,")


def test_views_by_default() -> None:
    assert VIEWS == (10, 1, "probabilities")


def test_a_video_that_ffmpeg_writes_is_whole(checkpoint: Path, workplace: Path) -> None:
    """The copy is playable: H.264 in yuv420p, with its index at the beginning."""
    write_video(Path("x.mp4"), (220, 30, 30), num_frames=20, size=128)
    assert main(["classify", str(checkpoint), "x.mp4", "--annotate"]) == 0
    with av.open("x.labelled.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    whole = Path("x.labelled.mp4").read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="needs signals")
def test_ctrl_c_keeps_what_is_done(checkpoint: Path, workplace: Path) -> None:
    for number in range(40):
        write_video(Path("v", f"{number:02}.mp4"), (220, 30, 30), num_frames=60, size=128)
    command = [sys.executable, "-m", "cnnbert", "classify", str(checkpoint), "v", "--out", "x.csv", "--num-workers=0"]

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for _ in range(3):
        Path("x.csv").unlink(missing_ok=True)
        with subprocess.Popen(command, **pipes, preexec_fn=heed) as run:
            assert run.stdout is not None
            run.stdout.readline()
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=120)
        if "Exception ignored" not in err:  # as Python does with what is raised in a destructor or a callback
            break
    assert (run.returncode, err.splitlines()[-1]) == (130, "cnnbert: stopped")
    assert "Traceback" not in err, err
    with Path("x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 0 < len(rows) < 40
    assert out.endswith(f"x.csv: {len(rows)} of 40 videos\n")
