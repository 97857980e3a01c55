"""Readers give exactly the frames asked for: checked on numbered frames and real files."""

from __future__ import annotations

import logging
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from barcode import read_barcode, write_barcodes
from torch import Tensor

from cnnbert.data import pyav_video, readers
from cnnbert.data.readers import (
    DecordReader,
    DecordVideo,
    PyAVReader,
    TorchCodecReader,
    TorchCodecVideo,
    VideoReader,
)
from cnnbert.errors import InputError, VideoReadError

VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "videos"
READERS: list[VideoReader] = [DecordReader(), PyAVReader()]
try:
    READERS.append(TorchCodecReader())
except InputError as error:
    NO_TORCHCODEC = str(error)
else:
    NO_TORCHCODEC = ""

# Largest difference in [0, 255] between two decodings of a frame: decord's FFmpeg is old, PyAV's is today's, and
# their inverse transforms round differently. Over 209 real files it was 0 mostly, and never more than 2.
TOLERANCE = 2

# File name -> how it is written. The last three decord gets wrong or cannot read at all.
CLIPS: dict[str, dict[str, Any]] = {
    "h264.mp4": {"b_frames": 2},
    "open_gop.mp4": {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
    "long.mp4": {"b_frames": 2, "num_frames": 250, "gop": 50},
    "h264.mkv": {"b_frames": 2},
    "h264.avi": {"b_frames": 2},
    "h264.flv": {"b_frames": 2},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "mpeg4.mp4": {"codec": "mpeg4", "b_frames": 2},
    "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp8_hidden_frames.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "wmv2.wmv": {"codec": "wmv2"},
    "small.mp4": {"size": (16, 16)},
    "444.mp4": {"pixel_format": "yuv444p", "size": (67, 72)},
    "raw.h264": {"b_frames": 2},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2},
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2},
    "h264.ts": {"b_frames": 2},
    "h264.mov": {"b_frames": 2},
    "h264.m2ts": {"b_frames": 2},
    "pyramid.mp4": {"b_frames": 8, "gop": 50, "options": {"x264-params": "b-pyramid=normal:scenecut=0"}},
    "interlaced.mp4": {"options": {"x264-params": "interlaced=1"}},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1:bframes=0"}},
    "only_keys.mp4": {"gop": 1},
    "hevc_open_gop.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=0"}},
    "hevc.ts": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "8"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "8"}},
    "vp9.mp4": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp9_hidden_frames.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "mpeg1.mpg": {"codec": "mpeg1video", "b_frames": 2},
    "mpeg2.mkv": {"codec": "mpeg2video", "b_frames": 2},
    "mpeg4.mkv": {"codec": "mpeg4", "b_frames": 2},
    "msmpeg4.avi": {"codec": "msmpeg4v3"},
    "wmv1.wmv": {"codec": "wmv1"},
    "h263.3gp": {"codec": "h263", "size": (144, 176)},
    "flv1.flv": {"codec": "flv"},
    "ffv1.mkv": {"codec": "ffv1"},
    "prores.mov": {"codec": "prores", "pixel_format": "yuv422p10le"},
    "qtrle.mov": {"codec": "qtrle", "pixel_format": "rgb24"},
    "clip.gif": {"codec": "gif", "pixel_format": "rgb8"},
}
# Those that are decoded from their first frame on for every reading, and by decord.
BY_DECORD = ["h264.avi", "h264.flv", "mpeg4.avi", "mpeg4.mp4", "mjpeg.avi", "vp8_hidden_frames.webm", "wmv2.wmv"]
BY_DECORD += ["mpeg2.mkv", "mpeg4.mkv", "msmpeg4.avi", "wmv1.wmv", "h263.3gp", "flv1.flv"]

# Those of which every key frame is a safe start.
BY_TORCHCODEC = ["h264.mp4", "long.mp4", "h264.mkv", "vp9.webm", "small.mp4", "444.mp4", "h264.mov", "pyramid.mp4"]
BY_TORCHCODEC += ["interlaced.mp4", "only_keys.mp4", "hevc_open_gop.mp4", "hevc.mkv", "vp9.mp4"]
BY_TORCHCODEC += ["vp9_hidden_frames.webm", "ffv1.mkv"]


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no video be small enough to be kept in memory."""
    monkeypatch.setattr(pyav_video, "KEPT_PACKETS", 0)
    monkeypatch.setattr(pyav_video, "KEPT_FRAMES", 0)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that gives the path of one of `CLIPS`."""
    folder = tmp_path_factory.mktemp("barcodes")

    def write(name: str) -> str:
        path = folder / name
        return str(path if path.exists() else write_barcodes(path, **CLIPS[name]))

    return write


