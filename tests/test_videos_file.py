"""A training writes down which videos it used, and the list gives the same division again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video

from cnnbert import folds
from cnnbert.cli import main
from cnnbert.data.benchmarks import UCF101
from cnnbert.data.sources import CSVManifest, Folder, VideoSource

TINY = [*TINY_DATA, *TINY_MODEL, *TINY_RUN, "--trainer.logger=false"]


def videos_file(workplace: Path) -> Path:
    (path,) = workplace.glob("runs/*/fit-*/videos.csv")
    return path


def all_records(source: VideoSource, *splits: str) -> dict[str, object]:
    return {split: source.records(split) for split in splits or ("train", "val", "test")}


def test_division_that_was_made(workplace, videos):
    """Pieces, groups and labels come back, and the relative paths are absolute."""
    shutil.copytree(videos / "train", "mine")
    lines = [
        f"{path},{path.parent.name},{0.01 * i},{'' if i % 2 else 0.5},{path.parent.name} {i % 2}"
        for i, path in enumerate(sorted(Path("mine").glob("*/*.mp4")))
    ]
    table = Path("table.csv")
    table.write_text("path,label,start_seconds,end_seconds,group\n" + "\n".join(lines) + "\n")
    shares = {"val_fraction": 0.5, "test_fraction": 0.0}
    options = [f"--data.source.{name}={value}" for name, value in {"path": table, **shares}.items()]
    assert main(["fit", "--data=data/csv.yaml", *options, *TINY]) == 0
    again = CSVManifest(str(videos_file(workplace)))
    first = all_records(CSVManifest(str(table.absolute()), **shares), "train", "val")
    assert all_records(again, "train", "val") == first
    assert len(again.records("val")) == 6
    assert again.class_names == ["blue", "green", "red"]
    assert not list(workplace.rglob("*.part*"))


def test_division_that_was_given(workplace, videos, tmp_path):
    path = videos / "train" / "red" / "1.mp4"
    excluded = tmp_path / "check.csv"
    excluded.write_text(f"path,verdict\n{path},damaged\n")
    command = ["fit", f"--data.source.root={videos}", f"--data.exclude={excluded}", *TINY]
    assert main(["fit", "--data.source=Folder", *command[1:]]) == 0
    again = all_records(CSVManifest(str(videos_file(workplace))))
    first = all_records(Folder(str(videos)))
    first["train"] = [record for record in first["train"] if record.path != str(path)]
    assert again == first


@pytest.mark.parametrize(("on_test", "sizes"), [("true", {"train": 18, "test": 9}), ("false", {"train": 12, "val": 6})])
def test_without_some_of_the_splits(workplace, videos, on_test, sizes):
    """Test videos that are not there do not keep a run from training, and those validated on are called test videos."""
    shutil.copytree(videos, "mine")
    if on_test == "false":
        shutil.rmtree(Path("mine", "test"))
    options = ["--data.source=Folder", "--data.source.root=mine", f"--data.validate_on_test={on_test}"]
    assert main(["fit", *options, *TINY]) == 0
    again = CSVManifest(str(videos_file(workplace)), val_fraction=0)
    assert {split: len(again.records(split)) for split in sizes} == sizes
    assert len(again.records("predict")) == sum(sizes.values())


def test_every_split_of_ucf101(workplace, capsys, monkeypatch):
    """The command splits trains and tests on the official splits; the processes are this one."""
    monkeypatch.setattr(folds, "_run", main)
    lists = workplace / "ucf101" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    names = {group: [f"{c}/v_{c}_g0{group}_c01.avi" for c in ("Archery", "YoYo")] for group in (1, 2, 3, 4)}
    for name in (name for group in names.values() for name in group):
        write_video(workplace / "ucf101" / "UCF-101" / name, (220, 30, 30) if "Yo" in name else (30, 30, 220))
    for fold in (1, 2):
        train = [f"{name} 1" for group in names if group != fold for name in names[group]]
        (lists / f"trainlist0{fold}.txt").write_text("\n".join(train))
        (lists / f"testlist0{fold}.txt").write_text("\n".join(names[fold]))
    source = ["--data=data/ucf101.yaml", "--data.source.root=ucf101", "--data.source.val_fraction=0.34"]
    assert (
        main(
            ["splits", "--config=r2plus1d_bert.yaml", "--folds=[1,2]", *source, *TINY, "--model.backbone.weights=null"]
        )
        == 0
    )
    assert "split 2 (2 of 2): test" in capsys.readouterr().out
    for fold in (1, 2):
        (path,) = workplace.glob(f"runs/*/splits-*/split{fold}/*/fit-*/videos.csv")
        first = UCF101(str(workplace / "ucf101"), fold, val_fraction=0.34)
        assert all_records(CSVManifest(str(path))) == all_records(first)
        assert [r.group for r in first.records("test")] == [f"Archery_g0{fold}", f"YoYo_g0{fold}"]
