"""Draws frames of a video beside their optical flow by each method that can be had here.

python benchmarks/flow_picture.py video.mp4 docs/figures/flow.png --frames 12 26 draws Farnebäck and TV-L1
(pip install 'cnnbert[flow]'), and RAFT where its weights are on this machine, or can be fetched; what cannot be had is
named. The picture in the README is of 00000_slide_right.mp4 of quickstart's clips, and has no RAFT, as it was made where
its weights could not be fetched.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cnnbert.clip_pictures import flow_colours
from cnnbert.data.flow_files import to_levels
from cnnbert.data.readers import PyAVReader
from cnnbert.errors import InputError
from cnnbert.optical_flow import METHODS, check_packages, find_weights, flows

NAMES = {"raft_small": "RAFT, small", "raft_large": "RAFT, large", "farneback": "Farnebäck", "tvl1": "TV-L1"}


def draw(video: str, target: str, numbers: list[int], bound: float) -> None:
    """Write the picture: a row for each of some frames, and a column a method, all on one scale of colours."""
    with PyAVReader().open(video) as opened:
        pairs = [opened.frames([number, number + 1]).permute(0, 2, 3, 1).numpy() for number in numbers]
    num_rows = len(pairs)
    found: dict[str, np.ndarray] = {}
    for method in METHODS:
        try:
            check_packages(method)
            weights = find_weights(method, None)
        except InputError as error:
            print(f"without {method}: {error}")
            continue
        flow = np.stack([next(flows(list(pair), method, weights)) for pair in pairs])  # (N, H, W, 2)
        print(f"{method}: {np.abs(flow).mean():.2f} pixels on average, {np.abs(flow).max():.1f} at most")
        found[NAMES[method]] = flow
    levels = torch.from_numpy(to_levels(np.concatenate([*found.values()]), bound)).permute(0, 3, 1, 2)
    colours = flow_colours(levels).permute(0, 2, 3, 1).numpy()
    columns: dict[str, list[np.ndarray]] = {"frame": [pair[0] for pair in pairs]}
    columns |= {name: list(colours[place * num_rows :][:num_rows]) for place, name in enumerate(found)}
    columns["direction"] = [_wheel(pairs[0].shape[1])]
    height, width = pairs[0].shape[1:3]
    figure = Figure((2.4 * len(columns), 2.4 * height / width * num_rows + 0.3), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, len(columns), squeeze=False)
    for column, (name, shown) in enumerate(columns.items()):
        for row in range(num_rows):
            axes = grid[row, column]
            axes.set_axis_off()
            if row < len(shown):
                axes.imshow(shown[row], interpolation="antialiased")
            if row == 0:
                axes.set_title(name, fontsize=9)
    figure.savefig(target)


def _wheel(side: int) -> np.ndarray:
    """Return the colour of each direction, uint8 (side, side, 3), as motion away from the middle."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    inside = (x**2 + y**2 <= 1)[..., None]
    levels = torch.from_numpy(to_levels(np.stack([x, y], 2) * inside, 1.0)).permute(2, 0, 1)[None]
    return flow_colours(levels)[0].permute(1, 2, 0).numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("target")
    parser.add_argument("--frames", type=int, nargs="+", default=[0])
    parser.add_argument("--bound", type=float, default=20.0)
    given = parser.parse_args()
    draw(given.video, given.target, given.frames, given.bound)
