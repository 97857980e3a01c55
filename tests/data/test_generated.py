"""The drawn videos show what their class says, are the same everywhere, and are drawn once and whole."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from cnnbert.data import generated
from cnnbert.data.generated import ACTIONS, FRAME_SIZES, RATES, GeneratedActions, draw_clip
from cnnbert.errors import InputError

LEAST = 39
PAIRS = [
    ("slide_right", "slide_left"),
    ("rise", "fall"),
    ("grow", "shrink"),
    ("turn_clockwise", "turn_anticlockwise"),
    ("flash_then_jump", "jump_then_flash"),
    ("swell_then_tilt", "tilt_then_swell"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> GeneratedActions:
    """The fewest videos there can be, drawn; not to be changed."""
    source = GeneratedActions(LEAST, folder=str(tmp_path_factory.mktemp("prepared")))
    source.prepare()
    return source


@pytest.fixture
def copied(prepared: GeneratedActions, tmp_path: Path) -> GeneratedActions:
    """The same in a folder of its own."""
    shutil.copytree(prepared.folder.parent, tmp_path / "copied")
    return GeneratedActions(LEAST, folder=str(tmp_path / "copied"))


def draw(label: str, *key: int) -> np.ndarray:
    return draw_clip(label, np.random.default_rng(key))[0]


def paths(source: GeneratedActions) -> list[Path]:
    return [Path(record.path) for record in source.records("predict")]


def contents(files: Iterable[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files]


def times(files: Iterable[Path]) -> list[int]:
    return [file.stat().st_mtime_ns for file in files]


def draw_file(index: int, num_clips: int, seed: int, folder: Path) -> bytes:
    """Return the file of one video; empty files stand for the others, so that they are not drawn."""
    source = GeneratedActions(num_clips, seed, str(folder))
    source.folder.mkdir(parents=True)
    for i, path in enumerate(paths(source)):
        if i != index:
            path.touch()
    source.prepare()
    return paths(source)[index].read_bytes()


# Drawing


def test_the_same_seed_gives_the_same_frames() -> None:
    for label in ACTIONS:
        np.testing.assert_array_equal(draw(label, 3, 5), draw(label, 3, 5))


def test_another_seed_or_index_gives_other_videos(prepared: GeneratedActions, tmp_path: Path) -> None:
    files = contents(paths(prepared))
    assert len(set(files)) == LEAST
    assert draw_file(0, LEAST, 1, tmp_path) not in files


def test_a_video_does_not_depend_on_their_number(prepared: GeneratedActions, tmp_path: Path) -> None:
    assert draw_file(30, 60, 0, tmp_path) == paths(prepared)[30].read_bytes()
    names = [path.name for path in paths(GeneratedActions(60))]
    assert names[:LEAST] == [path.name for path in paths(prepared)]


def test_lengths_sizes_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "_paint", lambda *_: None)  # which takes most of the time
    seen = []
    for i in range(80):
        frames, rate = draw_clip("swing", np.random.default_rng([0, i]))
        assert frames.dtype == np.uint8
        assert 20 <= len(frames) <= 100
        assert 20 / 12 - 0.5 / rate <= len(frames) / rate <= 100 / 30 + 0.5 / rate  # whole frames
        seen.append(((frames.shape[2], frames.shape[1]), rate, len(frames)))
        assert frames.shape[3] == 3
    sizes, rates, lengths = (set(values) for values in zip(*seen, strict=True))
    assert sizes == set(FRAME_SIZES) == {(128, 96), (144, 112), (160, 120), (176, 144)}
    assert rates == set(RATES)
    assert len(lengths) > 20


@pytest.mark.parametrize(("there", "back"), PAIRS)
def test_a_pair_is_each_others_reversal(there: str, back: str) -> None:
    for i in range(2):
        forwards, backwards = draw(there, 7, i), draw(back, 7, i)
        np.testing.assert_array_equal(backwards, forwards[::-1])
        assert (backwards != forwards).any()
        assert Counter(frame.tobytes() for frame in backwards) == Counter(frame.tobytes() for frame in forwards)


def test_every_class_but_swing_has_its_reversal() -> None:
    assert [*(name for pair in PAIRS for name in pair), "swing"] == list(ACTIONS)


def look(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Measure the actor, where no other bright shape is to be seen: position, area, angle and whiteness over time."""
    seen = []
    for frame in frames:
        y, x = np.nonzero(frame.max(axis=2) > 200)  # backgrounds reach 154, and a shape's full channel is 255
        (xx, xy), (_, yy) = np.cov(x, y)
        seen.append((x.mean(), y.mean(), len(x), 0.5 * np.arctan2(2 * xy, xx - yy), frame[y, x].min(axis=1).mean()))
    x, y, area, angle, white = np.array(seen).T
    return {"x": x, "y": y, "area": area, "angle": np.unwrap(angle, period=np.pi), "white": white}


