"""The check of a file finds what is wrong with it, and nothing where nothing is."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from barcode import barcode, write_barcodes
from torch import Tensor

from cnnbert.data.encoding import comment_of
from cnnbert.data.inspection import VERDICTS, Inspection, inspect_video
from cnnbert.data.readers import DecordReader, PyAVReader, PyAVVideo, Video, VideoReader

VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "videos"
WRITTEN: dict[str, dict[str, Any]] = {
    "h264.mp4": {"b_frames": 2},
    "open_gop.mkv": {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2},
    "raw.h264": {},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_good_files_are_ok(name: str, tmp_path: Path) -> None:
    path = write_barcodes(tmp_path / name, **WRITTEN[name])
    found = inspect_video(str(path), DecordReader())
    assert (found.verdict, found.why, found.frames) == ("ok", "", 60)
    assert (found.width, found.height, found.rotation, found.pixel_aspect) == (64, 64, 0, "1:1")
    assert found.fps == 25
    assert found.seconds == pytest.approx(2.4, abs=0.05)
    assert found.is_variable in (False, None if name == "raw.h264" else False)
    assert found.bytes == path.stat().st_size


class ShiftedVideo(PyAVVideo):
    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        return super().frames([max(0, int(index) - self.shift) for index in indices])

    shift = 1


class ShiftedReader(VideoReader):
    """Gives the frame before the one that is asked for."""

    def open(self, path: str) -> Video:
        return ShiftedVideo(path)


class OnceShiftedVideo(PyAVVideo):
    """Gives wrong frames only when several runs are read, not the first."""

    calls = 0

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        self.calls += 1
        return super().frames(indices if self.calls < 4 else [max(0, int(index) - 1) for index in indices])


class OnceShiftedReader(VideoReader):
    def open(self, path: str) -> Video:
        return OnceShiftedVideo(path)


class CountingVideo(PyAVVideo):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.num_frames -= 1


class CountingReader(VideoReader):
    """Misses the last frame."""

    def open(self, path: str) -> Video:
        return CountingVideo(path)


@pytest.mark.parametrize(
    ("reader", "why"),
    [
        (ShiftedReader(), "other frames than decoding in order does: "),
        (OnceShiftedReader(), "other frames than decoding in order does: "),
        (CountingReader(), "the reader counts 59 frames, decoding in order gives 60"),
    ],
)
def test_wrong_frames_are_found(reader: VideoReader, why: str, tmp_path: Path) -> None:
    found = inspect_video(str(write_barcodes(tmp_path / "a.mp4")), reader)
    assert found.verdict == "wrong_frames"
    assert why in found.why


def claim(path: Path, count: int) -> None:
    """Let an AVI file's header count other frames than there are."""
    data = bytearray(path.read_bytes())
    for tag, place in ((b"avih", 24), (b"strh", 40)):
        at = data.index(tag) + place
        data[at : at + 4] = count.to_bytes(4, "little")
    path.write_bytes(data)


def test_a_wrong_header_is_noted(tmp_path: Path) -> None:
    path = write_barcodes(tmp_path / "a.avi", codec="mpeg4")
    claim(path, 90)
    found = inspect_video(str(path), DecordReader())
    assert (found.verdict, found.frames, found.header_frames) == ("ok", 60, 90)
    assert any("the header counts 90 frames" in note and "there are 60" in note for note in found.notes)


def test_texts_in_a_file_may_be_of_any_bytes(tmp_path: Path) -> None:
    path = write_barcodes(tmp_path / "a.mp4")
    with av.open(str(path)) as old, av.open(str(tmp_path / "b.mp4"), "w") as new:
        new.metadata["comment"] = "cafes"
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    changed = (tmp_path / "b.mp4").read_bytes().replace(b"cafes", b"caf\xe9s")
    assert b"caf\xe9s" in changed
    (tmp_path / "c.mp4").write_bytes(changed)
    assert inspect_video(str(tmp_path / "c.mp4"), PyAVReader()).verdict == "ok"
    assert comment_of(tmp_path / "c.mp4").startswith("caf")


