"""A sample holds the frames that were chosen, and its draws depend on (seed, epoch, index) alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from barcode import read_barcode, write_barcodes
from memory import MemoryReader
from torch import Tensor
from torch.utils.data import DataLoader

from cnnbert.data.dataset import VideoDataset
from cnnbert.data.loaders import collate
from cnnbert.data.readers import DecordReader, PyAVReader, VideoReader
from cnnbert.data.records import VideoRecord
from cnnbert.data.samplers import CenterClip, ClipSampler, RandomClip, UniformClips
from cnnbert.data.transforms import ClipTransform, EvalTransform, TrainTransform
from cnnbert.errors import VideoReadError

NUM_FRAMES, FPS = 60, 25


@pytest.fixture(scope="module")
def barcodes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A video of 2.4 seconds whose frame n shows n."""
    path = tmp_path_factory.mktemp("barcodes") / "clip.mp4"
    return str(write_barcodes(path, num_frames=NUM_FRAMES, rate=FPS, b_frames=2))


def dataset(
    *records: VideoRecord, sampler: ClipSampler | None = None, reader: VideoReader | None = None, **arguments: Any
) -> VideoDataset:
    """A data set that shows whole frames of 64x64, unless told otherwise."""
    arguments.setdefault("transform", EvalTransform(64, 64))
    return VideoDataset(records, ["left", "right", "up"], reader or PyAVReader(), sampler or CenterClip(8), **arguments)


def random_dataset(*records: VideoRecord, **arguments: Any) -> VideoDataset:
    """A data set that draws frames, crops and mirroring."""
    arguments.setdefault("flip_probability", 0.5)
    return dataset(
        *records, sampler=RandomClip(4), reader=MemoryReader(), transform=TrainTransform(24, (32, 40)), **arguments
    )


def numbers(view: Tensor) -> list[int]:
    """The numbers that the frames of a view, uint8 (3, T, H, W), show."""
    return [read_barcode(frame) for frame in view.unbind(1)]


@pytest.mark.parametrize("reader", [DecordReader(), PyAVReader()])
def test_the_frames_are_the_samplers(barcodes: str, reader: VideoReader) -> None:
    sampler = UniformClips(8, stride=3, num_clips=3)
    sample = dataset(VideoRecord(barcodes, "up"), sampler=sampler, reader=reader)[0]
    assert (sample["index"], sample["label"]) == (0, 2)
    assert (sample["clip"].dtype, sample["clip"].shape) == (torch.uint8, (3, 3, 8, 64, 64))
    assert [numbers(view) for view in sample["clip"]] == sampler(NUM_FRAMES, FPS).tolist()


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [(0.4, 1.2, 10, 29), (0.4, None, 10, 59), (0.0, 0.8, 0, 19), (1.6, 100.0, 40, 59)],
)
def test_a_piece_gives_its_own_frames_only(
    barcodes: str, start: float, end: float | None, first: int, last: int
) -> None:
    """The frames of a piece are those of [start * fps, end * fps)."""
    sample = dataset(VideoRecord(barcodes, "up", start, end), sampler=UniformClips(8, num_clips=2))[0]
    assert numbers(sample["clip"][0]) == list(range(first, first + 8))
    assert numbers(sample["clip"][1]) == list(range(last - 7, last + 1))


def test_random_clips_stay_in_their_piece() -> None:
    record = VideoRecord("a", "up", 0.4, 1.2)
    data = dataset(
        record, sampler=RandomClip(4), reader=MemoryReader(60), transform=EvalTransform(32, (32, 40)), seed=1
    )
    starts = {int(data[epoch, 0]["clip"][0, 0, 0, 0, 0]) for epoch in range(200)}
    # Each of 17 starts is missed by all of 200 draws with a chance of 17 * (16/17)^200 = 1e-4; the seed is fixed.
    assert starts == set(range(10, 27))


