"""Names the protocols by which videos are tested."""

from __future__ import annotations

from typing import Literal, NamedTuple

Average = Literal["logits", "probabilities"]

CountFailed = Literal["wrong", "left_out"]
"""What videos that cannot be read are in the accuracies of videos."""


class Protocol(NamedTuple):
    """Says which views of a video the network scores, and what is averaged over them.

    Attributes:
        num_clips: Clips of a video: 1 is the centre one, more are spread evenly; None takes all that follow one another
            without overlap.
        num_crops: Crops of a clip, as in `EvalTransform`.
        average: Whether the mean is that of the views' logits or of their probabilities.
    """

    num_clips: int | None
    num_crops: Literal[1, 3, 10]
    average: Average


PROTOCOLS = {
    "center_clip": Protocol(1, 1, "logits"),
    "all_clips_10_crops": Protocol(None, 10, "logits"),  # LTM (artest08/LateTemporalModeling3DCNN), its paper's numbers
    "10_clips_3_crops": Protocol(10, 3, "probabilities"),  # SlowFast (facebookresearch/SlowFast), Kinetics
}
