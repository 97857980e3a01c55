"""Little drawn actions as video files: the data set that comes with the package."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import SPLITS, VideoSource
from cnnbert.errors import InputError
from cnnbert.machine import num_cores

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]

# Part of the cache folder's name. Raise it whenever the drawing or the encoding changes.
DRAWING = 2

FRAME_SIZES = ((128, 96), (144, 112), (160, 120), (176, 144))
RATES = (12, 15, 20, 24, 25, 30)
SECONDS = (20 / 12, 100 / 30)


class GeneratedActions(VideoSource):
    """Drawn shapes that move: 13 classes of small H.264 videos, made on this machine at first use.

    A large shape acts before a drifting background, with up to three small ones wandering about. Six pairs of
    classes are each other's time reversal (such as rise and fall, or a flash before a jump and one after it), so
    that neither a single frame nor an average over frames tells the two apart. Videos have 20 to 100 frames of 128x96
    to 176x144 pixels at 12 to 30 frames a second, and the action takes the whole of each.

    Args:
        num_clips: Videos altogether, spread evenly over the classes. Asking for more keeps those that are there.
        seed: Chooses the videos, at least 0; another seed gives entirely other videos.
        folder: Where the videos are kept, each seed in a folder of its own. By default `cnnbert/generated` in the
            user's cache folder (XDG_CACHE_HOME, or ~/.cache).
        val_fraction: Share of each class for validation, in (0, 1); at least one video.
        test_fraction: Share of each class for testing, in (0, 1); at least one video.
        actions: Only these classes, at least two; the videos of the others are left out. By default all 13.
    """

    def __init__(
        self,
        num_clips: int = 2000,
        seed: int = 0,
        folder: str | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        actions: list[str] | None = None,
    ) -> None:
        if seed < 0:
            raise InputError(f"seed={seed} must be at least 0")
        if not (0 < val_fraction < 1 and 0 < test_fraction < 1 and val_fraction + test_fraction < 1):
            raise InputError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} must be above 0 and leave something "
                "to train on; try 0.2 and 0.2"
            )
        given = list(ACTIONS) if actions is None else actions
        if len(set(given)) < max(2, len(given)) or not set(given) <= set(ACTIONS):
            raise InputError(f"actions={given} must be at least two, all different, of {', '.join(ACTIONS)}")
        self.actions = [action for action in ACTIONS if action in given]
        self.num_clips = num_clips
        self.seed = seed
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        a_class = next(n for n in count(3) if self._num_held_out(n) < n)
        if num_clips < a_class * len(ACTIONS):
            raise InputError(
                f"num_clips={num_clips} is too few for every one of the {len(ACTIONS)} classes to be in every split; "
                f"give at least {a_class * len(ACTIONS)}"
            )
        self.folder = (_cache_folder() if folder is None else Path(folder).expanduser()) / f"v{DRAWING}-seed{seed}"

    @property
    def class_names(self) -> list[str]:
        """The actions, in their usual order."""
        return self.actions

    @property
    def mirrored(self) -> dict[str, str]:
        """The actions that a mirror turns into each other, both ways."""
        pairs = {here: there for here, there in MIRRORED.items() if here in self.actions and there in self.actions}
        return {**pairs, **{there: here for here, there in pairs.items()}}

    def prepare(self) -> None:
        """Draw the videos that are not there yet, showing progress.

        A video appears whole or not at all: an interrupted call is completed by the next, and processes that
        prepare the same folder at once do no harm.

        Raises:
            InputError: The folder cannot be written.
        """
        missing = [i for i in self._numbers if not self._path(i).is_file()]
        if not missing:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(num_cores()) as pool:
                drawn = [pool.submit(self._make, i) for i in missing]
                try:
                    for future in tqdm(drawn, desc="drawing videos", unit="video", disable=None, dynamic_ncols=True):
                        future.result()
                finally:
                    pool.shutdown(cancel_futures=True)
        except OSError as error:
            raise InputError(
                f"the generated videos cannot be written to {self.folder} ({error}); set folder to one that can"
            ) from error

    def records(self, split: str) -> list[VideoRecord]:
        """Return the videos of a split, whether they are drawn yet or not; `predict` has them all."""
        if split not in (*SPLITS, "predict"):
            raise InputError(f"split={split!r} is not one of {', '.join(SPLITS)}, predict")
        return [
            VideoRecord(str(self._path(i)), _label(i)) for i in self._numbers if split in (self._split(i), "predict")
        ]

    @property
    def _numbers(self) -> list[int]:
        return [i for i in range(self.num_clips) if _label(i) in self.actions]

    def _num_held_out(self, num: int) -> int:
        return max(1, int(num * self.val_fraction)) + max(1, int(num * self.test_fraction))

    def _split(self, index: int) -> str:
        """Return the split of a video: of each class, the first are for testing, the next for validation."""
        rank, position = divmod(index, len(ACTIONS))
        in_class = len(range(position, self.num_clips, len(ACTIONS)))
        if rank < max(1, int(in_class * self.test_fraction)):
            return "test"
        return "val" if rank < self._num_held_out(in_class) else "train"

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}_{_label(index)}.mp4"

    def _make(self, index: int) -> None:
        path = self._path(index)
        if path.is_file():  # another process was faster
            return
        frames, rate = draw_clip(_label(index), np.random.default_rng([self.seed, index]))
        temporary = path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            temporary.write_bytes(_encode(frames, rate))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def draw_clip(label: str, rng: np.random.Generator) -> tuple[Frames, int]:
    """Draw a video of a class.

    The draws from `rng` do not depend on the class: from generators in the same state, two classes that are each
    other's reversal give the same frames in opposite order.

    Returns:
        Frames, uint8 RGB (N, H, W, 3), and their number a second.
    """
    width, height = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    rate = RATES[rng.integers(len(RATES))]
    num_frames = round(rng.uniform(*SECONDS) * rate)
    backdrop = _draw_backdrop(width, height, rng)
    extras = [_draw_extra(width, height, rng) for _ in range(rng.integers(4))]
    actor = _draw_actor(width, height, rng)
    motion, backwards = ACTIONS[label]
    start = replace(actor.pose, drift=(0.0, 0.0)) if motion in (_slide, _rise) else actor.pose
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        time = i / (num_frames - 1)
        canvas = backdrop(time)
        for extra in extras:
            _paint(canvas, extra, extra.pose.drifted(time))
        pose = motion(start.drifted(time - 0.5), time, actor.tempo)
        _paint(canvas, actor, pose)
        frames[i] = canvas
    return frames[::-1] if backwards else frames, rate


@dataclass(frozen=True)
class Pose:
    """Where a shape is and how it looks at one moment; lengths in pixels, x to the right and y down.

    Attributes:
        x: Centre.
        y: Centre.
        size: Radius.
        angle: Turn in radians, clockwise.
        glow: From 0, the shape's own colour, to 1, white and with a halo.
        reach: Width and height of the frame.
        drift: Way along x and y from the first frame to the last.
    """

    x: float
    y: float
    size: float
    angle: float
    reach: tuple[int, int]
    glow: float = 0.0
    drift: tuple[float, float] = (0.0, 0.0)

    def drifted(self, time: float) -> Pose:
        return replace(self, x=self.x + time * self.drift[0], y=self.y + time * self.drift[1])


@dataclass(frozen=True)
class Tempo:
    """What varies between two videos of one action.

    Attributes:
        extent: How far the action goes, in [0.8, 1.2]; 1 is usual.
        ease: From 0, a steady movement, to 1, one that starts and ends gently.
        first: The moment of the first of two events, in [0.22, 0.32] of the video.
        second: That of the second, in [0.68, 0.78].
        length: How long an event takes, in [0.3, 0.4] of the video.
        side: -1 or 1: the side to which the shape tilts, or swings first.
    """

    extent: float
    ease: float
    first: float
    second: float
    length: float
    side: int

    def progress(self, time: float) -> float:
        """Return how far a movement has come, from -0.5 at the start to 0.5 at the end."""
        return (1 - self.ease) * time + self.ease * time * time * (3 - 2 * time) - 0.5

    def event(self, time: float, centre: float) -> float:
        """Return how far on an event is, from 0 before it to 1 at its centre and 0 after it."""
        away = (time - centre) / self.length
        return float(np.cos(np.pi * away) ** 2) if abs(away) < 0.5 else 0.0


@dataclass(frozen=True)
class Shape:
    """Convex polygons of one colour, vertices (k, 2) clockwise as seen, in a circle of radius 1; and a pose."""

    polygons: tuple[Floats, ...]
    colour: Floats
    pose: Pose


@dataclass(frozen=True)
class Actor(Shape):
    """The shape that acts."""

    tempo: Tempo


Motion = Callable[[Pose, float, Tempo], Pose]


def _slide(pose: Pose, time: float, tempo: Tempo) -> Pose:
    return replace(pose, x=pose.x + 0.55 * pose.reach[0] * tempo.extent * tempo.progress(time))


def _rise(pose: Pose, time: float, tempo: Tempo) -> Pose:
    return replace(pose, y=pose.y - 0.5 * pose.reach[1] * tempo.extent * tempo.progress(time))


def _grow(pose: Pose, time: float, tempo: Tempo) -> Pose:
    return replace(pose, size=pose.size * float(np.exp(1.1 * tempo.extent * tempo.progress(time))))


def _turn(pose: Pose, time: float, tempo: Tempo) -> Pose:
    return replace(pose, angle=pose.angle + 1.5 * np.pi * tempo.extent * tempo.progress(time))


def _swing(pose: Pose, time: float, tempo: Tempo) -> Pose:
    offset = 0.22 * pose.reach[0] * tempo.extent * tempo.side * float(np.sin(4 * np.pi * time))
    return replace(pose, x=pose.x + offset)


def _flash_then_jump(pose: Pose, time: float, tempo: Tempo) -> Pose:
    height = 0.33 * pose.reach[1] * tempo.extent * tempo.event(time, tempo.second)
    return replace(pose, glow=tempo.event(time, tempo.first), y=pose.y - height)


def _swell_then_tilt(pose: Pose, time: float, tempo: Tempo) -> Pose:
    size = pose.size * (1 + 0.8 * tempo.extent * tempo.event(time, tempo.first))
    angle = 0.55 * np.pi * tempo.extent * tempo.side * tempo.event(time, tempo.second)
    return replace(pose, size=size, angle=pose.angle + angle)


# The motion of each class, and whether it is shown backwards.
ACTIONS: dict[str, tuple[Motion, bool]] = {
    "slide_right": (_slide, False),
    "slide_left": (_slide, True),
    "rise": (_rise, False),
    "fall": (_rise, True),
    "grow": (_grow, False),
    "shrink": (_grow, True),
    "turn_clockwise": (_turn, False),
    "turn_anticlockwise": (_turn, True),
    "flash_then_jump": (_flash_then_jump, False),
    "jump_then_flash": (_flash_then_jump, True),
    "swell_then_tilt": (_swell_then_tilt, False),
    "tilt_then_swell": (_swell_then_tilt, True),
    "swing": (_swing, False),
}
MIRRORED = {"slide_right": "slide_left", "turn_clockwise": "turn_anticlockwise"}


def _polygon(*vertices: tuple[float, float]) -> Floats:
    return np.array(vertices, np.float64)


def _disc(sides: int) -> Floats:
    angles = np.arange(sides) * 2 * np.pi / sides
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# None of these looks the same again before it has turned by half, so that the sense of a turn shows.
ACTOR_SHAPES = (
    (_polygon((-1, -0.4), (1, -0.4), (1, 0.4), (-1, 0.4)),),
    (_polygon((0, -1), (0.65, 0.8), (-0.65, 0.8)),),
    (
        _polygon((-0.9, -0.25), (0.2, -0.25), (0.2, 0.25), (-0.9, 0.25)),
        _polygon((0.1, -0.75), (1, 0), (0.1, 0.75)),
    ),
    (
        _polygon((-0.7, -0.8), (-0.1, -0.8), (-0.1, 0.8), (-0.7, 0.8)),
        _polygon((-0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (-0.2, 0.8)),
    ),
    (
        _polygon((-0.9, -0.8), (0.9, -0.8), (0.9, -0.25), (-0.9, -0.25)),
        _polygon((-0.3, -0.3), (0.3, -0.3), (0.3, 0.9), (-0.3, 0.9)),
    ),
    (_disc(24)[:13],),
)
EXTRA_SHAPES = ((_disc(16),), (_disc(4),), (_disc(3),))


def _draw_backdrop(width: int, height: int, rng: np.random.Generator) -> Callable[[float], NDArray[np.float32]]:
    """Draw a dark background: blobs of colour and stripes that drift, and light that changes."""
    margin = 16
    rows, columns = np.arange(height + margin)[:, None], np.arange(width + margin)[None, :]
    coarse = rng.uniform(20, 110, (4, 5, 3))
    canvas = np.einsum("ya,abk->ybk", _blend(height + margin, 4), coarse)
    canvas = np.einsum("ybk,xb->yxk", canvas, _blend(width + margin, 5))
    angle, wavelength = rng.uniform(0, np.pi), rng.uniform(0.1, 0.6) * height
    wave = np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / wavelength)
    canvas = (canvas + rng.uniform(0, 18) * wave[..., None]).clip(0, 140).astype(np.float32)
    start_y, end_y, start_x, end_x = rng.uniform(0, margin, 4)
    dark, light = rng.uniform(0.8, 1.1, 2)

    def at(time: float) -> NDArray[np.float32]:
        y, x = round(start_y + time * (end_y - start_y)), round(start_x + time * (end_x - start_x))
        return canvas[y : y + height, x : x + width] * np.float32(dark + time * (light - dark))

    return at


def _blend(length: int, knots: int) -> Floats:
    """Return (length, knots), the weights that stretch `knots` values linearly to `length`."""
    positions = np.linspace(0, knots - 1, length)
    return (1 - abs(positions[:, None] - np.arange(knots))).clip(0)


def _draw_extra(width: int, height: int, rng: np.random.Generator) -> Shape:
    start_x, end_x = rng.uniform(0, width, 2)
    start_y, end_y = rng.uniform(0, height, 2)
    pose = Pose(
        x=start_x,
        y=start_y,
        size=rng.uniform(0.05, 0.09) * height,
        angle=rng.uniform(0, 2 * np.pi),
        reach=(width, height),
        drift=(0.6 * (end_x - start_x), 0.6 * (end_y - start_y)),
    )
    return Shape(EXTRA_SHAPES[rng.integers(len(EXTRA_SHAPES))], _draw_colour(rng), pose)


def _draw_actor(width: int, height: int, rng: np.random.Generator) -> Actor:
    pose = Pose(
        x=rng.uniform(0.4, 0.6) * width,
        y=rng.uniform(0.42, 0.62) * height,
        size=rng.uniform(0.15, 0.22) * height,
        angle=rng.uniform(0, 2 * np.pi),
        reach=(width, height),
        drift=(rng.uniform(-0.08, 0.08) * width, rng.uniform(-0.08, 0.08) * height),
    )
    tempo = Tempo(
        extent=rng.uniform(0.8, 1.2),
        ease=rng.uniform(0, 1),
        first=rng.uniform(0.22, 0.32),
        second=rng.uniform(0.68, 0.78),
        length=rng.uniform(0.3, 0.4),
        side=1 if rng.random() < 0.5 else -1,
    )
    return Actor(ACTOR_SHAPES[rng.integers(len(ACTOR_SHAPES))], _draw_colour(rng), pose, tempo)


def _draw_colour(rng: np.random.Generator) -> Floats:
    """Draw a bright colour: one channel full, one low, the third between them."""
    return rng.permutation([255.0, rng.uniform(20, 90), rng.uniform(90, 230)])


def _paint(canvas: NDArray[np.float32], shape: Shape, pose: Pose) -> None:
    """Paint a shape over a canvas (H, W, 3) with smooth edges."""
    if pose.glow:
        _fill(canvas, (_disc(16),), replace(pose, size=1.7 * pose.size), np.full(3, 255.0), 0.45 * pose.glow)
    _fill(canvas, shape.polygons, pose, shape.colour + pose.glow * (255 - shape.colour), 1.0)


def _fill(
    canvas: NDArray[np.float32], polygons: tuple[Floats, ...], pose: Pose, colour: Floats, opacity: float
) -> None:
    height, width = canvas.shape[:2]
    radius = 1.25 * pose.size + 1
    top, bottom = max(0, int(pose.y - radius)), min(height, int(pose.y + radius) + 2)
    left, right = max(0, int(pose.x - radius)), min(width, int(pose.x + radius) + 2)
    if top >= bottom or left >= right:
        return
    dy = np.arange(top, bottom, dtype=np.float32) - np.float32(pose.y)
    dx = np.arange(left, right, dtype=np.float32) - np.float32(pose.x)
    cos, sin = pose.size * np.cos(pose.angle), pose.size * np.sin(pose.angle)
    outside = np.full((bottom - top, right - left), np.inf, np.float32)
    for polygon in polygons:
        corners = polygon @ np.array([[cos, sin], [-sin, cos]])
        edges = np.roll(corners, -1, axis=0) - corners
        normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1) / np.hypot(*edges.T)[:, None]
        offsets = (normals * corners).sum(axis=1)
        nx, ny, c = np.hstack([normals, offsets[:, None]]).T.astype(np.float32)[..., None, None]
        # Pixels beyond each edge, (k, h, w); the largest is the distance from the polygon, negative inside it.
        beyond = nx * dx + (ny * dy[:, None] - c)
        np.minimum(outside, beyond.max(axis=0), out=outside)
    cover = (np.float32(opacity) * (np.float32(0.5) - outside).clip(0, 1))[..., None]
    patch = canvas[top:bottom, left:right]
    patch += cover * (colour.astype(np.float32) - patch)


def _encode(frames: Frames, rate: int) -> bytes:
    """Return frames as an H.264 mp4 file, the same bytes from the same frames and version of the codec."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # With mbtree, x264 gives other bytes from call to call where a row has an odd number of macroblocks.
        options = {"preset": "veryfast", "crf": "22", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _label(index: int) -> str:
    return list(ACTIONS)[index % len(ACTIONS)]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnbert" / "generated"
