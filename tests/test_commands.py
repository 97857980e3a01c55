"""How the words of a command become arguments of its function."""

from __future__ import annotations

import pytest

from cnnbert import commands


def judge(model: str, videos: tuple[str, ...], *, out: str = "x.csv", force: bool = False) -> None:
    """Judge.

    Args:
        model: The model.
        videos: The videos.
        out: The file.
        force: Whether to replace it.
    """
    JUDGED.append((model, videos, out, force))


def go(*, force: bool = False) -> None:
    """Go.

    Args:
        force: Whether to.
    """
    JUDGED.append(force)


JUDGED: list[object] = []


@pytest.fixture(autouse=True)
def with_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        commands, "COMMANDS", {function.__name__: f"{__name__}:{function.__name__}" for function in (judge, go)}
    )
    JUDGED.clear()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("m a b", ("m", ("a", "b"), "x.csv", False)),
        ("m --out y.csv a b", ("m", ("a", "b"), "y.csv", False)),
        ("--out=y.csv m a", ("m", ("a",), "y.csv", False)),
        ("--force m a", ("m", ("a",), "x.csv", True)),
        ("m a --force", ("m", ("a",), "x.csv", True)),
        ("m a --force false b", ("m", ("a", "b"), "x.csv", False)),
    ],
)
def test_words_become_arguments(words: str, expected: object) -> None:
    assert commands.run_command("judge", words.split()) == 0
    assert [expected] == JUDGED


def test_a_name_is_taken_as_it_is() -> None:
    assert commands.run_command("judge", ["m", "[a] b, c.mp4", 'd "e".mp4']) == 0
    assert JUDGED == [("m", ("[a] b, c.mp4", 'd "e".mp4'), "x.csv", False)]


def test_no_words_at_all() -> None:
    assert commands.run_command("go", []) == 0
    assert JUDGED == [False]


def test_too_few_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.run_command("judge", ["m"])
    assert ended.value.code == 2
    assert "videos" in capsys.readouterr().err


def test_help_names_several_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.run_command("judge", ["--help"])
    assert "model videos ..." in capsys.readouterr().out
