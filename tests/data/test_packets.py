"""What packets say is true: decoding from a start, and without disposable packets, gives the same frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from barcode import read_barcode, write_barcodes

from cnnbert.data.packets import PacketIndex, Start
from cnnbert.data.pyav_video import PyAVVideo

X264 = {"num_frames": 100, "gop": 25, "options": {"x264-params": "scenecut=0"}}
X265 = {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=0:scenecut=0"}}
VP9 = {"codec": "libvpx-vp9", "num_frames": 60, "gop": 20, "options": {"cpu-used": "8"}}
CASES: dict[str, tuple[dict[str, Any], list[int], bool]] = {
    # name: how it is written, the starts expected, whether frames can be left out
    "closed.mp4": ({**X264, "b_frames": 3}, [0, 25, 50, 75], True),
    "closed.mkv": ({**X264, "b_frames": 3}, [0, 25, 50, 75], True),
    "no_b_frames.mp4": ({**X264, "options": {"x264-params": "bframes=0:scenecut=0"}}, [0, 25, 50, 75], False),
    "open.mp4": ({**X264, "b_frames": 3, "options": {"x264-params": "open-gop=1:scenecut=0"}}, [0], True),
    "refresh.mp4": ({**X264, "options": {"x264-params": "intra-refresh=1:bframes=0:scenecut=0"}}, [0], False),
    "hevc.mp4": ({**X264, **X265}, [0, 25, 50, 75], False),
    "vp9.webm": (
        {"codec": "libvpx-vp9", "num_frames": 60, "gop": 20, "options": {"cpu-used": "8"}},
        [0, 20, 40],
        False,
    ),
    "mjpeg.mp4": ({"codec": "mjpeg", "num_frames": 30, "pixel_format": "yuvj420p"}, list(range(30)), True),
    "ffv1.mkv": ({"codec": "ffv1", "num_frames": 60, "gop": 20}, [0, 20, 40], False),
    "mpeg4.mp4": ({"codec": "mpeg4", "num_frames": 60, "gop": 20}, [], False),
    "h264.ts": ({"num_frames": 60, "gop": 20}, [], False),
}


@pytest.mark.parametrize("name", CASES)
def test_starts_and_what_can_be_left_out(name: str, tmp_path: Path) -> None:
    how, starts, leaves_out = CASES[name]
    video = PyAVVideo(str(write_barcodes(tmp_path / name, **how)))
    assert [start.number for start in video.index.starts] == starts
    assert bool(video.index.disposable) == leaves_out
    for indices in ([how["num_frames"] - 1], [1, 26, 29], list(range(3, 30, 3))):
        assert [read_barcode(frame) for frame in video.frames(indices)] == indices
    assert video.is_read_in_order is False  # nothing had to be given up


def decoded(video: PyAVVideo, indices: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many frames come out of the decoder when some are asked for."""
    frames: list[Any] = []
    decode = PyAVVideo._decode

    def counting(self: PyAVVideo, *arguments: Any) -> Any:
        for frame in decode(self, *arguments):
            frames.append(frame)
            yield frame

    with monkeypatch.context() as patch:
        patch.setattr(PyAVVideo, "_decode", counting)
        assert [read_barcode(frame) for frame in video.frames(indices)] == indices
    return len(frames)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("kept", [2**20, 0])
def test_little_is_decoded(suffix: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbert.data.pyav_video.KEPT_PACKETS", kept)
    path = write_barcodes(tmp_path / f"clip.{suffix}", b_frames=3, num_frames=200, gop=50, options=X264["options"])
    video = PyAVVideo(str(path))
    assert decoded(video, [150], monkeypatch) == 1
    assert decoded(video, [0, 199], monkeypatch) < 40
    assert decoded(video, list(range(100, 132)), monkeypatch) == 32
    assert decoded(video, list(range(20, 84, 2)), monkeypatch) < 75


def test_a_frame_that_does_not_come_is_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_barcodes(tmp_path / "clip.mp4", num_frames=60, gop=20)
    video = PyAVVideo(str(path))
    video.index.disposable.add(video.index.pts[23])  # a lie: frame 24 refers to it
    monkeypatch.setattr(video, "_numbers", {**video._numbers, video.index.pts[30]: 31})
    assert [read_barcode(frame) for frame in video.frames([30])] == [30]
    assert video.is_read_in_order


def test_the_plan_jumps_only_where_it_pays() -> None:
    index = PacketIndex("", "", b"")
    index.starts = [Start(number, number, number * 512, number * 512) for number in (0, 16, 32, 48)]
    assert index.plan([]) == []
    assert index.plan([3, 5]) == [(None, [3, 5])]
    assert index.plan([12, 17]) == [(None, [12, 17])]
    assert index.plan([16]) == [(index.starts[1], [16])]
    assert index.plan([2, 30, 33, 63]) == [(None, [2]), (index.starts[1], [30, 33]), (index.starts[3], [63])]
