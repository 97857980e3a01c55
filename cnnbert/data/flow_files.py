"""Files of optical flow: a lossless video of its two channels, and the table that says whose it is."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import av
import numpy as np

from cnnbert.data.exclusion import real_path
from cnnbert.data.pyav_video import open_file
from cnnbert.errors import InputError, VideoReadError
from cnnbert.outputs import csv_text, printable, write_whole

TABLE = "flow.csv"
"""The table's name in a folder of flow."""

SUFFIX = ".mkv"
GOP = 16
MADE_BY = "cnnbert flow"


class FlowFacts(NamedTuple):
    """What is known of a file of flow.

    Attributes:
        num_frames: Its frames, as many as the video's.
        fps: The video's frames a second.
        height: Height of the flow, in pixels.
        width: Its width.
        method: How it was computed, one of `optical_flow.METHODS`.
        weights: The first digits of the SHA-256 of RAFT's weights; "" for methods without.
        short_side: What the frames were scaled to before, in pixels; 0 for the video's own size.
        bound: The largest motion that is told apart, in pixels of the flow's size a frame.
        bytes: The size of the video's file.
        mtime_ns: When that file was changed last.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    method: str
    weights: str
    short_side: int
    bound: float
    bytes: int
    mtime_ns: int

    @property
    def settings(self) -> dict[str, Any]:
        """How it was computed, by the names of the command's options."""
        return {name: getattr(self, name) for name in ("method", "weights", "short_side", "bound")}


COLUMNS = ("path", "flow", *FlowFacts._fields)


def to_levels(flow: np.ndarray, bound: float) -> np.ndarray:
    """Return flow on the 8-bit scale that TSN and LTM publish theirs on: -bound is 0, bound is 255.

    No motion lies between two levels, at 127.5, and becomes 128, half a level or bound / 255 too much (0.08 pixels of
    20). A scale with a level for it would be another one than that of the published networks, whose mean is 127.5, and
    mirroring would no longer be 255 - x.

    Args:
        flow: Motion in pixels, any shape.
        bound: Larger motion is cut off there, in pixels.

    Returns:
        uint8 of the same shape. What is cut off apart, it is wrong by at most bound / 255.
    """
    return np.rint(np.clip(flow, -bound, bound) * (127.5 / bound) + 127.5).astype(np.uint8)


def to_pixels(levels: np.ndarray, bound: float) -> np.ndarray:
    """Return the motion in pixels, float32, that levels of `to_levels` stand for."""
    return (levels.astype(np.float32) - 127.5) * np.float32(bound / 127.5)


def write_flow(source: str, target: Path, flows: Iterable[np.ndarray], facts: FlowFacts) -> None:
    """Write flow as a video that is there whole or not at all.

    A frame of the video is gray and holds the motion to the right above that downwards. It is FFV1, without loss, with
    a key frame every 16 frames. Measured on clips of UCF101 (320x240) and of hockey fights (160x128), Farnebäck and
    TV-L1, bound 20: FFV1 takes 8 and 4 kB a frame. H.264 of the same sizes, at crf 6 to 10, is wrong by 0.01 pixels on
    average and up to 0.5, and at crf 18, in a third of the room, by 0.05 and up to 1.6.

    Args:
        source: The video, for errors.
        target: The file, in a folder that exists.
        flows: float (H, W, 2), to the right and downwards, in pixels; one a frame.
        facts: Stand in the file's metadata.

    Raises:
        VideoReadError: There are more or fewer of them than `facts` says, a number in them is none, or frames of this
            size cannot be encoded.
        OSError: The file cannot be written.
    """
    stem = os.fsdecode(os.fsencode(target.stem)[:200])  # file systems take names of 255 bytes
    part = target.with_name(f"{stem}{target.suffix}.{os.getpid()}.part")
    try:
        with av.open(f"file:{part}", "w", format="matroska") as container:
            container.metadata["comment"] = json.dumps({"made by": MADE_BY, **facts._asdict()})
            rate = Fraction(facts.fps).limit_denominator(100_000)
            options = {"level": "3", "slices": "4", "slicecrc": "1"}  # a checksum, so that damage is noticed
            stream: Any = container.add_stream("ffv1", rate, options=options)
            stream.width, stream.height, stream.pix_fmt = facts.width, 2 * facts.height, "gray"
            stream.codec_context.gop_size = GOP
            stream.codec_context.thread_count = 1
            number = 0
            for number, flow in enumerate(flows, 1):
                if not np.isfinite(flow).all():
                    raise VideoReadError(source, f"the flow of frame {number - 1} has numbers that are none")
                levels = to_levels(flow, facts.bound)
                frame = av.VideoFrame.from_ndarray(np.concatenate([levels[..., 0], levels[..., 1]]), "gray")
                frame.pts, frame.time_base = number - 1, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if number != facts.num_frames:
            raise VideoReadError(source, f"only {number} of its {facts.num_frames} frames can be decoded")
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, target)
    except av.FFmpegError as error:
        if not isinstance(error, OSError):  # FFV1 has no frames of one pixel's width
            raise VideoReadError(source, f"its flow of {facts.width}x{facts.height} cannot be encoded") from error
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        part.unlink(missing_ok=True)


def read_facts(path: Path) -> FlowFacts | None:
    """Return what a file of flow says of itself; None where there is none, or it is not whole or something else."""
    try:
        with open_file(path) as container:
            known = json.loads({key.lower(): value for key, value in container.metadata.items()}["comment"])
        return FlowFacts(*(known[name] for name in FlowFacts._fields)) if known["made by"] == MADE_BY else None
    except (av.FFmpegError, OSError, ValueError, KeyError, TypeError):
        return None


def read_table(folder: Path) -> dict[str, tuple[Path, FlowFacts]]:
    """Return the files of flow in a folder and what is known of them, by the real paths of their videos.

    Raises:
        InputError: There is no such folder, or no table in it, or it is damaged.
    """
    table = folder / TABLE
    if not table.is_file():
        raise InputError(
            f"there is no optical flow in {folder}: it has no {TABLE}; make it with cnnbert flow VIDEOS --out {folder}"
        )
    rows = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            for line in reader:
                facts = FlowFacts(*(kind(line[name]) for name, kind in get_type_hints(FlowFacts).items()))
                rows[printable(real_path(os.path.join(folder, line["path"])))] = (folder / line["flow"], facts)
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{table}, line {reader.line_num}, is damaged ({error}); write it again with cnnbert flow"
            ) from error
    return rows


def write_table(folder: Path, rows: Mapping[str, tuple[Path, FlowFacts]]) -> None:
    """Write the table of a folder of flow; paths of videos are relative to it. See `read_table`."""
    top = os.path.realpath(folder)
    lines = [
        (_relative(video, top), file.relative_to(folder).as_posix(), *facts)
        for video, (file, facts) in sorted(rows.items())
    ]
    write_whole(folder / TABLE, csv_text([COLUMNS, *lines]))


def _relative(path: str, folder: str) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return path
