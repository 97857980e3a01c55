"""Refuses settings of a file that would make anything but the classes that belong there."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard, get_origin, get_type_hints

import yaml
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import CheckpointIO, ClusterEnvironment, LayerSync, Precision
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cnnbert.backbones.base import Backbone
from cnnbert.data.readers import VideoReader
from cnnbert.data.sources import VideoSource
from cnnbert.errors import InputError
from cnnbert.heads.base import Head

KINDS: dict[str, dict[str, type]] = {
    "model": {"backbone": Backbone, "head": Head, "optimizer": Optimizer, "scheduler": LRScheduler},
    "data": {"source": VideoSource, "reader": VideoReader},
}
"""Settings that name a class, and which it must be derived from."""

NESTED = (
    *(VideoSource, VideoReader, nn.Module, Optimizer, LRScheduler, Callback, Logger, Strategy, Profiler),
    *(CheckpointIO, ClusterEnvironment, LayerSync, Precision),
)
"""What a class must be derived from that stands anywhere else."""

CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}


def check_classes(settings: Mapping[str, Any], source: Path) -> None:
    """Refuse settings from a file that name anything but classes of the kind that belongs there.

    A dotted path can name any function of any module, and settings of a class can say what it is called with. So the
    backbone must be a `Backbone`, the head a `Head` and so on, by whatever path; modules of Python's own library are
    not even imported, and functions are taken from modules of the user's own alone. Nothing is made or called here;
    modules that are named are imported.

    Args:
        settings: `model`, `data` and `trainer`, as in a run's config; the others are not looked at.
        source: The file, as messages call it.

    Raises:
        InputError: Something else is named; the message says what and where.
    """
    for part in ("model", "data", "trainer"):
        section = settings.get(part, {})
        if not isinstance(section, Mapping):
            raise InputError(f"{source} is refused: its {part} is {str(section)[:80]}, and no settings")
        for name, value in section.items():
            place = f"{part}.{name}"
            if not _is_name(name):
                raise InputError(f"{source} is refused: {place!r} is no setting")
            if name in KINDS.get(part, {}):
                _check(value, (KINDS[part][name],), place, source)
            else:
                _check_nested(value, place, source)


def check_config(path: Path) -> None:
    """Refuse a config that lies beside a checkpoint or features, and names what `check_classes` refuses.

    Raises:
        InputError: It names such a thing, or is no config.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a config: {error}") from None
    if not isinstance(settings, Mapping):
        raise InputError(f"{path} is no config of `cnnbert fit`")
    check_classes(settings, path)


def _check(value: Any, bases: tuple[type, ...], place: str, source: Path) -> None:
    """Check what stands for a class: its path, or a mapping with it and its arguments."""
    if value is None:
        return
    known = {"class_path": value} if isinstance(value, str) else value
    if not isinstance(known, Mapping) or not known.keys() <= CLASS_KEYS or "class_path" not in known:
        raise InputError(f"{source} is refused: {place} is {str(value)[:80]}, which describes no class")
    kind = _find(known["class_path"], bases, place, source)
    for part in ("init_args", "dict_kwargs"):
        arguments = known.get(part) or {}
        if not isinstance(arguments, Mapping) or not all(map(_is_name, arguments)):
            raise InputError(f"{source} is refused: {place}.{part} is {str(arguments)[:80]}, which names no arguments")
        for name, given in arguments.items():
            inner = f"{place}.{part}.{name}"
            hint = _hint(kind, name)
            if "Callable" in str(hint):
                _check_function(given, inner, source)
            elif _is_class(hint) and issubclass(hint, NESTED):
                _check(given, (hint,), inner, source)
            else:
                _check_nested(given, inner, source)


def _check_nested(value: Any, place: str, source: Path) -> None:
    """Check what may hold classes somewhere inside."""
    if isinstance(value, Mapping) and "class_path" in value:
        _check(value, NESTED, place, source)
    elif isinstance(value, (Mapping, list, tuple)):
        for one in value.values() if isinstance(value, Mapping) else value:
            _check_nested(one, place, source)


def _is_class(found: Any) -> TypeGuard[type]:
    """Return whether this is a class; Python 3.10 takes `list[int]` for one."""
    return inspect.isclass(found) and get_origin(found) is None


def _find(path: Any, bases: tuple[type, ...], place: str, source: Path) -> type:
    """Return the class of a path, or of a short name."""
    kinds = " or ".join(base.__name__ for base in bases)
    wrong = f"{source} is refused: {place} names {str(path)[:80]}, which is no {kinds}; nothing of it was called"
    if not isinstance(path, str) or not all(map(_is_name, path.split("."))):
        raise InputError(wrong)
    module, _, name = path.rpartition(".")
    if not module:
        found = next((kind for base in bases for kind in _derived(base) if kind.__name__ == name), None)
    elif _is_python(module):
        raise InputError(wrong)
    else:
        try:
            found = getattr(import_module(module), name)
        except Exception as error:  # whatever the module raises
            raise InputError(
                f"{source} names {path}, which cannot be imported here ({type(error).__name__}: {error}); is it of "
                "this version, and can Python find its classes?"
            ) from error
    if not _is_class(found) or not (issubclass(found, bases) or (bases == NESTED and _is_users_own(path))):
        raise InputError(wrong)
    return found


def _hint(kind: type, name: str) -> Any:
    """Return the type of an argument of a class, or of one that it is derived from; None where there is none.

    One that may be a function counts before others.
    """
    found = []
    for base in kind.__mro__:
        if "__init__" in vars(base):
            init = vars(base)["__init__"]
            try:
                hints = get_type_hints(init)  # also behind names of types
            except (NameError, TypeError):
                hints = getattr(init, "__annotations__", {})
            found.append(hints.get(name))
    functions = [hint for hint in found if "Callable" in str(hint)]
    return next((hint for hint in (*functions, *found) if hint is not None), None)


def _check_function(value: Any, place: str, source: Path) -> None:
    """Check what may be the path of a function, or several."""
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if one is None or isinstance(one, (bool, int, float)):
            continue
        if not isinstance(one, str) or not all(map(_is_name, one.split("."))) or not _is_users_own(one):
            raise InputError(
                f"{source} is refused: {place} names {str(one)[:80]}; only functions of your own modules are taken "
                "from a checkpoint, and this is none"
            )


def _is_users_own(path: str) -> bool:
    """Return whether a path begins with a module that is neither Python's nor installed beside this package."""
    first = path.partition(".")[0]
    if _is_python(path):
        return False
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):
        return False
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders.append(str(Path(__file__).parent))
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    known = [place for place in places if place]
    return bool(known) and not any(Path(place).is_relative_to(folder) for place in known for folder in folders)


def _is_python(module: str) -> bool:
    """Return whether a module is of Python's own library, or a program."""
    first, *others = module.split(".")  # what runs now, as a notebook, is __main__
    return first in {*sys.stdlib_module_names} - {"__main__"} or any(part.startswith("__") for part in others)


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and text.isidentifier()


def _derived(base: type) -> Iterator[type]:
    yield base
    derived: list[type] = base.__subclasses__()
    for kind in derived:
        yield from _derived(kind)
