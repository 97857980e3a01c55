"""Checks one video file: what is in it, whether all of it decodes, and whether a reader gives its right frames."""

from __future__ import annotations

import hashlib
import os
import random
import statistics
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import av
import numpy as np

from cnnbert.data.pyav_video import open_file
from cnnbert.data.readers import ROUNDING, VideoReader
from cnnbert.errors import VideoReadError

VERDICTS = {
    "ok": "every frame decodes, and the reader gives the right ones",
    "missing": "there is no such file",
    "unreadable": "it is no video, or the reader refuses it",
    "no_video": "there is no picture in it, only sound or nothing",
    "damaged": "some of it does not decode, or only with faults",
    "wrong_frames": "the reader gives other frames than decoding in order, or another number of them",
    "timeout": "checking it took too long",
    "crash": "checking it ended the process",
}
"""What becomes of a file, with what that means."""

# Frames that are read next to each other, and here and there.
RUN, ANYWHERE = 8, 6


@dataclass
class Inspection:
    """What was found out about a file; what could not be found out is None.

    Attributes:
        path: The file.
        verdict: One of `VERDICTS`.
        why: What is wrong; empty where nothing is.
        notes: What is worth knowing and does no harm.
        frames: Frames that were decoded.
        header_frames: Frames by the header: their number where it has one, or else duration times rate.
        seconds: From the first frame to the end of the last, by their time stamps.
        fps: Frames a second, by the header.
        is_variable: Whether frames are shown for different times; None where the file does not tell.
        width: Of the stored frame, before it is turned.
        height: Of the stored frame, before it is turned.
        rotation: Degrees in [0, 360) by which a player turns frames, anticlockwise.
        pixel_aspect: Width of a pixel over its height, such as `16:15`; `1:1` where they differ by less than 1 %.
        codec: FFmpeg's name.
        pixel_format: FFmpeg's name.
        container: FFmpeg's name.
        bytes: The file's size.
        digest: BLAKE2b of the file.
    """

    path: str
    verdict: str = "ok"
    why: str = ""
    notes: list[str] = field(default_factory=list)
    frames: int | None = None
    header_frames: int | None = None
    seconds: float | None = None
    fps: float | None = None
    is_variable: bool | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    pixel_aspect: str | None = None
    codec: str | None = None
    pixel_format: str | None = None
    container: str | None = None
    bytes: int | None = None
    digest: str | None = None


def inspect_video(path: str, reader: VideoReader) -> Inspection:
    """Decode a file from the first frame to the last, and compare what the reader gives.

    Args:
        path: The file.
        reader: What training reads with.
    """
    found = Inspection(path)
    if not os.path.exists(path):
        found.verdict, found.why = "missing", VERDICTS["missing"]
        return found
    if not os.path.isfile(path):  # a pipe would be waited for
        found.verdict, found.why = "unreadable", "it is not a file"
        return found
    try:
        found.bytes = os.path.getsize(path)
        found.digest = _digest(path)
        reads = _Reads(reader, path)
        _decode(found, reads)
    except (av.FFmpegError, OSError, UnicodeError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        found.verdict = "unreadable"
        found.why = "the file is empty" if found.bytes == 0 else f"FFmpeg finds no video in it ({reason})"
    return found


class _Reads:
    """What a reader gives for several choices of a video's frames, to be compared with the right frames.

    Args:
        reader: What training reads with.
        path: The file.

    Attributes:
        num_frames: Frames by the reader's count.
        refusal: Why the reader does not read the video; empty where it does.
        wrong: Frames that the reader gave otherwise.
    """

    def __init__(self, reader: VideoReader, path: str) -> None:
        self.num_frames = 0
        self.refusal = ""
        self.wrong: set[int] = set()
        self.given: dict[int, list[np.ndarray]] = {}
        try:
            with reader.open(path) as video:
                self.num_frames = video.num_frames
                for indices in _choices(video.num_frames):
                    for index, frame in zip(indices, video.frames(indices).numpy(), strict=True):
                        self._add(index, frame)
        except VideoReadError as error:
            self.refusal = error.why

    def _add(self, index: int, frame: np.ndarray) -> None:
        known = self.given.setdefault(index, [])
        if not any(np.array_equal(frame, other) for other in known):
            known.append(frame.copy())  # not a piece of all that was read

    def compare(self, index: int, frame: Any) -> None:
        """Compare what was read as a frame with that frame, as decoded in order."""
        if index not in self.given:
            return
        right = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).transpose(2, 0, 1)
        for given in self.given.pop(index):
            if given.shape != right.shape or np.abs(given.astype(np.int16) - right).max() > ROUNDING:
                self.wrong.add(index)


def _choices(num_frames: int) -> list[list[int]]:
    """Return the choices of frames to read: the last, the first, two runs, and some in no order and twice."""
    draw = random.Random(num_frames)
    runs = [range(start, min(start + RUN, num_frames)) for start in draw.choices(range(num_frames), k=2)]
    anywhere = [*draw.choices(range(num_frames), k=ANYWHERE), num_frames - 1, 0]
    draw.shuffle(anywhere)
    return [[num_frames - 1], [0], *map(list, runs), [*anywhere, anywhere[0]]]


