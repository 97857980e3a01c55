"""The commands beside Lightning's: functions whose docstrings are their help."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from jsonargparse import ArgumentParser, DefaultHelpFormatter

RUN_COMMANDS = {
    "fit": "Train a network, validating it after each epoch; keep the best and the last checkpoint.",
    "validate": "Judge a checkpoint on the validation videos.",
    "test": "Judge a checkpoint on the test videos, by as many views of each as asked for.",
    "predict": "Label any videos with a checkpoint and write the score of every class.",
}
"""Lightning's commands, and what their help says first."""

COMMANDS = {
    "ablate": "cnnbert.ablate:ablate",
    "bench-data": "cnnbert.bench:bench_data",
    "check": "cnnbert.check:check",
    "classify": "cnnbert.classify:classify",
    "clips": "cnnbert.clips:clips",
    "explain": "cnnbert.explain:explain",
    "export": "cnnbert.export:export",
    "features": "cnnbert.features:features",
    "flow": "cnnbert.flow:flow",
    "fuse": "cnnbert.fuse:fuse",
    "import-checkpoint": "cnnbert.ltm:import_checkpoint",
    "prepare": "cnnbert.prepare:prepare",
    "preview": "cnnbert.preview:preview",
    "report": "cnnbert.report:report",
    "scan": "cnnbert.scan:scan",
    "splits": "cnnbert.folds:splits",
    "summary": "cnnbert.summary:summary",
}
"""The modules and functions of the commands by their names: imported when called, as they need seconds for it."""

BOOLEANS = ("true", "false")

SETTINGS = ("--model", "--data", "--trainer", "--seed_everything")
"""Options that belong to a run's config: handed on as they are to a function that takes `settings`."""


class ParagraphFormatter(DefaultHelpFormatter):
    """Keeps the paragraphs of a docstring apart in the help."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            super(ParagraphFormatter, self)._fill_text(part, width, indent) for part in text.split("\n\n")
        )


def find_command(name: str) -> Callable[..., int | None]:
    """Return the function of a command; what it returns is the exit status, None for 0."""
    module, _, function = COMMANDS[name].partition(":")
    return getattr(import_module(module), function)


def first_sentence(name: str) -> str:
    """Return what a command's docstring says first, read without importing its module."""
    module, _, function = COMMANDS[name].partition(":")
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    (found,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == function)
    return (ast.get_docstring(found) or "").partition("\n\n")[0]


def run_command(name: str, args: list[str]) -> int:
    """Run a command with its arguments, the words after its name, and return its exit status; `--a-name` is `--a_name`.

    The first parameter may be None by default and still be given without its name; the last positional one may be a
    `tuple[str, ...]`, which takes all free words that are left; a `bool` needs no value: `--name`.
    """
    function = find_command(name)
    description = (inspect.getdoc(function) or "").partition("Args:")[0]
    parser = ArgumentParser(prog=f"cnnbert {name}", description=description, formatter_class=ParagraphFormatter)
    parameters = inspect.signature(function).parameters
    takes_settings = "settings" in parameters
    skipped: set[str | int] = {"settings"} if takes_settings else set()
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=skipped)
    settings: list[str] = []
    if takes_settings:
        settings, args = part_settings(args)
    kinds = {name: str(parameter.annotation) for name, parameter in parameters.items()}
    lists = [name for name, kind in kinds.items() if kind.startswith("tuple[")]
    flags = [name for name, kind in kinds.items() if kind == "bool"]
    args = _joined_lists(_switched([_underscored(word) for word in args], flags), lists)
    positional = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    several: list[str] = []
    if positional and positional[-1] in lists:
        args, several = _parted(args, len(positional) - 1)
        next(action for action in parser._actions if action.dest == positional[-1]).metavar = f"{positional[-1]} ..."
    first = next(iter(parameters.values()))
    if first.kind is first.POSITIONAL_OR_KEYWORD and first.default is None:
        args = _name_free_word(args, f"--{first.name}")
    given = parser.parse_args(args)
    if several:
        given[positional[-1]] = tuple(several)  # as they are: names of files may be no text
    return function(**given, **({"settings": settings} if takes_settings else {})) or 0


def part_settings(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the settings of a config as `--name=value`, and all other words."""
    settings, others = [], []
    words = iter(args)
    for word in words:
        if word.partition("=")[0].partition(".")[0] not in SETTINGS:
            others.append(word)
        elif "=" in word:
            settings.append(word)
        else:
            settings.append(f"{word}={next(words, '')}")
    return settings, others


def _switched(args: list[str], names: list[str]) -> list[str]:
    """Return the words with the bare name of a switch as true: `--name` becomes `--name=true`."""
    return [
        f"{word}=true" if word.removeprefix("--") in names and word.startswith("--") and after not in BOOLEANS else word
        for word, after in zip(args, [*args[1:], ""], strict=False)  # of no words, one is left over
    ]


def _joined_lists(args: list[str], names: list[str]) -> list[str]:
    """Return the words with the values of each named list as one: `--name a b` becomes `--name=["a", "b"]`."""
    joined: list[str] = []
    words = list(args)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name not in [f"--{one}" for one in names]:
            joined.append(name + equals + value)
            continue
        number = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
        values = [value] if equals else words[:number]
        words = words if equals else words[number:]
        is_list = len(values) == 1 and values[0].startswith("[")
        joined.append(f"{name}={values[0] if is_list else json.dumps(values)}")
    return joined


def _parted(args: list[str], num_before: int) -> tuple[list[str], list[str]]:
    """Return the words, and by themselves the free ones, neither options nor their values, after the first few.

    One that stands for all of these stays among the words.
    """
    words: list[str] = []
    free: list[str] = []
    is_value = False
    for word in args:
        is_option = word.startswith("--")
        (words if is_option or is_value else free).append(word)
        is_value = is_option and "=" not in word and word != "--help"
    several = free[num_before:]
    return [*words, *free[:num_before], *(['["several"]'] if several else [])], several


def _name_free_word(args: list[str], name: str) -> list[str]:
    """Return the words with a name before the first that is neither an option nor an option's value."""
    is_free = True
    for place, word in enumerate(args):
        if is_free and not word.startswith("-"):
            return [*args[:place], f"{name}={word}", *args[place + 1 :]]
        is_free = not word.startswith("--") or "=" in word
    return args


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word
