"""Videos that are listed and not there stop a run, or are left out with one line."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter

import pytest
from test_sources import touch, write

from cnnbert.data.listing import RANKS, Listing
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import CSVManifest
from cnnbert.data.splits import split_records
from cnnbert.errors import InputError

LINES = "path,label,split\na.mp4,run,train\nb.mp4,walk,train\nc.mp4,walk,test\nd.mp4,jump,test\ne.mp4,run,test\n"


@pytest.fixture(autouse=True)
def first_process(monkeypatch):
    for name in RANKS:  # a test of two processes may leave them
        monkeypatch.delenv(name, raising=False)


def test_error_names_three(tmp_path):
    touch(tmp_path, "a.mp4")
    source = CSVManifest(write(tmp_path / "x.csv", "path,label\n" + "".join(f"{c}.mp4,x\n" for c in "abcde")))
    with pytest.raises(InputError, match=r"4 of the 5 videos listed in .*x.csv are not there") as told:
        source.records("predict")
    assert [f"{c}.mp4" in str(told.value) for c in "abcde"] == [False, True, True, True, False]
    assert "correct the paths or set root, or set missing to skip to do without them" in str(told.value)


def test_skip_drops_classes_without_training_videos(tmp_path, caplog):
    touch(tmp_path, "a.mp4", "c.mp4", "d.mp4", "e.mp4")
    source = CSVManifest(write(tmp_path / "x.csv", LINES), missing="skip", val_fraction=0)
    assert source.class_names == ["run"]
    assert [[os.path.basename(r.path)[0] for r in source.records(s)] for s in ("train", "test")] == [["a"], ["e"]]
    assert len(source.records("predict")) == 4
    (told,) = caplog.messages
    assert told == (
        f"skipped 1 of the 5 videos listed in {tmp_path}/x.csv, which are not there, the first of them "
        f"{tmp_path}/b.mp4; 2 of the 3 classes have none to train on and drop out: jump, walk, "
        "with 2 videos that are there"
    )


def test_skip_with_test_videos_alone(tmp_path):
    """A checkpoint is tested without the training videos."""
    touch(tmp_path, "c.mp4", "d.mp4")
    source = CSVManifest(write(tmp_path / "x.csv", LINES), missing="skip")
    assert source.class_names == ["jump", "walk"]
    assert len(source.records("test")) == 2
    with pytest.raises(InputError, match=r"none of the videos listed in .* for the split 'train' can be used"):
        source.records("train")


def test_skip_divides_what_is_there(tmp_path):
    touch(tmp_path, *(f"{i}.mp4" for i in range(20)))
    lines = "".join(f"{i}.mp4,{'ab'[i % 2]}\n" for i in range(40))
    source = CSVManifest(write(tmp_path / "x.csv", "path,label\n" + lines), None, None, 0.2, 0.2, missing="skip")
    assert {s: len(source.records(s)) for s in ("train", "val", "test")} == {"train": 12, "val": 4, "test": 4}


def test_skip_needs_something(tmp_path):
    source = CSVManifest(write(tmp_path / "x.csv", LINES), missing="skip")
    with pytest.raises(
        InputError, match=r"none of the 5 videos listed in .* is there, the first of them .*a.mp4; corr"
    ):
        _ = source.class_names
    with pytest.raises(InputError, match="missing='ignore' is not one of error, skip"):
        CSVManifest("x.csv", missing="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(("variable", "told"), [("LOCAL_RANK", 0), ("NOTHING", 1)])
def test_first_process_speaks(tmp_path, caplog, monkeypatch, variable, told):
    monkeypatch.setenv(variable, "1")
    touch(tmp_path, "a.mp4", "e.mp4")
    _ = CSVManifest(write(tmp_path / "x.csv", LINES), missing="skip").class_names
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == told


def test_folders_are_read_once(tmp_path, monkeypatch):
    """A look at each file would take minutes on a network drive."""
    touch(tmp_path, *(f"{folder}/{i}.mp4" for folder in "ab" for i in range(50)))
    read = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(path) or scandir(path))
    rows = [("train", VideoRecord(str(tmp_path / folder / f"{i}.mp4"), folder)) for folder in "abc" for i in range(50)]
    for missing in ("error", "skip"):
        read.clear()
        listing = Listing(rows, "a list", "look", missing, 0.2)  # type: ignore[arg-type]
        if missing == "error":
            with pytest.raises(InputError, match="50 of the 150 videos"):
                listing.records("predict")
        else:
            assert len(listing.records("predict")) == 100
            assert len(listing.records("train")) == 80
        assert sorted(read) == [str(tmp_path / folder) for folder in "abc"]


def test_links_and_folders(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "folder.mp4").mkdir()
    rows = [(None, VideoRecord(str(tmp_path / f"{n}.mp4"), "x")) for n in ("a", "link", "broken", "folder")]
    assert [r for _, r in Listing(rows, "a list", "look", "skip", 0.2).there] == [rows[0][1], rows[1][1]]


@pytest.mark.parametrize("grouped", [True, False])
def test_division_is_the_same_in_any_order_and_folder(grouped):
    def records(root: str) -> list[VideoRecord]:
        return [
            VideoRecord(f"{root}/{i}.mp4", "abc"[i % 3], group=f"p{i % 17}" if grouped else None) for i in range(200)
        ]

    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    first = split_records(records("/x"), shares, seed=1)
    shuffled = records("/far/away")
    random.Random(0).shuffle(shuffled)
    second = split_records(shuffled, shares, seed=1)
    for split in shares:
        assert {os.path.basename(r.path) for r in first[split]} == {os.path.basename(r.path) for r in second[split]}
    counts = Counter(r.label for r in first["val"])
    assert min(counts.values()) >= 8
    assert max(counts.values()) <= 13


def test_pieces_of_a_file_stay_together():
    records = [VideoRecord(f"{i // 4}.mp4", "ab"[i % 2], i % 4, i % 4 + 1) for i in range(80)]
    parts = split_records(records, {"train": 0.75, "val": 0.25})
    assert [len(part) for part in parts.values()] == [60, 20]
    assert not {r.path for r in parts["train"]} & {r.path for r in parts["val"]}
