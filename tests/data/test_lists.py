"""Lists of `path label` lines give the right videos and classes, or say what is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import SHARED
from test_sources import touch, write

from cnnbert.data.lists import VideoList
from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError


def test_names_and_blanks(tmp_path):
    touch(tmp_path, "my films/a b.mp4", "#1.mp4", "c.mp4")
    train = write(tmp_path / "train.txt", "\ufeffmy films/a b.mp4  walk\r\n\n#1.mp4\trun\n")
    source = VideoList(train, test=write(tmp_path / "test.txt", "c.mp4 run"))
    assert source.class_names == ["run", "walk"]
    assert source.records("test") == [VideoRecord(str(tmp_path / "c.mp4"), "run")]
    every = [(str(tmp_path / "my films" / "a b.mp4"), "walk"), (str(tmp_path / "#1.mp4"), "run")]
    assert [(r.path, r.label) for r in source.records("predict")] == [*every, (str(tmp_path / "c.mp4"), "run")]


def test_root_and_validation(tmp_path):
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(20)))
    train = write(tmp_path / "train.txt", "".join(f"{i}.mp4 {i % 2}\n" for i in range(20)))
    source = VideoList(train, root=str(tmp_path / "videos"), val_fraction=0.2)
    parts = {split: Counter(r.label for r in source.records(split)) for split in ("train", "val")}
    assert parts == {"train": {"0": 8, "1": 8}, "val": {"0": 2, "1": 2}}
    given = VideoList(train, val=train, root=str(tmp_path / "videos"))
    assert len(given.records("train")) == len(given.records("val")) == 20


def test_numbers_are_places_in_given_classes(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    train = write(tmp_path / "train.txt", "a.mp4 0\nb.mp4 2\n")
    names = write(tmp_path / "names.txt", "walk\nrun fast\njump\n\n")
    for given in (names, ["walk", "run fast", "jump"]):
        source = VideoList(train, class_names=given, val_fraction=0)
        assert source.class_names == ["walk", "run fast", "jump"]
        assert [r.label for r in source.records("train")] == ["walk", "jump"]
    with pytest.raises(InputError, match=r"train.txt numbers its labels 0 to 2 \(2 of them\); number them 0 to 1"):
        _ = VideoList(train).class_names
    with pytest.raises(InputError, match=r"train.txt, line 2: the label 2 is not one of the places 0 to 1 of the"):
        _ = VideoList(train, class_names=["walk", "run"]).class_names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.txt lists no video"),
        ("a.mp4 run\n\nb.mp4\n", "train.txt, line 3: 'b.mp4' is no path and label with a blank between"),
        (
            "a.mp4 run\nb.mp4 1\n",
            r"some labels are names, such as run \(.*line 1\), some numbers, such as 1 \(.*line 2",
        ),
        ("b.mp4 run\n", r"1 of the 1 videos listed in .*train.txt are not there, the first of them .*b.mp4; correct"),
    ],
)
def test_says_what_is_wrong(tmp_path, text, message):
    touch(tmp_path, "a.mp4")
    source = VideoList(write(tmp_path / "train.txt", text), val_fraction=0)
    with pytest.raises(InputError, match=message):
        source.records("train")


def test_says_which_list_is_wanting(tmp_path):
    with pytest.raises(InputError, match="no list of videos is given; set train, val or test"):
        VideoList()
    with pytest.raises(InputError, match=r"nowhere.txt does not exist or is not a file; give a list of videos"):
        _ = VideoList("nowhere.txt").class_names
    source = VideoList(write(tmp_path / "train.txt", "a.mp4 x\n"))
    with pytest.raises(InputError, match="there is no list of test videos; set test beside train"):
        source.records("test")
    with pytest.raises(InputError, match=r"names.txt has an empty line; expected the name of a class in each"):
        _ = VideoList(source.lists["train"], class_names=write(tmp_path / "names.txt", "a\n\nb\n")).class_names
    with pytest.raises(InputError, match=r"the label x is not one of the classes y, z"):
        _ = VideoList(source.lists["train"], class_names=["y", "z"]).class_names
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        _ = VideoList(source.lists["train"]).class_names


@pytest.mark.skipif(not (SHARED / "videos").is_dir(), reason="needs ../shared/videos")
def test_real_lists():
    root = SHARED / "videos" / "hockey_fights"
    fights = VideoList(*(str(root / f"{split}.txt") for split in ("train", "val", "test")), class_names=["fight", "no"])
    assert [len(fights.records(split)) for split in ("train", "val", "test", "predict")] == [800, 100, 100, 1000]
    assert {Path(r.path).parent.name: r.label for r in fights.records("test")} == {"fight": "fight", "no_fight": "no"}
    root = SHARED / "videos" / "weizmann4"
    actions = VideoList(str(root / "train.txt"), test=str(root / "test.txt"))
    train, val = actions.records("train"), actions.records("val")
    assert actions.class_names == ["0", "1", "2", "3"]
    assert {r.label for r in val} == {r.label for r in train} == set(actions.class_names)
    assert len(train) + len(val) + len(actions.records("test")) == 72
