"""The two kinds of mistake that a user can put right, told apart from bugs."""

from __future__ import annotations


class InputError(ValueError):
    """Something given by the user cannot be used; the message says what, what is allowed and what to do.

    The command line prints the message alone, without a traceback, and ends with exit status 1.
    """


class VideoReadError(Exception):
    """A video cannot be read.

    Attributes:
        path: The video's path.
        why: The reason, in a sentence without its full stop.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"cannot read {self.path}: {self.why}"
