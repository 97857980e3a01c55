"""Finds the frames of a video from which decoding can start, by what its packets say and without decoding."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

MP4, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"

# A jump costs what decoding some frames costs: the file's index, and frames that the decoder held back.
FEWEST_SKIPPED = 8


@dataclass(frozen=True)
class Start:
    """A key frame from which on everything shown later decodes as it does from the beginning.

    Attributes:
        number: Its place in the order of showing.
        pts: Its time stamp, in the stream's units.
        seek: The time stamp under which the container finds it.
    """

    number: int
    pts: int
    seek: int


class Starts:
    """Collects a file's packets, then tells where decoding can start and which frame has which time stamp.

    Only MP4 and Matroska files are trusted, and in them H.264, HEVC, VP9 and Motion JPEG: their time stamps are those
    of showing, and their key packets say in a few bytes whether anything shown later may refer to what came before.
    A key flag alone does not say so: x264 sets it on the key frames of open GOPs and of periodic intra refresh.

    Args:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the codec.
        extradata: The stream's header.
    """

    def __init__(self, container: str, codec: str, extradata: bytes | None) -> None:
        self.is_mp4 = container == MP4
        self.codec = codec if container in (MP4, MATROSKA) else ""
        self.nal_length_size = _nal_length_size(self.codec, extradata or b"")
        self.pts: list[int] = []
        self.keys: list[tuple[int, int]] = []
        self.latest: int | None = None
        self.has_early_frames = False

    def add(self, packet: Any) -> None:
        """Take in the next packet, in the order of decoding."""
        if packet.pts is None:
            self.codec = ""
        if not self.codec:
            return
        is_later = self.latest is None or packet.pts > self.latest
        is_key = packet.is_keyframe and not packet.is_discard and is_later and packet.dts is not None
        if is_key and (not self.pts or self._is_clean(packet)):
            self.keys.append((packet.pts, packet.dts if self.is_mp4 else packet.pts))
        if not packet.is_discard:
            self.has_early_frames |= bool(self.pts) and packet.pts < self.pts[0]
            self.pts.append(packet.pts)
        self.latest = packet.pts if is_later else self.latest

    def settle(self, first_pts: int | None) -> list[Start]:
        """Sort the time stamps, and return where decoding can start, in the order of showing.

        Args:
            first_pts: The time stamp of the first frame that is decoded from the beginning.

        Returns:
            Nothing where time stamps do not tell frames apart.
        """
        self.pts.sort()
        is_telling = all(a < b for a, b in zip(self.pts, self.pts[1:], strict=False))
        if not self.codec or not is_telling or not self.pts or self.pts[0] != first_pts:
            return []
        numbers = {pts: number for number, pts in enumerate(self.pts)}
        return [Start(numbers[pts], pts, seek) for pts, seek in self.keys]

    def _is_clean(self, packet: Any) -> bool:
        """Return whether nothing that is shown after this key packet refers to anything before it."""
        if self.codec == "mjpeg":
            return True
        data = memoryview(packet)
        if self.codec == "vp9":  # frame marker 2, profile below 3, no frame shown again, key frame (VP9 standard, 6.2)
            return data[0] & 0b11001100 == 0b10000000 and data[0] & 0b00110000 != 0b00110000
        if not self.nal_length_size:
            return False
        at = 0
        while at + self.nal_length_size < len(data):
            length = int.from_bytes(data[at : at + self.nal_length_size], "big")
            at += self.nal_length_size
            if self.codec == "h264":
                kind = data[at] & 31
                if 1 <= kind <= 5:
                    return kind == 5  # IDR; a recovery point promises less
            else:
                kind = data[at] >> 1 & 63
                if kind < 32:
                    return 16 <= kind <= 21  # IRAP: pictures that follow it in both orders do not refer past it
            at += length
        return False


def plan(wanted: list[int], starts: list[Start]) -> list[tuple[Start | None, list[int]]]:
    """Group frames by where decoding starts for them.

    Args:
        wanted: Different frames in ascending order.
        starts: Where decoding can start, in ascending order.

    Returns:
        Where to start, None for the beginning, and the frames that are decoded from there, ascending.
    """
    groups: list[tuple[Start | None, list[int]]] = []
    numbers = [start.number for start in starts]
    position = 0
    for number in wanted:
        place = bisect_right(numbers, number) - 1
        if place >= 0 and numbers[place] - position >= FEWEST_SKIPPED:
            groups.append((starts[place], [number]))
        elif groups:
            groups[-1][1].append(number)
        else:
            groups.append((None, [number]))
        position = number + 1
    return groups


def _nal_length_size(codec: str, extradata: bytes) -> int:
    """Return the bytes of a NAL unit's length, 0 where packets are not written so (ISO 14496-15)."""
    place = {"h264": 4, "hevc": 21}.get(codec, 0)
    if not place or len(extradata) <= place or extradata[0] != 1:
        return 0
    return (extradata[place] & 3) + 1