@pytest.fixture(params=READERS, ids=lambda reader: type(reader).__name__)
def reader(request: pytest.FixtureRequest) -> VideoReader:
    return request.param


def test_every_reader_is_tested() -> None:
    ours = {reader for reader in VideoReader.__subclasses__() if reader.__module__ == readers.__name__}
    if NO_TORCHCODEC:
        pytest.skip(NO_TORCHCODEC)
    assert {type(reader) for reader in READERS} == ours


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "not kept"])
@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_the_ones_asked_for(
    clip: Callable[[str], str], reader: VideoReader, name: str, is_kept: bool, request: pytest.FixtureRequest
) -> None:
    if not is_kept:
        request.getfixturevalue("no_memory")
    num_frames = CLIPS[name].get("num_frames", 60)
    height, width = CLIPS[name].get("size", (64, 64))
    anywhere = random.Random(0).choices(range(num_frames), k=20)
    with reader.open(clip(name)) as video:
        assert video.num_frames == num_frames
        assert video.fps == pytest.approx(25)
        for indices in (
            [0],
            [num_frames - 1],
            [1],
            [7, 7, 3, 7],
            anywhere,
            list(range(20, 36)),
            list(range(num_frames)),
        ):
            frames = video.frames(indices)
            assert frames.dtype == torch.uint8
            assert frames.shape == (len(indices), 3, height, width)
            assert [read_barcode(frame) for frame in frames] == indices
        assert video.frames([]).shape == (0, 3, height, width)
        assert read_barcode(video.frames(torch.tensor([5]))[0]) == 5


@pytest.mark.parametrize("name", CLIPS)
def test_decord_reads_what_it_can(
    clip: Callable[[str], str], name: str, monkeypatch: pytest.MonkeyPatch, no_memory: None
) -> None:
    pytest.importorskip("decord")
    with DecordReader().open(clip(name)) as video:
        assert isinstance(video, DecordVideo) == (name in BY_DECORD)
        if isinstance(video, DecordVideo):
            assert video.video.first.size  # which decord's is compared with
            monkeypatch.setattr(video.video, "read", lambda wanted: pytest.fail("handed over to PyAV"))
            assert [read_barcode(frame) for frame in video.frames([3, 9])] == [3, 9]


