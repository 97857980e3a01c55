"""The numbers of a report are those of the test and those worked out by hand; its page holds them as text."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import TINY_DATA, TINY_MODEL, TINY_RUN, write_video
from test_predictions import write_predictions

from cnnbert import report_numbers
from cnnbert.cli import main
from cnnbert.data.records import VideoRecord
from cnnbert.errors import InputError, VideoReadError
from cnnbert.outputs import shown
from cnnbert.predictions import Predictions, read_predictions
from cnnbert.previews import preview
from cnnbert.report import page
from cnnbert.run_results import read_run_results

NAN = float("nan")


def predictions(
    labels: str, scores: list[list[float]], names: str = "abc", separator: str | None = None
) -> Predictions:
    """Predictions of videos whose labels are parted by spaces."""
    videos = tuple((f"{i}.mp4", "0.0", "", label) for i, label in enumerate(labels.split(" ")))
    return Predictions(videos, tuple(names), np.array(scores), ("",) * len(videos), separator)


# Two of a are right, one of a is taken for b, b is right, one of b cannot be read, nothing is c.
FIVE = predictions("a a a b b", [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.9, 0], [0.2, 0.8, 0], [NAN] * 3])


def test_accuracies() -> None:
    assert report_numbers.metrics(FIVE, "wrong") == pytest.approx(
        {"top1": 3 / 5, "mean_class_accuracy": (2 / 3 + 1 / 2) / 2}
    )
    assert report_numbers.metrics(FIVE, "left_out") == pytest.approx(
        {"top1": 3 / 4, "mean_class_accuracy": (2 / 3 + 1) / 2}
    )


def test_top5() -> None:
    scores = [[0.3, 0.2, 0.2, 0.1, 0.1, 0.1 - n / 100] for n in (1, 2)]
    assert report_numbers.metrics(predictions("f a", scores, "abcdef"), "wrong")["top5"] == 0.5


def test_classes() -> None:
    a, b, c = report_numbers.class_numbers(FIVE, "wrong")
    assert (a.num_videos, a.precision, a.recall, a.f1) == pytest.approx((3, 1, 2 / 3, 2 * 2 / (3 + 2)))
    assert (b.num_videos, b.precision, b.recall, b.f1) == pytest.approx((2, 1 / 2, 1 / 2, 1 / 2))
    assert (a.score, b.score, a.average_precision) == (pytest.approx((0.7 + 0.5 + 0.1) / 3), pytest.approx(0.8), None)
    assert c.num_videos == 0 and all(math.isnan(value) for value in (c.precision, c.recall, c.f1, c.score))
    b = report_numbers.class_numbers(FIVE, "left_out")[1]
    assert (b.num_videos, b.precision, b.recall) == (1, 0.5, 1)


def test_confusions() -> None:
    found = report_numbers.confusions(FIVE)
    assert found == [[(0, 0)], [(0, 0)], [(0, 1)], [(1, 1)], [(1, 4)]]
    assert report_numbers.most_confused(found, 3, 5) == [(0, 1, 1)]
    found = [[(0, 1)], [(2, 0)], [(2, 0)], [(1, 2), (2, 2), (3, 0)]]
    assert report_numbers.most_confused(found, 3, 2) == [(2, 0, 2), (0, 1, 1)]


def test_calibration() -> None:
    """Confidences 0.7, 0.5, 0.9 and 0.8, of which the third is wrong, are in bins of their own."""
    error, bins = report_numbers.calibration(FIVE)
    assert error == pytest.approx((0.3 + 0.5 + 0.9 + 0.2) / 4)
    assert [(round(one.confidence, 6), one.accuracy) for one in bins if one.number] == [
        (0.5, 1),
        (0.7, 1),
        (0.8, 1),
        (0.9, 0),
    ]
    assert (bins[0].low, bins[-1].high, len(bins)) == (0, 1, 15)


def test_calibration_of_the_surest() -> None:
    """A probability of 1 is in the last bin with 0.95: 1 and 0.95, one right, are off by 0.475 together."""
    error, bins = report_numbers.calibration(predictions("a b", [[1, 0], [0.95, 0.05]], "ab"))
    assert (error, bins[-1].number) == (pytest.approx(0.475), 2)


def test_error_is_that_of_the_bins() -> None:
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([1, 1, 1], 500)
    error, bins = report_numbers.calibration(predictions(" ".join(rng.choice(list("abc"), 500)), scores.tolist()))
    assert sum(one.number for one in bins) == 500
    assert error == pytest.approx(
        sum(one.number * abs(one.confidence - one.accuracy) for one in bins if one.number) / 500
    )


def test_worst_and_least_sure() -> None:
    some = predictions("a a b c", [[0.4, 0.6, 0], [0.1, 0.9, 0], [0.3, 0.7, 0], [NAN] * 3])
    assert report_numbers.worst(some).tolist() == [1, 0]
    assert report_numbers.least_sure(some).tolist() == [0, 2, 1]


SEVERAL = predictions("a|b | b a", [[0.9, 0.38], [0.3, 0.61], [0.45, 0.81], [NAN] * 2], "ab", "|")


def test_several_classes() -> None:
    """Of a, the first video ranks first, but one of two cannot be read; of b, ranks 1 and 3 are right."""
    assert report_numbers.metrics(SEVERAL, "wrong") == pytest.approx(
        {"map": (1 / 2 + (1 + 2 / 3) / 2) / 2, "micro_f1": 2 * 2 / (4 + 3)}
    )
    a, b = report_numbers.class_numbers(SEVERAL, "wrong")
    assert (a.num_videos, a.precision, a.recall, a.average_precision) == (2, 1, 0.5, 0.5)
    assert (b.num_videos, b.precision, b.recall, b.average_precision) == pytest.approx((2, 0.5, 0.5, 5 / 6))
    # (class, predicted): b is missed in the first; nothing is missed in the second; 2 is no class, 3 not read.
    assert report_numbers.confusions(SEVERAL) == [[(0, 0), (1, 2)], [(2, 1)], [(1, 1)], [(0, 3)]]
    assert report_numbers.worst(SEVERAL).tolist() == [0, 1]  # b is denied with 0.62, and given with 0.61
    assert report_numbers.least_sure(SEVERAL).tolist() == [2, 1, 0]
    error, bins = report_numbers.calibration(SEVERAL)
    assert sum(one.number for one in bins) == 6
    assert error == pytest.approx((0.1 + 0.62 + 0.3 + 0.61 + 0.45 + 0.19) / 6)


@pytest.mark.parametrize(("separator", "label"), [([], "CLASS"), (["--data.label_separator=|"], "CLASS|blue")])
def test_numbers_are_those_of_the_test(workplace: Path, separator: list[str], label: str) -> None:
    """An unreadable video counts as wrong."""
    colours = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}
    lines = ["path,label,split"]
    for name, colour in colours.items():
        for i in range(4):
            path = write_video(workplace / f"{name}{i}.mp4", colour)
            lines.append(f"{path},{label.replace('CLASS', name)},{'test' if i > 1 else 'train' if i else 'val'}")
    (workplace / "broken.mp4").write_bytes(b"no video")
    lines.append(f"{workplace / 'broken.mp4'},{label.replace('CLASS', 'red')},test")
    (workplace / "videos.csv").write_text("\n".join(lines))
    data = ["--data=data/csv.yaml", "--data.source.path=videos.csv", *separator]
    options = [*TINY_DATA, *TINY_RUN, "--trainer.logger=false"]
    assert (
        main(["fit", "--config=r2plus1d_bert.yaml", *data, *TINY_MODEL, "--model.backbone.weights=null", *options]) == 0
    )
    assert main(["test", "--ckpt_path=last", *TINY_RUN]) == 0
    (path,) = workplace.glob("runs/*/test-*/predictions.csv")
    results = json.loads(path.with_name("results.json").read_text())
    run = read_run_results(path)
    assert run.metrics == pytest.approx({key: results[key] for key in run.metrics}, abs=1e-5)
    assert set(run.metrics) == ({"map", "micro_f1"} if separator else {"top1", "mean_class_accuracy"})
    assert (run.num_failed, len(run.predictions.videos)) == (results["num_failed"], results["num_videos"]) == (1, 7)
    text = page(run, None, 1)
    assert results["protocol"] in text and "1 of them could not be read" in text and "Mind" not in text
    path.with_name("results.json").write_text(json.dumps(results | {"num_videos": 8}))
    assert "results.json has num_videos 8, the predictions give 7: they may be of two tests." in page(
        read_run_results(path), None, 0
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are no UTF-8")
def test_names_that_are_no_utf8(workplace: Path, videos: Path) -> None:
    shutil.copytree(videos, "train")
    model = [*TINY_MODEL, "--model.backbone.weights=null", "--trainer.logger=false", *TINY_DATA, *TINY_RUN]
    assert (
        main(["fit", "--config=r2plus1d_bert.yaml", "--data=data/folder.yaml", "--data.source.root=train", *model]) == 0
    )
    for name in ("blue", "red"):
        Path("odd", name).mkdir(parents=True)
        shutil.copy(videos / "test" / name / "0.mp4", f"odd/{name}/caf\udce9.mp4")
    assert main(["predict", "--ckpt_path=last", "--data.source.root=odd", *TINY_RUN]) == 0
    (path,) = workplace.glob("runs/*/predict-*/predictions.csv")
    read = read_predictions(path)
    assert [video[0][-8:] for video in read.videos] == ["caf\udce9.mp4"] * 2
    assert "caf\\\\xe9.mp4" in page(read_run_results(path), None, 1)


def test_hidden_characters_are_shown() -> None:
    assert shown("caf\udce9\n<\u202e\x00é") == r"caf\xe9\n<\u202e\x00é"


def test_a_preview_is_small(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", (200, 30, 30), num_frames=60, size=300)
    made = preview(VideoRecord(str(path)))
    assert made == preview(VideoRecord(str(path)))
    assert made.startswith("data:video/mp4;base64,") and len(made) < 100_000
    with av.open(io.BytesIO(base64.b64decode(made.partition(",")[2]))) as container:
        (stream,) = container.streams
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 12)
    assert (len(frames), frames[0].shape) == (36, (128, 128, 3))
    # Of 60 frames that brighten, the middle 36: 12 to 47.
    assert frames[0][..., 0].mean() == pytest.approx(200 * 16 / 64, abs=8)
    assert frames[-1][..., 0].mean() == pytest.approx(200 * 51 / 64, abs=8)


def test_a_preview_of_a_piece(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", (200, 30, 30), num_frames=60, size=50)
    made = preview(VideoRecord(str(path), start_seconds=1.0, end_seconds=1.5))
    with av.open(io.BytesIO(base64.b64decode(made.partition(",")[2]))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (len(frames), frames[0].shape) == (6, (50, 50, 3))  # not enlarged
    assert frames[0][..., 0].mean() == pytest.approx(200 * 16 / 64, abs=8)


def test_no_preview(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for path, why in {"no.mp4": "there is no such file", str(broken): "no video"}.items():
        with pytest.raises(VideoReadError) as caught:
            preview(VideoRecord(path))
        assert why in caught.value.why


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.json: Any = None
        self.within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.within = "data" if dict(attributes).get("id") == "data" else tag

    def handle_data(self, data: str) -> None:
        if self.within == "data":
            self.json = json.loads(data)
            self.within = ""
        elif self.within not in ("script", "style"):
            self.text += data


EVIL = ["<script>alert(1)</script>", "</script>&\"'{{ 1 }}"]


def evil_predictions(folder: Path, videos: list[str]) -> Path:
    """Write predictions with classes, paths and errors that would be markup."""
    rows: list[tuple[str, str, str, Any]] = [
        ("/x/a\"b'.mp4", EVIL[0], EVIL[1], [0.1, 0.9]),
        ("/x/new\nline.mp4", EVIL[1], EVIL[0], [0.6, 0.4]),
        ("/x/caf\udce9.mp4", EVIL[1], EVIL[0], [0.7, 0.3]),
        ("/x/</script><script>alert(2)</script>.mp4", EVIL[0], "", "<img src=x onerror=alert(3)>"),
        *((video, EVIL[0], EVIL[0], [0.8, 0.2]) for video in videos),
    ]
    return write_predictions(folder / "predictions.csv", EVIL, rows)


def test_everything_stays_text(tmp_path: Path) -> None:
    parsed = Page(page(read_run_results(evil_predictions(tmp_path, []))))
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert not any(tag in ("img", "link") and "src" in found for tag, found in parsed.tags)
    for text in (*EVIL, "</script><script>alert(2)</script>.mp4", "<img src=x onerror=alert(3)>"):
        assert text in parsed.text
    assert parsed.json["classes"] == EVIL
    assert sorted(video[0] for video in parsed.json["videos"]) == [
        "</script><script>alert(2)</script>.mp4",
        "a\"b'.mp4",
        "caf\\xe9.mp4",
        "new\\nline.mp4",
    ]
    assert parsed.json["previews"] == {str(index): {"why": "there is no such file"} for index in (1, 2, 3)}


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    parsed = Page(page(read_run_results(evil_predictions(tmp_path, []))))
    links = [value for _, found in parsed.tags for name, value in found.items() if name in ("src", "href", "action")]
    assert links and all(str(link).startswith(("#", "data:")) for link in links)
    assert "url(" not in page(read_run_results(evil_predictions(tmp_path, []))) and "@import" not in parsed.text


ROWS = [("1", "a", "a", [0.9, 0.1]), ("2", "a", "b", [0.3, 0.7]), ("3", "b", "b", [0.1, 0.9]), ("4", "b", "", "gone")]
OTHERS = [
    ("1", "a", "b", [0.2, 0.8]),
    ("2", "a", "b", [0.3, 0.7]),
    ("3", "b", "b", [0.1, 0.9]),
    ("4", "b", "b", [0, 1]),
]


def test_two_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_predictions(Path("a.csv"), "ab", ROWS)
    write_predictions(Path("b.csv"), "ab", OTHERS)
    assert main(["report", "a.csv", "--compare", "b.csv", "--previews", "0"]) == 0
    assert capsys.readouterr().out == f"report.html: 4 videos, {Path('report.html').stat().st_size / 1e6:.1f} MB\n"
    parsed = Page(Path("report.html").read_text(encoding="utf-8"))
    assert "Of 4 videos, A alone is right on 1, B alone 1:\na difference of +0.0 points" in parsed.text
    assert "p = 1," in parsed.text
    assert parsed.json["lists"]["only-first"] == [0] and parsed.json["lists"]["only-second"] == [3]
    assert parsed.json["videos"][3][3:] == ["gone", [[1], [[1, 1.0], [0, 0.0]]]]
    assert "a250.00.0+50.0" in parsed.text.replace("\n", "")


def test_who_left_failed_videos_out_says_so(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "predictions.csv", "ab", ROWS)
    (tmp_path / "results.json").write_text('{"count_failed": "left_out", "protocol": "all of it"}')
    run = read_run_results(path)
    assert run.metrics["top1"] == pytest.approx(2 / 3)
    text = page(run, read_run_results(write_predictions(tmp_path / "b" / "predictions.csv", "ab", OTHERS), run), 0)
    assert "4 test videos, all of it. 1 of them could not be read: they are left out of the accuracies." in text
    assert "Of 3 videos, A alone is right on 1, B alone 0" in text


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (OTHERS[:3], "ab", "their videos differ: 1 only in a.csv, such as 4 0.0  b"),
        (
            [(v, label, p, [*s, 0]) for v, label, p, s in OTHERS],
            "abc",
            "their classes differ: 1 only in b.csv, such as c",
        ),
    ],
)
def test_other_tests_are_not_compared(
    workplace: Path, capsys: pytest.CaptureFixture[str], rows: Any, names: str, message: str
) -> None:
    write_predictions(Path("a.csv"), "ab", ROWS)
    write_predictions(Path("b.csv"), names, rows)
    assert main(["report", "a.csv", "--compare", "b.csv"]) == 1
    assert f"a.csv and b.csv do not go together, since {message}" in capsys.readouterr().err
    assert not Path("report.html").exists()


def test_mistakes(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_predictions(Path("a.csv"), "ab", ROWS)
    Path("report.html").write_text("mine")
    write_predictions(Path("none/predictions.csv"), "ab", [("1", "a", "", "gone")])
    write_predictions(Path("bad/predictions.csv"), "ab", ROWS)
    Path("bad/results.json").write_text("{")
    write_predictions(Path("worse/predictions.csv"), "ab", ROWS)
    Path("worse/results.json").write_text("[]")
    for words, message in {
        "a.csv": "report.html is there already; give another name, or --force to replace it",
        "a.csv --out no/r.html": "cannot be written: No such file or directory",
        "a.csv --previews -1 --out r.html": "previews=-1 must be at least 0",
        "no.csv --out r.html": "no.csv cannot be read as predictions of `cnnbert test`: No such file",
        "none/predictions.csv --out r.html": "none of its videos could be read, as of gone",
        "bad/predictions.csv --out r.html": "results.json cannot be read (",
        "worse/predictions.csv --out r.html": "results.json is not the results of `cnnbert test`; take it away",
    }.items():
        assert main(["report", *words.split()]) == 1
        assert message in capsys.readouterr().err
    assert Path("report.html").read_text() == "mine" and not Path("r.html").exists()
    assert main(["report", "a.csv", "--force", "--previews=0"]) == 0
    assert "confusion" in Path("report.html").read_text(encoding="utf-8").lower()


def test_no_class_at_all(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "p.csv", "ab", [("1", "|", "", [0.1, 0.2])])
    with pytest.raises(InputError, match="none of its videos has any class; there is nothing to judge by"):
        read_run_results(path)