def _decode(found: Inspection, reads: _Reads) -> None:
    """Decode a file in order, and fill in all that this tells."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=False) as messages, open_file(found.path) as container:
            stream = container.streams.best("video")
            if stream is None:
                found.verdict, found.why = "no_video", "there is no video in it, only sound or the like"
                return
            if stream.codec_context is None:
                found.verdict, found.why = "unreadable", "its codec is none that FFmpeg decodes"
                return
            seconds_a_tick = float(stream.time_base or 0)
            counts = _note_header(found, container, stream)
            damage, stamps = _decode_stream(found, container, stream, reads)
    finally:
        av.logging.set_level(level)
    told = [text.strip() for number, _, text in messages if number <= av.logging.ERROR]
    _note_times(found, stamps, seconds_a_tick)
    _judge(found, damage, reads)
    _note_counts(found, *counts)
    if told and found.verdict == "ok":
        found.notes.append(f"FFmpeg says: {told[0]}" + (f" (and {len(told) - 1} more)" if len(told) > 1 else ""))


def _note_header(found: Inspection, container: Any, stream: Any) -> tuple[int | None, int | None]:
    """Fill in what the header says; return the frames that it counts, and those that duration and rate make."""
    codec = stream.codec_context
    codec.thread_count = 1
    rate = stream.average_rate or stream.guessed_rate
    found.container = container.format.name
    found.codec = codec.codec.canonical_name
    found.pixel_format = codec.pix_fmt
    found.width, found.height = codec.width, codec.height
    found.fps = round(float(rate), 3) if rate else None
    aspect = stream.sample_aspect_ratio
    is_square = not aspect or abs(aspect - 1) < 0.01  # some encoders write 65536:65535
    found.pixel_aspect = "1:1" if is_square else f"{aspect.numerator}:{aspect.denominator}"
    seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / av.time_base
    by_duration = round(seconds * float(rate)) if rate and seconds else None
    found.header_frames = stream.frames or by_duration
    return stream.frames or None, by_duration


def _decode_stream(
    found: Inspection, container: Any, stream: Any, reads: _Reads
) -> tuple[str, list[tuple[int, int] | None]]:
    """Decode all frames; return the first damage, in words, and the time stamp and the duration of each frame."""
    damage = ""
    stamps: list[tuple[int, int] | None] = []
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            if packet.is_corrupt:
                damage = damage or f"after {len(stamps)} frames a piece is cut off or faulty"
            frames = packet.decode()
        except av.FFmpegError as error:
            damage = damage or f"after {len(stamps)} frames a piece does not decode ({error.strerror})"
            if packet is None:
                break
            continue
        for frame in frames:
            if frame.is_corrupt:
                damage = damage or f"frame {len(stamps)} is faulty"
            reads.compare(len(stamps), frame)
            found.rotation = round(frame.rotation) % 360
            stamps.append(None if frame.pts is None else (frame.pts, frame.duration or 0))
    found.frames = len(stamps)
    return damage, stamps


def _note_times(found: Inspection, stamps: list[tuple[int, int] | None], unit: float) -> None:
    """Fill in the length, and whether the frame rate varies."""
    if not stamps:
        return
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if len(known) < len(stamps):
        found.seconds = round(len(stamps) / found.fps, 3) if found.fps else None
        return
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(known)]
    usual = statistics.median(gaps) if gaps else known[-1][1] or (1 / found.fps / unit if found.fps and unit else 0)
    found.seconds = round((known[-1][0] - known[0][0] + (known[-1][1] or usual)) * unit, 3)
    # Whole units of time make the gaps of an even rate differ by one.
    found.is_variable = any(abs(gap - usual) > max(1, 0.1 * usual) for gap in gaps)


def _judge(found: Inspection, damage: str, reads: _Reads) -> None:
    """Set the verdict on a file that was decoded."""
    if not found.frames:
        found.verdict = "unreadable" if damage else "no_video"
        found.why = damage or "there is not one frame in it that can be decoded"
    elif damage:
        found.verdict, found.why = "damaged", f"{damage}; {found.frames} frames decode"
    elif reads.num_frames and reads.num_frames != found.frames:
        found.verdict = "wrong_frames"
        found.why = f"the reader counts {reads.num_frames} frames, decoding in order gives {found.frames}"
    elif reads.wrong:
        found.verdict = "wrong_frames"
        some = ", ".join(map(str, sorted(reads.wrong)[:5])) + (", ..." if len(reads.wrong) > 5 else "")
        found.why = f"the reader gives other frames than decoding in order does: {some}"
    elif reads.refusal:
        found.verdict, found.why = "unreadable", f"the reader refuses it: {reads.refusal}"


def _note_counts(found: Inspection, counted: int | None, by_duration: int | None) -> None:
    """Note where the header is wrong about the number of frames."""
    claims = [f"counts {counted} frames"] if counted not in (None, found.frames) else []
    # A frame more or less is rounding.
    if by_duration is not None and abs(by_duration - (found.frames or 0)) > max(1, 0.02 * (found.frames or 0)):
        claims.append(f"has a duration and a rate that make {by_duration}")
    if claims and found.frames:
        found.notes.append(f"the header {' and '.join(claims)}, there are {found.frames}")


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