@pytest.mark.parametrize("name", CLIPS)
def test_torchcodec_reads_what_is_safe(clip: Callable[[str], str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if NO_TORCHCODEC:
        pytest.skip(NO_TORCHCODEC)
    with TorchCodecReader().open(clip(name)) as video:
        assert isinstance(video, TorchCodecVideo) == (name in BY_TORCHCODEC)
        if isinstance(video, TorchCodecVideo):
            assert video.video.first.size  # which TorchCodec's is compared with
            monkeypatch.setattr(video.video, "read", lambda wanted: pytest.fail("handed over to PyAV"))
            assert [read_barcode(frame) for frame in video.frames([3, 9])] == [3, 9]


def test_torchcodec_that_gives_other_frames_is_found_out(
    clip: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if NO_TORCHCODEC:
        pytest.skip(NO_TORCHCODEC)
    decoder = readers._import_torchcodec().VideoDecoder
    honest = decoder.get_frames_at
    monkeypatch.setattr(decoder, "get_frames_at", lambda self, wanted: honest(self, [n + 1 for n in wanted]))
    with caplog.at_level(logging.DEBUG, "cnnbert"), TorchCodecReader().open(clip("h264.mp4")) as video:
        assert [read_barcode(frame) for frame in video.frames([5, 9])] == [5, 9]
    assert "PyAV reads it, since torchcodec.decoders fails: its frames have other time stamps" in caplog.text


def test_without_torchcodec_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    readers._import_torchcodec.cache_clear()
    with pytest.raises(InputError, match=r"TorchCodecReader needs .*pip install 'cnnbert\[torchcodec\]'"):
        TorchCodecReader()
    readers._import_torchcodec.cache_clear()


def test_a_wrong_frame_is_noticed(clip: Callable[[str], str]) -> None:
    with PyAVReader().open(clip("h264.mp4")) as video:
        frames = video.frames(range(10)).clone()
    frames[6] = frames[5]
    assert [read_barcode(frame) for frame in frames] == [0, 1, 2, 3, 4, 5, 5, 7, 8, 9]
    assert difference(frames, frames.roll(1, 0)) > TOLERANCE


class LateReader:
    """Plays decord's part, and starts with the second frame."""

    def __init__(self, path: str, **options: Any) -> None:
        with PyAVReader().open(path.removeprefix("file:")) as video:
            self.frames = iter(video.frames(range(1, video.num_frames)).permute(0, 2, 3, 1))

    def next(self) -> Tensor:
        return next(self.frames)


def test_a_decord_that_starts_late_is_found_out(
    clip: Callable[[str], str], no_memory: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decord = pytest.importorskip("decord")
    monkeypatch.setattr(decord, "VideoReader", LateReader)
    with caplog.at_level(logging.DEBUG, "cnnbert"), DecordReader().open(clip("mpeg4.avi")) as video:
        assert [read_barcode(frame) for frame in video.frames(range(9))] == list(range(9))
    assert "PyAV reads it, since decord fails: its first frame is another" in caplog.text


def test_a_bridge_set_elsewhere_does_no_harm(clip: Callable[[str], str], no_memory: None) -> None:
    bridge = pytest.importorskip("decord").bridge
    with bridge.use_torch(), DecordReader().open(clip("mpeg4.avi")) as video:
        assert isinstance(video, DecordVideo)
        assert [read_barcode(frame) for frame in torch.from_numpy(video.read([0, 1, 2])).permute(0, 3, 1, 2)] == [
            0,
            1,
            2,
        ]


@pytest.fixture
def no_decord(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "decord", None)
    readers._import_decord.cache_clear()
    yield
    readers._import_decord.cache_clear()


def test_without_decord_pyav_reads_and_says_so_once(
    clip: Callable[[str], str], no_memory: None, no_decord: None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with DecordReader().open(clip("mpeg4.avi")) as video:
            assert read_barcode(video.frames([11])[0]) == 11
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "decord cannot be imported" in warnings[0]


def test_readers_travel_to_workers(clip: Callable[[str], str], reader: VideoReader) -> None:
    with pickle.loads(pickle.dumps(reader)).open(clip("h264.mp4")) as video:
        assert read_barcode(video.frames([30])[0]) == 30


@pytest.mark.parametrize("kind", [DecordReader, PyAVReader])
def test_several_threads_read_the_same(clip: Callable[[str], str], kind: type[DecordReader] | type[PyAVReader]) -> None:
    with kind(num_threads=2).open(clip("h264.mp4")) as video:
        assert [read_barcode(frame) for frame in video.frames(range(60))] == list(range(60))
    with pytest.raises(InputError, match="num_threads=0 must be at least 1"):
        kind(num_threads=0)


@pytest.mark.parametrize("index", [-1, 60, 1000])
def test_frames_outside_the_video_are_refused(clip: Callable[[str], str], reader: VideoReader, index: int) -> None:
    with (
        reader.open(clip("h264.mp4")) as video,
        pytest.raises(IndexError, match=rf"frame {index} is outside \[0, 60\)"),
    ):
        video.frames([0, index])


def test_strange_names(clip: Callable[[str], str], reader: VideoReader, tmp_path: Path) -> None:
    for name in ("with space's.mp4", "-dash.mp4", "http:colon.mp4", "percent%03d.mp4", "ümläut 視頻.mp4"):
        path = shutil.copy(clip("h264.mp4"), tmp_path / name)
        with reader.open(str(path)) as video:
            assert read_barcode(video.frames([17])[0]) == 17


def test_files_that_are_no_videos_are_told(reader: VideoReader, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 1000)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", 44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    for name, why in {
        "missing.mp4": "there is no such file",
        ".": "it is not a file",
        "empty.mp4": "the file is empty",
        "text.mp4": "FFmpeg finds no video in it (Invalid data found when processing input)",
        "sound.mp4": "there is no video in it, only sound or the like",
    }.items():
        path = str(tmp_path / name)
        with pytest.raises(VideoReadError) as caught:
            reader.open(path)
        assert (caught.value.path, caught.value.why) == (path, why)
        assert str(caught.value) == f"cannot read {path}: {why}"


def test_a_cut_file_is_read_up_to_the_cut(reader: VideoReader, tmp_path: Path) -> None:
    whole = write_barcodes(tmp_path / "whole.mp4", options={"x264-params": "keyint=1"})
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        fate = packets[40].pos
    data = bytearray(whole.read_bytes())
    data[fate : fate + packets[40].size] = bytes(packets[40].size)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with reader.open(str(path)) as video:
        assert [read_barcode(frame) for frame in video.frames(range(40))] == list(range(40))
        with pytest.raises(VideoReadError, match="only 40 of its 60 frames can be decoded and frame 40 was asked"):
            video.frames([3, 40])


def test_frames_of_changing_size_are_refused(tmp_path: Path) -> None:
    joined = b"".join(
        write_barcodes(tmp_path / f"{side}.h264", size=(side, side), num_frames=4).read_bytes() for side in (64, 32)
    )
    path = tmp_path / "joined.h264"
    path.write_bytes(joined)
    with (
        PyAVReader().open(str(path)) as video,
        pytest.raises(VideoReadError, match="64x64 and 32x32; re-encode it"),
    ):
        video.frames(range(8))


def truth(path: Path, indices: list[int]) -> Tensor:
    """Return frames by plain decoding in order, uint8 (N, 3, H, W), the right way up."""
    frames = {}
    with av.open(str(path)) as container:
        for n, frame in enumerate(container.decode(container.streams.best("video"))):
            if n in indices:
                frames[n] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            if n == indices[-1]:
                break
    return torch.from_numpy(np.stack([frames[n] for n in indices])).permute(0, 3, 1, 2)


def difference(a: Tensor, b: Tensor) -> int:
    """Return the largest difference of two uint8 tensors of the same shape."""
    assert a.shape == b.shape
    return int((a.short() - b.short()).abs().max())


def real_files() -> list[str]:
    """Return odd files that are not big, and every tenth of UCF101."""
    odd = [path for path in sorted((VIDEOS / "odd").rglob("*")) if path.is_file()]
    odd = [path for path in odd if path.stat().st_size < 700_000]
    ucf101 = sorted((VIDEOS / "ucf101").rglob("*.avi"))[::10]
    return [str(path.relative_to(VIDEOS)) for path in odd + ucf101 + sorted((VIDEOS / "hmdb51").rglob("*.avi"))]


# Files without a picture, and files that are damaged before their last frame.
REFUSED = {
    "odd/decord/corrupted.mp4",
    "odd/derived/audio_only.mp4",
    "odd/derived/bitflips.mp4",
    "odd/derived/empty.mp4",
    "odd/derived/not_a_video.mp4",
    "odd/derived/truncated_half_faststart.mp4",
    "odd/derived/truncated_no_moov.mp4",
    "odd/moviepy/result.webm",
    "odd/pixeltable/bad_video.mp4",
    "odd/small/AudioVideoInterleave.avi",
    "odd/small/FlashVideo.flv",
    "odd/small/Mpeg4.mp4",
    "odd/small/WindowsMediaVideo.wmv",
    "odd/small/mp4-with-audio.mp4",
    "odd/torchcodec/nasa_13013.mp4.audio.mp3",
}


@pytest.mark.skipif(not VIDEOS.exists(), reason="needs the folder of real videos beside the repository")
@pytest.mark.parametrize("name", real_files())
def test_real_files_are_read_as_in_order_or_refused(reader: VideoReader, name: str) -> None:
    if name == "odd/derived/bitflips.mp4" and isinstance(reader, TorchCodecReader):
        pytest.skip("decoders patch up the damage within these pictures, each in its own way; TorchCodec does not tell")
    path = VIDEOS / name
    if name in REFUSED:
        with pytest.raises(VideoReadError) as caught, reader.open(str(path)) as video:
            video.frames([video.num_frames - 1])
        assert caught.value.path == str(path) and caught.value.why
        return
    with reader.open(str(path)) as video:
        indices = sorted({0, video.num_frames // 3, video.num_frames - 1})
        frames = video.frames(indices)
    assert difference(frames, truth(path, indices)) <= TOLERANCE
