"""What every open video promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor


class Video(ABC):
    """An open video; a context manager.

    Attributes:
        num_frames: Frames that can be asked for, at least 1.
        fps: Frames a second, above 0; the average where the rate varies, 25 where the file does not tell.
    """

    num_frames: int
    fps: float

    @abstractmethod
    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return frames by their places in the order of showing.

        Args:
            indices: (N,), in [0, num_frames), in any order, repeats allowed.

        Returns:
            uint8 (N, C, H, W), RGB unless the reader says otherwise, the right way up. Pixels are those stored, also
            where the file says that they are not square: stretching is left to the transforms, which resize anyway.

        Raises:
            IndexError: An index is outside [0, num_frames).
            VideoReadError: A frame cannot be decoded, or only with damage, or not in time.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the video holds."""

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unique_frames(indices: Sequence[int] | Tensor, num_frames: int) -> tuple[list[int], Tensor | None]:
    """Return the different indices in ascending order, and where among them each given index is.

    Args:
        indices: (N,), in any order, repeats allowed.
        num_frames: Frames of the video.

    Returns:
        At most N indices, and int64 (N,); None in its place where the indices are those already.

    Raises:
        IndexError: An index is outside [0, num_frames).
    """
    given = torch.as_tensor(indices, dtype=torch.int64)
    wanted, places = given.unique(return_inverse=True)
    for index in wanted.tolist():
        if not 0 <= index < num_frames:
            raise IndexError(f"frame {index} is outside [0, {num_frames}), the frames of this video")
    return wanted.tolist(), None if torch.equal(wanted, given) else places
