"""Fills in the templates of HTML pages that need nothing but themselves."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def fill(template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Return a page with values filled in; whatever is no markup of the template stays text.

    Args:
        template: The name of a file in `page/`.
        filters: Functions that the template uses by name.
        values: What it names.
    """
    loader = FileSystemLoader(Path(__file__).parent / "page")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= dict(filters or {})
    return environment.get_template(template).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """Return a file's content as an address that holds it, such as data:video/mp4;base64,... for `video/mp4`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
