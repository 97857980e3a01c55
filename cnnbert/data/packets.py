"""Tells by a video's packets, without decoding, where decoding can start and which packets can be left out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MP4, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"

# A jump costs what decoding some frames costs: frames that the decoder holds back, and in long files the index.
FEWEST_SKIPPED = 8


@dataclass(frozen=True)
class Start:
    """A key frame from which on everything shown later decodes as it does from the beginning.

    Attributes:
        number: Its place in the order of showing.
        place: Its packet's place in the order of decoding.
        pts: Its time stamp, in the stream's units.
        seek: The time stamp under which the container finds it.
    """

    number: int
    place: int
    pts: int
    seek: int


class PacketIndex:
    """Collects what a stream's packets say.

    Only MP4 and Matroska files are trusted, and in them H.264, HEVC, VP9, FFV1 and Motion JPEG: their time stamps are
    those of showing, and their packets say in a few bytes whether anything shown later may refer to what came before,
    and for H.264 whether anything refers to them at all. A key flag alone does not say so: x264 sets it on the key
    frames of open GOPs and of periodic intra refresh.

    Args:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the codec.
        extradata: The stream's header.

    Attributes:
        has_early_frames: Whether frames are shown before the first key frame.
        has_open_keys: Whether decoding cannot start at some key frame.
        pts: The time stamps of all frames in the order of showing; empty where they do not tell frames apart.
        disposable: The time stamps of the frames that no other frame refers to, as far as is known.
        starts: Where decoding can start besides the beginning, in the order of showing.
    """

    def __init__(self, container: str, codec: str, extradata: bytes | None) -> None:
        self._is_mp4 = container == MP4
        self._codec = codec if container in (MP4, MATROSKA) else ""
        self._nal_length_size = _nal_length_size(self._codec, extradata or b"")
        self._keys: list[tuple[int, int, int]] = []
        self._latest: int | None = None
        self._num_packets = 0
        self.has_early_frames = False
        self.has_open_keys = False
        self.pts: list[int] = []
        self.disposable: set[int] = set()
        self.starts: list[Start] = []

    def add(self, packet: Any) -> None:
        """Take in the next packet, in the order of decoding."""
        place = self._num_packets
        self._num_packets += 1
        if packet.pts is None:
            self._codec = ""
        if not self._codec:
            return
        is_later = self._latest is None or packet.pts > self._latest
        if is_later:
            self._latest = packet.pts
        is_clean, is_disposable = self._read(memoryview(packet))
        if packet.is_keyframe and not packet.is_discard:
            seek = packet.dts if self._is_mp4 else packet.pts
            if (is_clean or not self.pts) and is_later and seek is not None:
                self._keys.append((place, packet.pts, seek))
            else:
                self.has_open_keys = True
        if not packet.is_discard:
            self.has_early_frames |= bool(self.pts) and packet.pts < self.pts[0]
            self.pts.append(packet.pts)
            if is_disposable:
                self.disposable.add(packet.pts)

    def settle(self, is_frame_each: bool) -> None:
        """Conclude when all packets have been added.

        Args:
            is_frame_each: Whether each packet holds a frame that is shown.
        """
        self.pts.sort()
        is_telling = all(a < b for a, b in zip(self.pts, self.pts[1:], strict=False))
        if not self._codec or not is_telling or not is_frame_each:
            self.pts, self.disposable = [], set()
            return
        numbers = {pts: number for number, pts in enumerate(self.pts)}
        self.starts = [Start(numbers[pts], place, pts, seek) for place, pts, seek in self._keys]

    def _read(self, data: memoryview) -> tuple[bool, bool]:
        """Return whether nothing shown after a key packet refers to anything before it, and whether no frame refers to
        the packet."""
        if self._codec == "mjpeg":
            return True, True
        if self._codec == "ffv1":  # the range coder's first symbol, at even odds: a key frame (RFC 9043, 3.8.1 and 4.4)
            return int.from_bytes(data[:2], "big") >= 0x7F80, False
        if self._codec == "vp9":  # frame marker 2, profile below 3, no frame shown again, key frame (VP9 standard, 6.2)
            return data[0] & 0b11001100 == 0b10000000 and data[0] & 0b00110000 != 0b00110000, False
        if self._codec == "h264":  # types 1 to 5 are pictures, 5 IDR; a recovery point promises less (H.264, 7.4.1)
            headers = [header for header in self._nal_headers(data) if 1 <= header & 31 <= 5]
            return bool(headers) and headers[0] & 31 == 5, bool(headers) and all(h >> 5 & 3 == 0 for h in headers)
        if self._codec == "hevc":  # after 16 to 21 nothing that follows in both orders refers past it (HEVC, 7.4.2.2)
            kinds = (header >> 1 & 63 for header in self._nal_headers(data))
            return 16 <= next((kind for kind in kinds if kind < 32), 0) <= 21, False
        return False, False

    def _nal_headers(self, data: memoryview) -> Iterator[int]:
        """Yield the first byte of each NAL unit."""
        size, at = self._nal_length_size, 0
        while size and at + size < len(data):
            yield data[at + size]
            at += size + int.from_bytes(data[at : at + size], "big")

    def plan(self, wanted: list[int]) -> list[tuple[Start | None, list[int]]]:
        """Group frames by where decoding starts for them.

        Args:
            wanted: Different frames in ascending order.

        Returns:
            Where to start, None for the beginning, and the frames that are decoded from there, ascending.
        """
        groups: list[tuple[Start | None, list[int]]] = []
        numbers = [start.number for start in self.starts]
        position = 0
        for number in wanted:
            place = bisect_right(numbers, number) - 1
            if place >= 0 and numbers[place] - position >= FEWEST_SKIPPED:
                groups.append((self.starts[place], [number]))
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
