"""Memory and speed of scanning a long video.

    python benchmarks/long_video.py --minutes 60

The video, 320x240 at 25 frames a second, is a drawn minute again and again; the network a small, untrained R(2+1)D
with BERT, or that of --checkpoint. The peak is that of the whole process, interpreter and libraries included; what it
was before the scan is told beside it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

import cnnbert
from cnnbert.data.encoding import Encoding, encode_frames
from cnnbert.loading import build_data
from cnnbert.machine import best_device
from cnnbert.scanning import scan_video

FPS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, nargs="+", default=[6, 60])
    parser.add_argument("--checkpoint", help="a trained model in place of the untrained one")
    parser.add_argument("--hop-seconds", type=float, default=2.0)
    given = parser.parse_args()
    if given.checkpoint:
        model = cnnbert.load(given.checkpoint)
    else:
        model = cnnbert.build("small/r2plus1d_bert.yaml", ["a", "b", "c"])
        model.data = build_data("small/r2plus1d_bert.yaml")
    model.to(best_device())
    print("| minutes | frames | windows | seconds | times real time | peak before, MiB | peak after, MiB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        minute = Path(folder, "minute.mp4")
        encode_frames(minute, drawn_minute(), FPS, Encoding())
        for minutes in given.minutes:
            path = Path(folder, f"{minutes}.mp4")
            repeat(minute, minutes, path)
            before, start = peak(), time.perf_counter()
            scores = scan_video(model, str(path), given.hop_seconds)
            seconds = time.perf_counter() - start
            print(
                f"| {minutes} | {scores.num_frames} | {len(scores.probabilities)} | {seconds:.0f} "
                f"| {scores.num_seconds / seconds:.0f} | {before:.0f} | {peak():.0f} |",
                flush=True,
            )


def drawn_minute() -> list[np.ndarray]:
    """Return 60 s of frames, uint8 (240, 320, 3): a disc that goes round on noise."""
    noise = np.random.default_rng(0).integers(60, 120, (240, 320, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:240, :320]
    frames = []
    for number in range(60 * FPS):
        angle = 2 * np.pi * number / (3 * FPS)
        disc = (rows - 120 - 70 * np.sin(angle)) ** 2 + (columns - 160 - 90 * np.cos(angle)) ** 2 < 900
        frames.append(np.where(disc[..., None], np.uint8(230), noise))
    return frames


def repeat(source: Path, times: int, target: Path) -> None:
    """Write a video again and again into one file, without encoding it anew."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        length = round(60 / packets[0].time_base)
        for number in range(times):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base = stream, Fraction(packet.time_base)
                copy.pts, copy.dts = packet.pts + number * length, packet.dts + number * length
                copy.is_keyframe = packet.is_keyframe
                write.mux(copy)


def peak() -> float:
    """Return the most memory that this process has had in RAM, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
