"""Damaged and invented files are read, or refused with an error of ours: hundreds of cases here, ten thousand of each
kind with `pytest tests/test_fuzz.py --hypothesis-profile=long`."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from data.barcode import write_barcodes
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from mutants import damaged, damages, read_damaged
from untrained import untrained

import cnnbert
from cnnbert.data.datamodule import VideoDataModule
from cnnbert.data.features import FeatureWriter, read_features
from cnnbert.data.lists import VideoList
from cnnbert.data.sources import CSVManifest, VideoSource
from cnnbert.errors import InputError
from cnnbert.fuse import fuse
from cnnbert.parallel import map_files
from cnnbert.report import report
from cnnbert.runs import read_checkpoint

CASES_AT_ONCE = 50
"""Videos that are damaged in one example, as they are read in processes of their own."""

WORDS = st.one_of(
    st.sampled_from(["a.mp4", "b.mp4", "x/c.mp4", "train", "val", "test", "0", "1", "walk", "run", "0.5", "2", "-1"]),
    st.sampled_from(["", " ", "nan", "inf", "1e999", '"', "'", ",", "|", "\n", "\r", "\x00", "..", "/", "~", "٣", "²"]),
    st.text(max_size=8),
    st.text("\x00\n\r\"', |a1", max_size=200),
)
NUL = "\ue000"
"""Stands for a zero byte, which Python 3.10's csv does not write."""

ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"])


@contextmanager
def told() -> Iterator[None]:
    """Take an InputError as the end of a case, if its message says something."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        event("read")
    except InputError as error:
        assert len(str(error)) > 10
        event("refused")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that lists may name."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "x").mkdir()
    for name in ("a.mp4", "b.mp4", "x/c.mp4"):
        (root / name).touch()
    return root


def table(rows: list[list[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([cell.replace("\x00", NUL) for cell in row] for row in rows)
    return text.getvalue().replace(NUL, "\x00")


def files(text: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Return files: texts in some encoding, damaged ones, and any bytes."""
    encoded = st.builds(lambda words, name: words.encode(name, "replace"), text, ENCODINGS)
    return st.one_of(encoded, encoded, st.builds(damaged, encoded, damages(64, 64)), st.binary(max_size=300))


COLUMNS = ["path", "label", "split", "start_seconds", "end_seconds", "group", "split1"]
NAMED = st.sampled_from(["a.mp4", "b.mp4", "x/c.mp4"])
LINES = {  # by column, so that many lists can be used
    "path": NAMED,
    "label": st.sampled_from(["walk", "run", "0", "1", "walk|run", ""]),
    "split": st.sampled_from(["train", "val", "test", ""]),
    "split1": st.sampled_from(["train", "val", "test", ""]),
    "start_seconds": st.sampled_from(["", "0", "0.5"]),
    "end_seconds": st.sampled_from(["", "2", "7.5"]),
    "group": st.sampled_from(["", "p1", "p2"]),
}


@st.composite
def manifests(draw: st.DrawFn) -> str:
    known = draw(st.booleans())
    columns = draw(
        st.lists(
            st.sampled_from(COLUMNS) if known else st.one_of(st.sampled_from(COLUMNS), WORDS),
            min_size=1,
            max_size=6,
            unique=known,
        )
    )
    if known and "path" not in columns:
        columns[0] = "path"
    cells = [LINES.get(name, WORDS) if known else WORDS for name in columns]
    rows = draw(st.lists(st.tuples(*cells).map(list), max_size=12))
    return table([columns, *rows])


def list_videos(source: VideoSource, separator: str | None) -> None:
    data = VideoDataModule(source, label_separator=separator)
    for stage in ("predict", "test", "fit"):
        with told():
            data.setup(stage)


@given(
    files(manifests()),
    st.sampled_from([None, None, ["walk", "run"], ["0", "1"], []]),
    st.sampled_from([None, None, 1, 7]),
    st.sampled_from(["error", "skip"]),
    st.sampled_from([None, "|", ",", "a"]),
)
def test_manifests(
    folder: Path, content: bytes, classes: list[str] | None, fold: int | None, missing: Any, separator: str | None
) -> None:
    path = folder / "videos.csv"
    path.write_bytes(content)
    list_videos(CSVManifest(str(path), class_names=classes, fold=fold, missing=missing), separator)


