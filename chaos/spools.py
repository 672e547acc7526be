"""What is in an agent's spool, seen from outside, and what it counted as gone."""

import contextlib
import re
import sqlite3
from collections.abc import Collection, Mapping
from pathlib import Path

from chaos.count import Identity, Made

PENDING, EVERY = "state < 3", "true"
# As the agent says it of a damaged spool.
UNREADABLE = re.compile(r"carried over; (\d+) could not be read, (\d+) had changed")


def held(node: str, spool: Path, which: str = PENDING) -> set[Identity] | None:
    """Frames in a spool; None when it cannot be read now."""
    rows = _ask(spool, f"SELECT epoch, seq FROM frames WHERE {which}")
    return None if rows is None else {(node, epoch % 2**64, seq) for epoch, seq in rows}


def dropped_uj(spool: Path) -> int:
    """Joules that the agent counted as gone, whatever the reason."""
    rows = _ask(spool, "SELECT value FROM meta WHERE key > 'dropped_uj:' AND key < 'dropped_uj;'")
    return sum(uj for (uj,) in rows or ())


def unreadable(said: str) -> int:
    """Frames that the agent counted as gone with a page, from what it said."""
    return sum(int(gone) + int(changed) for gone, changed in UNREADABLE.findall(said))


def gone(
    missing: Collection[Made],
    counted_uj: int,
    counted_frames: int,
    on_bad_pages: Collection[Identity],
) -> list[Identity]:
    """Those of the missing frames that their agent counted as gone.

    Args:
        counted_uj: joules that the spool counted as dropped.
        counted_frames: frames that it could not read back.
        on_bad_pages: frames that were no longer in it after a page went bad.
    """
    with_page = [one.identity for one in missing if one.identity in on_bad_pages]
    rest = [one for one in missing if one.identity not in on_bad_pages]
    found = with_page if len(with_page) <= counted_frames else []
    if sum(one.uj for one in rest) == counted_uj:
        found += [one.identity for one in rest]
    return found


def by_node(made: Collection[Made], stored: Mapping[Identity, int], node: str) -> list[Made]:
    """A node's frames that its spool had and that are not stored."""
    return [
        one for one in made if one.identity[0] == node and one.kept and one.identity not in stored
    ]


def _ask(spool: Path, sql: str) -> list[tuple[int, ...]] | None:
    with contextlib.suppress(sqlite3.Error, OSError):
        uri = f"{spool.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5.0)) as db:
            return db.execute(sql).fetchall()
    return None
