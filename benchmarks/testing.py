"""Times the test of a video by 10 clips x 3 crops, side by side in one run; prints ratios.

    python benchmarks/testing.py --networks r2plus1d_bert.yaml

The baseline is LTM's way of running: a decode for every view, float32, channels first, one view after the other, and a
BERT of separate projections. Ours is `model.classify(video, num_clips=10, num_crops=3)`. Both read the same drawn
H.264 video of 320x240 pixels and 10 s, and take turns; the median over the rounds counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import av
import numpy as np
import torch
from training import CLASSES, NETWORKS, as_in_ltm, in_turns

import cnnbert
from cnnbert.data.samplers import UniformClips
from cnnbert.data.transforms import EvalTransform
from cnnbert.loading import build_data
from cnnbert.machine import best_device, best_precision, describe, prefers_channels_last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="shipped configs of networks with BERT")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    device = best_device()
    precision = best_precision(device)
    print(describe(device, precision, prefers_channels_last(device, precision)))
    rows = ["| network | against the baseline |", "|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        video = draw(Path(folder, "video.mp4"))
        for name in given.networks:
            model = cnnbert.build(name, CLASSES).to(device)
            model.data = build_data(name)
            ways: dict[str, Callable[[], object]] = {
                "baseline": lambda name=name: view_by_view(name, video, device),
                "ours": lambda model=model: model.classify(video, num_clips=10, num_crops=3),
            }
            seconds = in_turns(ways, given.rounds, device)
            print(", ".join([name, *(f"{way} {value:.2f} s" for way, value in seconds.items())]), flush=True)
            rows.append(f"| {name} | {seconds['baseline'] / seconds['ours']:.1f} |")
    print("\n" + "\n".join(rows))


NETWORKS_OF_LTM: dict[str, torch.nn.Module] = {}


def view_by_view(name: str, video: str, device: torch.device) -> torch.Tensor:
    """Return the scores of a video, decoded once for each of its 30 views."""
    if name not in NETWORKS_OF_LTM:
        NETWORKS_OF_LTM[name] = as_in_ltm(name).to(device).eval()
    network, data = NETWORKS_OF_LTM[name], build_data(name)
    transform = EvalTransform(data.frame_size, data.resize, 3, data.antialias)
    scores = []
    with torch.inference_mode():
        for view in range(30):
            with data.reader.open(video) as opened:
                indices = UniformClips(data.clip_length, data.stride, 10)(opened.num_frames, opened.fps)[view // 3]
                frames = transform(opened.frames(indices))[view % 3]  # (T, 3, H, W)
            clip = frames.transpose(0, 1)[None].to(device).float() / 255
            scores.append(network(clip).softmax(1))
    return torch.cat(scores).mean(0).cpu()


def draw(path: Path) -> str:
    """Write a video of moving noise, 250 frames."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(250):
            picture = np.ascontiguousarray(patches[number : number + 240, 2 * number % 320 :][:, :320])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return str(path)


if __name__ == "__main__":
    main()
