"""`cnnbert fuse` averages what networks say of the same videos, by weights that validation videos choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_predictions import write_predictions

from cnnbert.cli import main
from cnnbert.fuse import choose_weights
from cnnbert.predictions import read_predictions

VIDEOS = (("1.mp4", "a"), ("2.mp4", "a"), ("3.mp4", "b"), ("4.mp4", "b"))
RGB = (0.9, 0.45, 0.4, 0.7)
FLOW = (0.4, 0.8, 0.1, 0.2)


def written(path: str, scores: tuple[float | str, ...], videos: tuple[tuple[str, str], ...] = VIDEOS) -> str:
    """Write what a network says of each video: the probability of class a, or why it could not be read."""
    rows = [
        (video, label, "", score)
        if isinstance(score, str)
        else (video, label, "a" if score > 0.5 else "b", [score, 1 - score])
        for (video, label), score in zip(videos, scores, strict=True)
    ]
    write_predictions(Path(path), "ab", rows)
    return path


def others(start: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{start}{video}", label) for video, label in VIDEOS)


def test_all_count_the_same(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", written("rgb/p.csv", RGB), written("flow/p.csv", FLOW)]) == 0
    fused = read_predictions(Path("fused.csv"))
    np.testing.assert_allclose(fused.scores[:, 0], [0.65, 0.625, 0.25, 0.45], atol=1e-6)
    assert fused.videos == read_predictions(Path("rgb/p.csv")).videos and fused.is_right.all()
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines()]
    assert table[0] == ["predictions", "weight", "video", "top-1", "mean", "class", "accuracy"]
    assert table[1][:3] == ["rgb/p.csv", "0.50", "50.00"] and table[2][:3] == ["flow/p.csv", "0.50", "75.00"]
    assert table[3][:2] == ["fused.csv", "100.00"]
    assert out.endswith("4 videos fused into fused.csv, weights all the same\n")
    assert main(["report", "fused.csv", "--compare=rgb/p.csv", "--previews=0"]) == 0


def test_given_weights_and_more_than_two_networks(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [written("1.csv", RGB), written("2.csv", FLOW), written("3.csv", (0.0, 0.0, 1.0, 1.0))]
    assert main(["fuse", *files, "--weights", "2", "6", "0", "--out=all.csv"]) == 0
    expected = 0.25 * np.array(RGB) + 0.75 * np.array(FLOW)
    np.testing.assert_allclose(read_predictions(Path("all.csv")).scores[:, 0], expected, atol=1e-6)
    assert "weights as given" in capsys.readouterr().out
    assert main(["fuse", *files, "--out=all.csv"]) == 1
    assert "all.csv is there already" in capsys.readouterr().err
    assert main(["fuse", *files, "--out=all.csv", "--force"]) == 0


def test_weights_are_those_of_the_best_validation_accuracy(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: the first video needs more than 0.2 of the first network, the fourth more than 0.4, the second less
    than 0.857; of what is left the loss is lowest where the mean of the logarithms is highest."""
    validation = [written("v/rgb.csv", RGB, others("v")), written("v/flow.csv", (0.4, 0.8, 0.1, 0.8), others("v"))]
    assert (
        main(["fuse", written("rgb.csv", RGB), written("flow.csv", FLOW), "--validation", *validation, "--out=f.csv"])
        == 0
    )
    first = np.arange(21)[:, None] / 20
    mixed = first * np.array(RGB) + (1 - first) * np.array([0.4, 0.8, 0.1, 0.8])
    of_label = np.where([True, True, False, False], mixed, 1 - mixed)
    right = (of_label > 0.5).sum(1)
    best = max(range(21), key=lambda place: (right[place], np.log(of_label[place]).sum()))
    assert right[best] < 4 and len({*right}) > 1
    weights = choose_weights([read_predictions(Path(path)) for path in validation])
    np.testing.assert_allclose(weights, [best / 20, 1 - best / 20])
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:2] == ["rgb.csv", f"{best / 20:.2f}"]
    assert "weights chosen on 4 validation videos" in out


def test_a_stream_that_knows_nothing_is_left_out(workplace: Path) -> None:
    right, wrong = (1.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0)
    files = [read_predictions(Path(written(f"{n}.csv", s))) for n, s in enumerate((wrong, right, wrong, wrong))]
    assert choose_weights(files).tolist() == [0, 1, 0, 0]
    assert choose_weights(files[1:3]).tolist() == [1, 0]


