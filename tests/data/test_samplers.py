"""Which frames the samplers choose, counted out by hand."""

from __future__ import annotations

import pytest
import torch

from cnnbert.data.samplers import CenterClip, ClipSampler, RandomClip, UniformClips
from cnnbert.errors import InputError

SAMPLERS = [
    RandomClip(4),
    RandomClip(3, 2),
    CenterClip(4),
    CenterClip(3, 2),
    UniformClips(4),
    UniformClips(3, 2, 3),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{type(s).__name__}-{s.clip_length}-{s.stride}")
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 6, 7, 100])
def test_indices_are_frames_of_the_video(sampler: ClipSampler, num_frames: int) -> None:
    indices = sampler(num_frames, 25.0)
    assert indices.dtype == torch.int64
    assert indices.shape == (getattr(sampler, "num_clips", 1), sampler.clip_length)
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
    for sampler in (RandomClip(7), CenterClip(7), UniformClips(7, num_clips=1)):
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


@pytest.mark.parametrize("sampler", [RandomClip, CenterClip, UniformClips])
def test_wrong_arguments_are_told(sampler: type[ClipSampler]) -> None:
    with pytest.raises(InputError, match="clip_length=0 must be at least 1"):
        sampler(0)
    with pytest.raises(InputError, match="stride=-1 must be at least 1"):
        sampler(8, -1)
    with pytest.raises(InputError, match="num_frames=0; a video needs at least one frame"):
        sampler(8)(0, 25)
    with pytest.raises(InputError, match="num_clips=0 must be at least 1"):
        UniformClips(8, num_clips=0)
