"""A reading process does not grow, and records are shared between processes."""

from __future__ import annotations

import gc
import pickle
import sys
from pathlib import Path

import pytest
import torch
from barcode import write_barcodes

from cnnbert.data.dataset import VideoDataset
from cnnbert.data.readers import DecordReader
from cnnbert.data.records import RecordList, VideoRecord
from cnnbert.data.samplers import RandomClip
from cnnbert.data.transforms import TrainTransform


def resident_mb() -> float:
    """Return the memory of this process that is its own, in MB."""
    fields = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in fields if line.startswith("Private")) / 1000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of memory")
def test_reading_does_not_grow(tmp_path: Path) -> None:
    kinds = {"a.mp4": "libx264", "b.mkv": "libx264", "c.avi": "mpeg4", "d.wmv": "wmv2", "e.ts": "mpeg2video"}
    paths = [write_barcodes(tmp_path / name, codec, 120, size=(120, 160)) for name, codec in kinds.items()]
    (tmp_path / "broken.mp4").write_text("no video")
    records = [VideoRecord(str(path), "a") for path in [*paths, tmp_path / "broken.mp4"]]
    videos = VideoDataset(records, ["a"], DecordReader(), RandomClip(16, 2), TrainTransform(48, (56, 80)))

    def read(number: int) -> None:
        for item in range(number):
            videos[(item, item % len(records))]
        gc.collect()

    read(200)
    before = resident_mb()
    read(2000)
    assert resident_mb() - before < 50


def test_records_come_back() -> None:
    records = [VideoRecord(f"/videos/ü{n}.mp4", "ab"[n % 2], n / 3, None if n else 7.0, None) for n in range(50)]
    packed = RecordList(records)
    assert len(packed) == 50 and list(packed) == records
    assert (packed[-1], packed[3:9:2]) == (records[-1], records[3:9:2])
    assert list(pickle.loads(pickle.dumps(packed))) == records
    assert list(RecordList([])) == []
    with pytest.raises(IndexError):
        packed[50]


def test_records_are_a_few_tensors() -> None:
    """Python objects are copied by each process that counts its references to them; tensors are not."""
    records = [VideoRecord(f"/videos/{n:06}.mp4", "walk") for n in range(1000)]
    packed = RecordList(records)
    parts = list(vars(packed).values())
    assert all(isinstance(part, torch.Tensor) for part in parts) and len(parts) == 2
    assert sum(part.nbytes for part in parts) < 200 * 1000
    assert sum(sys.getsizeof(part) for part in parts) < 1000