def test_a_short_piece_loops_inside_itself(barcodes: str) -> None:
    sample = dataset(VideoRecord(barcodes, "up", 0.4, 0.6))[0]
    assert numbers(sample["clip"][0]) == [10, 11, 12, 13, 14, 10, 11, 12]


def test_a_piece_shorter_than_a_frame_is_one_frame(barcodes: str) -> None:
    assert numbers(dataset(VideoRecord(barcodes, "up", 0.4, 0.401))[0]["clip"][0]) == [10] * 8


def test_a_start_past_the_end_is_a_failure(barcodes: str) -> None:
    sample = dataset(VideoRecord(barcodes, "up", 2.4, 3.0))[0]
    assert "clip" not in sample
    assert str(sample["failure"]) == f"cannot read {barcodes}: start_seconds=2.4 is past its end at 2.40 s"


def test_an_unreadable_file_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    sample = dataset(VideoRecord(str(path), "right"))[0]
    assert set(sample) == {"index", "label", "failure"}
    assert (sample["index"], sample["label"]) == (0, 1)
    assert isinstance(sample["failure"], VideoReadError)
    assert str(sample["failure"]).startswith(f"cannot read {path}: FFmpeg finds no video in it")


def test_failures_come_out_of_workers_whole() -> None:
    records = [VideoRecord("a", "up"), VideoRecord("broken b", "left")]
    (batch,) = DataLoader(random_dataset(*records), batch_size=2, num_workers=1, collate_fn=collate)
    assert batch["index"].tolist() == [0]
    (failure,) = batch["failures"]
    assert (failure["index"], failure["label"]) == (1, 0)
    assert (failure["failure"].path, failure["failure"].why) == ("broken b", "it is broken")


def test_unknown_labels_are_minus_one() -> None:
    records = [VideoRecord("a"), VideoRecord("b", "sideways")]
    assert [random_dataset(*records, flip_probability=1.0)[i]["label"] for i in (0, 1)] == [-1, -1]


def test_the_same_item_is_the_same_sample() -> None:
    one, other = (random_dataset(VideoRecord("a", "up"), seed=3) for _ in range(2))
    for epoch in range(5):
        assert torch.equal(one[epoch, 0]["clip"], other[epoch, 0]["clip"])
    assert torch.equal(one[0]["clip"], one[0, 0]["clip"])  # epoch 0 unless told otherwise


def test_seed_epoch_and_index_all_count() -> None:
    """Of ten draws from about 37 * 10 * 13 * 2 each, most are different wherever only one of the three changes."""
    records = [VideoRecord("a", "up")] * 10
    varied = [
        [random_dataset(*records, seed=seed)[0, 0] for seed in range(10)],
        [random_dataset(*records)[epoch, 0] for epoch in range(10)],
        [random_dataset(*records)[0, index] for index in range(10)],
    ]
    for samples in varied:
        assert len({sample["clip"].numpy().tobytes() for sample in samples}) > 5


def test_global_random_states_are_untouched() -> None:
    data = random_dataset(VideoRecord("a", "up"), VideoRecord("broken", "up"))
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    _ = data[2, 0], data[2, 1]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), repr(np.random.get_state())) == states[1:]


@pytest.mark.parametrize(("num_workers", "batch_size", "is_reversed"), [(0, 3, True), (1, 2, False), (2, 1, True)])
def test_loaders_do_not_change_samples(num_workers: int, batch_size: int, is_reversed: bool) -> None:
    data = random_dataset(*[VideoRecord(name, "up") for name in "abcde"], seed=2)
    items: list[Any] = [(epoch, index) for epoch in (0, 1) for index in range(5)]
    expected = {item: data[item]["clip"] for item in items}
    if is_reversed:
        items.reverse()
    torch.manual_seed(num_workers)  # must not count
    loader = DataLoader(data, batch_size, sampler=items, num_workers=num_workers, collate_fn=collate)
    clips = [clip for batch in loader for clip in batch["clip"]]
    assert len(clips) == len(items)
    assert all(torch.equal(clip, expected[item]) for item, clip in zip(items, clips, strict=True))


