"""Fills in the templates of HTML pages that need nothing but themselves, with text that hides nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# Written as escapes, as they would hide, or turn around, what stands beside them.
HIDDEN = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF}


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


def shown(text: str) -> str:
    """Return a text of which every character can be seen: control characters and bytes that are no UTF-8 as escapes."""
    seen = []
    for letter in text:
        code = ord(letter)
        if 0xDC80 <= code <= 0xDCFF:  # Python's sign for such a byte
            seen.append(f"\\x{code - 0xDC00:02x}")
        elif code < 32 or 127 <= code < 160 or 0xD800 <= code <= 0xDFFF or code in HIDDEN:
            seen.append(letter.encode("unicode_escape").decode())
        else:
            seen.append(letter)
    return "".join(seen)
