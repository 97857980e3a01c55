"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cnnbert.errors import InputError
from cnnbert.outputs import new_file, whole_file, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with whole_file(target) as part:
        part.write_text("new")
        assert (target.read_text(), part.suffix) == ("old", ".csv")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError()])
def test_what_goes_wrong_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(type(error)), whole_file(target) as part:
        part.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    with pytest.raises(InputError) as caught, whole_file(target) as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == f"{target} cannot be written: No space left on device; nothing is left of it"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left on device"), whole_file(tmp_path / "x") as part:
        part.symlink_to("/dev/full")
        part.write_text("more")
    assert not list(tmp_path.iterdir())


def test_a_new_file_is_checked_before_the_work(tmp_path: Path) -> None:
    there = tmp_path / "there.csv"
    there.write_text("old")
    assert new_file(tmp_path / "new.csv") == tmp_path / "new.csv"
    assert new_file(there, force=True) == there
    for path, why in {
        there: f"{there} is there already; give another name, or --force to replace it",
        tmp_path: f"{tmp_path} is a folder; give the name of a file",
        tmp_path / "no" / "x": f"{tmp_path / 'no' / 'x'} cannot be written: No such file or directory; "
        "nothing is left of it",
    }.items():
        with pytest.raises(InputError) as caught:
            new_file(path)
        assert str(caught.value) == why
    assert there.read_text() == "old"
    assert list(tmp_path.iterdir()) == [there]


def test_text_is_written(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.txt", "äöü")
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "äöü"
