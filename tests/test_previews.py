"""Previews are small MP4 files of the right moments."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from conftest import SHARED, write_video

from cnnbert.data.readers import DecordReader, PyAVReader
from cnnbert.data.records import VideoRecord
from cnnbert.errors import VideoReadError
from cnnbert.previews import write_preview


def frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def long_video(path: Path, seconds: int, fps: int, width: int = 320, height: int = 240) -> Path:
    """Write a video whose frames get lighter, second by second: those of second s are 4 * s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * fps):
            picture = np.full((height, width, 3), 4 * (number // fps), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def test_a_piece_of_a_long_avi(tmp_path: Path) -> None:
    """Of the seconds 20 to 30 the middle three, 23.5 to 26.5, with every second of 24 frames a second."""
    source = long_video(tmp_path / "long.avi", seconds=40, fps=24)
    target = tmp_path / "preview.mp4"
    write_preview(target, VideoRecord(str(source), None, 20.0, 30.0), DecordReader())
    pictures = frames(target)
    assert len(pictures) == 3 * 12
    assert pictures[0].shape == (128, 170, 3)
    shades = [picture.mean() for picture in pictures[3::6]]
    assert shades == pytest.approx([4 * second for second in (23, 24, 24, 25, 25, 26)], abs=2)
    assert target.stat().st_size < 50_000
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate or 0) == 12


@pytest.mark.parametrize(("size", "expected"), [(48, 48), (50, 50), (300, 128)])
def test_small_videos_keep_their_size(tmp_path: Path, size: int, expected: int) -> None:
    source = write_video(tmp_path / "short.mp4", (200, 30, 30), num_frames=5, size=size)
    write_preview(tmp_path / "preview.mp4", VideoRecord(str(source)), PyAVReader())
    pictures = frames(tmp_path / "preview.mp4")
    assert len(pictures) == 5 and pictures[0].shape == (expected, expected, 3)
    assert pictures[-1][..., 0].mean() > 150 > 60 > pictures[-1][..., 2].mean()


def test_large_frames_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = long_video(tmp_path / "long.avi", seconds=3, fps=10)
    monkeypatch.setattr("cnnbert.previews.AT_ONCE", 4)
    write_preview(tmp_path / "preview.mp4", VideoRecord(str(source)), PyAVReader())
    shades = [picture.mean() for picture in frames(tmp_path / "preview.mp4")]
    assert shades == pytest.approx([0] * 10 + [4] * 10 + [8] * 10, abs=2)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    source = tmp_path / "no.mp4"
    source.write_text("hello")
    with pytest.raises(VideoReadError, match=r"no\.mp4: FFmpeg finds no video in it"):
        write_preview(tmp_path / "preview.mp4", VideoRecord(str(source)), DecordReader())


@pytest.mark.skipif(not (SHARED / "videos" / "odd").is_dir(), reason="no real videos here")
@pytest.mark.parametrize("name", ["odd_101x67_444.mp4", "gray_ffv1.mkv", "one_frame.mp4", "raw_annexb.h264", "vfr.mp4"])
def test_odd_videos(tmp_path: Path, name: str) -> None:
    source = SHARED / "videos" / "odd" / "derived" / name
    write_preview(tmp_path / "preview.mp4", VideoRecord(str(source)), DecordReader())
    assert 1 <= len(frames(tmp_path / "preview.mp4")) <= 80
