"""Draws which moments of a clip a network attends to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cnnbert.clip_pictures import pictures

MOST_FRAMES = 16
"""Frames in a picture of a clip."""


def attention_strip(clip: Tensor, attention: Tensor) -> np.ndarray:
    """Draw frames of a clip side by side, and under them the attention over time.

    Args:
        clip: uint8 (C, T, H, W); optical flow is drawn as colours.
        attention: (T',), in [0, 1], of each time step; each step stands for as many frames.

    Returns:
        The picture, uint8 (height, width, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    clip = pictures(clip.transpose(0, 1)).transpose(0, 1)  # (3, T, H, W)
    num_frames, height, width = clip.shape[1:]
    num_steps = len(attention)
    num_shown = min(num_frames, MOST_FRAMES, max(num_steps, 8))
    shown = ((torch.arange(num_shown) + 0.5) * num_frames / num_shown).long()
    strip = clip[:, shown].permute(2, 1, 3, 0).reshape(height, num_shown * width, 3)  # (H, shown * W, 3)
    inches = 10.0
    figure = Figure(figsize=(inches, inches * height / (num_shown * width) + 1.15), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    frames, bars = figure.subplots(2, 1, height_ratios=[inches * height / (num_shown * width), 0.8])
    frames.imshow(strip.cpu().numpy(), extent=(0, num_frames, 0, 1), aspect="auto")
    frames.set_axis_off()
    step = num_frames / num_steps
    middles = (np.arange(num_steps) + 0.5) * step
    bars.bar(middles, attention.cpu().numpy(), width=0.96 * step, color="#0072b2")
    bars.axhline(1 / num_steps, color="0.4", linewidth=1, linestyle=":")  # the same for all
    bars.set_xlim(0, num_frames)
    bars.set_ylim(0, max(1.05 * float(attention.max()), 2 / num_steps))
    bars.tick_params(labelsize=7)
    bars.set_xlabel("frame of the clip", fontsize=7)
    bars.set_ylabel("attention", fontsize=7)
    bars.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
