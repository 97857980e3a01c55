"""Which frames the samplers choose, counted out by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from cnnbert.data.samplers import CenterClip, ClipSampler, NonOverlappingClips, RandomClip, UniformClips
from cnnbert.errors import InputError

SAMPLERS = [
    RandomClip(4),
    RandomClip(3, 2),
    RandomClip(3, 2, num_clips=4),
    CenterClip(4),
    CenterClip(3, 2),
    UniformClips(4),
    UniformClips(3, 2, 3),
    NonOverlappingClips(4),
    NonOverlappingClips(3, 2),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{type(s).__name__}-{s.clip_length}-{s.stride}")
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 6, 7, 100])
def test_indices_are_frames_of_the_video(sampler: ClipSampler, num_frames: int) -> None:
    indices = sampler(num_frames, 25.0)
    assert indices.dtype == torch.int64
    assert indices.shape[1] == sampler.clip_length
    if not isinstance(sampler, NonOverlappingClips):
        assert len(indices) == getattr(sampler, "num_clips", 1)
    assert indices.min() >= 0 and indices.max() < num_frames
    steps = (indices[:, 1:] - indices[:, :-1]) % num_frames
    span = (sampler.clip_length - 1) * sampler.stride + 1
    stride = sampler.stride if num_frames >= span else max((num_frames - 1) // (sampler.clip_length - 1), 1)
    assert (steps == stride % num_frames).all()


def test_every_sampler_is_tested() -> None:
    ours = {sampler for sampler in ClipSampler.__subclasses__() if sampler.__module__.startswith("cnnbert.")}
    assert {type(sampler) for sampler in SAMPLERS} == ours


def test_center_clip_is_in_the_middle() -> None:
    assert CenterClip(4)(10, 25).tolist() == [[3, 4, 5, 6]]
    assert CenterClip(4)(11, 25).tolist() == [[3, 4, 5, 6]]  # floor((11 - 4) / 2)
    assert CenterClip(3, 2)(10, 25).tolist() == [[2, 4, 6]]  # floor((10 - 5) / 2)


def test_short_videos_are_looped() -> None:
    for sampler in (RandomClip(7), CenterClip(7), UniformClips(7, num_clips=1), NonOverlappingClips(7)):
        assert sampler(3, 25).tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert CenterClip(4, 2)(3, 25).tolist() == [[0, 1, 2, 0]]
    assert CenterClip(4)(4, 25).tolist() == [[0, 1, 2, 3]]


def test_the_stride_fits_the_video() -> None:
    """A loop in the middle of an action would show it twice, or backwards."""
    assert CenterClip(4, 2)(7, 25).tolist() == [[0, 2, 4, 6]]
    assert CenterClip(4, 2)(6, 25).tolist() == [[1, 2, 3, 4]]
    assert CenterClip(4, 5)(13, 25).tolist() == [[0, 4, 8, 12]]


def test_random_clip_starts_everywhere_equally_often() -> None:
    torch.manual_seed(0)
    starts = torch.cat([RandomClip(4)(8, 25)[0, :1] for _ in range(2000)])
    counts = starts.bincount()
    assert len(counts) == 5  # 0 to 4, both ends included
    # 400 expected each, standard deviation 18; five of them.
    assert counts.min() > 310 and counts.max() < 490


def test_random_clip_follows_the_seed() -> None:
    def draw(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return [RandomClip(8)(1000, 25)[0].tolist() for _ in range(3)]

    assert draw(1) == draw(1) != draw(2)


def test_uniform_clips_reach_from_the_beginning_to_the_end() -> None:
    indices = UniformClips(4, num_clips=4)(13, 25)
    assert indices[:, 0].tolist() == [0, 3, 6, 9]
    assert indices[-1, -1] == 12
    assert UniformClips(4, num_clips=3)(9, 25)[:, 0].tolist() == [0, 3, 5]  # 2.5 rounds up
    assert UniformClips(4, num_clips=1)(10, 25).tolist() == CenterClip(4)(10, 25).tolist()
    assert UniformClips(4, num_clips=3)(2, 25)[:, 0].tolist() == [0, 0, 0]


def test_uniform_clips_stay_exact_in_long_videos() -> None:
    starts = UniformClips(16, num_clips=10)(3_000_000, 25)[:, 0]
    assert starts[0] == 0 and starts[-1] == 3_000_000 - 16


def test_clips_that_follow_one_another() -> None:
    assert NonOverlappingClips(4)(6, 25).tolist() == [[0, 1, 2, 3]]
    assert NonOverlappingClips(4)(7, 25).tolist() == [[1, 2, 3, 4]]
    assert NonOverlappingClips(4)(13, 25).tolist() == [[2, 3, 4, 5], [6, 7, 8, 9]]
    assert NonOverlappingClips(3, 2)(14, 25).tolist() == [[2, 4, 6], [7, 9, 11]]
    assert NonOverlappingClips(1)(6, 25).tolist() == [[1], [2], [3]]


def frames(start: int, length: int, num_frames: int) -> list[int]:
    """The frames of a clip counted from 1, as LTM counts them; after the last comes the first."""
    return [(start + i) % num_frames or num_frames for i in range(length)]


@pytest.mark.parametrize("length", [32, 64])
@pytest.mark.parametrize("num_frames", range(1, 201))
def test_ltm_takes_the_same_frames(length: int, num_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """LTM's formulas (hmdb51.py and spatial_demo3D.py), in its own count from 1, with one frame less than there are."""
    duration = num_frames - 1
    centre = (duration - length + 1) // 2 if duration >= length else 0
    assert (CenterClip(length)(num_frames, 25) + 1).tolist() == [frames(centre + 1, length, num_frames)]

    offsets = list(range(1, duration - length, length))
    if offsets:
        shift = (duration - (offsets[-1] + length)) // 2
        clips = [list(range(offset + shift + 1, offset + shift + length + 1)) for offset in offsets]
    else:
        every = list(range(1, num_frames + 1))
        clips = [every * (length // num_frames) + every[: length % num_frames]]
    assert (NonOverlappingClips(length)(num_frames, 25) + 1).tolist() == clips

    draws: list[int] = []
    monkeypatch.setattr(torch, "randint", lambda high, size: draws.append(high) or torch.tensor([high - 1]))
    last = RandomClip(length, skip_last_frame=True)(num_frames, 25) + 1
    num_starts = duration - length + 1 if duration >= length else 1
    assert last.tolist() == [frames(num_starts, length, num_frames)]
    everything = RandomClip(length)(num_frames, 25) + 1
    assert everything.tolist() == [frames(max(num_frames - length, 0) + 1, length, num_frames)]
    assert draws == [num_starts, max(num_frames - length, 0) + 1]


@pytest.mark.parametrize("length", [32, 64])
@pytest.mark.parametrize("num_clips", [2, 10])
def test_uniform_clips_are_as_evenly_spread_as_frames_allow(length: int, num_clips: int) -> None:
    for num_frames in range(1, 201):
        room = max(num_frames - length, 0)
        starts = [math.floor(Fraction(i * room, num_clips - 1) + Fraction(1, 2)) for i in range(num_clips)]
        clips = UniformClips(length, num_clips=num_clips)(num_frames, 25) + 1
        assert clips.tolist() == [frames(start + 1, length, num_frames) for start in starts]


def test_without_its_last_frame_every_other_start_is_drawn() -> None:
    torch.manual_seed(0)
    starts = {int(RandomClip(4, skip_last_frame=True)(8, 25)[0, 0]) for _ in range(200)}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize("sampler", [RandomClip, CenterClip, UniformClips, NonOverlappingClips])
def test_wrong_arguments_are_told(sampler: type[ClipSampler]) -> None:
    with pytest.raises(InputError, match="clip_length=0 must be at least 1"):
        sampler(0)
    with pytest.raises(InputError, match="stride=-1 must be at least 1"):
        sampler(8, -1)
    with pytest.raises(InputError, match="num_frames=0; a video needs at least one frame"):
        sampler(8)(0, 25)
    with pytest.raises(InputError, match="num_clips=0 must be at least 1"):
        UniformClips(8, num_clips=0)