@pytest.fixture
def lone_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no other shapes, and an oblong actor whose angle can be told."""
    monkeypatch.setattr(generated, "EXTRA_SHAPES", ((),))
    monkeypatch.setattr(generated, "ACTOR_SHAPES", generated.ACTOR_SHAPES[:1])


@pytest.mark.usefixtures("lone_actor")
@pytest.mark.parametrize(
    ("label", "what", "sign"),
    [
        ("slide_right", "x", 1),
        ("slide_left", "x", -1),
        ("rise", "y", -1),
        ("fall", "y", 1),
        ("grow", "area", 1),
        ("shrink", "area", -1),
        ("turn_clockwise", "angle", 1),
        ("turn_anticlockwise", "angle", -1),
    ],
)
def test_actions_go_where_their_names_say(label: str, what: str, sign: int) -> None:
    for i in range(3):
        frames = draw(label, 11, i)
        values = look(frames)[what]
        least = {"x": 0.25 * frames.shape[2], "y": 0.25 * frames.shape[1], "area": 0.5 * values.min(), "angle": 3}
        assert sign * (values[-1] - values[0]) > least[what]


@pytest.mark.usefixtures("lone_actor")
@pytest.mark.parametrize("swap", [False, True])
def test_two_events_come_in_the_order_of_the_name(swap: bool) -> None:
    for i in range(3):
        seen = look(draw("jump_then_flash" if swap else "flash_then_jump", 13, i))
        middle = len(seen["x"]) / 2
        assert (seen["white"].argmax() < middle) != swap
        assert (seen["y"].argmin() < middle) == swap
        seen = look(draw("tilt_then_swell" if swap else "swell_then_tilt", 13, i))
        middle = len(seen["x"]) / 2
        assert (seen["area"].argmax() < middle) != swap
        assert (abs(seen["angle"] - seen["angle"][0]).argmax() < middle) == swap


@pytest.mark.usefixtures("lone_actor")
def test_swing_goes_both_ways_twice() -> None:
    for i in range(3):
        frames = draw("swing", 17, i)
        x = look(frames)["x"]
        x = x - np.linspace(x[0], x[-1], len(x))  # without the drift
        quarters = [x[int(len(x) * at)] / frames.shape[2] for at in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]
        assert np.abs(quarters).min() > 0.1
        assert list(np.sign(quarters)) in ([1, -1, 1, -1], [-1, 1, -1, 1])


def test_mirrored_goes_both_ways() -> None:
    source = GeneratedActions()
    assert source.mirrored
    for here, there in source.mirrored.items():
        assert source.mirrored[there] == here != there
        assert {here, there} <= set(source.class_names)


@pytest.mark.usefixtures("lone_actor")
@pytest.mark.parametrize("what", ["x", "angle"])
def test_a_mirror_turns_the_mirrored_classes_into_each_other(what: str) -> None:
    label = {"x": "slide_right", "angle": "turn_clockwise"}[what]
    for here, there in ((label, GeneratedActions().mirrored[label]), (GeneratedActions().mirrored[label], label)):
        in_the_mirror, other = look(draw(here, 19, 0)[:, :, ::-1])[what], look(draw(there, 19, 0))[what]
        assert np.sign(in_the_mirror[-1] - in_the_mirror[0]) == np.sign(other[-1] - other[0])


# Splits


@pytest.mark.parametrize(
    ("num_clips", "val_fraction", "test_fraction"),
    [(LEAST, 0.2, 0.2), (50, 0.2, 0.2), (2000, 0.2, 0.2), (400, 0.4, 0.1), (143, 0.9, 0.05)],
)
def test_every_class_is_in_every_split(num_clips: int, val_fraction: float, test_fraction: float) -> None:
    source = GeneratedActions(num_clips, val_fraction=val_fraction, test_fraction=test_fraction, folder="nowhere")
    splits = {split: source.records(split) for split in ("train", "val", "test")}
    for records in splits.values():
        assert {record.label for record in records} == set(source.class_names)
    together = [record.path for records in splits.values() for record in records]
    assert len(together) == len(set(together)) == num_clips
    assert set(together) == {record.path for record in source.records("predict")}
    # Each class rounds down, or up to one video.
    assert abs(len(splits["val"]) - val_fraction * num_clips) <= 13
    assert abs(len(splits["test"]) - test_fraction * num_clips) <= 13
    counts = Counter(record.label for record in source.records("predict"))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_records_need_no_files_and_are_always_the_same(tmp_path: Path) -> None:
    lists = [GeneratedActions(80, folder=str(tmp_path / "videos")).records(s) for s in ("train", "val", "test") * 2]
    assert lists[:3] == lists[3:]
    assert not list(tmp_path.iterdir())


# Files


def test_files_hold_what_was_drawn(prepared: GeneratedActions) -> None:
    for i, record in enumerate(prepared.records("predict")):
        assert record.label is not None
        frames, rate = draw_clip(record.label, np.random.default_rng([0, i]))
        with av.open(record.path) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.average_rate == rate
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert decoded.shape == frames.shape
        # Lossy coding, and colour at half the resolution, cost 2 to 3 levels; the frames in reverse are 10 away.
        away = abs(decoded.astype(np.int16) - frames).mean(axis=(1, 2, 3))
        assert away.max() < 5


def test_the_same_frames_give_the_same_file() -> None:
    clips = (draw_clip("grow", np.random.default_rng([5, i])) for i in range(20))
    odd = [(frames, rate) for frames, rate in clips if frames.shape[2] % 32]  # an odd number of macroblocks a row
    for frames, rate in odd[:6]:
        assert len({generated._encode(frames, rate) for _ in range(5)}) == 1


def test_a_second_prepare_draws_nothing(copied: GeneratedActions, monkeypatch: pytest.MonkeyPatch) -> None:
    before = times(paths(copied))
    monkeypatch.setattr(generated, "draw_clip", None)
    copied.prepare()
    assert times(paths(copied)) == before
    assert sorted(copied.folder.iterdir()) == sorted(paths(copied))


def test_what_is_missing_is_drawn_again(prepared: GeneratedActions, copied: GeneratedActions) -> None:
    lost, *others = paths(copied)
    before = times(others)
    lost.unlink()
    stray = copied.folder / ".0123.part"
    stray.write_bytes(b"half")
    copied.prepare()
    assert contents(paths(copied)) == contents(paths(prepared))
    assert times(others) == before
    assert set(copied.folder.iterdir()) - {stray} == set(paths(copied))
    assert str(stray) not in {record.path for record in copied.records("predict")}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_prepare_is_completed_by_the_next(
    prepared: GeneratedActions,
    copied: GeneratedActions,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    for path in paths(copied)[10:14]:
        path.unlink()
    make = GeneratedActions._make

    def interrupted(self: GeneratedActions, index: int) -> None:
        if index == 12:
            raise error("stop")
        make(self, index)

    with monkeypatch.context() as patch, pytest.raises(error, match="stop"):
        patch.setattr(GeneratedActions, "_make", interrupted)
        copied.prepare()
    there = sorted(copied.folder.iterdir())
    assert set(paths(copied)) - set(there) >= {paths(copied)[12]}
    assert contents(there) == contents(prepared.folder / path.name for path in there)  # every one is whole
    copied.prepare()
    assert sorted(copied.folder.iterdir()) == sorted(paths(copied))
    assert contents(paths(copied)) == contents(paths(prepared))


def test_a_full_disk_leaves_no_half_of_a_video(copied: GeneratedActions, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = paths(copied)[5]
    lost.unlink()
    write = Path.write_bytes

    def write_half(self: Path, data: bytes) -> int:
        write(self, data[: len(data) // 2])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"\(No space left on device\)"):
        patch.setattr(Path, "write_bytes", write_half)
        copied.prepare()
    assert set(copied.folder.iterdir()) == set(paths(copied)) - {lost}


def test_two_prepares_at_once_do_no_harm(
    prepared: GeneratedActions, copied: GeneratedActions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in (4, 8):
        paths(copied)[index].unlink()
    both_have_written = threading.Barrier(2, timeout=20)
    replace = os.replace

    def replace_together(source: Path, target: Path) -> None:
        both_have_written.wait()
        replace(source, target)

    monkeypatch.setattr(generated, "num_cores", lambda: 1)
    monkeypatch.setattr(os, "replace", replace_together)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(copied.prepare), pool.submit(copied.prepare)]:
            done.result()
    assert sorted(copied.folder.iterdir()) == sorted(paths(copied))
    assert contents(paths(copied)) == contents(paths(prepared))


def test_asking_for_more_keeps_those_there(copied: GeneratedActions) -> None:
    before = times(paths(copied))
    more = GeneratedActions(LEAST + 4, folder=str(copied.folder.parent))
    more.prepare()
    assert paths(more)[:LEAST] == paths(copied)
    assert times(paths(copied)) == before
    assert sorted(more.folder.iterdir()) == sorted(paths(more))


def test_each_seed_has_a_folder_of_its_own(tmp_path: Path) -> None:
    first, second = (GeneratedActions(seed=seed, folder=str(tmp_path)) for seed in (0, 1))
    assert first.folder.parent == second.folder.parent == tmp_path
    assert first.folder != second.folder


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert GeneratedActions().folder.parent == tmp_path / "cache" / "cnnbert" / "generated"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert GeneratedActions().folder.parent == tmp_path / "home" / ".cache" / "cnnbert" / "generated"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert GeneratedActions().folder.parent == tmp_path / "home" / ".cache" / "cnnbert" / "generated"
    assert GeneratedActions(folder="~/videos").folder.parent == tmp_path / "home" / "videos"
    assert not list(tmp_path.iterdir())


# Errors


@pytest.mark.parametrize(
    ("num_clips", "val_fraction", "test_fraction", "least"),
    [(38, 0.2, 0.2, 39), (0, 0.2, 0.2, 39), (-1, 0.2, 0.2, 39), (142, 0.9, 0.05, 143)],
)
def test_too_few_videos(num_clips: int, val_fraction: float, test_fraction: float, least: int) -> None:
    with pytest.raises(InputError) as caught:
        GeneratedActions(num_clips, val_fraction=val_fraction, test_fraction=test_fraction)
    assert str(caught.value) == (
        f"num_clips={num_clips} is too few for every one of the 13 classes to be in every split; give at least {least}"
    )


@pytest.mark.parametrize("fractions", [(0, 0.2), (0.2, 0), (-0.1, 0.2), (1, 0.2), (0.5, 0.5), (float("nan"), 0.2)])
def test_fractions_that_leave_nothing(fractions: tuple[float, float]) -> None:
    val, test = fractions
    with pytest.raises(InputError) as caught:
        GeneratedActions(val_fraction=val, test_fraction=test)
    assert str(caught.value) == (
        f"val_fraction={val} and test_fraction={test} must be above 0 and leave something to train on; try 0.2 and 0.2"
    )


def test_a_negative_seed() -> None:
    with pytest.raises(InputError, match=r"^seed=-1 must be at least 0$"):
        GeneratedActions(seed=-1)


def test_an_unknown_split() -> None:
    with pytest.raises(InputError, match=r"^split='valid' is not one of train, val, test, predict$"):
        GeneratedActions().records("valid")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    in_the_way = tmp_path / "videos"
    in_the_way.write_text("a file")
    source = GeneratedActions(LEAST, folder=str(in_the_way))
    with pytest.raises(InputError) as caught:
        source.prepare()
    assert str(caught.value).startswith(f"the generated videos cannot be written to {source.folder} (")
    assert str(caught.value).endswith("); set folder to one that can")
    assert in_the_way.read_text() == "a file"


def test_some_actions_alone(tmp_path: Path) -> None:
    every = GeneratedActions(LEAST, folder=str(tmp_path))
    some = GeneratedActions(LEAST, folder=str(tmp_path), actions=["swing", "slide_left", "slide_right"])
    assert some.class_names == ["slide_right", "slide_left", "swing"]
    assert some.mirrored == {"slide_right": "slide_left", "slide_left": "slide_right"}
    for split in ("train", "val", "test", "predict"):
        kept = [record for record in every.records(split) if record.label in some.class_names]
        assert some.records(split) == kept
    some.prepare()
    assert len(list(some.folder.iterdir())) == 3 * LEAST // len(ACTIONS)


@pytest.mark.parametrize("actions", [[], ["swing"], ["swing", "swing"], ["swing", "dance"]])
def test_wrong_actions(actions: list[str]) -> None:
    with pytest.raises(InputError, match="must be at least two, all different, of slide_right, slide_left, rise"):
        GeneratedActions(actions=actions)