def test_damage_is_found(tmp_path: Path) -> None:
    whole = write_barcodes(tmp_path / "a.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        place = max(packet.pos for packet in container.demux(video=0) if packet.size and packet.is_keyframe)
    (tmp_path / "flipped.mp4").write_bytes(whole[: place + 8] + bytes(40) + whole[place + 48 :])
    mpeg4 = write_barcodes(tmp_path / "b.avi", codec="mpeg4").read_bytes()
    (tmp_path / "cut.avi").write_bytes(mpeg4[: len(mpeg4) * 9 // 10])
    for name in ("flipped.mp4", "cut.avi"):
        found = inspect_video(str(tmp_path / name), DecordReader())
        assert found.verdict == "damaged", name
        assert f"{found.frames} frames decode" in found.why


def test_what_decodes_up_to_a_cut_is_ok_and_noted(tmp_path: Path) -> None:
    """Matroska files have no count of frames to be missed; those that are left are right."""
    whole = write_barcodes(tmp_path / "a.mkv").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    found = inspect_video(str(path), DecordReader())
    assert found.verdict == "ok"
    assert found.frames is not None and 0 < found.frames < 60
    assert found.notes[0] == f"the header has a duration and a rate that make 60, there are {found.frames}"


def test_files_without_a_picture(tmp_path: Path) -> None:
    whole = write_barcodes(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index was at the end
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", 44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    verdicts = {path.name: inspect_video(str(path), DecordReader()).verdict for path in tmp_path.iterdir()}
    assert verdicts == {
        "whole.mp4": "ok",
        "cut.mp4": "unreadable",
        "text.mp4": "unreadable",
        "empty.mp4": "unreadable",
        "folder.mp4": "unreadable",
        "sound.mp4": "no_video",
    }
    assert inspect_video(str(tmp_path / "absent.mp4"), DecordReader()).verdict == "missing"


def test_what_the_reader_refuses_is_unreadable(tmp_path: Path) -> None:
    pieces = [write_barcodes(tmp_path / f"{side}.h264", size=(side, side), num_frames=4) for side in (64, 32)]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    found = inspect_video(str(path), PyAVReader())
    assert found.verdict == "unreadable"
    assert "the reader refuses it: its frames have different sizes" in found.why


def test_a_varying_rate_and_odd_pixels_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.codec_context.time_base = Fraction(1, 25)
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(barcode(number, 32, 64), "rgb24")
            frame.pts, frame.time_base = number + 3 * (number > 9), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = inspect_video(str(path), DecordReader())
    assert (found.verdict, found.frames, found.is_variable, found.pixel_aspect) == ("ok", 20, True, "4:3")
    assert (found.width, found.height) == (64, 32)


def test_the_same_content_has_the_same_digest(tmp_path: Path) -> None:
    a = write_barcodes(tmp_path / "a.mp4", num_frames=5)
    shutil.copy(a, tmp_path / "b.mp4")
    write_barcodes(tmp_path / "c.mp4", num_frames=6)
    digests = [inspect_video(str(tmp_path / f"{name}.mp4"), DecordReader()).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


# Manifest and check count different streams: the file has two, and the larger one is read, which has 390 frames.
OTHER_STREAM = {"odd/torchcodec/nasa_13013.mp4": 390}


def real_rows() -> list[dict[str, str]]:
    """Return the manifest's rows of odd, ucf101 and hmdb51, and some of the rest."""
    with (VIDEOS / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    many = [row for row in rows if row["dataset"] in ("hockey_fights", "weizmann4")]
    return [row for row in rows if row not in many] + random.Random(0).sample(many, 20)


@pytest.mark.slow
@pytest.mark.skipif(not VIDEOS.exists(), reason="needs the folder of real videos beside the repository")
def test_real_files_get_the_manifests_verdicts() -> None:
    found: dict[str, Inspection] = {}
    for row in real_rows():
        found[row["file"]] = file = inspect_video(str(VIDEOS / row["file"]), DecordReader())
        frames = OTHER_STREAM.get(row["file"], int(row["frames"] or 0))
        assert (file.frames or 0) == frames, row["file"]
        # The manifest's `ok` says that nothing failed, also where there was nothing to decode.
        fine = "ok" if frames else "no_video"
        expected = {fine} if row["decode"] == "ok" else {"damaged"} if frames else {"unreadable"}
        assert file.verdict in expected, (row["file"], file)
    assert {file.verdict for file in found.values()} == {"ok", "no_video", "damaged", "unreadable"} < set(VERDICTS)
