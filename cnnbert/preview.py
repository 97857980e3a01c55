"""The command `preview`: shows clips as the network sees them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cnnbert.clip_pictures import pictures
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.encoding import Encoding, encode_frames
from cnnbert.errors import InputError
from cnnbert.loading import build_data
from cnnbert.outputs import new_file, printable, whole_file, write_whole
from cnnbert.pages import data_uri, fill

SIDE = 112
"""Frames are drawn at least so large, in pixels."""

MOST_FRAMES = 8


@dataclass(frozen=True)
class Shown:
    """A clip as the network sees it.

    Attributes:
        path: The video.
        label: Its class, or that which it turned into when mirrored.
        clip: uint8 (3, T, H, W), optical flow as colours; None where the video could not be read.
        failure: Why it could not be read; "" where it could.
    """

    path: str
    label: str
    clip: Tensor | None
    failure: str = ""


def preview(
    *,
    config: str | None = None,
    out: str = "preview.png",
    num_videos: int = 12,
    split: Literal["train", "val", "test"] = "train",
    force: bool = False,
    settings: Sequence[str] = (),
) -> None:
    """Show clips as the network sees them, after every transform, with their labels.

    Of training videos it takes those of a first epoch, cropped and mirrored as there:
    cnnbert preview --config r2plus1d_bert.yaml --data data/folder.yaml --data.source.root my_videos. All settings of
    fit are taken.

    Args:
        config: A run's config: a path, or a shipped one such as r2plus1d_bert.yaml.
        out: The file to write: a picture of some frames of each clip (.png), or a page in which they play (.html).
        num_videos: Videos, at least 1, and no more than there are.
        split: Training, validation or test videos; of tests each video's first view.
        force: Replace a file that is there.
        settings: Settings that win over the config's, such as --data.source.root=my_videos.
    """
    kind = Path(out).suffix.lower()
    if kind not in (".png", ".html"):
        raise InputError(f"out={out} must end in .png or .html")
    if num_videos < 1:
        raise InputError(f"num_videos={num_videos} must be at least 1; try 12")
    target = new_file(out, force)
    data = build_data(config, settings)
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    shown = _clips(data, split, num_videos)
    facts = (
        f"{len(shown)} of {len(data.datasets[split])} {split} videos, {data.clip_length} frames, stride {data.stride}, "
        f"{data.frame_size}x{data.frame_size} pixels"
    )
    if kind == ".html":
        write_whole(target, _page(shown, facts, data.stride))
    else:
        with whole_file(target) as part:
            part.write_bytes(_sheet(shown, facts))
    print(f"{printable(str(target))}: {facts}", flush=True)


def _clips(data: VideoDataModule, split: str, num_videos: int) -> list[Shown]:
    """Return the first view of the first videos of a split, in the order in which a run takes them."""
    loaders = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}
    videos = data.datasets[split]
    shown = []
    for item, _ in zip(loaders[split]().sampler, range(num_videos), strict=False):
        sample = videos[item]
        path = videos.records[sample["index"]].path
        label = _named(data, sample["label"])
        if "failure" in sample:
            shown.append(Shown(path, label, None, sample["failure"].why))
        else:
            shown.append(Shown(path, label, pictures(sample["clip"][0].transpose(0, 1)).transpose(0, 1)))
    return shown


def _named(data: VideoDataModule, label: int | list[int]) -> str:
    if isinstance(label, int):
        return data.class_names[label] if label >= 0 else "no label"
    return ", ".join(name for name, there in zip(data.class_names, label, strict=True) if there == 1) or "no class"


def _sheet(shown: Sequence[Shown], facts: str) -> bytes:
    """Return a PNG with a row a clip: its label, its file, and some of its frames."""
    title, small = ImageFont.load_default(16), ImageFont.load_default(12)
    frames = [[] if one.clip is None else _spread(one.clip) for one in shown]
    shapes = [picture.shape for row in frames for picture in row] or [(SIDE, SIDE)]
    side = max(SIDE, max(width for _, width, *_ in shapes))
    high = round(side * max(height / width for height, width, *_ in shapes))  # twice as high with flow below
    columns = max([4, *(len(row) for row in frames)])
    line, gap = 24, 10
    sheet = Image.new("RGB", (columns * (side + 2) + 2 * gap, 34 + len(shown) * (line + high + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 8), facts, fill="#555555", font=small)
    for number, (one, row) in enumerate(zip(shown, frames, strict=True)):
        top = 34 + number * (line + high + gap)
        draw.text((gap, top), printable(one.label), fill="black", font=title)
        left = gap + draw.textlength(printable(one.label), font=title) + 12
        draw.text((left, top + 4), printable(Path(one.path).name), fill="#555555", font=small)
        if one.failure:
            draw.text((gap, top + line), f"cannot be read: {one.failure}", fill="#b00020", font=small)
        for column, picture in enumerate(row):
            image = Image.fromarray(picture).resize((side, high), Image.Resampling.BICUBIC)
            sheet.paste(image, (gap + column * (side + 2), top + line))
    written = io.BytesIO()
    sheet.save(written, format="png")
    return written.getvalue()


def _spread(clip: Tensor) -> list[np.ndarray]:
    """Return frames of a clip, spread evenly from its first to its last, uint8 (H, W, 3) each."""
    numbers = np.unique(np.linspace(0, clip.shape[1] - 1, min(clip.shape[1], MOST_FRAMES)).round().astype(int))
    return [clip[:, number].permute(1, 2, 0).numpy() for number in numbers]


def _page(shown: Sequence[Shown], facts: str, stride: int) -> str:
    """Return a page in which the clips play, slowly enough to be looked at, and which needs nothing else."""
    clips = []
    for one in shown:
        video = "" if one.clip is None else data_uri(_encoded(one.clip, 25 / stride), "video/mp4")
        names = {"label": printable(one.label), "name": printable(Path(one.path).name)}
        clips.append({**names, "video": video, "failure": one.failure})
    return fill("preview.html", facts=facts, clips=clips)


def _encoded(clip: Tensor, fps: float) -> bytes:
    """Return a clip, uint8 (3, T, H, W), as an MP4 file, its pixels enlarged evenly so that they can be seen."""
    times = -(-2 * SIDE // clip.shape[3])
    frames = clip.permute(1, 2, 3, 0).repeat_interleave(times, 1).repeat_interleave(times, 2).numpy()
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with tempfile.TemporaryDirectory() as folder:
        encode_frames(Path(folder, "clip.mp4"), list(frames), fps, Encoding(crf=20))
        return Path(folder, "clip.mp4").read_bytes()
