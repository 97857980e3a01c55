"""A list of a million videos takes seconds and no more memory than its records need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NUMBER, FOLDERS = 1_000_000, 1000

LIST = """
import resource, sys, time
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.sources import CSVManifest

def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

before, start, began = megabytes(), time.perf_counter(), time.process_time()
data = VideoDataModule(CSVManifest(sys.argv[1]))
data.prepare_data()
names = data.class_names
data.setup("fit")
taken, busy = time.perf_counter() - start, time.process_time() - began
assert len(names) == 1000 and sum(map(len, data.datasets.values())) == 1_000_000
told = f"{taken:.1f} s, {busy:.1f} s of it computing; resident {megabytes():.0f} MB"
print(f"{told}, of which {before:.0f} MB before listing")
print(megabytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others count resident memory otherwise")
def test_a_million_videos(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for folder in range(FOLDERS):
        name = f"class_{folder:03d}"
        (tmp_path / name).mkdir()
        for number in range(NUMBER // FOLDERS):
            path = f"{name}/video_{number:04d}.mp4"
            os.mknod(tmp_path / path)
            lines.append(f"{path},{name},{'train' if number % 10 else 'val'}")
    (tmp_path / "videos.csv").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", LIST, "videos.csv"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    told, added = done.stdout.splitlines()
    print(told)
    assert float(added) < 320, told