def test_a_video_that_one_could_not_read_is_not_fused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [written("rgb.csv", RGB), written("flow.csv", ("no flow of it", *FLOW[1:]))]
    validation = [written("v1.csv", ("gone", *RGB[1:]), others("v")), written("v2.csv", RGB, others("v"))]
    assert main(["fuse", *files, "--validation", *validation]) == 0
    fused = read_predictions(Path("fused.csv"))
    assert fused.errors == ("flow.csv: no flow of it", "", "", "") and not fused.is_right[0]
    out = capsys.readouterr().out
    assert out.endswith("; 1 could not be read by all\n") and "75.00 %" in out.splitlines()[3]


def test_several_classes_a_video(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files without `results.json`, which would say that labels are parted by `|`."""
    rows = [("1.mp4", "a|b", "a|b", [0.9, 0.6]), ("2.mp4", "b", "", [0.2, 0.4]), ("3.mp4", "a", "a", [0.7, 0.1])]
    write_predictions(Path("1.csv"), "ab", rows)
    rows = [("1.mp4", "a|b", "a", [0.9, 0.4]), ("2.mp4", "b", "b", [0.2, 0.9]), ("3.mp4", "a", "a", [0.9, 0.1])]
    write_predictions(Path("2.csv"), "ab", rows)
    assert main(["fuse", "1.csv", "2.csv"]) == 0
    fused = read_predictions(Path("fused.csv"))
    assert fused.label_separator == "|" and fused.is_right.all()
    assert "mAP" in capsys.readouterr().out
    assert choose_weights([read_predictions(Path(f"{number}.csv")) for number in (1, 2)])[0] < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1.csv"], "fuse needs the predictions files of two networks or more, and got 1"),
        (["1.csv", "gone.csv"], "gone.csv cannot be read as predictions of `cnnbert test`: No such file"),
        (["1.csv", "fewer.csv"], "1.csv and fewer.csv do not go together, since their videos differ: 1 only in 1"),
        (["1.csv", "ac.csv"], "1.csv and ac.csv do not go together, since their classes differ: 1 only in 1.csv, such"),
        (["1.csv", "1.csv", "--weights", "1"], "weights has 1 values for 2 predictions; give one for each"),
        (
            ["1.csv", "1.csv", "--weights", "1", "-1"],
            "weights=1, -1 must be at least 0, and one of them above; try 1 1",
        ),
        (["1.csv", "1.csv", "--weights", "0", "0"], "weights=0, 0 must be at least 0"),
        (["1.csv", "1.csv", "--validation", "v.csv"], "validation has 1 values for 2 predictions; give one for each"),
        (["1.csv", "1.csv", "--validation", "v.csv", "v.csv", "--weights", "1", "1"], "not both"),
        (["1.csv", "1.csv", "--validation", "1.csv", "1.csv"], "both have 4 videos, such as 1.mp4; weights that are"),
        (["1.csv", "1.csv", "--validation", "ac.csv", "ac.csv"], "since their classes differ"),
        (["1.csv", "1.csv", "--validation", "v.csv", "none.csv"], "none.csv: none of its videos could be read"),
        (["1.csv"] * 5 + ["--validation", *["v.csv"] * 5], "weights are chosen for 4 networks at most, not 5; give"),
        (["half.csv", "other.csv"], "none of the 4 videos could be read by all networks"),
        (["1.csv", "1.csv", "--out=gone/fused.csv"], "gone/fused.csv cannot be written"),
    ],
)
def test_mistakes_are_told(workplace: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    written("1.csv", RGB)
    written("fewer.csv", RGB[:3], VIDEOS[:3])
    written("v.csv", RGB, others("v"))
    written("none.csv", ("gone",) * 4, others("v"))
    written("half.csv", ("gone", "gone", *RGB[2:]))
    written("other.csv", (*RGB[:2], "gone", "gone"))
    write_predictions(Path("ac.csv"), "ac", [("5.mp4", "a", "a", [0.7, 0.3])])
    before = sorted(Path().iterdir())
    assert main(["fuse", *words]) == 1
    assert message in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before
