"""Frames on disk until the collector has them, and a day longer (for `joulegram resend`).

A frame is durable once `append` returned: it survives a kill of this process and a loss of
power (SQLite, WAL, synchronous=FULL: one fsync a commit, three commits a window). Positions
are the order of appending; (epoch, seq) is a frame's identity.
"""

import logging
import sqlite3
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from joulegram.agent.errors import SpoolFailed
from joulegram.agent.rarely import Rarely
from joulegram.agent.spool.fold import fold
from joulegram.agent.spool.home import (
    ACKED,
    AGAIN,
    FOLDED,
    NEW,
    OFFERED,
    PAGE_BYTES,
    REFUSED,
    Home,
    energy_uj,
    is_damage,
    is_passing,
    signed,
)
from joulegram.agent.spool.salvage import last_position
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)
T = TypeVar("T")

MIN_BYTES = 1_000_000
HOUR_MS = 3_600_000
KEEP_ACKED_MS = 24 * HOUR_MS
MAX_AGE_MS = 30 * 24 * HOUR_MS
# Of frames too old, so many go with each new one: a clock that leaps for a minute costs little.
# (Nothing of frames that were made since this process began: they are no older than it is.)
TOO_OLD_AT_ONCE = 2
RECENT = 3  # the newest frames, which a back-fill must not hold up
# gRPC refuses a message above 4 MiB by default, and with it the whole stream.
LARGE_FRAME_BYTES = 3 << 20
INSERTED = "epoch, seq, window_start_ms, energy_uj, state, changed_at_ms, crc, body"


@dataclass(frozen=True, slots=True)
class Spooled:
    """One frame as it goes over the wire, but for sent_at_ms."""

    position: int
    epoch: int
    seq: int
    body: bytes


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """What the spool holds and what it has lost. Counts of lost joules survive restarts."""

    usable: bool  # False: the disk does not take part; counts are those of the last time it did
    pending: int  # frames to be sent
    acked: int
    refused: int
    used_bytes: int
    limit_bytes: int
    oldest_pending_ms: int | None  # start of the oldest window not acknowledged
    # By reason: full, age, refused (and then dropped), resend (acknowledged once), disk, damaged
    dropped_uj: Mapping[str, int]
    folded: int  # frames folded for want of room, since this process started
    salvages: int  # damaged databases met, since this process started
    unreadable: int  # frames a salvage could not bring back, since this process started


