"""Sources list the right videos, with the right labels, in the right split, or say what is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import CSVManifest, Folder
from cnnbert.data.splits import split_records
from cnnbert.errors import InputError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_folder_is_divided_by_class(tmp_path):
    touch(tmp_path, *(f"{label}/{i}.mp4" for label in ("walk", "run") for i in range(20)), "run/notes.txt")
    source = Folder(str(tmp_path), val_fraction=0.2, test_fraction=0.1)
    assert source.class_names == ["run", "walk"]
    splits = {split: source.records(split) for split in ("train", "val", "test")}
    assert {split: Counter(r.label for r in records) for split, records in splits.items()} == {
        "train": {"run": 14, "walk": 14},
        "val": {"run": 4, "walk": 4},
        "test": {"run": 2, "walk": 2},
    }
    assert len({r.path for records in splits.values() for r in records}) == 40
    assert splits == {split: Folder(str(tmp_path), 0.2, 0.1).records(split) for split in splits}
    assert splits["val"] != Folder(str(tmp_path), 0.2, 0.1, split_seed=1).records("val")


def test_folder_keeps_given_splits(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/b/2.AVI", "val/a/3.mp4", "test/b/4.mkv")
    source = Folder(str(tmp_path))
    listed = {split: [(Path(r.path).name, r.label) for r in source.records(split)] for split in ("train", "val")}
    assert listed == {"train": [("1.mp4", "a"), ("2.AVI", "b")], "val": [("3.mp4", "a")]}
    assert [r.label for r in source.records("test")] == ["b"]
    assert [r.label for r in source.records("predict")] == ["b", "a", "b", "a"]


def test_folder_takes_validation_from_training(tmp_path):
    touch(tmp_path, *(f"train/{label}/{i}.mp4" for label in "ab" for i in range(10)), "test/a/1.mp4")
    source = Folder(str(tmp_path), val_fraction=0.2)
    train, val = source.records("train"), source.records("val")
    assert (len(train), len(val)) == (16, 4)
    assert not {r.path for r in train} & {r.path for r in val}


def test_folder_predicts_anything(tmp_path):
    touch(tmp_path, "new.mp4", "deep/er/new.webm", "notes.txt")
    records = Folder(str(tmp_path)).records("predict")
    assert [(Path(r.path).name, r.label) for r in records] == [("new.webm", "deep"), ("new.mp4", None)]
    assert [r.path for r in Folder(str(tmp_path / "new.mp4")).records("predict")] == [str(tmp_path / "new.mp4")]


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ((), "train", "holds no class folders"),
        (("a/1.mp4", "b/readme.txt"), "train", r"the class folder .*b holds no video"),
        (("train/a/1.mp4", "test/b/1.mp4"), "test", r"test/b is a class that .*train does not have"),
        (("train/a/1.mp4",), "test", "has a train folder but no test folder"),
        (("a/readme.txt",), "predict", "holds no video"),
    ],
)
def test_folder_says_what_is_wrong(tmp_path, files, split, message):
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=message):
        source = Folder(str(tmp_path))
        assert source.class_names or source.records(split)
        source.records(split)


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        _ = Folder(str(tmp_path / "nowhere")).class_names


def test_fractions_leave_something(tmp_path):
    with pytest.raises(InputError, match="leave something to train on"):
        Folder(str(tmp_path), val_fraction=0.5, test_fraction=0.5)


def test_csv_with_everything(tmp_path):
    touch(tmp_path, "a.mp4", "b c,d.mp4")
    path = write(
        tmp_path / "list.csv",
        "\ufeffpath,label,split,start_seconds,end_seconds,group\n"
        'a.mp4,walk,train,0.5,2,p1\n"b c,d.mp4",run,test,,,\na.mp4,run,val,2,,p1\n',
    )
    source = CSVManifest(path)
    assert source.class_names == ["run", "walk"]
    assert source.records("train") == [VideoRecord(str(tmp_path / "a.mp4"), "walk", 0.5, 2.0, "p1")]
    assert source.records("test") == [VideoRecord(str(tmp_path / "b c,d.mp4"), "run")]
    assert source.records("val") == [VideoRecord(str(tmp_path / "a.mp4"), "run", 2.0, None, "p1")]
    assert len(source.records("predict")) == 3


def test_csv_keeps_groups_together(tmp_path):
    names = [f"p{person}_{label}.mp4" for person in range(10) for label in ("sit", "run")]
    touch(tmp_path, *names)
    lines = [f"{n},{n.split('_')[1][:-4]},{n.split('_')[0]}" for n in names]
    source = CSVManifest(write(tmp_path / "x.csv", "path,label,group\n" + "\n".join(lines)), None, None, 0.2, 0.2)
    groups = {split: {r.group for r in source.records(split)} for split in ("train", "val", "test")}
    assert {split: len(people) for split, people in groups.items()} == {"train": 6, "val": 2, "test": 2}
    assert not groups["train"] & groups["val"] and not groups["test"] & (groups["train"] | groups["val"])


def test_csv_labels_by_number(tmp_path):
    touch(tmp_path, "a.mp4")
    path = write(tmp_path / "x.csv", "path,label\n" + "".join(f"a.mp4,{i}\n" for i in range(11)))
    assert CSVManifest(path).class_names == [str(i) for i in range(11)]
    one_up = write(tmp_path / "y.csv", "path,label\n" + "".join(f"a.mp4,{i}\n" for i in range(1, 12)))
    with pytest.raises(InputError, match=r"numbers its labels 1 to 11 \(11 of them\); number them 0 to 10"):
        _ = CSVManifest(one_up).class_names
    stars = [str(i) for i in range(1, 12)]
    assert CSVManifest(one_up, class_names=stars).class_names == stars


FOLDS = (
    "path,label,split2,split1\n"
    "a.mp4,run,train,train\nb.mp4,walk,train,test\nc.mp4,run,test,\nd.mp4,run,,train\ne.mp4,run,val,test\n"
)


def fold_names(source: CSVManifest, split: str) -> str:
    return "".join(Path(record.path).stem for record in source.records(split))


def test_csv_with_numbered_splits(tmp_path):
    touch(tmp_path, *(f"{name}.mp4" for name in "abcde"))
    path = write(tmp_path / "x.csv", FOLDS)
    second = CSVManifest(path, fold=2)
    assert [fold_names(second, split) for split in ("train", "val", "test", "predict")] == ["ab", "e", "c", "abcde"]
    first = CSVManifest(path, fold=1, val_fraction=0.5)  # names no validation, which is taken from training
    train, val = fold_names(first, "train"), fold_names(first, "val")
    assert (len(train), len(val), "".join(sorted(train + val))) == (1, 1, "ad")
    assert fold_names(first, "test") == "be"
    assert first.class_names == second.class_names == ["run", "walk"]


def test_csv_with_numbered_splits_and_one_without_number(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    path = write(tmp_path / "x.csv", "path,label,split,split1\na.mp4,x,test,train\nb.mp4,y,train,test\n")
    assert fold_names(CSVManifest(path), "test") == "a"
    assert fold_names(CSVManifest(path, fold=1), "test") == "b"


@pytest.mark.parametrize(
    ("text", "fold", "message"),
    [
        (FOLDS, None, "divides its videos by the columns split2, split1; set fold to the number of one"),
        (FOLDS, 3, "fold=3, but .*x.csv has no column split3; its split columns are split2, split1"),
        ("path,label\na.mp4,x\n", 1, r"fold=1, but .* has no column split1; its split columns are \(none\)"),
        ("path,label,split1\na.mp4,x,dev\n", 1, "line 2: split1='dev' is not one of train, val, test"),
        ("path,label,split0\na.mp4,x,train\n", None, "the columns path, label, split0; .*group,split1,split2,..."),
        ("path,label,split1\na.mp4,x,train\n", 1, "has a split1 column but no line with split1=test"),
    ],
)
def test_csv_says_what_is_wrong_with_numbered_splits(tmp_path, text, fold, message):
    touch(tmp_path, *(f"{name}.mp4" for name in "abcde"))
    source = CSVManifest(write(tmp_path / "x.csv", text), fold=fold)
    with pytest.raises(InputError, match=message):
        source.records("test")


def test_csv_predicts_whatever_the_fold(tmp_path):
    """New videos need no column for the fold that a checkpoint was trained on."""
    touch(tmp_path, *(f"{name}.mp4" for name in "abcde"))
    assert fold_names(CSVManifest(write(tmp_path / "x.csv", FOLDS)), "predict") == "abcde"
    assert fold_names(CSVManifest(write(tmp_path / "y.csv", "path\na.mp4\n"), fold=1), "predict") == "a"


def test_fold_below_one():
    with pytest.raises(InputError, match="fold=0 must be at least 1, the number of the column split1"):
        CSVManifest("x.csv", fold=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.mp4,x\n", "has the columns file, label; expected path,label"),
        ("path,label,spilt\na.mp4,x,train\n", "spilt"),
        ("path,label\n", "lists no video"),
        ("path,label,split\na.mp4,x,dev\n", r"line 2: split='dev' is not one of train, val, test"),
        ("path,label,start_seconds\na.mp4,x,-1\n", r"line 2: start_seconds='-1' is not a number of seconds"),
        ("path,label,start_seconds,end_seconds\na.mp4,x,2,1\n", "end_seconds=1 is not after start_seconds=2"),
        ("path,label\na.mp4,x,more\n", "line 2: the number of fields"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,label\na.mp4,x\na.mp4,\n", "gives no label for .*a.mp4"),
        ("path,label\na.mp4,x\nb.mp4,x\n", r"1 of the 2 videos .* are not there, the first of them .*b.mp4"),
    ],
)
def test_csv_says_what_is_wrong(tmp_path, text, message):
    touch(tmp_path, "a.mp4")
    source = CSVManifest(write(tmp_path / "x.csv", text), val_fraction=0, test_fraction=0)
    with pytest.raises(InputError, match=message):
        source.records("train")


def test_csv_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        CSVManifest(str(tmp_path / "x.csv")).records("train")
    (tmp_path / "x.csv").write_bytes(b"path,label\na.mp4,caf\xe9\n")
    with pytest.raises(InputError, match=r"cannot be read as CSV: line 2, column label: 'caf\\\\udce9' is not UTF-8"):
        CSVManifest(str(tmp_path / "x.csv")).records("train")
    (tmp_path / "x.csv").write_text("path,label\n" + "a" * 200_000 + ",x\n")
    with pytest.raises(InputError, match=r"cannot be read as CSV: field larger than field limit"):
        CSVManifest(str(tmp_path / "x.csv")).records("train")


def test_csv_label_outside_the_classes(tmp_path):
    touch(tmp_path, "a.mp4")
    source = CSVManifest(write(tmp_path / "x.csv", "path,label\na.mp4,jump\n"), class_names=["run", "walk"])
    with pytest.raises(InputError, match=r"'jump', which is not one of the classes run, walk"):
        source.records("train")


def test_splitting_is_fair_to_small_classes():
    records = [VideoRecord(f"{label}{i}", label) for label, n in {"big": 90, "small": 10}.items() for i in range(n)]
    splits = split_records(records, {"train": 0.7, "val": 0.2, "test": 0.1}, seed=3)
    assert {s: Counter(r.label for r in rs) for s, rs in splits.items()} == {
        "train": {"big": 63, "small": 7},
        "val": {"big": 18, "small": 2},
        "test": {"big": 9, "small": 1},
    }
