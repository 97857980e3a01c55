"""From files to batches of clips."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

MODULES = (
    "benchmarks",
    "cache",
    "datamodule",
    "dataset",
    "deadline",
    "encoding",
    "exclusion",
    "flow",
    "flow_files",
    "generated",
    "inspection",
    "listing",
    "lists",
    "loaders",
    "manifest",
    "packets",
    "protocols",
    "pyav_video",
    "readers",
    "records",
    "samplers",
    "sources",
    "splits",
    "transforms",
    "video",
)


def __getattr__(name: str) -> ModuleType:
    """Import a module only when it is asked for, so that reading videos needs no Lightning."""
    if name in MODULES:
        return import_module(f"cnnbert.data.{name}")
    raise AttributeError(f"module 'cnnbert.data' has no attribute {name!r}")
