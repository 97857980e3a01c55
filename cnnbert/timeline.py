"""Draws the scores of a video over time, and the segments found in it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cnnbert.localization import Segment
from cnnbert.outputs import printable
from cnnbert.scanning import Scores

# Okabe & Ito 2008: told apart by people who see few colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#555555")


def draw_timeline(
    scores: Scores, class_names: Sequence[str], found: Sequence[Segment], truth: Sequence[Segment] = ()
) -> bytes:
    """Return a PNG: the probabilities of the classes that were ever likely, and bars for the segments below.

    Args:
        scores: The scores of the video over time.
        class_names: The K classes.
        found: The segments found in it.
        truth: The true ones, if they are known.
    """
    shown = _shown(scores, class_names, [*found, *truth])
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(shown)}
    rows = {"found": found, **({"true": truth} if truth else {})}
    figure = Figure(figsize=(10, 2.9 + 0.45 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 0.45 * len(rows)])
    edges = [number * scores.moment_seconds for number in range(len(scores.probabilities))] + [scores.num_seconds]
    for name in shown:
        values = scores.probabilities[:, class_names.index(name)].tolist()
        top.stairs(values, edges, baseline=None, color=colours[name], linewidth=1.6, label=name)
    top.set_ylim(0, 1.02)
    top.set_ylabel("probability", fontsize=9)
    legend = top.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a name is a $
    for place, segments in enumerate(rows.values()):
        for segment in segments:
            length = segment.end_seconds - segment.start_seconds
            bottom.broken_barh(
                [(segment.start_seconds, length)], (place - 0.4, 0.8), color=colours.get(segment.label, "#bbbbbb")
            )
            if length > 0.012 * len(segment.label) * scores.num_seconds:
                middle = segment.start_seconds + length / 2
                centred = {"ha": "center", "va": "center", "fontsize": 7, "color": "white", "parse_math": False}
                bottom.text(middle, place, segment.label, **centred)
    bottom.set_yticks(range(len(rows)), rows, fontsize=9)
    bottom.set_ylim(len(rows) - 0.5, -0.5)
    bottom.set_xlim(0, scores.num_seconds)
    bottom.set_xlabel("time (min:s)" if scores.num_seconds >= 60 else "time (s)", fontsize=9)
    if scores.num_seconds >= 60:
        bottom.xaxis.set_major_formatter(lambda seconds, _: f"{int(seconds) // 60}:{int(seconds) % 60:02}")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    bottom.spines["left"].set_visible(False)
    bottom.tick_params(axis="y", length=0)
    top.grid(axis="y", color="0.92")
    figure.suptitle(printable(Path(scores.path).name), fontsize=10, parse_math=False)
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def _shown(scores: Scores, class_names: Sequence[str], segments: Sequence[Segment]) -> list[str]:
    """Return the classes to draw, no more than there are colours: those of segments first, then the most probable."""
    named = list(dict.fromkeys(segment.label for segment in segments if segment.label in class_names))
    order = scores.probabilities.amax(0).argsort(descending=True).tolist()
    return list(dict.fromkeys([*named, *(class_names[number] for number in order)]))[: max(min(len(named), 8), 5)]
