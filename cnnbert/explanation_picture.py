"""Draws what a model's answer rests on: as a picture, as a video, and as a page with both."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from cnnbert.data.encoding import Encoding, encode_frames
from cnnbert.explanation import Explanation, frames_of_step
from cnnbert.outputs import printable
from cnnbert.pages import data_uri, fill

BLUE, GREY = "#0072b2", "#9aa0a6"
MOST_STEPS = 8
"""Time steps of which a frame is shown, at most; of more, some spread evenly."""


@dataclass(frozen=True)
class Explained:
    """An explanation, and what it is of.

    Attributes:
        path: The video.
        classes: The most probable classes with their probabilities, the highest first.
        target: The class that is explained.
        seconds: When each frame of the clip is shown, (T,).
        fps: Frames of the clip a second.
        frames: The part of the picture that the network saw, uint8 (T, 3, H, W).
        temporal_stride: Frames of a time step.
        explanation: What the answer rests on.
    """

    path: str
    classes: dict[str, float]
    target: str
    seconds: Sequence[float]
    fps: float
    frames: Tensor
    temporal_stride: int
    explanation: Explanation

    def told(self, value: float) -> str:
        """Return what a moment counts, in figures."""
        return f"{100 * value:.1f} %" if self.explanation.time_attention is not None else f"{value:+.2f}"

    @property
    def measure(self) -> str:
        """What the strip shows, in words."""
        if self.explanation.time_attention is not None:
            return "attention to each moment"
        return f"how much less “{self.target}” is believed when the moment is hidden, in log-odds"

    def title(self, most: int = 3) -> str:
        """Return the most probable classes, in a line."""
        return "   ".join(f"{label} {100 * score:.0f} %" for label, score in list(self.classes.items())[:most])

    def overlays(self) -> np.ndarray:
        """Return the frames with what speaks for the class in warm colours, uint8 (T, H, W, 3)."""
        height, width = self.frames.shape[2:]
        heat = F.interpolate(self.explanation.heat[:, None], (height, width), mode="bilinear")[:, 0]  # (T, H, W)
        frames = self.frames.permute(0, 2, 3, 1).numpy()
        grey = frames.mean(3, keepdims=True).repeat(3, 3) * 0.6
        colours = colormaps["inferno"](heat.numpy())[..., :3] * 255
        share = 0.75 * heat.clamp(0, 1)[..., None].numpy() ** 0.75
        return ((1 - share) * grey + share * colours).round().astype(np.uint8)


def draw_picture(explained: Explained) -> bytes:
    """Return a PNG: a frame a moment, where in it the answer comes from, and how much each moment counts."""
    moments = explained.explanation.moments.numpy()
    attention = explained.explanation.time_attention
    num_steps = len(moments)
    shown = np.unique(np.linspace(0, num_steps - 1, min(num_steps, MOST_STEPS)).round().astype(int))
    middles = [_middle(explained, step) for step in shown]
    num_rows = 3 if attention is None else 4
    heads_height = 0.0 if attention is None else 0.5 + 0.16 * len(attention)
    aspect = explained.frames.shape[2] / explained.frames.shape[3]
    width = max(5.0, 1.55 * len(shown))
    frame_height = (width - 1.1) / len(shown) * aspect
    heights = [frame_height, frame_height, 1.1, heads_height][:num_rows]
    figure = Figure(figsize=(width, sum(heights) + 1.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(num_rows, len(shown), height_ratios=heights)
    overlays = explained.overlays()
    for column, frame in enumerate(middles):
        for row, picture in enumerate((explained.frames[frame].permute(1, 2, 0).numpy(), overlays[frame])):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture, aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"{explained.seconds[frame]:.2f} s", fontsize=8, color="0.3")
            if column == 0:
                axes.set_ylabel(("frame", "where")[row], fontsize=8, color="0.3")
    bars = figure.add_subplot(grid[2, :])
    bars.bar(range(num_steps), moments, width=0.92, color=BLUE)
    bars.set_xlim(-0.5, num_steps - 0.5)
    bars.set_ylim(min(0.0, 1.1 * float(moments.min())), max(1.15 * float(moments.max()), 1e-3))
    bars.set_title(explained.measure, fontsize=8, color="0.3", loc="left", parse_math=False)
    if attention is not None:
        bars.axhline(1 / num_steps, color=GREY, linewidth=0.8, linestyle=":")
        bars.text(num_steps - 0.5, 1 / num_steps, " even", fontsize=7, color="0.4", va="center", clip_on=False)
    else:
        bars.axhline(0, color=GREY, linewidth=0.8)
    bars.spines[["top", "right"]].set_visible(False)
    bars.tick_params(labelsize=7)
    edges = [_middle(explained, step) for step in range(num_steps)]
    places = np.unique(np.linspace(0, num_steps - 1, min(num_steps, 12)).round().astype(int))
    bars.set_xticks(places, [f"{explained.seconds[edges[place]]:.2f} s" for place in places])
    if attention is not None:
        heads = figure.add_subplot(grid[3, :])
        heads.imshow(attention.numpy(), aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
        heads.set_title("each attention head", fontsize=8, color="0.3", loc="left")
        heads.set_yticks(range(len(attention)), [str(number + 1) for number in range(len(attention))], fontsize=6)
        heads.set_xticks([])
        heads.spines[:].set_visible(False)
    title = printable(f"{Path(explained.path).name}\n{explained.title()}")
    figure.suptitle(title, fontsize=10, parse_math=False)  # a $ in a name is a $
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def write_video(explained: Explained, target: Path) -> None:
    """Write an MP4 of the clip in its own time: the frames, where the answer comes from, and the moments below.

    Raises:
        OSError: It cannot be written.
    """
    moments = explained.explanation.moments.clamp(min=0).numpy()
    tallest = max(float(moments.max()), 1e-6)
    frames = explained.frames.permute(0, 2, 3, 1).numpy()
    num_frames, height, width = frames.shape[:3]
    canvas_width, strip, line = 2 * width // 2 * 2, 56, 26
    font = ImageFont.load_default(15)
    drawn = []
    for number, (frame, overlay) in enumerate(zip(frames, explained.overlays(), strict=True)):
        canvas = Image.new("RGB", (canvas_width, (line + height + strip + 1) // 2 * 2), "white")
        draw = ImageDraw.Draw(canvas)
        draw.text((6, 4), _fitted(draw, explained.title(), font, canvas_width - 12), fill="black", font=font)
        canvas.paste(Image.fromarray(frame), (0, line))
        canvas.paste(Image.fromarray(overlay), (width, line))
        bottom = line + height + strip - 6
        for step, value in enumerate(moments):
            part = frames_of_step(step, explained.temporal_stride)
            left = part.start * canvas_width / num_frames
            right = min(part.stop, num_frames) * canvas_width / num_frames
            top = bottom - (strip - 14) * float(value) / tallest
            is_now = part.start <= number < part.stop
            draw.rectangle((left + 1, top, right - 2, bottom), fill=BLUE if is_now else GREY)
        drawn.append(np.asarray(canvas))
    encode_frames(target, drawn, explained.fps, Encoding(crf=20, preset="medium"))


def page(explained: Explained) -> str:
    """Return a page of HTML that needs nothing else: the picture, the video, and the numbers."""
    with tempfile.TemporaryDirectory() as folder:
        write_video(explained, Path(folder, "clip.mp4"))
        video = data_uri(Path(folder, "clip.mp4").read_bytes(), "video/mp4")
    moments = explained.explanation.moments
    highest = max(float(moments.max()), 1e-6)
    rows = []
    for step, value in enumerate(moments.tolist()):
        part = explained.seconds[frames_of_step(step, explained.temporal_stride)]
        when = f"{part[0]:.2f} to {part[-1] + 1 / explained.fps:.2f} s"
        rows.append((when, 100 * max(value, 0) / highest, explained.told(value)))
    return fill(
        "explanation.html",
        name=printable(Path(explained.path).name),
        path=printable(explained.path),
        target=explained.target,
        measure=explained.measure,
        video=video,
        picture=data_uri(draw_picture(explained), "image/png"),
        classes=[(label, 100 * score, f"{100 * score:.1f} %") for label, score in explained.classes.items()],
        moments=rows,
    )


def _middle(explained: Explained, step: int) -> int:
    """Return the frame in the middle of a time step."""
    first = step * explained.temporal_stride
    last = min(first + explained.temporal_stride, len(explained.frames)) - 1
    return (first + last) // 2


def _fitted(
    draw: ImageDraw.ImageDraw, words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """Return words cut to a width in pixels."""
    if draw.textlength(words, font=font) <= width:
        return words
    while words and draw.textlength(words + "…", font=font) > width:
        words = words[:-1]
    return words + "…"
