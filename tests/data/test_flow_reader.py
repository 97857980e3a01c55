"""Flow is read back as it was written, exactly and of the right video, and mirrors turn it round."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from moving import write_moving

from cnnbert.cli import main
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.flow import FlowReader, RGBFlowReader
from cnnbert.data.flow_files import FlowFacts, read_facts, to_levels, to_pixels, write_flow
from cnnbert.data.pyav_video import PyAVVideo
from cnnbert.data.readers import PyAVReader
from cnnbert.data.sources import Folder
from cnnbert.errors import InputError, VideoReadError

FACTS = FlowFacts(40, 30000 / 1001, 18, 33, "farneback", "", 0, 20.0, 1, 2)


@pytest.fixture(scope="session")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with my_videos/{a,b}/*.mkv, whose pictures move by known pixels, and their flow by Farnebäck."""
    root = tmp_path_factory.mktemp("moving")
    for label, right in {"a": 3, "b": -3}.items():
        for number in range(4):
            write_moving(root / "my_videos" / label / f"{number}.mkv", right, number)
    write_moving(root / "other" / "mirrored.mkv", 3, 2, mirrored=True)
    for videos in ("my_videos", "other"):
        arguments = [str(root / videos), f"--out={root / 'flow'}", "--method=farneback", "--num-workers=1"]
        assert main(["flow", *arguments]) == 0
    return root


@pytest.fixture
def copied(moving: Path, tmp_path: Path) -> Path:
    shutil.copytree(moving, tmp_path / "moved")  # together, so that the table still names them
    return tmp_path / "moved"


def test_the_scale_is_the_published_one() -> None:
    flow = np.array([-25, -20, -0.05, 0, 0.05, 10, 20, 25], np.float32)
    assert to_levels(flow, 20).tolist() == [0, 0, 127, 128, 128, 191, 255, 255]
    steps = np.linspace(-20, 20, 10001)
    assert np.abs(to_pixels(to_levels(steps, 20), 20) - steps).max() <= 20 / 255 + 1e-5
    levels = np.arange(256).astype(np.uint8)
    np.testing.assert_allclose(to_pixels(255 - levels, 20), -to_pixels(levels, 20))  # so mirrors may take 255 - x
    np.testing.assert_array_equal(to_levels(to_pixels(levels, 7.3), 7.3), levels)


def noise(number: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.uniform(-25, 25, (18, 33, 2)).astype(np.float32) for _ in range(number)]


def test_any_frame_is_exactly_what_was_written(tmp_path: Path) -> None:
    """Of odd sizes, however the frames are asked for, and in the mode that seeks."""
    flows = noise(40)
    target = tmp_path / "a.mkv"
    write_flow("a.mp4", target, flows, FACTS)
    assert read_facts(target) == FACTS
    expected = torch.from_numpy(np.stack([to_levels(flow, 20.0) for flow in flows])).permute(0, 3, 1, 2)
    video = PyAVVideo(str(target))
    assert video.num_frames == 40 and not video.is_read_in_order
    assert [start.number for start in video.index.starts] == [0, 16, 32]
    for indices in ([39], [20, 3, 3], list(range(40)), [5, 17, 33]):
        grey = video.frames(indices)
        assert (grey == grey[:, :1]).all()
        assert torch.equal(grey[:, 0].reshape(-1, 2, 18, 33), expected[indices])


def test_a_file_of_flow_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "a.mkv"
    with pytest.raises(VideoReadError, match="only 39 of its 40 frames can be decoded"):
        write_flow("a.mp4", target, noise(39), FACTS)
    with pytest.raises(VideoReadError, match="the flow of frame 1 has numbers that are none"):
        write_flow("a.mp4", target, [*noise(1), np.full((18, 33, 2), np.nan)], FACTS)
    with pytest.raises(VideoReadError, match="its flow of 1x1 cannot be encoded"):
        write_flow("a.mp4", target, [np.zeros((1, 1, 2))] * 40, FACTS._replace(height=1, width=1))
    with pytest.raises(OSError):
        write_flow("a.mp4", tmp_path / "nowhere" / "a.mkv", noise(40), FACTS)
    assert not list(tmp_path.iterdir())
    assert read_facts(target) is None
    target.write_text("something else")
    assert read_facts(target) is None


