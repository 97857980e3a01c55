"""Scores a long video by windows that slide over it, in constant memory, and merges the scores into segments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnbert.data.samplers import CenterClip
from cnnbert.data.transforms import EvalTransform
from cnnbert.errors import InputError
from cnnbert.localization import Segment
from cnnbert.machine import autocast, best_precision, prefers_channels_last
from cnnbert.tasks.recognition import CLIPS_AT_ONCE, ActionRecognition

FRAMES_AT_ONCE = 16
"""Frames that are resized together."""


@dataclass(frozen=True)
class Scores:
    """The scores of a video over time: N moments of equal length, the last perhaps shorter, K classes.

    Attributes:
        path: The video.
        moment_seconds: The length of a moment.
        num_seconds: The length of the video.
        num_frames: The frames of the video.
        probabilities: Those of the classes, float32 (N, K), in [0, 1].
    """

    path: str
    moment_seconds: float
    num_seconds: float
    num_frames: int
    probabilities: Tensor

    def smoothed(self, seconds: float) -> Scores:
        """Return the scores averaged over about so many seconds around each moment, fewer at the ends."""
        reach = round(seconds / self.moment_seconds / 2)
        sums = torch.nn.functional.pad(self.probabilities.double().cumsum(0), (0, 0, 1, 0))  # (N + 1, K)
        number = len(self.probabilities)
        first = (torch.arange(number) - reach).clamp(min=0)
        last = (torch.arange(number) + reach + 1).clamp(max=number)
        means = (sums[last] - sums[first]) / (last - first)[:, None]
        return Scores(self.path, self.moment_seconds, self.num_seconds, self.num_frames, means.float())


@torch.inference_mode()
def scan_video(
    model: ActionRecognition,
    path: str,
    hop_seconds: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Return the scores of a video over time.

    Windows as long as the clips that the model was trained on follow one another by a hop, the last one ending with the
    video. Each moment, a hop long, has the scores of the window whose middle is nearest to its own. Frames are decoded
    once, in order, and only those of a window are kept. A video shorter than a window has the scores of one clip, which
    is looped as in training. Where the backbone looks at each frame alone (`Backbone.is_framewise`), each frame goes
    through it once, and the windows share its features.

    Args:
        model: A model that `cnnbert.load` made.
        path: The video.
        hop_seconds: From one window to the next, above 0; rounded to whole strides. None takes a quarter of a window.
        progress: Called now and then with the frames decoded so far and all of them.

    Raises:
        InputError: The model was not loaded from a checkpoint, or an argument is out of its range.
        VideoReadError: The video cannot be read, or not to its end.
    """
    data = model.data
    if hop_seconds is not None and not hop_seconds > 0:
        raise InputError(f"hop_seconds={hop_seconds:g} must be above 0")
    model.eval()
    transform = EvalTransform(data.frame_size, data.resize, antialias=data.antialias)
    with data.reader.streaming().open(path) as video:
        length, stride = data.clip_length, data.stride
        num_frames, fps = video.num_frames, video.fps
        span = (length - 1) * stride + 1
        if num_frames < span:
            indices = CenterClip(length, stride)(num_frames, fps)[0]
            window = _Windows(model, [0], length)
            window.add(transform(video.frames(indices))[0])
            progress(num_frames, num_frames)
            return Scores(path, num_frames / fps, num_frames / fps, num_frames, window.finish())
        wanted = span / 4 if hop_seconds is None else hop_seconds * fps
        hop = stride * max(1, round(wanted / stride))
        starts = [*range(0, num_frames - span + 1, hop)]
        if (num_frames - span) // stride * stride > starts[-1]:
            starts.append((num_frames - span) // stride * stride)
        windows = _Windows(model, [start // stride for start in starts], length)
        for number, frames in _every(video, stride):
            windows.add(transform(frames)[0])
            progress(number, num_frames)
    centres = torch.tensor(starts) + span / 2
    moments = torch.arange(0, num_frames, hop) + hop / 2
    nearest = torch.searchsorted((centres[1:] + centres[:-1]) / 2, moments)
    return Scores(path, hop / fps, num_frames / fps, num_frames, windows.finish()[nearest])


def _every(video: Any, stride: int) -> Iterator[tuple[int, Tensor]]:
    """Yield how many frames have been decoded, and of these some at a time every `stride`-th, uint8 (N, C, H, W)."""
    kept: list[np.ndarray] = []
    for number, pixels in enumerate(video.stream()):
        if number % stride == 0:
            kept.append(pixels)
        if len(kept) == FRAMES_AT_ONCE or number == video.num_frames - 1:
            if kept:
                yield number + 1, torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2)
            kept = []


class _Windows:
    """Takes frames in order, keeps those that windows to come need, and scores windows some at a time.

    Args:
        model: The network.
        starts: The number of each window's first frame, ascending.
        length: Frames of a window.
    """

    def __init__(self, model: ActionRecognition, starts: Sequence[int], length: int) -> None:
        self.model = model
        self.starts = deque(starts)
        self.length = length
        self.precision = best_precision(model.device)
        if prefers_channels_last(model.device, self.precision):
            model.lay_out_channels_last()
        self.kept = torch.empty(0)
        self.num_dropped = 0
        self.waiting: list[Tensor] = []
        self.scores: list[Tensor] = []

    def add(self, frames: Tensor) -> None:
        """Take the next frames, uint8 (N, C, H, W)."""
        if self.model.backbone.is_framewise:
            with autocast(self.model.device, self.precision):
                clip = frames.to(self.model.device).transpose(0, 1)[None]  # (1, C, N, H, W)
                frames = self.model.backbone(clip)[0].transpose(0, 1)  # (N, C, H', W')
        self.kept = torch.cat([self.kept, frames]) if len(self.kept) else frames
        while self.starts and self.starts[0] + self.length <= self.num_dropped + len(self.kept):
            first = self.starts.popleft() - self.num_dropped
            self.waiting.append(self.kept[first : first + self.length].transpose(0, 1))  # (3 or C, T, H, W)
            if len(self.waiting) == CLIPS_AT_ONCE:
                self._score()
        unneeded = min(self.starts[0] - self.num_dropped if self.starts else len(self.kept), len(self.kept))
        self.kept = self.kept[unneeded:].clone()
        self.num_dropped += unneeded

    def finish(self) -> Tensor:
        """Return the probabilities of all windows, float32 (N, K)."""
        self._score()
        return torch.cat(self.scores)

    def _score(self) -> None:
        if self.waiting:
            network = self.model.head if self.model.backbone.is_framewise else self.model
            with autocast(self.model.device, self.precision):
                logits = network(torch.stack(self.waiting).to(self.model.device))
            self.scores.append(self.model.probabilities(logits.float()).cpu())
            self.waiting = []


def segments(
    scores: Scores,
    class_names: Sequence[str],
    multi_label: bool = False,
    threshold: float = 0.5,
    min_seconds: float = 0.0,
    background: Collection[str] = (),
) -> list[Segment]:
    """Return the parts of a video in which the same class is the most probable one and probable enough.

    Of several classes a video, each class has parts of its own. A part's score is the mean of its probabilities.

    Args:
        scores: The scores of the video over time.
        class_names: The K classes.
        multi_label: Whether several classes may be there at a moment.
        threshold: The least probability, in [0, 1].
        min_seconds: Shorter parts are left out.
        background: Classes that mean that nothing happens: they have no parts.
    """
    likely = scores.probabilities >= threshold  # (N, K)
    if not multi_label:
        likely &= torch.nn.functional.one_hot(scores.probabilities.argmax(1), len(class_names)).bool()
    found = []
    for number, name in enumerate(class_names):
        if name in background:
            continue
        edges = torch.nn.functional.pad(likely[:, number].int(), (1, 1)).diff()  # (N + 1,)
        begins, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
        for first, last in zip(begins, ends, strict=True):
            start, end = first * scores.moment_seconds, min(last * scores.moment_seconds, scores.num_seconds)
            if end - start >= min_seconds:
                score = float(scores.probabilities[first:last, number].mean())
                found.append(Segment(scores.path, start, end, name, score))
    return sorted(found, key=lambda segment: (segment.start_seconds, segment.end_seconds))
