"""UCF101, HMDB51 and Kinetics are found in their official layouts, with their official splits."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import SHARED
from test_sources import touch, write

from cnnbert.data.benchmarks import HMDB51, UCF101, Kinetics
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import VideoSource
from cnnbert.data.splits import split_records
from cnnbert.errors import InputError

VIDEOS = SHARED / "videos"
real = pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"no videos in {VIDEOS}")


def names(source: VideoSource, split: str) -> list[str]:
    return [Path(record.path).name for record in source.records(split)]


@pytest.fixture
def ucf101(tmp_path):
    lists = tmp_path / "ucf101" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    write(lists / "classInd.txt", "1 Archery\r\n2 YoYo\r\n")
    videos = [(i, c, g) for i, c in enumerate(("Archery", "YoYo"), 1) for g in range(1, 10)]
    lines = {
        g: [f"{c}/v_{c}_g{g:02d}_c0{n}.avi" for _, c, gg in videos if gg == g for n in (1, 2)] for g in range(1, 10)
    }
    for fold in (1, 2, 3):
        tested = range(3 * fold - 2, 3 * fold + 1)
        train = [f"{line} {1 if 'Archery' in line else 2}" for g in lines if g not in tested for line in lines[g]]
        write(lists / f"trainlist0{fold}.txt", "\r\n".join(train) + "\r\n")
        write(lists / f"testlist0{fold}.txt", "\r\n".join(line for g in tested for line in lines[g]) + "\r\n")
    touch(tmp_path / "ucf101" / "UCF-101", *(line for group in lines.values() for line in group))
    return tmp_path / "ucf101"


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_ucf101(ucf101, fold):
    source = UCF101(str(ucf101), fold)
    assert source.class_names == ["Archery", "YoYo"]
    first = f"v_Archery_g0{3 * fold - 2}_c01.avi"
    path = str(ucf101 / "UCF-101" / "Archery" / first)
    assert source.records("test")[0] == VideoRecord(path, "Archery", group=f"Archery_{first[10:13]}")
    groups = {s: {r.group for r in source.records(s)} for s in ("train", "val", "test")}
    assert {s: len(g) for s, g in groups.items()} == {"train": 10, "val": 2, "test": 6}
    assert not groups["train"] & groups["val"]
    assert {r.label for r in source.records("val")} == {"Archery", "YoYo"}
    assert len(source.records("predict")) == 36
    assert source.mirrored == {}


def test_ucf101_with_folders_of_other_names(ucf101):
    flat = ucf101.parent / "flat"
    flat.mkdir()
    for path in (ucf101 / "UCF-101").rglob("*.avi"):
        path.rename(flat / path.name)
    (ucf101 / "ucfTrainTestlist").rename(ucf101.parent / "annotations")
    source = UCF101(str(ucf101.parent), videos=str(flat), lists=str(ucf101.parent / "annotations"))
    assert {Path(r.path).parent for r in source.records("train")} == {flat}


@pytest.mark.parametrize("is_flat", [False, True])
def test_copies_with_another_suffix_are_found(ucf101, is_flat):
    copies = ucf101.parent / "copies"
    for path in ucf101.rglob("*.avi"):
        copy = copies / ("" if is_flat else path.parent.name) / f"{path.stem}.mp4"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    original, copied = UCF101(str(ucf101)), UCF101(str(ucf101), videos=str(copies))
    for split in ("train", "val", "test"):
        a, b = original.records(split), copied.records(split)
        assert [(Path(r.path).stem, r.label, r.group) for r in a] == [(Path(r.path).stem, r.label, r.group) for r in b]
        assert all(Path(record.path).suffix == ".mp4" and Path(record.path).is_file() for record in b)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("testlist01.txt", "testlist01.txt does not exist; correct root or lists, or fetch the official split files"),
        ("classInd.txt", "classInd.txt does not exist"),
    ],
)
def test_ucf101_split_file_missing(ucf101, gone, message):
    (ucf101 / "ucfTrainTestlist" / gone).unlink()
    with pytest.raises(InputError, match=message):
        _ = UCF101(str(ucf101)).class_names


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classInd.txt", "0 Archery\n1 YoYo\n", "does not number its classes from 1 on"),
        ("classInd.txt", "", "does not number its classes from 1 on"),
        ("trainlist01.txt", "Archery/x.avi 1\n", "'Archery/x.avi 1' does not name a video CLASS/v_CLASS_gNN_cNN.avi"),
        ("testlist01.txt", "Bowl/v_Bowl_g01_c01.avi\n", "does not name a video .* of a known class"),
    ],
)
def test_ucf101_split_file_wrong(ucf101, file, text, message):
    write(ucf101 / "ucfTrainTestlist" / file, text)
    with pytest.raises(InputError, match=message):
        _ = UCF101(str(ucf101)).class_names


@pytest.mark.parametrize("source", [UCF101, HMDB51])
def test_wrong_arguments(tmp_path, source):
    with pytest.raises(InputError, match="fold=4 must be 1, 2 or 3"):
        source("x", fold=4)
    with pytest.raises(InputError, match=r"val_fraction=1 must be in \[0, 1\)"):
        source("x", val_fraction=1)
    with pytest.raises(InputError, match="missing='no' is not one of error, skip"):
        source("x", missing="no")
    with pytest.raises(InputError, match=r"nowhere.* does not exist|nowhere.* holds no CLASS_test_split1.txt"):
        _ = source(str(tmp_path / "nowhere")).class_names


def test_partial_download(ucf101):
    for path in (ucf101 / "UCF-101" / "YoYo").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"6 of the 12 videos listed in .*ucfTrainTestlist \(split 1\) are not there"):
        UCF101(str(ucf101)).records("test")
    source = UCF101(str(ucf101), missing="skip")
    assert source.class_names == ["Archery"]
    assert len(source.records("test")) == 6


@pytest.fixture
def hmdb51(tmp_path):
    root = tmp_path / "hmdb51"
    (root / "testTrainMulti_7030_splits").mkdir(parents=True)
    for label in ("climb", "climb_stairs"):
        for fold in (1, 2, 3):
            lines = []
            for i in range(9):
                kind = 0 if i == 8 else 2 if i % 3 == fold - 1 else 1
                lines.append(f"Big_{label}_Film{i // 2}_{label}_f_cm_np1_ba_med_{i}.avi {kind} \n")
            write(root / "testTrainMulti_7030_splits" / f"{label}_test_split{fold}.txt", "".join(lines))
        touch(
            root / "hmdb51_org" / label,
            *(f"Big_{label}_Film{i // 2}_{label}_f_cm_np1_ba_med_{i}.avi" for i in range(9)),
        )
    return root


def test_hmdb51(hmdb51):
    source = HMDB51(str(hmdb51), fold=2, val_fraction=0.4)
    assert source.class_names == ["climb", "climb_stairs"]
    assert Counter(r.label for r in source.records("test")) == {"climb": 3, "climb_stairs": 3}
    first = source.records("test")[0]
    name = "Big_climb_Film0_climb_f_cm_np1_ba_med_1.avi"
    assert first == VideoRecord(str(hmdb51 / "hmdb51_org" / "climb" / name), "climb", group="Big_climb_Film0")
    train, val = source.records("train"), source.records("val")
    assert len(train) + len(val) == 10
    assert not {r.group for r in train} & {r.group for r in val}
    assert len(source.records("predict")) == 18
    assert set(names(source, "train") + names(source, "val")).isdisjoint(names(source, "test"))


def test_hmdb51_split_files(hmdb51):
    path = hmdb51 / "testTrainMulti_7030_splits" / "climb_test_split2.txt"
    write(path, "a.avi 3\n")
    with pytest.raises(InputError, match=r"climb_test_split2.txt: 'a.avi 3' is not VIDEO.avi and 0, 1 or 2"):
        HMDB51(str(hmdb51), fold=2).records("train")
    path.unlink()
    with pytest.raises(InputError, match=r"climb_test_split2.txt does not exist"):
        HMDB51(str(hmdb51), fold=2).records("train")
    assert len(HMDB51(str(hmdb51), fold=1).records("test")) == 6
    with pytest.raises(InputError, match="videos=nowhere does not exist or is not a folder"):
        HMDB51(str(hmdb51), videos="nowhere").records("train")


TABLE = "label,youtube_id,time_start,time_end,split,is_cc\n"
KINETICS = TABLE + 'eat cake,-a_b,7,17,train,0\n"catch, throw",0123456789A,130,140,train,1\neat cake,zz,1,11,train,0\n'
STEMS = ["-a_b_000007_000017", "0123456789A_000130_000140", "zz_000001_000011"]


@pytest.mark.parametrize(
    "files",
    [
        [f"{STEMS[0]}.mp4", f"{STEMS[1]}.mp4", f"{STEMS[2]}.mp4"],
        [f"eat cake/{STEMS[0]}.mp4", f"catch, throw/{STEMS[1]}.mkv", f"eat cake/{STEMS[2]}.webm"],
        [f"train/eat_cake/{STEMS[0]}.mp4", f"train/catch_throw/{STEMS[1]}.MP4", f"train/eat_cake/{STEMS[2]}.mp4"],
    ],
)
def test_kinetics(tmp_path, files):
    touch(tmp_path / "videos", *files, f"{STEMS[0]}.json", "other_000001_000002.mp4")
    source = Kinetics(str(tmp_path / "videos"), write(tmp_path / "train.csv", KINETICS), val_fraction=0)
    assert source.class_names == ["catch, throw", "eat cake"]
    labels = ["eat cake", "catch, throw", "eat cake"]
    assert source.records("train") == [
        VideoRecord(str(tmp_path / "videos" / file), label) for file, label in zip(files, labels, strict=True)
    ]


def test_kinetics_splits(tmp_path):
    touch(tmp_path, *(f"{c}/{c}{i}_000000_000010.mp4" for c in "ab" for i in range(10)), "v/x_000001_000011.mp4")
    train = write(
        tmp_path / "train.csv", TABLE + "".join(f"{c},{c}{i},0,10,train,0\n" for c in "ab" for i in range(10))
    )
    val = write(tmp_path / "val.csv", TABLE + "a,x,1,11,validate,0\n")
    test = write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\nx,1,11,test\n")
    source = Kinetics(str(tmp_path), train, test=val, val_fraction=0.2)
    assert [len(source.records(split)) for split in ("train", "val", "test")] == [16, 4, 1]
    assert [len(Kinetics(str(tmp_path), train, val).records(split)) for split in ("train", "val")] == [20, 1]
    with pytest.raises(InputError, match="there is no CSV file of test videos; set test beside train, val"):
        Kinetics(str(tmp_path), train, val).records("test")
    unlabelled = Kinetics(str(tmp_path), train, test=test)
    assert len(unlabelled.records("predict")) == 21
    with pytest.raises(InputError, match=r"the test videos are without label, .*x_000001_000011.mp4 the first"):
        unlabelled.records("test")
    with pytest.raises(InputError, match="name no label; fill the column label"):
        _ = Kinetics(str(tmp_path), test=test).class_names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE, "train.csv lists no video"),
        ("label,id\na,b\n", "has the columns label, id; expected label,youtube_id,time_start,time_end,split"),
        (TABLE + "a,b,1.5,11,train,0\n", r"line 2: time_start=1.5 and time_end=11 are not whole seconds"),
        (TABLE + "a,b\n", r"line 2: time_start=None"),
        (
            TABLE + "a,b,1,11,train,0\n",
            r"1 of the 1 videos listed in .* not there, .*b_000001_000011.mp4; correct root",
        ),
        (TABLE + "a,c,1,11,train,0\n", r"c_000001_000011.mp4 and .*c_000001_000011.mkv are the same video by name"),
    ],
)
def test_kinetics_says_what_is_wrong(tmp_path, text, message):
    touch(tmp_path, "a/c_000001_000011.mp4", "b/c_000001_000011.mkv")
    with pytest.raises(InputError, match=message):
        Kinetics(str(tmp_path), write(tmp_path / "train.csv", text), val_fraction=0).records("train")


def test_kinetics_arguments(tmp_path):
    with pytest.raises(InputError, match="set train, val or test to a CSV file of Kinetics"):
        Kinetics("x")
    with pytest.raises(InputError, match="nowhere does not exist or is not a folder; give the folder of the videos"):
        _ = Kinetics(str(tmp_path / "nowhere"), "train.csv").class_names
    with pytest.raises(InputError, match=r"train.csv does not exist or is not a file; give a CSV file of Kinetics"):
        _ = Kinetics(str(tmp_path), str(tmp_path / "train.csv")).class_names


def test_kinetics_links_to_the_same_file(tmp_path):
    touch(tmp_path, "all/b_000001_000011.mp4")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b_000001_000011.mp4").symlink_to(tmp_path / "all" / "b_000001_000011.mp4")
    table = write(tmp_path / "train.csv", TABLE + "a,b,1,11,train,0\n")
    assert len(Kinetics(str(tmp_path), table, val_fraction=0).records("train")) == 1


@real
@pytest.mark.parametrize(("fold", "sizes"), [(1, (9537, 3783)), (2, (9586, 3734)), (3, (9624, 3696))])
def test_real_ucf101(fold, sizes):
    source = UCF101(str(VIDEOS / "ucf101"), fold)
    rows = source._listing.rows
    assert Counter(split for split, _ in rows) == dict(zip(("train", "test"), sizes, strict=True))
    assert len({record.path for _, record in rows}) == 13320
    assert len(source.class_names) == 101
    assert source.class_names == sorted(source.class_names, key=str.lower)
    train = [record for split, record in rows if split == "train"]
    check_division(train, {record.group for split, record in rows if split == "test"})
    if fold == 2:  # the list of the first split trains on a single one of the classes that are there
        there = UCF101(str(VIDEOS / "ucf101"), fold, missing="skip")
        assert len(there.class_names) == 10
        assert all(Path(record.path).is_file() for record in there.records("predict"))


@real
@pytest.mark.parametrize("fold", [1, 2, 3])
def test_real_hmdb51(fold):
    source = HMDB51(str(VIDEOS / "hmdb51"), fold)
    rows = source._listing.rows
    assert Counter(split for split, _ in rows) == {"train": 3570, "test": 1530, None: 1666}
    assert len(source.class_names) == 51
    assert all(record.group is not None for _, record in rows)
    check_division([record for split, record in rows if split == "train"], set())
    with pytest.raises(InputError, match=r"1530 of the 1530 videos" if fold != 1 else r"1529 of the 1530 videos"):
        source.records("test")


def check_division(train: list[VideoRecord], tested: set[str | None]) -> None:
    """Check that validation has near its share of every class, and no group of the others."""
    parts = split_records(train, {"train": 0.85, "val": 0.15})
    groups = [{record.group for record in part} for part in parts.values()]
    assert not groups[0] & groups[1]
    assert not (groups[0] | groups[1]) & tested
    every, val = Counter(record.label for record in train), Counter(record.label for record in parts["val"])
    assert 0.13 <= len(parts["val"]) / len(train) <= 0.17
    assert all(0.04 <= val[label] / number <= 0.35 for label, number in every.items())


@real
def test_real_kinetics(tmp_path):
    table = next((VIDEOS / "kinetics").glob("*.csv"))
    source = Kinetics(str(tmp_path), val=str(table))
    assert "abseiling" in source.class_names
    paths = [record.path for _, record in source._listing.rows]
    assert all(re.fullmatch(r"[\w-]{11}_\d{6}_\d{6}\.mp4", Path(path).name) for path in paths)
    assert Path(paths[0]).name == "0wR5jVB-WPk_000417_000427.mp4"