def test_flow_read_back_is_the_motion(moving: Path) -> None:
    """Within 0.2 pixels on average away from the borders: Farnebäck's error and that of the scale."""
    reader = FlowReader(str(moving / "flow"))
    for label, right in {"a": 3, "b": -3}.items():
        for down in range(4):
            with reader.open(str(moving / "my_videos" / label / f"{down}.mkv")) as video:
                assert (video.num_frames, video.fps) == (6, 25)
                frames = video.frames([0, 3, 5, 4])
            assert frames.dtype == torch.uint8 and frames.shape == (4, 2, 96, 120)
            pixels = to_pixels(frames.numpy(), 20.0)[..., 20:-20, 20:-20]
            assert np.abs(pixels[:, 0] - right).mean() < 0.2 and np.abs(pixels[:, 1] - down).mean() < 0.2
            assert torch.equal(frames[2], frames[3])  # the last frame has none of its own


def test_a_mirrored_video_has_mirrored_flow(moving: Path) -> None:
    """What transforms make of flow is what flow of a mirrored video is, within 0.2 pixels on average."""
    source = Folder(str(moving / "my_videos"), val_fraction=0, test_fraction=0)
    record = next(one for one in source.records("train") if one.path.endswith("a/2.mkv"))
    reader = FlowReader(str(moving / "flow"))
    sizes = {"clip_length": 4, "frame_size": 96, "resize": (96, 120)}
    with reader.open(str(moving / "other" / "mirrored.mkv")) as video:
        expected = to_pixels(video.frames([1, 2, 3, 4]).numpy(), 20.0)[:, :, 20:-20, 32:-32]  # the centre crop's inside
    for split, how in {"train": {"flip_probability": 1.0}, "test": {"num_crops": 10}}.items():
        for unnegated in (False, True):
            data = VideoDataModule(source, reader=reader, unnegated_flow=unnegated, **sizes, **how)  # type: ignore[arg-type]
            videos = data.dataset(split, [record])
            if split == "train":
                videos.transform = data.dataset("val", [record]).transform  # its crop, mirrored by the data set
            clip = videos[0]["clip"][0 if split == "train" else 5]  # (2, T, H, W): of ten, the sixth is mirrored
            found = to_pixels(clip.transpose(0, 1).numpy(), 20.0)[:, :, 20:-20, 20:-20]
            sign = -1 if unnegated else 1
            assert np.abs(sign * found[:, 0] - expected[:, 0]).mean() < 0.2
            assert np.abs(found[:, 1] - expected[:, 1]).mean() < 0.2
            assert abs(expected[:, 0].mean() + 3) < 0.2 and abs(expected[:, 1].mean() - 2) < 0.2


def test_colours_and_flow_are_of_the_same_frames(moving: Path, tmp_path: Path) -> None:
    path = str(moving / "my_videos" / "a" / "1.mkv")
    with RGBFlowReader(str(moving / "flow")).open(path) as video:
        both = video.frames([4, 0])
        assert (video.num_frames, video.fps, both.shape) == (6, 25, (2, 5, 96, 120))
    with PyAVReader().open(path) as video:
        assert torch.equal(both[:, :3], video.frames([4, 0]))
    with FlowReader(str(moving / "flow")).open(path) as video:
        assert torch.equal(both[:, 3:], video.frames([4, 0]))
    assert main(["flow", path, f"--out={tmp_path}/small", "--method=farneback", "--short-side=48"]) == 0
    with FlowReader(f"{tmp_path}/small").open(path) as video:
        assert video.frames([0]).shape == (1, 2, 48, 60)
    with RGBFlowReader(f"{tmp_path}/small").open(path) as video:
        small = video.frames([0, 1])
    assert small.shape == (2, 5, 96, 120)
    pixels = to_pixels(small[:, 3:].numpy(), 20.0)[..., 30:-30, 30:-30]
    assert np.abs(pixels[:, 0] - 1.5).mean() < 0.3 and np.abs(pixels[:, 1] - 0.5).mean() < 0.3  # of the small size