LISTS = st.lists(st.tuples(NAMED, st.sampled_from(["walk", "run", "0", "1"])), max_size=9)


@given(
    files(st.one_of(LISTS.map(lambda rows: "\n".join(map(" ".join, rows))), st.lists(WORDS).map(" ".join))),
    files(st.one_of(st.sampled_from(["walk\nrun\n", "walk\nwalk\n"]), st.lists(WORDS).map("\n".join))),
    st.booleans(),
    st.sampled_from(["error", "skip"]),
)
def test_lists(folder: Path, content: bytes, names: bytes, gives_names: bool, missing: Any) -> None:
    path, classes = folder / "train.txt", folder / "classes.txt"
    path.write_bytes(content)
    classes.write_bytes(names)
    class_names = str(classes) if gives_names else None
    list_videos(VideoList(str(path), test=str(path), class_names=class_names, missing=missing), None)


FACTS = ["path", "start_seconds", "end_seconds", "label", "prediction", "score:walk", "score:run", "error"]


@st.composite
def predictions(draw: st.DrawFn) -> str:
    rows = []
    for number in range(draw(st.integers(0, 6))):
        share = draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
        label = draw(st.sampled_from(["walk", "run", "walk|run", "walk"]))
        row = [f"{number}.mp4", "0.0", "", label, "run" if share < 0.5 else "walk", f"{share}", f"{1 - share}", ""]
        rows.append(row if draw(st.integers(0, 5)) else [*row[:4], "", "", "", "it is torn"])
    columns = list(FACTS)
    for _ in range(draw(st.integers(0, 2))):  # most files are nearly right
        row = draw(st.sampled_from([columns, *rows]))
        row[draw(st.integers(0, len(row) - 1))] = draw(WORDS)
    return table([columns, *rows])


@given(
    files(predictions()),
    st.one_of(st.none(), files(st.sampled_from(['{"top1": 1}', '{"top1": null, "protocol": []}']))),
)
def test_predictions(folder: Path, content: bytes, results: bytes | None) -> None:
    path, beside = folder / "predictions.csv", folder / "results.json"
    path.write_bytes(content)
    beside.unlink(missing_ok=True)
    if results is not None:
        beside.write_bytes(results)
    with told(), redirect_stdout(io.StringIO()):
        report(str(path), out=str(folder / "report.html"), previews=1, force=True)
    with told(), redirect_stdout(io.StringIO()):
        fuse((str(path), str(path)), out=str(folder / "fused.csv"), force=True)


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([10**6, 2**31, 2**63, -(2**63), 10**30, 0.0, float("nan"), float("inf"), 1e-320]),
    st.floats(),
    WORDS,
    st.sampled_from(["os.system", "subprocess.Popen", "torch.nn.Linear", "cnnbert.heads.TGAPHead", "balanced", "auto"]),
    st.lists(st.integers(-1, 9), max_size=3),
    st.dictionaries(st.sampled_from(["class_path", "init_args", "x"]), WORDS, max_size=2),
    st.builds(torch.zeros, st.lists(st.integers(0, 3), max_size=3)),
)


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[list[int], str, Any]]:
    """Draw changes of a tree: where, by place at each level; what is done; and a value."""
    where = st.lists(st.integers(0, 40), min_size=1, max_size=5)
    return draw(
        st.lists(st.tuples(where, st.sampled_from(["set", "set", "remove", "add"]), ODD_VALUES), min_size=1, max_size=3)
    )


def change(tree: Any, places: list[int], action: str, value: Any) -> None:
    """Change a tree of dicts and lists in place."""
    for step, place in enumerate(places, 1):
        if not isinstance(tree, (dict, list)) or not tree:
            return
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = keys[place % len(keys)]
        if step < len(places) and isinstance(tree[key], (dict, list)) and tree[key]:
            tree = tree[key]
        elif action == "remove":
            del tree[key]
            return
        elif action == "add" and isinstance(tree, dict):
            tree[str(place)] = value
            return
        else:
            tree[key] = value
            return


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """What a checkpoint holds, and its bytes."""
    content = untrained()
    path = tmp_path_factory.mktemp("checkpoint") / "good.ckpt"
    torch.save(content, path)
    assert cnnbert.load(path)
    return content, path.read_bytes()


