"""Which videos there are, with which labels, in which split."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cnnbert.data.records import VideoRecord


class VideoSource(ABC):
    """Lists the videos of a data set.

    Attributes:
        mirrored: For actions that change their name in a mirror (left and right), the name that each takes.
    """

    mirrored: dict[str, str] = {}

    def prepare(self) -> None:
        """Make the files exist; called by one process before any video is listed. Most have nothing to do."""
        return None

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """The classes in the order of the model's outputs, known without opening a video."""

    @abstractmethod
    def records(self, split: str) -> list[VideoRecord]:
        """Return the videos of a split: `train`, `val`, `test`, or `predict` (every video, labelled or not)."""