def test_both_streams_are_mirrored_together(moving: Path) -> None:
    source = Folder(str(moving / "my_videos"), val_fraction=0, test_fraction=0)
    reader = RGBFlowReader(str(moving / "flow"))
    sizes = {"clip_length": 4, "frame_size": 96, "resize": (96, 120), "num_crops": 10}
    data = VideoDataModule(source, reader=reader, cache="ram", cache_gib=0.1, **sizes)  # type: ignore[arg-type]
    for cache_gib in (0.0, 0.1):  # decoded and kept frames alike
        clips = data.dataset("test", source.records("train"), cache_gib)[0]["clip"]
        assert clips.shape == (10, 5, 4, 96, 96)
        plain, mirror = clips[0], clips[5].flip(-1)
        assert torch.equal(mirror[[0, 1, 2, 4]], plain[[0, 1, 2, 4]])
        assert torch.equal(mirror[3], 255 - plain[3])


def test_a_clip_of_flow_goes_through_a_folder_that_was_moved(copied: Path) -> None:
    with FlowReader(str(copied / "flow")).open(str(copied / "my_videos" / "a" / "0.mkv")) as video:
        assert video.num_frames == 6
    link = copied / "link.mkv"
    link.symlink_to(copied / "my_videos" / "a" / "0.mkv")
    with FlowReader(str(copied / "flow")).open(str(link)) as video:
        assert video.num_frames == 6


def test_flow_that_is_not_there_or_of_another_video(copied: Path) -> None:
    flow, video = copied / "flow", copied / "my_videos" / "a" / "0.mkv"
    readers: list[Callable[[str], object]] = [FlowReader(str(flow)).open, RGBFlowReader(str(flow)).open]
    new = write_moving(copied / "new.mkv", 1, 1)
    for read in readers:
        with pytest.raises(VideoReadError) as error:
            read(str(new))
        assert error.value.why == f"there is no optical flow of it in {flow}; cnnbert flow VIDEOS --out {flow} makes it"
    write_moving(video, 3, 0, num_frames=9)
    for read in readers:
        with pytest.raises(VideoReadError, match=r"it has 9 frames, but its optical flow \S+ has 6; delete that file"):
            read(str(video))
    write_moving(video, 3, 0, num_frames=6)  # another file, of as many frames
    os.utime(video, (0, 0))
    for read in readers:
        read(str(video))
    (flow / "my_videos" / "a" / "0.mkv").write_text("no flow")
    for read in readers:
        with pytest.raises(VideoReadError, match=r"its optical flow \S+ cannot be read \(FFmpeg finds no video in it"):
            read(str(video))
    gone = copied / "my_videos" / "a" / "1.mkv"
    gone.unlink()
    for read in readers:
        with pytest.raises(VideoReadError, match="there is no such file"):
            read(str(gone))


@pytest.mark.parametrize("reader", [FlowReader, RGBFlowReader])
def test_a_folder_without_flow_is_told_before_the_run(reader: type, moving: Path, tmp_path: Path) -> None:
    source = Folder(str(moving / "my_videos"))
    data = VideoDataModule(source, clip_length=4, frame_size=32, resize=32, reader=reader(str(tmp_path)))
    with pytest.raises(InputError) as error:
        data.setup("fit")
    assert str(error.value) == (
        f"there is no optical flow in {tmp_path}: it has no flow.csv; make it with cnnbert flow VIDEOS --out {tmp_path}"
    )
    shutil.copy(moving / "flow" / "flow.csv", tmp_path)
    with (tmp_path / "flow.csv").open("a") as table:
        table.write("a.mkv,b.mkv,six\n")
    with pytest.raises(InputError, match=r"flow.csv, line 11, is damaged \(.*six.*write it again with cnnbert"):
        data.setup("fit")
    with pytest.raises(InputError, match="read_timeout_seconds=0 must be above 0; inf sets no limit"):
        reader(read_timeout_seconds=0)
