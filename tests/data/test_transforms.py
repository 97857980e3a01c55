"""Where the crops of a clip lie, read off pictures whose pixels tell their place."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from cnnbert.data.transforms import EvalTransform, TrainTransform
from cnnbert.errors import InputError


def places(height: int, width: int, num_frames: int = 2) -> Tensor:
    """Return frames, uint8 (T, 3, H, W), whose pixel at (y, x) of frame t is (y, x, t)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = [torch.stack([y, x, torch.full_like(x, t)]) for t in range(num_frames)]
    return torch.stack(frames).to(torch.uint8)


def corner(crop: Tensor) -> tuple[int, int]:
    """Return the (y, x) of the upper left pixel of a crop, uint8 (T, 3, h, w)."""
    return int(crop[0, 0, 0, 0]), int(crop[0, 1, 0, 0])


def test_centre_crop() -> None:
    crops = EvalTransform()(places(128, 170))
    assert crops.shape == (1, 2, 3, 112, 112)
    assert crops.dtype == torch.uint8
    assert torch.equal(crops[0], places(128, 170)[..., 8:120, 29:141])


@pytest.mark.parametrize(
    ("height", "width", "corners"),
    [
        (128, 170, [(8, 0), (8, 29), (8, 58)]),
        (170, 128, [(0, 8), (29, 8), (58, 8)]),
        (112, 112, [(0, 0), (0, 0), (0, 0)]),
    ],
)
def test_three_crops_along_the_longer_side(height: int, width: int, corners: list[tuple[int, int]]) -> None:
    crops = EvalTransform(resize=None, num_crops=3)(places(height, width))
    assert crops.shape == (3, 2, 3, 112, 112)
    assert [corner(crop) for crop in crops] == corners


def test_ten_crops_are_five_and_the_same_five_of_the_mirrored_frames() -> None:
    frames = places(128, 170)
    transform = EvalTransform(num_crops=10)
    crops = transform(frames)
    assert crops.shape == (10, 2, 3, 112, 112)
    assert [corner(crop) for crop in crops[:5]] == [(8, 29), (0, 0), (0, 58), (16, 0), (16, 58)]
    assert torch.equal(crops[5:], transform(frames.flip(-1))[:5])


def test_resize_takes_the_short_side_or_both_or_nothing() -> None:
    frames = places(100, 200)
    whole = TrainTransform(frame_size=50, resize=50, scales=[1])
    assert torch.equal(EvalTransform(50, 50, 3)(frames)[0], F.resize(frames, [50, 100], antialias=True)[..., :50])
    assert torch.equal(EvalTransform(60, (60, 60))(frames)[0], F.resize(frames, [60, 60], antialias=True))
    assert torch.equal(EvalTransform(100, None, 3)(frames)[0], frames[..., :100])
    assert whole(frames).shape == (1, 2, 3, 50, 50)


