"""CNN+BERT for video recognition: 3D CNNs whose features a one-layer BERT weighs over time."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnbert.loading import build, load

__all__ = ["build", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that the command line starts quickly."""
    if name in __all__:
        return getattr(import_module("cnnbert.loading"), name)
    if name in ("backbones", "heads", "data"):
        return import_module(f"cnnbert.{name}")
    raise AttributeError(f"module 'cnnbert' has no attribute {name!r}")