class Spool:
    """The frames of one node, held by this process until `close`.

    Any thread may call any method; each call is one short transaction.
    """

    def __init__(
        self,
        home: Callable[[], Home],
        *,
        max_bytes: int,
        keep_acked_ms: int,
        max_age_ms: int,
        now_ms: Callable[[], int],
        up_ms: Callable[[], int],
    ) -> None:
        """`Spool.open` is the way to one."""
        self._make_home = home
        self._max_bytes = max_bytes
        self._keep_acked_ms = keep_acked_ms
        self._max_age_ms = max_age_ms
        self._now_ms = now_ms
        self._up_ms = up_ms
        self._began_ms = up_ms()
        self._before_us = 0  # the last position that an earlier process gave out
        self._one_at_a_time = threading.Lock()
        self._folded = 0
        self._lost: Counter[str] = Counter()  # what the database could not be told yet
        self._rarely = Rarely(log)
        self._closed = False
        self._home: Home | None = None
        self._db: sqlite3.Connection | None = None
        self._last = SpoolStats(False, 0, 0, 0, 0, max_bytes, None, {}, 0, 0, 0)

    @classmethod
    def open(
        cls,
        state: Path,
        node: str,
        machine_id: str = "",
        max_bytes: int = 1 << 30,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        keep_acked_ms: int = KEEP_ACKED_MS,
        max_age_ms: int = MAX_AGE_MS,
        up_ms: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
    ) -> Self:
        """The spool of `node` in `state`; made where there is none.

        On a disk that is full or read-only it begins without one: every call raises SpoolFailed,
        and tries again, until the disk is well.

        Args:
            machine_id: contents of /etc/machine-id; empty where the machine has none.
            max_bytes: what the database may hold; its write-ahead log adds a few MB.
            keep_acked_ms: how long acknowledged frames stay.
            max_age_ms: a frame that waited longer for its acknowledgement is dropped.
            up_ms: a clock that nobody sets, and that goes on during a suspend.
        Raises: SpoolInUse when another agent holds `state`; SpoolFailed when it cannot be used.
        """
        if max_bytes < MIN_BYTES:
            raise SpoolFailed(
                f"spool_max_mb = {max_bytes / 1e6:g} is too small to hold frames: give it at "
                f"least {MIN_BYTES / 1e6:g} (1024 is the default)."
            )
        spool = cls(
            lambda: Home(state, node, machine_id, now_ms),
            max_bytes=max_bytes,
            keep_acked_ms=keep_acked_ms,
            max_age_ms=max_age_ms,
            now_ms=now_ms,
            up_ms=up_ms,
        )
        try:
            spool._reach()
        except (OSError, sqlite3.Error) as exc:
            if is_passing(exc, state):
                log.warning(
                    "no spool in %s for now: %s. Frames wait in memory, a bounded number of them; "
                    "make room on the disk, or make it writable.",
                    state,
                    exc,
                )
                return spool
            spool.close()
            raise SpoolFailed(
                f"cannot keep a spool in {state}: {exc}. Make it a writable directory on a disk "
                "with room, or name another with --state DIR."
            ) from exc
        except BaseException:
            spool.close()
            raise
        return spool

    def close(self) -> None:
        with self._one_at_a_time:
            self._closed = True
            if self._db is not None:
                self._db.close()
            if self._home is not None:
                self._home.release()

    # -- frames in -----------------------------------------------------------------------------

    def append(self, frame: Frame) -> bool:
        """Keep a frame; durable on return. False when there was no room and it was dropped.

        At the bound acknowledged frames go first, then frames never offered are folded, then
        this one is; then refused frames go, and at last the oldest never offered, its joules
        counted as dropped. Frames older than the age limit go whether there is room or not.

        Raises: SpoolFailed when the disk does not take it; nothing was kept.
        """
        if frame.sent_at_ms:
            stamped, frame = frame, Frame()
            frame.CopyFrom(stamped)
            frame.ClearField("sent_at_ms")
        with self._one_at_a_time:
            lost = +self._lost

            def work(db: sqlite3.Connection) -> bool:
                for reason, uj in lost.items():
                    _count_dropped(db, reason, uj)
                return self._append(db, frame)

            kept = self._committed(work)
            self._lost -= lost
            return kept

    def count_lost(self, frame: Frame, reason: str) -> None:
        """Count the joules of a frame that could not even be appended."""
        with self._one_at_a_time:
            self._lost[reason] += energy_uj(frame)

    # -- frames out ----------------------------------------------------------------------------

    def offer(
        self,
        limit: int,
        *,
        recent: bool,
        in_flight: Collection[int] = (),
        without_newest: bool = False,
    ) -> list[Spooled]:
        """Up to `limit` frames to send now, in order; their bytes never change from here on.

        Fewer are all there are.

        Args:
            recent: from the newest RECENT frames; else from those before them.
            in_flight: positions to leave out.
            without_newest: leave out the very newest frame too.
        """
        return self._commit(lambda db: self._offer(db, limit, recent, in_flight, without_newest))

    def ack(self, ranges: Iterable[tuple[int, int, int]]) -> int:
        """The collector holds these (epoch, first seq, last seq). Returns how many are news.

        A frame that was never offered cannot have arrived: it stays, whatever the range says.
        """
        now_ms = self._now_ms()
        values = [
            (ACKED, now_ms, signed(epoch), _clamped(first), _clamped(last), OFFERED)
            for epoch, first, last in ranges
        ]

        def work(db: sqlite3.Connection) -> int:
            return db.executemany(
                "UPDATE frames SET state = ?, changed_at_ms = ?"
                " WHERE epoch = ? AND seq BETWEEN ? AND ? AND state = ?",
                values,
            ).rowcount

        return self._commit(work)

    def quarantine(self, epoch: int, seq: int, reason: str, detail: str) -> bool:
        """The collector will never store this frame: keep it for a person to look at."""

        def work(db: sqlite3.Connection) -> bool:
            return bool(
                db.execute(
                    "UPDATE frames SET state = ?, changed_at_ms = ?, reason = ?, detail = ?"
                    " WHERE epoch = ? AND seq = ? AND state = ?",
                    (REFUSED, self._now_ms(), reason[:100], detail[:1000],
                     signed(epoch), _clamped(seq), OFFERED),
                ).rowcount
            )  # fmt: skip

        return self._commit(work)

    def pending(self) -> int:
        """How many frames are not acknowledged."""

        def work(db: sqlite3.Connection) -> int:
            return _int(db, "SELECT count(*) FROM frames WHERE state < 3")

        return self._commit(work)

    def stats(self) -> SpoolStats:
        """What it holds; while the disk fails, what it held. Raises: SpoolFailed once closed."""
        try:
            self._last = self._commit(self._stats)
        except SpoolFailed:
            if self._closed:
                raise
            self._last = replace(self._last, usable=False)
        return replace(self._last, dropped_uj=Counter(self._last.dropped_uj) + self._lost)

    # -- the transactions ----------------------------------------------------------------------

    def _append(self, db: sqlite3.Connection, frame: Frame) -> bool:
        _forget_acked(db, self._now_ms() - self._keep_acked_ms)
        self._drop_too_old(db, self._now_ms() - self._max_age_ms)
        state, body = NEW, _serialised(frame)
        if len(body) > LARGE_FRAME_BYTES:
            state, body = FOLDED, _serialised(fold(frame))
        while not self._room(db, len(body)):
            if self._give_way(db):
                continue
            if state == NEW:
                state, body = FOLDED, _serialised(fold(frame))
                self._folded += 1
            elif (uj := _delete_oldest(db, REFUSED)) is not None:
                _count_dropped(db, "refused", uj)
            elif (uj := _delete_oldest(db, FOLDED)) is not None:
                _count_dropped(db, "full", uj)
                self._say_full(uj)
            else:
                _count_dropped(db, "full", energy_uj(frame))
                self._say_full(energy_uj(frame))
                return False
        try:
            db.execute(
                f"INSERT INTO frames ({INSERTED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                (signed(frame.epoch), _clamped(frame.seq), frame.window_start_ms,
                 energy_uj(frame), state, self._now_ms(), zlib.crc32(body), body),
            )  # fmt: skip
        except sqlite3.IntegrityError as exc:
            raise ValueError(
                f"frame {frame.epoch:x}/{frame.seq} is in the spool already: an epoch must be "
                "64 fresh random bits, and seq must grow"
            ) from exc
        return True

    def _drop_too_old(self, db: sqlite3.Connection, before_ms: int) -> None:
        rows = db.execute(
            "SELECT position, energy_uj, changed_at_ms FROM frames WHERE state < 3"
            " ORDER BY position LIMIT ?",
            (TOO_OLD_AT_ONCE,),
        ).fetchall()
        ours_may_be_old = self._up_ms() - self._began_ms >= self._max_age_ms
        for position, uj, since_ms in rows:
            if since_ms < before_ms and (ours_may_be_old or position <= self._before_us):
                db.execute("DELETE FROM frames WHERE position = ?", (position,))
                _count_dropped(db, "age", uj)
                self._rarely.warn(
                    "age",
                    "dropped a frame of %.1f J that waited for more than %g days "
                    "(spool_max_days): no collector would take it. Bring the collector back.",
                    uj / 1e6,
                    self._max_age_ms / (24 * HOUR_MS),
                )

    def _give_way(self, db: sqlite3.Connection) -> bool:
        """Free a little room, not yet at the price of joules that were never delivered."""
        if _delete_oldest(db, ACKED) is not None:
            return True
        if (uj := _delete_oldest(db, AGAIN)) is not None:
            _count_dropped(db, "resend", uj)
            self._rarely.warn("resend", "the spool is full: a frame asked for again went unsent")
            return True
        return self._fold_oldest(db)

    def _room(self, db: sqlite3.Connection, size: int) -> bool:
        used = _int(db, "PRAGMA page_count") - _int(db, "PRAGMA freelist_count")
        # 8 pages of slack: index entries, and pages that split.
        return (used + size // (PAGE_BYTES - 4) + 8) * PAGE_BYTES <= self._max_bytes

    def _fold_oldest(self, db: sqlite3.Connection) -> bool:
        row = db.execute(
            "SELECT position, body FROM frames WHERE state = ? ORDER BY position LIMIT 1", (NEW,)
        ).fetchone()
        if row is None:
            return False
        position, body = row
        try:
            body = _serialised(fold(Frame.FromString(body)))
        except Exception:  # of any kind: a frame that cannot be folded goes as it is
            self._rarely.warn("fold", "a spooled frame could not be folded; it is kept whole")
        db.execute(
            "UPDATE frames SET state = ?, body = ?, crc = ? WHERE position = ?",
            (FOLDED, body, zlib.crc32(body), position),
        )
        self._folded += 1
        return True

    def _say_full(self, uj: int) -> None:
        self._rarely.warn(
            "full",
            "the spool is full (%.0f MB): dropped a frame of %.1f J. Bring the collector back, or "
            "raise spool_max_mb.",
            self._max_bytes / 1e6,
            uj / 1e6,
        )

    def _offer(
        self,
        db: sqlite3.Connection,
        limit: int,
        recent: bool,
        in_flight: Collection[int],
        without_newest: bool,
    ) -> list[Spooled]:
        newest = _int(db, "SELECT coalesce(max(position), 0) FROM frames") if limit > 0 else 0
        leave = [*in_flight, newest] if without_newest else [*in_flight]
        offered: list[Spooled] = []
        damaged = True
        while damaged and len(offered) < limit:  # fewer than `limit` shall mean: that is all
            rows = db.execute(
                "SELECT position, epoch, seq, crc, body, energy_uj FROM frames"  # noqa: S608
                f" WHERE state < 3 AND position {'>' if recent else '<='} ?"
                f" AND position NOT IN ({', '.join('?' * len(leave))})"
                " ORDER BY position LIMIT ?",
                (newest - RECENT, *leave, limit - len(offered)),
            ).fetchall()
            damaged = False
            for position, epoch, seq, crc, body, uj in rows:
                if zlib.crc32(body) == crc:
                    db.execute(
                        "UPDATE frames SET state = ? WHERE position = ? AND state < ?",
                        (OFFERED, position, OFFERED),
                    )
                    offered.append(Spooled(position, epoch % 2**64, seq, body))
                    leave.append(position)
                    continue
                damaged = True
                db.execute(
                    "UPDATE frames SET state = ?, reason = 'damaged', detail = ?"
                    " WHERE position = ?",
                    (REFUSED, "its bytes changed on disk; it was not sent", position),
                )
                _count_dropped(db, "damaged", uj)
                self._rarely.warn(
                    "damaged", "frame %x/%d changed on disk and was not sent: check the disk",
                    epoch % 2**64, seq,
                )  # fmt: skip
        return offered

    def _stats(self, db: sqlite3.Connection) -> SpoolStats:
        held = dict(db.execute("SELECT state, count(*) FROM frames GROUP BY state"))
        dropped = Counter(
            {
                key.removeprefix("dropped_uj:"): uj
                for key, uj in db.execute("SELECT key, value FROM meta WHERE key > 'dropped_uj:'"
                                          " AND key < 'dropped_uj;'")
            }
        )  # fmt: skip
        oldest = db.execute(
            "SELECT window_start_ms FROM frames WHERE state < 3 ORDER BY position LIMIT 1"
        ).fetchone()
        pages = _int(db, "PRAGMA page_count") - _int(db, "PRAGMA freelist_count")
        return SpoolStats(
            usable=True,
            pending=sum(held.get(state, 0) for state in (AGAIN, NEW, FOLDED, OFFERED)),
            acked=held.get(ACKED, 0),
            refused=held.get(REFUSED, 0),
            used_bytes=pages * PAGE_BYTES,
            limit_bytes=self._max_bytes,
            oldest_pending_ms=oldest[0] if oldest else None,
            dropped_uj=dropped,
            folded=self._folded,
            salvages=self._home.salvages if self._home else 0,
            unreadable=self._home.unreadable if self._home else 0,
        )

    def _commit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run one transaction; durable on return. A database found damaged is rebuilt first."""
        with self._one_at_a_time:
            return self._committed(work)

    def _committed(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise SpoolFailed("the spool is closed; the agent is stopping")
        try:
            home, db = self._reach()
            try:
                return _transaction(db, work)
            except sqlite3.Error as exc:
                if not is_damage(exc):
                    raise
                self._db = home.rebuild(exc, db)
                self._before_us = min(self._before_us, last_position(self._db))
                return _transaction(self._db, work)
        except (OSError, sqlite3.Error) as exc:
            raise SpoolFailed(
                f"the spool cannot be used: {exc}. Check that the disk of the state directory "
                "has room and is writable; the agent goes on and tries again."
            ) from exc

    def _reach(self) -> tuple[Home, sqlite3.Connection]:
        """The database, opened if it is not yet. Raises: SpoolFailed, OSError, sqlite3.Error."""
        if self._home is None:
            self._home = self._make_home()
        if self._db is None:
            self._db = self._home.open()
            self._before_us = last_position(self._db)
            self._shrink(self._db)
        return self._home, self._db

    def _shrink(self, db: sqlite3.Connection) -> None:
        """Give the disk back what is above a bound that was lowered since."""
        if _int(db, "PRAGMA page_count") * PAGE_BYTES <= self._max_bytes:
            return

        def work(db: sqlite3.Connection) -> None:
            while not self._room(db, 0) and self._give_way(db):
                pass

        try:
            _transaction(db, work)
            db.execute("VACUUM")
        except sqlite3.Error as exc:  # it needs room for a copy
            log.warning("the spool's file could not be made smaller: %s", exc)


def _transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work(db)
        db.execute("COMMIT")
        return result
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _forget_acked(db: sqlite3.Connection, before_ms: int) -> None:
    """Delete acknowledged frames whose day is over, a few at a time."""
    db.execute(
        "DELETE FROM frames WHERE changed_at_ms < ? AND position IN"
        " (SELECT position FROM frames WHERE state = ? ORDER BY position LIMIT 16)",
        (before_ms, ACKED),
    )


def _delete_oldest(db: sqlite3.Connection, state: int) -> int | None:
    """Delete the oldest frame in a state; its energy in uJ, or None when there is none."""
    row = db.execute(
        "SELECT position, energy_uj FROM frames WHERE state = ? ORDER BY position LIMIT 1", (state,)
    ).fetchone()
    if row is None:
        return None
    db.execute("DELETE FROM frames WHERE position = ?", row[:1])
    return int(row[1])


def _count_dropped(db: sqlite3.Connection, reason: str, uj: int) -> None:
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = value + ?",
        (f"dropped_uj:{reason}", uj, uj),
    )


def _serialised(frame: Frame) -> bytes:
    return frame.SerializeToString(deterministic=True)


def _clamped(number: int) -> int:
    return min(number, 2**63 - 1)


def _int(db: sqlite3.Connection, sql: str) -> int:
    return int(db.execute(sql).fetchone()[0])
