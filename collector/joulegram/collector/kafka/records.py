"""What a record of the topic holds: whole frames of one partition, in their own bytes.

A record is a `FrameBatch` of the wire: each frame is field 1 with its length before it. So
frames are packed by putting bytes side by side, nothing is read and nothing written anew, and
any program with the .proto can read the topic.
"""

import zlib
from collections.abc import Iterator, Sequence

TAG = b"\x0a"  # field 1, with a length


class Unpackable(Exception):
    """Bytes that are no FrameBatch."""


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
    """The frames of a record, unread. Raises: Unpackable."""
    return list(_frames(value))


def _frames(value: bytes) -> Iterator[bytes]:
    at, end = 0, len(value)
    while at < end:
        if value[at] != TAG[0]:
            raise Unpackable(f"byte {at} of {end} begins no frame")
        at += 1
        size = shift = 0
        while True:
            if at >= end or shift > 28:
                raise Unpackable(f"no length of a frame at byte {at} of {end}")
            byte = value[at]
            at += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        if at + size > end:
            raise Unpackable(f"a frame of {size} bytes begins at byte {at} of {end}")
        yield value[at : at + size]
        at += size


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
