"""Frames out of a damaged spool: every one that can still be read, bit for bit.

Format https://www.sqlite.org/fileformat2.html
"""

import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Positions tried beyond the last readable frame when the file no longer says where it ended.
GIVE_UP_AFTER = 20_000
ENDLESS = 2**62


@dataclass(slots=True)
class Damage:
    """What a salvage could not bring back."""

    unreadable: int = 0  # positions whose pages are gone; some may never have held a frame
    altered: int = 0  # frames whose bytes no longer match their checksum


def readable(database: Path, columns: str, damage: Damage) -> Iterator[dict[str, Any]]:
    """Every intact row of `frames` in a damaged database, by position.

    Reads only. Rows come out as {column: value}; `damage` counts what did not.
    """
    try:
        db = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error:
        return
    try:
        # A file shorter than its header says is refused whole, unless one may write the schema.
        db.execute("PRAGMA writable_schema = ON")
        end = last_position(db, ENDLESS)
        position = misses = 0
        while position < end and misses < GIVE_UP_AFTER:
            try:
                for row in db.execute(
                    f"SELECT {columns} FROM frames NOT INDEXED"  # noqa: S608
                    " WHERE position > ? ORDER BY position",
                    (position,),
                ):
                    found = dict(zip(columns.split(", "), row, strict=True))
                    damage.unreadable += misses
                    position, misses = found["position"], 0
                    if intact(found):
                        yield found
                    else:
                        damage.altered += 1
                break
            except sqlite3.Error:
                # The page of the next position is gone: try the one after it.
                position += 1
                misses += 1
        if end < ENDLESS:
            damage.unreadable += misses
    except sqlite3.Error:
        return  # not even the schema can be read
    finally:
        db.close()


def intact(row: dict[str, Any]) -> bool:
    """Whether the frame's bytes are those that were written."""
    body = row["body"]
    return isinstance(body, bytes) and zlib.crc32(body) == row["crc"]


def last_position(db: sqlite3.Connection, unsaid: int = 0) -> int:
    """The last position ever given out; `unsaid` where the file does not say, or gave none."""
    try:
        row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'frames'").fetchone()
    except sqlite3.Error:
        row = None
    return row[0] if row and isinstance(row[0], int) else unsaid