@given(damages(200_000, 100_000))
def test_damaged_checkpoints(checkpoint: tuple[dict[str, Any], bytes], folder: Path, damage: Any) -> None:
    path = folder / "damaged.ckpt"
    path.write_bytes(damaged(checkpoint[1], damage))
    with told():
        known = read_checkpoint(path)
        parts = "hyper_parameters", "datamodule_hyper_parameters"
        if any(known[part] != checkpoint[0][part] for part in parts):  # else it loads, as its settings are good
            cnnbert.load(path)


@settings(max_examples=settings().max_examples if settings().max_examples > 1000 else 40)  # each takes half a second
@given(changes())
def test_changed_checkpoints(checkpoint: tuple[dict[str, Any], bytes], folder: Path, made: Any) -> None:
    content = {name: value for name, value in checkpoint[0].items()}
    for name in ("hyper_parameters", "datamodule_hyper_parameters"):
        content[name] = deepcopy(content[name])
    content["state_dict"] = dict(content["state_dict"])
    for places, action, value in made:
        change(content, places, action, value)
    path = folder / "changed.ckpt"
    torch.save(content, path)
    with told():
        cnnbert.load(path)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """What is known of stored features, and the features."""
    folder = tmp_path_factory.mktemp("stored") / "features"
    writer = FeatureWriter(folder)
    writer.part.mkdir()
    with writer.split("train", 3, 2) as split:
        for number in range(6):
            split.add({"index": number % 3, "label": number % 2}, torch.ones(1 + number % 2, 4, 2, 1, 1))
    writer.finish({"key": {"classes": ["a", "b"]}, "version": "0"})
    assert read_features(folder)["train"].sample(1, 2)[0].shape == (2, 4, 2, 1, 1)
    return json.loads((folder / "features.json").read_text()), (folder / "train.f16").read_bytes()


@given(changes(), st.one_of(st.just([]), damages()), st.one_of(st.just([]), st.just([]), damages()))
def test_stored_features(stored: tuple[dict[str, Any], bytes], folder: Path, made: Any, text: Any, damage: Any) -> None:
    facts = deepcopy(stored[0])
    if not text:
        for places, action, value in made:
            change(facts, places, action, value)
    try:
        content = json.dumps(facts).encode("utf-8", "surrogatepass")
    except TypeError:  # a tensor
        return
    (folder / "features.json").write_bytes(damaged(content, text))
    (folder / "train.f16").write_bytes(damaged(stored[1], damage))
    with told():
        for split in read_features(folder).values():
            for index in range(min(split.num_videos, 9)):
                for epoch in range(min(split.num_epochs, 3)):
                    split.sample(epoch, index)


KINDS = {"a.mp4": "libx264", "b.avi": "mpeg4", "c.mkv": "libx264", "d.webm": "libvpx-vp9", "e.mov": "mjpeg"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Small videos of several containers and codecs."""
    root = tmp_path_factory.mktemp("headers")
    for name, codec in KINDS.items():
        pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        write_barcodes(
            root / name, codec, num_frames=20, b_frames=2 if codec == "libx264" else 0, pixel_format=pixel_format
        )
    return [str(root / name) for name in KINDS]


COUNTS: Counter[str] = Counter()


@given(st.data())
@settings(
    max_examples=max(4, settings().max_examples // CASES_AT_ONCE),
    phases=[Phase.generate],  # to make fifty cases smaller takes long, and the one that failed is told
    suppress_health_check=list(HealthCheck),
)
def test_video_headers(videos: list[str], data: st.DataObject) -> None:
    """A process that crashes or hangs costs its own video and is named with it; nothing but our errors comes."""
    number = CASES_AT_ONCE
    cases = data.draw(st.lists(st.tuples(st.sampled_from(videos), damages()), min_size=number, max_size=number))
    wrong = []
    for case, outcome in map_files(read_damaged, cases, 2, timeout_seconds=120):
        COUNTS[outcome if isinstance(outcome, str) else type(outcome).__name__] += 1
        if not isinstance(outcome, str):
            wrong.append(f"{type(outcome).__name__}: {outcome} with {case}")
    print(dict(COUNTS))
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
