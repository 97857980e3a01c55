"""Copies of videos have the same frames, and are there whole or not at all."""

from __future__ import annotations

import shutil
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from barcode import read_barcode, write_barcodes

from cnnbert.data import encoding
from cnnbert.data.encoding import Encoding, comment_of, encode
from cnnbert.data.pyav_video import PyAVVideo
from cnnbert.data.readers import DecordReader, PyAVReader
from cnnbert.errors import InputError, VideoReadError

resource: Any = None
with suppress(ImportError):  # not on Windows
    import resource

SOURCES: dict[str, dict[str, Any]] = {
    "h264.mp4": {"b_frames": 3},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "open.mp4": {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
    "wmv2.wmv": {"codec": "wmv2"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "mpeg2.ts": {"codec": "mpeg2video"},
    "film.mkv": {"rate": Fraction(24000, 1001)},
}


@pytest.mark.parametrize("name", SOURCES)
def test_frame_n_stays_frame_n(name: str, tmp_path: Path) -> None:
    source = write_barcodes(tmp_path / name, size=(96, 160), **SOURCES[name])
    before = source.read_bytes()
    target = tmp_path / "copy.mp4"
    encode(str(source), {target: slice(None)}, Encoding(short_side=64), "a note")
    with DecordReader().open(str(target)) as copy, DecordReader().open(str(source)) as original:
        assert copy.num_frames == original.num_frames == 60
        assert copy.fps == pytest.approx(original.fps, rel=1e-6)
        frames = copy.frames(range(60))
        assert frames.shape == (60, 3, 64, 106)
        assert [read_barcode(frame[..., :104]) for frame in frames][::7] == list(range(60))[::7]
    assert comment_of(target) == "a note"
    assert source.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {name, "copy.mp4"}


def test_every_gop_can_be_sought_and_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_barcodes(tmp_path / "a.mp4", num_frames=70)
    copies = [tmp_path / "b.mp4", tmp_path / "c.mp4"]
    for copy in copies:
        encode(str(source), {copy: slice(None)}, Encoding(gop=16))
    assert [start.number for start in PyAVVideo(str(copies[0])).index.starts] == [0, 16, 32, 48, 64]
    assert copies[0].read_bytes() == copies[1].read_bytes()
    with av.open(str(copies[0])) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    data = copies[0].read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # read from its beginning


def test_several_pieces_are_cut_in_one_go(tmp_path: Path) -> None:
    source = write_barcodes(tmp_path / "a.avi", "mpeg4", num_frames=60)
    pieces = {tmp_path / "x.mp4": slice(5, 20), tmp_path / "y.mp4": slice(10, 11), tmp_path / "z.mp4": slice(50, 99)}
    encode(str(source), pieces, Encoding())
    for path, piece in pieces.items():
        expected = list(range(60))[piece]
        with DecordReader().open(str(path)) as video:
            assert [read_barcode(frame) for frame in video.frames(range(video.num_frames))] == expected


def write_gradient(path: Path, size: tuple[int, int], **settings: Any) -> Path:
    """Write four frames, dark at the left and light at the right, red at the top."""
    height, width = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    picture[: height // 4] = (255, 0, 0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("size", "settings", "short_side", "expected"),
    [
        ((240, 320), {}, 128, (128, 170)),
        ((320, 240), {}, 128, (170, 128)),
        ((67, 101), {}, 128, (66, 100)),  # even sides, not enlarged
        ((67, 101), {}, 32, (32, 48)),
        ((120, 160), {"sample_aspect_ratio": Fraction(2, 1)}, 60, (60, 160)),
        ((120, 160), {"sample_aspect_ratio": Fraction(1, 2)}, 60, (90, 60)),
    ],
)
def test_sizes(
    size: tuple[int, int], settings: dict[str, Any], short_side: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    source = write_gradient(tmp_path / "a.mp4", size, **settings)
    encode(str(source), {tmp_path / "b.mp4": slice(None)}, Encoding(short_side=short_side))
    with DecordReader().open(str(tmp_path / "b.mp4")) as video:
        frame = video.frames([0])[0].float()
    assert tuple(frame.shape[1:]) == expected
    middle = frame[:, expected[0] // 2]
    assert middle[:, -1].mean() > 200 > 60 > middle[:, 0].mean()


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "marks"),
    [
        ("a.mp4", "libx264", "yuv420p", {}),
        ("a.mp4", "libx264", "yuv420p", {"colorspace": Colorspace.ITU709, "color_range": ColorRange.MPEG}),
        ("a.mp4", "libx264", "yuvj420p", {"color_range": ColorRange.JPEG}),
        ("a.mp4", "libx264", "yuv444p", {"colorspace": Colorspace.ITU709, "color_range": ColorRange.JPEG}),
        ("a.avi", "mjpeg", "yuvj422p", {"color_range": ColorRange.JPEG}),
        ("a.mkv", "ffv1", "gray", {}),
        ("a.mkv", "ffv1", "bgra", {}),
    ],
)
def test_colours_stay(name: str, codec: str, pixel_format: str, marks: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / name
    colours = np.array([[(230, 20, 20), (20, 210, 20), (20, 20, 240)], [(250, 250, 250), (128, 90, 40), (5, 5, 5)]])
    picture = np.ascontiguousarray(colours.repeat(64, 0).repeat(64, 1).astype(np.uint8))  # (128, 192, 3)
    with av.open(str(source), "w") as container:
        stream = container.add_stream(codec, 25)
        stream.width, stream.height, stream.pix_fmt = 192, 128, pixel_format
        for mark, value in marks.items():
            setattr(stream.codec_context, mark, value)
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        kind = {"dst_colorspace": marks.get("colorspace"), "dst_color_range": marks.get("color_range")}
        for _ in range(3):
            container.mux(stream.encode(frame.reformat(format=pixel_format, **kind)))
        container.mux(stream.encode())
    encode(str(source), {tmp_path / "copy.mp4": slice(None)}, Encoding(short_side=64))
    with PyAVReader().open(str(source)) as original, PyAVReader().open(str(tmp_path / "copy.mp4")) as copy:
        a, b = original.frames([2])[0].float(), copy.frames([2])[0].float()
    a = a.reshape(3, 2, 64, 3, 64)[:, :, 8:-8, :, 8:-8].mean((2, 4))
    b = b.reshape(3, 2, 32, 3, 32)[:, :, 4:-4, :, 4:-4].mean((2, 4))
    assert (a - b).abs().max() < 3
    if pixel_format != "gray":
        assert (a - torch.from_numpy(colours.transpose(2, 0, 1))).abs().max() < 12  # as it was meant


VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "videos"


@pytest.mark.skipif(not VIDEOS.exists(), reason="needs the folder of real videos beside the repository")
def test_a_turned_video_becomes_upright(tmp_path: Path) -> None:
    source = VIDEOS / "odd/torchcodec/nasa_13013_rotated.mp4"
    encode(str(source), {tmp_path / "b.mp4": slice(0, 5)}, Encoding(short_side=64))
    with DecordReader().open(str(source)) as original, DecordReader().open(str(tmp_path / "b.mp4")) as copy:
        a, b = original.frames([4])[0].float(), copy.frames([4])[0].float()
    assert (a.shape[1] > a.shape[2]) == (b.shape[1] > b.shape[2])
    a = a.mean(0).view(1, 1, *a.shape[1:])
    small = torch.nn.functional.interpolate(a, size=b.shape[1:], mode="area")[0, 0]
    assert (small - b.mean(0)).abs().mean() < 6


def test_what_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    whole = write_barcodes(tmp_path / "a.mp4", options={"x264-params": "keyint=1"})
    data = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][40]
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    (tmp_path / "bad.mp4").write_bytes(data)
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("bad", "text", "missing"):
        with pytest.raises(VideoReadError):
            encode(str(tmp_path / f"{name}.mp4"), {tmp_path / "copy.mp4": slice(None)}, Encoding())
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "bad.mp4", "text.mp4"}


def test_a_copy_with_fewer_frames_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_barcodes(tmp_path / "a.mp4")
    frames = encoding.pictures
    monkeypatch.setattr(encoding, "pictures", lambda *given: list(frames(*given))[:-1])
    with pytest.raises(VideoReadError, match="only 59 of the 60 frames wanted of it can be decoded"):
        encode(str(source), {tmp_path / "b.mp4": slice(None)}, Encoding())
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4"}


@pytest.mark.skipif(resource is None, reason="needs limits of processes")
@pytest.mark.parametrize("size", [100, 2000])
def test_a_file_that_cannot_be_written_leaves_the_copy_that_was_there(tmp_path: Path, size: int) -> None:
    """A limit of the size of files stands for a full disk: the encoder's file meets it at its start or its end."""
    source = write_barcodes(tmp_path / "a.mp4")
    target = tmp_path / "b.mp4"
    shutil.copy(source, target)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            encode(str(source), {target: slice(None)}, Encoding())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_side": 127}, "short_side=127 must be an even number of pixels, at least 16"),
        ({"gop": 0}, "gop=0 must be at least 1"),
        ({"crf": 52}, r"crf=52 must be in \[0, 51\]"),
        ({"preset": "best"}, "preset='best' is not one of ultrafast, .*, veryslow"),
    ],
)
def test_mistakes_in_the_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Encoding(**settings)
