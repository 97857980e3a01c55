"""Videos that a check has refused are left out of training, validation and testing."""

from __future__ import annotations

import pytest
from test_sources import touch, write

from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.exclusion import Exclusion, real_path
from cnnbert.data.records import VideoRecord
from cnnbert.data.sources import Folder
from cnnbert.errors import InputError


@pytest.fixture
def root(tmp_path):
    names = [f"{split}/{label}/{i}.mp4" for split in ("train", "val", "test") for label in "ab" for i in range(3)]
    return touch(tmp_path / "videos", *names)


def test_data_module_leaves_out(root, tmp_path, caplog):
    refused = ["videos/train/a/1.mp4", str(root / "val" / "b" / "0.mp4"), "videos/test/a/2.mp4"]
    lines = [f"{path},damaged,x\n" for path in refused] + ["videos/train/b/0.mp4,ok,\n"]
    path = write(tmp_path / "check.csv", "path,verdict,why\n" + "".join(lines))
    data = VideoDataModule(Folder(str(root)), exclude=path)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert f"left out by {path}: 1 train and 1 val videos" in caplog.messages
    data.setup("test")
    data.setup("predict")
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {
        "train": 5,
        "val": 5,
        "test": 5,
        "predict": 18,
    }
    assert str(root / "train" / "a" / "1.mp4") not in {r.path for r in data.datasets["train"].records}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_division_stays(tmp_path):
    root = touch(tmp_path / "videos", *(f"{label}/{i}.mp4" for label in "ab" for i in range(20)))
    before = {split: Folder(str(root)).records(split) for split in ("train", "val")}
    gone = before["train"][3]
    data = VideoDataModule(
        Folder(str(root)), exclude=write(tmp_path / "check.csv", f"path,verdict\n{gone.path},missing\n")
    )
    data.setup("fit")
    assert list(data.datasets["val"].records) == before["val"]
    assert list(data.datasets["train"].records) == [record for record in before["train"] if record != gone]


def test_links_are_followed(root, tmp_path):
    (tmp_path / "linked").symlink_to(root)
    (tmp_path / "one.mp4").symlink_to(root / "val" / "a" / "0.mp4")
    path = write(tmp_path / "check.csv", "path,verdict\nlinked/train/a/0.mp4,timeout\nvideos/val/a/0.mp4,crash\n")
    paths = [root / "train" / "a" / "0.mp4", tmp_path / "linked" / "train" / "a" / "0.mp4", tmp_path / "one.mp4"]
    assert Exclusion(path).kept("train", [VideoRecord(str(p)) for p in [*paths, root / "val" / "a" / "1.mp4"]]) == [
        VideoRecord(str(root / "val" / "a" / "1.mp4"))
    ]


def test_list_of_other_videos_warns(root, tmp_path, caplog):
    data = VideoDataModule(Folder(str(root)), exclude=write(tmp_path / "x.csv", "path,verdict\nz.mp4,damaged\n"))
    data.setup("test")
    assert "x.csv has no line for any of these videos" in caplog.text


def test_class_without_videos_left(root, tmp_path):
    lines = "".join(f"videos/train/a/{i}.mp4,damaged\n" for i in range(3))
    data = VideoDataModule(Folder(str(root)), exclude=write(tmp_path / "x.csv", "path,verdict\n" + lines))
    with pytest.raises(InputError, match="no training video has the class a"):
        data.setup("fit")


def test_says_what_is_wrong(root, tmp_path):
    with pytest.raises(InputError, match=r"exclude=nowhere.csv does not exist or is not a file"):
        VideoDataModule(Folder(str(root)), exclude="nowhere.csv").setup("fit")
    other = write(tmp_path / "x.csv", "path,why\na.mp4,ok\n")
    with pytest.raises(InputError, match=r"x.csv has the columns path, why; it needs path and verdict"):
        VideoDataModule(Folder(str(root)), exclude=other).setup("fit")


def test_a_working_directory_that_changes(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name / "videos").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        assert real_path("videos/1.mp4") == str(tmp_path / name / "videos" / "1.mp4")