@pytest.mark.parametrize(("label", "mirrored"), [("left", 1), ("right", 0), ("up", 2)])
def test_mirroring_changes_frames_and_label(barcodes: str, label: str, mirrored: int) -> None:
    record = VideoRecord(barcodes, label)
    plain = dataset(record, flip_probability=0.0)[0]
    flipped = dataset(record, flip_probability=1.0, mirrored={"left": "right", "right": "left"})[0]
    assert not torch.equal(plain["clip"], plain["clip"].flip(-1))
    assert torch.equal(flipped["clip"], plain["clip"].flip(-1))
    assert flipped["label"] == mirrored


def test_half_of_the_clips_are_mirrored_with_their_labels() -> None:
    data = random_dataset(VideoRecord("a", "left"), mirrored={"left": "right", "right": "left"})
    labels = []
    for epoch in range(200):
        sample = data[epoch, 0]
        left, right = (sample["clip"][..., column].float().mean() for column in (0, -1))
        assert sample["label"] == (1 if left > right else 0)  # the right half is the lighter one, unless mirrored
        labels.append(sample["label"])
    assert 70 < sum(labels) < 130  # 100 expected, standard deviation 7; the seed is fixed


class TwoCrops(ClipTransform):
    def crops(self, frames: Tensor) -> list[Tensor]:
        return [frames, 255 - frames]


def test_views_are_the_crops_of_one_clip_together(barcodes: str) -> None:
    """V = clips x crops, in the order (clip 0, crop 0), (clip 0, crop 1), ..., (clip 1, crop 0), ..."""
    sampler = UniformClips(8, num_clips=3)
    clip = dataset(VideoRecord(barcodes, "up"), sampler=sampler, transform=TwoCrops(64, None, True))[0]["clip"]
    assert (clip.dtype, clip.shape) == (torch.uint8, (6, 3, 8, 64, 64))
    assert clip.is_contiguous(memory_format=torch.channels_last_3d)
    for number, indices in enumerate(sampler(NUM_FRAMES, FPS).tolist()):
        assert numbers(clip[2 * number]) == indices
        assert numbers(255 - clip[2 * number + 1]) == indices


def test_crops_of_a_clip_come_in_the_transforms_order() -> None:
    transform = EvalTransform(24, (32, 40), 10)
    reader = MemoryReader()
    clip = dataset(VideoRecord("a", "up"), sampler=CenterClip(4), reader=reader, transform=transform)[0]["clip"]
    frames = reader.open("a").frames(CenterClip(4)(40, 25)[0])
    assert torch.equal(clip, transform(frames).transpose(1, 2))


def test_several_clips_of_a_video_are_drawn_and_mirrored_one_by_one(barcodes: str) -> None:
    sampler = RandomClip(8, 2, num_clips=3)
    transform = TrainTransform(64, None, scales=(1,))
    videos = dataset(
        VideoRecord(barcodes, "up"), sampler=sampler, transform=transform, flip_probability=0.5, mirrored={"up": "left"}
    )
    plain = dataset(VideoRecord(barcodes, "up"), sampler=sampler, transform=transform, flip_probability=0.5)
    starts, together, apart = set(), set(), set()
    for epoch in range(20):
        clip = plain[(epoch, 0)]["clip"]
        straight = [min(numbers(view), numbers(view.flip(-1)), key=lambda n: abs(n[1] - n[0] - 2)) for view in clip]
        assert all(n == list(range(n[0], n[0] + 16, 2)) for n in straight)
        assert len({n[0] % 2 for n in straight}) == 1  # they share frames
        starts |= {n[0] for n in straight}
        apart.add(sum(numbers(view) != n for view, n in zip(clip, straight, strict=True)))
        mirrored = videos[(epoch, 0)]["clip"]
        together.add(sum(numbers(view) not in (n,) for view, n in zip(mirrored, straight, strict=True)))
    assert len(starts) > 20
    assert apart >= {1, 2}  # of three clips some are mirrored
    assert together == {0, 3}  # where the class has a mirrored one, all or none
