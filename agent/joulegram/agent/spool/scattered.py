"""Frames out of single pages of a damaged spool, where the way to them through its tree is lost.

One bad page near the root of SQLite's tree cuts off every frame below it, though their own pages
are well. Here each page is read for itself. Reads only; knows the table `frames` alone.
Format https://www.sqlite.org/fileformat2.html, "B-tree Pages", "Record Format", "The WAL".
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLE_LEAF = 13
MAX_BODY = 64 << 20  # no record is longer; a nonsense length must not fill the memory


class Pages:
    """The pages of a database as they are now: its file, and what its log has newer."""

    def __init__(self, database: Path, page_bytes: int) -> None:
        """Raises: OSError when the file cannot be read."""
        self.size = page_bytes
        self._file = os.open(database, os.O_RDONLY)
        self._newer = _log(database.with_name(database.name + "-wal"), page_bytes)
        in_file = os.fstat(self._file).st_size // page_bytes
        self.count = max(in_file, max(self._newer, default=0))

    def close(self) -> None:
        os.close(self._file)

    def read(self, number: int) -> bytes:
        """Page `number`, from 1 on; empty where there is none."""
        if not 1 <= number <= self.count:
            return b""
        page = self._newer.get(number)
        if page is None:
            page = os.pread(self._file, self.size, (number - 1) * self.size)
        return page if len(page) == self.size else b""

    def free(self) -> set[int]:
        """Pages that hold nothing any more, as far as the list of them can be read."""
        found: set[int] = set()
        trunk = _number(self.read(1), 32)
        while 1 < trunk <= self.count and trunk not in found:
            found.add(trunk)
            page = self.read(trunk)
            held = min(_number(page, 4), self.size // 4 - 2)
            found |= {_number(page, 8 + 4 * index) for index in range(held)}
            trunk = _number(page, 0)
        return found


def scattered(database: Path, columns: str, page_bytes: int) -> Iterator[dict[str, Any]]:
    """Every row of `frames` that some page holds, in no order; {column: value}.

    An identity may come twice, should pages of the past still be there. Values are unchecked.
    """
    names = columns.split(", ")
    try:
        pages = Pages(database, page_bytes)
    except OSError:
        return
    try:
        free = pages.free()
        for number in range(1, pages.count + 1):
            page = b"" if number in free else pages.read(number)
            start = 100 if number == 1 else 0
            if not page or page[start] != TABLE_LEAF:
                continue
            for cell in range(int.from_bytes(page[start + 3 : start + 5], "big")):
                at = start + 8 + 2 * cell
                try:
                    row = _row(pages, page, int.from_bytes(page[at : at + 2], "big"))
                except (IndexError, ValueError):  # nonsense: the next cell may be well
                    continue
                if len(row) == len(names):
                    yield dict(zip(names, row, strict=True))
    finally:
        pages.close()


def _row(pages: Pages, page: bytes, at: int) -> list[Any]:
    """The record of a cell; its first value is the row's number. Raises: IndexError, ValueError."""
    length, at = _varint(page, at)
    rowid, at = _varint(page, at)
    record = _payload(pages, page, at, length)
    end, at = _varint(record, 0)
    values: list[Any] = []
    where = end
    while at < end:
        kind, at = _varint(record, at)
        value, where = _value(record, kind, where)
        values.append(value)
    if where != length or not values:
        raise ValueError("a record of another length")
    return [rowid, *values[1:]]


def _payload(pages: Pages, page: bytes, at: int, length: int) -> bytes:
    if not 0 < length <= MAX_BODY:
        raise ValueError("no such length")
    most = pages.size - 35
    if length <= most:
        return page[at : at + length]
    least = (pages.size - 12) * 32 // 255 - 23
    local = least + (length - least) % (pages.size - 4)
    local = local if local <= most else least
    parts, left = [page[at : at + local]], length - local
    following = _number(page, at + local)
    while left > 0:
        more = pages.read(following)
        if not more:
            raise ValueError("its chain of pages ends early")
        parts.append(more[4 : 4 + left])
        left -= pages.size - 4
        following = _number(more, 0)
    return b"".join(parts)


def _value(record: bytes, kind: int, at: int) -> tuple[Any, int]:
    if kind in (0, 8, 9):
        return (None, 0, 1)[kind - 7 if kind else 0], at
    if 1 <= kind <= 6:
        size = (1, 2, 3, 4, 6, 8)[kind - 1]
        return int.from_bytes(record[at : at + size], "big", signed=True), at + size
    if kind < 12:
        raise ValueError("a kind of value that no frame has")
    size = (kind - 12) // 2
    raw = record[at : at + size]
    return (raw.decode() if kind % 2 else raw), at + size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index in range(8):
        number = number << 7 | raw[at + index] & 0x7F
        if raw[at + index] < 0x80:
            return number, at + index + 1
    return number << 8 | raw[at + 8], at + 9


def _number(page: bytes, at: int) -> int:
    return int.from_bytes(page[at : at + 4], "big")


def _log(path: Path, page_bytes: int) -> dict[int, bytes]:
    """Pages that the write-ahead log has newer than the file: of whole transactions only."""
    try:
        raw = path.read_bytes()
    except OSError:
        return {}
    salt, newer, open_ = raw[16:24], dict[int, bytes](), dict[int, bytes]()
    for at in range(32, len(raw) - page_bytes - 23, page_bytes + 24):
        if raw[at + 8 : at + 16] != salt:  # of a log before this one
            break
        open_[_number(raw, at)] = raw[at + 24 : at + 24 + page_bytes]
        if _number(raw, at + 4):  # the last page of a transaction
            newer |= open_
            open_ = {}
    return newer
