"""Reading the kernel's small text files, whole or not at all.

A reader may meet a file in the middle of being written (a captured tree that is played back,
a driver that prints in two steps). What does not end in a newline is torn: read again.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

WILD = frozenset("*?[")
CONTROL = re.compile("[\x00-\x1f\x7f]")
DIGITS_MAX = 20  # of 64 bits
COUNT_BYTES = 64  # more than a count and the end of its line: what is short of it is whole
ATTEMPTS = 5
PAUSE_S = 0.0005
PIECE_BYTES = 16384  # all of most files in one call
WHOLE_BYTES = 1 << 20  # nobody needs more of one, however much there is


class Torn(ValueError):
    """The file did not hold one whole value in any of the attempts."""


def read_whole(path: str | Path, parse: Callable[[bytes], T | None]) -> T:
    """Read until `parse` accepts the bytes.

    Args:
        parse: returns None for bytes that are torn.
    Raises: OSError when the file cannot be read; Torn when it never held a whole value.
    """
    raw = b""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        raw = read_file(path)
        value = parse(raw)
        if value is not None:
            return value
    raise Torn(f"{path} does not hold one whole value: {raw[:80]!r}")


def read_count(path: str | Path) -> int:
    """The number in a one-line file, as `read_whole` with `as_count`; a hot path.

    Raises: OSError, Torn.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        raw = os.pread(file, COUNT_BYTES, 0)
    finally:
        os.close(file)
    value = as_count(raw)
    return read_whole(path, as_count) if value is None else value


def read_file(path: str | Path) -> bytes:
    """A whole file of the kernel's, at a third of what pathlib takes. Raises: OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        return whole(file)
    finally:
        os.close(file)


def whole(file: int) -> bytes:
    """An open file of the kernel's from its beginning. Raises: OSError."""
    raw = os.pread(file, PIECE_BYTES, 0)
    more = raw
    # Not until a short piece: long ones come a page at a time.
    while more and len(raw) < WHOLE_BYTES:
        raw += (more := os.pread(file, PIECE_BYTES, len(raw)))
    return raw


def matching(folder: Path, pattern: str) -> list[Path]:
    """Paths below a folder, sorted; none where it may not be entered: there Path.glob raises."""
    above = pattern.rpartition("/")[0]
    # Most folders are not there, and a glob that finds nothing costs ten times this.
    if not WILD.intersection(above) and not os.path.isdir(f"{folder}/{above}"):  # noqa: PTH112
        return []
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def is_there(path: Path) -> bool:
    """Whether it exists; no, where the way to it may not be entered: there Path.exists raises."""
    return os.path.exists(path)  # noqa: PTH110


def as_count(raw: bytes) -> int | None:
    """The non-negative integer of a one-line file, or None when the line is torn."""
    if raw.endswith(b"\n") and (digits := raw[:-1]).isdigit() and len(digits) <= DIGITS_MAX:
        return int(digits)
    return None


def as_line(raw: bytes) -> str | None:
    """The text of a one-line file, shown as `visible` does, or None when it is torn."""
    if raw.endswith(b"\n") and raw.count(b"\n") == 1:
        return visible(raw[:-1])
    return None


def visible(name: bytes | str) -> str:
    r"""A name as text that any format can carry: what is not UTF-8 becomes \xNN.

    Args:
        name: bytes as the kernel gave them, or text in which os.fsdecode kept such bytes.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    r"""`visible`, and control characters as \xNN too: for names that are identities."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", visible(name))
