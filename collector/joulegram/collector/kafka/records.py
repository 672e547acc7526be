"""What a record of the topic holds: whole frames of one partition, in their own bytes.

A record is a `FrameBatch` of the wire: each frame is field 1 with its length before it. So
frames are packed by putting bytes side by side, nothing is read and nothing written anew, and
any program with the .proto can read the topic.
"""

import zlib
from collections.abc import Sequence

TAG = b"\x0a"  # field 1, with a length


class Unpackable(Exception):
    """Bytes that are no FrameBatch.

    Args:
        frames: what could be taken before the break, unread.
        rest: what could not.
    """

    def __init__(self, why: str, frames: list[bytes], rest: bytes) -> None:
        super().__init__(why)
        self.frames = frames
        self.rest = rest


def partition_of(node: str, partitions: int) -> int:
    """CRC-32 of the node's name in UTF-8, modulo the number of partitions.

    The same in every process and release: frames of one node never change partition.
    """
    return zlib.crc32(node.encode()) % partitions


def pack(frames: Sequence[bytes]) -> bytes:
    """One record's value."""
    parts: list[bytes] = []
    for frame in frames:
        parts += (TAG, _varint(len(frame)), frame)
    return b"".join(parts)


def unpack(value: bytes) -> list[bytes]:
    """The frames of a record, unread; at least one. Raises: Unpackable."""
    frames: list[bytes] = []
    at, end = 0, len(value)
    try:
        if not value:
            raise ValueError("an empty record")
        while at < end:
            begin, size = _next(value, at)
            frames.append(value[begin : begin + size])
            at = begin + size
    except ValueError as broken:
        raise Unpackable(str(broken), frames, value[at:]) from None
    return frames


def _next(value: bytes, at: int) -> tuple[int, int]:
    """Where the frame at a tag begins, and its size. Raises: ValueError."""
    end = len(value)
    if value[at] != TAG[0]:
        raise ValueError(f"byte {at} of {end} begins no frame")
    at += 1
    size = shift = 0
    while True:
        if at >= end or shift > 28:
            raise ValueError(f"no length of a frame at byte {at} of {end}")
        byte = value[at]
        at += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if at + size > end:
        raise ValueError(f"a frame of {size} bytes begins at byte {at} of {end}")
    return at, size


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
