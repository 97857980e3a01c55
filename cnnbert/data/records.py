"""What is known of one labelled piece of video."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """A video, or a piece of one, and its class.

    Attributes:
        path: The file.
        label: The class by name, or several of them with a separator between; None where it is not known.
        start_seconds: Where the piece begins, in [0, duration).
        end_seconds: Where it ends (the first moment not in it); None for the end of the file.
        group: What must stay on one side of a split, such as the person or the long video that it was cut from.
    """

    path: str
    label: str | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    group: str | None = None


def split_label(label: str, separator: str | None) -> list[str]:
    """Return the classes that a label names: itself, or with a separator its parts, of which there may be none."""
    if separator is None:
        return [label]
    parts = (part.strip() for part in label.split(separator))
    return list(dict.fromkeys(part for part in parts if part))
