"""`joulegram resend`: frames that were acknowledged go to the collector again, after a restore.

Works on the spool's database beside a running agent or without one. The collector keeps a frame
once, however often it comes, so asking for too many costs time and nothing else.
"""

import contextlib
import re
import sqlite3
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from joulegram.agent.config import AgentConfig, ResendOptions
from joulegram.agent.errors import BadSetting, SpoolFailed
from joulegram.agent.spool.home import ACKED, AGAIN, SCHEMA_VERSION

HELP = "send acknowledged frames to the collector again, after its ledger was restored"
TABLES = {"agent": AgentConfig}
OPTIONS = ResendOptions

SLOT_MS = 300_000  # no window is longer
BUSY_S = 30.0  # how long a running agent may hold the database
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class Resent:
    """What is to be sent again."""

    frames: int
    energy_uj: int
    oldest_kept_ms: int | None = field(default=None)  # when the oldest kept frame was acknowledged


def run(agent: AgentConfig, options: ResendOptions) -> int:
    """Mark the frames and say how many. Returns 0. Raises: BadSetting, SpoolFailed."""
    now = datetime.now(UTC)
    since = moment(options.since, now)
    state = agent.state.expanduser()
    found = resend(state, agent.node, _ms(since), _ms(now))
    joules = f"{found.energy_uj // 1_000_000}.{found.energy_uj % 1_000_000:06d}"
    print(f"{found.frames} frames, {joules} J, acknowledged since {_shown(since)}, go again.")  # noqa: T201
    if found.frames:
        print("A running agent begins within a window; otherwise the next start does.")  # noqa: T201
    kept_ms = found.oldest_kept_ms
    if kept_ms is None or _ms(since) < kept_ms:
        first = "none" if kept_ms is None else f"none from before {_shown(_moment(kept_ms))}"
        print(  # noqa: T201
            f"joulegram resend: of acknowledged frames this spool keeps {first} "
            "(spool_keep_hours, spool_max_mb): what was acknowledged earlier cannot go again.",
            file=sys.stderr,
        )
    return 0


def resend(state: Path, node: str, since_ms: int, now_ms: int) -> Resent:
    """Make acknowledged frames pending again: of windows since then, or acknowledged since then.

    Raises: SpoolFailed when there is no spool of this node in `state`, or it cannot be written.
    """
    database = state / "spool" / "frames.db"
    try:
        before = database.stat().st_ino
        with contextlib.closing(_connect(database)) as db:
            _check(db, node, database)
            oldest_ms = db.execute(
                "SELECT min(changed_at_ms) FROM frames WHERE state = ?", (ACKED,)
            ).fetchone()[0]
            found = Resent(*_mark(db, since_ms, now_ms), oldest_ms)
        same = database.stat().st_ino == before
    except (OSError, sqlite3.Error) as exc:
        raise SpoolFailed(
            f"cannot use the spool {database}: {exc}. Name the agent's directory with --state DIR, "
            "and run this as the agent's user; a damaged spool is repaired when the agent starts."
        ) from exc
    if not same:  # it was damaged, and the agent put another in its place
        raise SpoolFailed(f"the agent replaced {database} meanwhile: run this again.")
    return found


def _connect(database: Path) -> sqlite3.Connection:
    uri = f"{database.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S)


def _check(db: sqlite3.Connection, node: str, database: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise SpoolFailed(f"{database} was written by a newer joulegram: run that one.")
    owner = db.execute("SELECT value FROM meta WHERE key = 'node'").fetchone()
    if owner is None or owner[0] != node:
        raise SpoolFailed(
            f"{database} belongs to node {owner[0] if owner else '?'!r}, not to {node!r}: name the "
            "node with --node, or the directory with --state."
        )


def _mark(db: sqlite3.Connection, since_ms: int, now_ms: int) -> tuple[int, int]:
    # A ledger restored to `since` lacks what it acknowledged later, however old the window; and
    # a window of later, should a clock have been wrong.
    chosen = "state = ? AND (changed_at_ms >= ? OR window_start_ms > ?)"
    values = (ACKED, since_ms, since_ms - SLOT_MS)
    db.execute("BEGIN IMMEDIATE")
    frames, uj = 0, 0
    for (energy_uj,) in db.execute(f"SELECT energy_uj FROM frames WHERE {chosen}", values):  # noqa: S608
        frames, uj = frames + 1, uj + energy_uj
    db.execute(
        f"UPDATE frames SET state = ?, changed_at_ms = ? WHERE {chosen}",  # noqa: S608
        (AGAIN, now_ms, *values),
    )
    db.execute("COMMIT")
    return frames, uj


def moment(text: str, now: datetime) -> datetime:
    """A time as people write it: a duration before now, or ISO 8601, UTC without an offset.

    Raises: BadSetting.
    """
    try:
        if ago := re.fullmatch(r"(\d{1,9})([smhdw])", text):
            return now - timedelta(seconds=int(ago[1]) * SECONDS[ago[2]])
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadSetting(
            f"--since {text!r}: give the time of the backup that was restored, such as "
            "2026-03-01T14:00Z, or a duration before now, such as 6h."
        ) from None


def _ms(when: datetime) -> int:
    return int(when.timestamp() * 1000)


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _shown(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