def test_train_crops_have_the_published_sizes_and_places(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[tuple[int, int, int, int]] = Counter()

    def resize(frames: Tensor, size: list[int], **options: Any) -> Tensor:
        if size == [112, 112]:
            seen[(*frames.shape[-2:], *corner(frames))] += 1
        return frames

    monkeypatch.setattr(F, "resize", resize)
    torch.manual_seed(0)
    frames = places(128, 170)
    for _ in range(4000):
        TrainTransform()(frames)
    sides = [128, 112, 96, 84]  # 1, 0.875, 0.75 and 0.66 times 128
    sizes = {(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1}
    assert {key[:2] for key in seen} == sizes
    assert len(sizes) == 10
    for h, w in sizes:
        down, right = 128 - h, 170 - w
        quarters = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (0, 2), (2, 0), (2, 4), (4, 2)]
        quarters += [(1, 1), (1, 3), (3, 1), (3, 3)]
        expected = {(a * down // 4, b * right // 4) for a, b in quarters}
        assert {key[2:] for key in seen if key[:2] == (h, w)} == expected


def test_truncated_crops_are_those_of_ltm(monkeypatch: pytest.MonkeyPatch) -> None:
    """LTM's 13 places are those of a crop of 112 x 112, and a crop of any of its 10 sizes is put at each."""
    combinations = [(size, place) for size in range(10) for place in range(13)]
    draws = [(10, size, 13, place) for size, place in combinations]
    numbers = iter([number for draw in draws for number in draw])

    def randint(high: int, shape: tuple[int, ...]) -> Tensor:
        assert high == next(numbers)
        return torch.tensor(next(numbers))

    boxes: list[tuple[int, ...]] = []

    def resize(frames: Tensor, size: list[int], **options: Any) -> Tensor:
        if size == [112, 112]:
            boxes.append((*corner(frames), *frames.shape[-2:]))
        return frames

    monkeypatch.setattr(torch, "randint", randint)
    monkeypatch.setattr(F, "resize", resize)
    transform = TrainTransform(truncated_crops=True)
    for _ in combinations:
        transform(places(128, 170))

    sides = [128, 112, 96, 84]
    sizes = [(h, w) for h in sides for w in sides if abs(sides.index(h) - sides.index(w)) <= 1]
    ys, xs = (0, 4, 8, 12, 16), (0, 14, 28, 42, 56)
    points = [(y, x) for y in ys[::2] for x in xs[::2]] + [(y, x) for y in ys[1::2] for x in xs[1::2]]
    expected = [(y, x, min(h, 128 - y), min(w, 170 - x)) for h, w in sizes for y, x in points]
    assert len(expected) == 130
    assert Counter(boxes) == Counter(expected)
    whole = Counter((y, x, h, w) for h, w in sizes for y, x in points)
    assert sum((Counter(boxes) - whole).values()) == 24
    assert (16, 56, 112, 114) in boxes  # 128 x 128, cut off at two edges


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W) between the centres of the nearest pixels, without averaging others."""
    for axis, size in enumerate((height, width)):
        last = image.shape[axis] - 1
        centres = np.clip((np.arange(size) + 0.5) * image.shape[axis] / size - 0.5, 0, last)
        before = np.floor(centres).astype(int)
        share = (centres - before).reshape((-1, 1) if axis == 0 else (1, -1))
        after = np.minimum(before + 1, last)
        image = image.take(before, axis) * (1 - share) + image.take(after, axis) * share
    return image


@pytest.mark.parametrize("transform", [TrainTransform, EvalTransform])
@pytest.mark.parametrize(("height", "width", "size"), [(256, 340, 112), (240, 320, 112), (80, 60, 112)])
def test_without_antialiasing(
    transform: type[TrainTransform] | type[EvalTransform], height: int, width: int, size: int
) -> None:
    noise = torch.randint(256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole: dict[str, Any] = {"scales": [1]} if transform is TrainTransform else {}
    plain = transform(size, (size, size), antialias=False, **whole)(noise)[0, 0].float().numpy()
    expected = np.stack([bilinear(channel, size, size) for channel in noise[0].double().numpy()])
    assert np.abs(plain - expected.round()).max() <= 1  # fixed-point numbers, rounded after height and after width
    if height > size:
        smooth = transform(size, (size, size), **whole)(noise)[0, 0].float().numpy()
        assert np.abs(smooth - expected).max() > 20


def test_the_last_resize_of_training_is_without_antialiasing_too() -> None:
    noise = torch.randint(256, (1, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = TrainTransform(40, None, [1], antialias=False)(noise)[0, 0].float().numpy()
    expected = np.stack([bilinear(channel, 40, 40) for channel in noise[0].double().numpy()])
    assert np.abs(plain - expected.round()).max() <= 1


def test_train_crop_is_the_same_for_all_frames_and_never_mirrored() -> None:
    torch.manual_seed(0)
    for _ in range(50):
        clip = TrainTransform()(places(128, 170, 3))[0]
        assert torch.equal(clip[0, :2], clip[2, :2])
        assert clip[:, 2].flatten(1).unique(dim=1).squeeze(1).tolist() == [0, 1, 2]
        assert (clip[0, 1, 0].diff() >= 0).all()


def test_train_crop_follows_the_seed() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([TrainTransform()(places(128, 170)) for _ in range(4)])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("transform", [TrainTransform, EvalTransform])
def test_sizes_that_do_not_fit_are_told(transform: type[TrainTransform] | type[EvalTransform]) -> None:
    with pytest.raises(InputError, match=r"frame_size=0 must be at least 1"):
        transform(frame_size=0)
    with pytest.raises(InputError, match=r"resize=\(0, 5\) must be the short side or \[height, width\]"):
        transform(resize=(0, 5))
    with pytest.raises(
        InputError,
        match=r"frame_size=224 is larger than resize=\(128, 170\); lower frame_size to at most 128 or raise "
        r"resize to at least 224",
    ):
        transform(frame_size=224)
    with pytest.raises(
        InputError,
        match="frame_size=112 is larger than the frames of 100x200; lower frame_size to at most 100 or set "
        "resize to at least 112",
    ):
        transform(resize=None)(places(100, 200))


def test_other_wrong_arguments_are_told() -> None:
    with pytest.raises(InputError, match="num_crops=5 must be 1, 3 or 10"):
        EvalTransform(num_crops=5)  # type: ignore[arg-type]
    for scales in ([], [1.5], [0]):
        with pytest.raises(InputError, match=r"must be one or more numbers in \(0, 1\]"):
            TrainTransform(scales=scales)
