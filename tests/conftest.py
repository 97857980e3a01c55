"""Tiny data and models that the tests share."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: as many tests run at a time as there are cores

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import ArrayLike

os.environ.setdefault("WANDB_SILENT", "true")

# Cases of tests/test_fuzz.py: the same few every time, or other and many with --hypothesis-profile=long.
SLOW_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile("short", max_examples=200, derandomize=True, database=None, deadline=None)
settings.register_profile(
    "long", max_examples=10_000, database=None, deadline=None, suppress_health_check=SLOW_CHECKS, print_blob=True
)
settings.load_profile("short")

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real videos, where there are any; tests that need them are skipped without."""

TINY_MODEL = [
    "--model.backbone=R2Plus1D",
    "--model.backbone.depth=10",
    "--model.backbone.width=8",
    "--model.head=BERTHead",
    "--model.head.num_heads=4",
    "--model.head.classifier_dropout=0",
]
TINY_DATA = ["--data.clip_length=8", "--data.frame_size=32", "--data.resize=32", "--data.num_workers=0"]
TINY_RUN = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


def write_video(path: Path, colour: ArrayLike, num_frames: int = 12, size: int = 48) -> Path:
    """Write a video of one colour, or of one picture (size, size, 3), that brightens from frame to frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 12, options={"preset": "ultrafast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            picture = np.full((size, size, 3), colour, np.float32) * (number + 4) / (num_frames + 4)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes of tiny videos, told apart by their colour: train/, val/ and test/."""
    root = tmp_path_factory.mktemp("videos")
    colours = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}
    for split, number in {"train": 4, "val": 2, "test": 3}.items():
        for name, colour in colours.items():
            for i in range(number):
                write_video(root / split / name / f"{i}.mp4", colour, num_frames=6 + 4 * i)
    return root


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / ".wandb"))  # files that wait to be sent
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / ".wandb"))
    return tmp_path
