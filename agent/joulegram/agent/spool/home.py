"""Where a spool lives on disk: held by one process, owned by one node, carried over when damaged.

<state>/lock            held while open; names the holder's pid
<state>/spool/frames.db the frames; a directory, so that it is set aside by one rename
<state>/spool.new       one being built; it takes its place when it is complete
<state>/spool.foreign-* another node's spool, never sent
<state>/spool.corrupt-* a damaged one, after its readable frames were carried over
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from joulegram.agent.errors import SpoolFailed, SpoolInUse
from joulegram.agent.spool.salvage import Damage, intact, readable
from joulegram.agent.spool.scattered import scattered
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

# States of a frame. Below ACKED it is to be sent; from OFFERED on its bytes never change. AGAIN was
# acknowledged once and is asked for again: its bytes do not change either.
AGAIN, NEW, FOLDED, OFFERED, ACKED, REFUSED = range(-1, 5)

PAGE_BYTES = 4096
CACHE_KIB = 256  # of pages in memory: frames are written once and read once
KEEP_ASIDE = 3  # spools set aside; older ones are deleted
SCHEMA_VERSION = 1
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE frames (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch INTEGER NOT NULL,            -- the 64 bits as a signed number
    seq INTEGER NOT NULL,
    window_start_ms INTEGER NOT NULL,
    energy_uj INTEGER NOT NULL,        -- of all devices
    state INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL,    -- when it came into this state
    reason TEXT NOT NULL DEFAULT '',   -- REFUSED: why
    detail TEXT NOT NULL DEFAULT '',
    crc INTEGER NOT NULL,              -- CRC-32 of body: SQLite's pages carry none
    body BLOB NOT NULL,                -- the serialised frame, without sent_at_ms
    UNIQUE (epoch, seq)
);
-- Used by queries that say `state < 3`, to the letter.
CREATE INDEX unacknowledged ON frames (position) WHERE state < {ACKED};
CREATE INDEX by_state ON frames (state, position);
PRAGMA user_version = {SCHEMA_VERSION};
"""
COLUMNS = (
    "position, epoch, seq, window_start_ms, energy_uj, state, changed_at_ms, reason, detail, crc, "
    "body"
)


class Home:
    """The directory of one node's spool, held by this process until `release`."""

    def __init__(self, state: Path, node: str, machine_id: str, now_ms: Callable[[], int]) -> None:
        """Raises: SpoolInUse when another process holds `state`; OSError."""
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        _tell_of_strangers(state)
        self.salvages = 0  # damaged databases met
        self.unreadable = 0  # frames a salvage could not bring back
        self._state = state
        self._now_ms = now_ms
        self._node = node
        # A machine-id is to be kept to its machine (machine-id(5)), so only a digest is stored.
        secret = f"joulegram spool {machine_id.strip()}"
        self._machine = machine_id.strip() and hashlib.sha256(secret.encode()).hexdigest()
        self._here, self._coming = state / "spool", state / "spool.new"
        self._lock = _lock(state)

    def release(self) -> None:
        os.close(self._lock)

    def open(self) -> sqlite3.Connection:
        """This node's database: found, made, or made anew where the one found is not usable.

        Raises: SpoolFailed when it is from a newer joulegram; OSError, sqlite3.Error.
        """
        if not self._here.exists() and (self._coming / "complete").exists():
            self._coming.rename(self._here)  # a salvage was killed between its two renames
        if not self._here.exists():
            self._build().close()
            self._complete()
            self._put_in_place()
        db = None
        try:
            db = _connect(self._here / "frames.db")
            whose = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('node', 'machine')"))
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                db.close()
                raise SpoolFailed(
                    f"the spool {self._here} was written by a newer joulegram (version {version}; "
                    f"this one knows {SCHEMA_VERSION}). Run that one, or name another --state DIR."
                )
            if not self._is_ours(whose):
                db.close()
                self._leave(whose)
                return self.open()
            if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("quick_check found damage")
            db.executemany("REPLACE INTO meta VALUES (?, ?)", self._identity())
            return db
        except sqlite3.Error as exc:
            if is_damage(exc):
                return self.rebuild(exc, db)
            if db is not None:
                db.close()
            raise

    def rebuild(self, why: Exception, damaged: sqlite3.Connection | None) -> sqlite3.Connection:
        """A new database with every frame of the damaged one that can be read.

        Closes `damaged`, unless it raises (OSError, sqlite3.Error): then nothing has changed.
        """
        damage, database = Damage(), self._here / "frames.db"
        db = self._build()
        try:
            db.execute("BEGIN")
            reached = set()  # positions
            for row in readable(database, COLUMNS, damage):
                if self._is_whole(row):
                    reached.add(row["position"])
                    _carry(db, row)
                else:
                    damage.altered += 1
            for row in scattered(database, COLUMNS, PAGE_BYTES):
                if row["position"] not in reached and intact(row) and self._is_whole(row):
                    _carry(db, row)
            (kept,) = db.execute("SELECT count(*) FROM frames").fetchone()
            damage.unreadable = max(0, damage.unreadable - (kept - len(reached)))
            db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", _dropped(damaged))
            db.execute("COMMIT")
        finally:
            db.close()
        # Said before the old one goes: a kill between the two renames is then made good.
        self._complete()
        # Closed before the rename: on closing, SQLite deletes the log file by its path.
        if damaged is not None:
            damaged.close()
        aside = self._set_aside("corrupt")
        self._put_in_place()
        self.salvages += 1
        self.unreadable += damage.unreadable + damage.altered
        log.error(
            "the spool in %s is damaged (%s). %d frames were carried over; %d could not be read, "
            "%d had changed. The damaged one is kept as %s: check the disk.",
            self._state, why, kept, damage.unreadable, damage.altered, aside.name,
        )  # fmt: skip
        return _connect(self._here / "frames.db")

    def _build(self) -> sqlite3.Connection:
        shutil.rmtree(self._coming, ignore_errors=True)
        self._coming.mkdir(mode=0o700)
        db = _connect(self._coming / "frames.db")
        db.executescript(SCHEMA)
        db.executemany("REPLACE INTO meta VALUES (?, ?)", self._identity())
        return db

    def _identity(self) -> list[tuple[str, str]]:
        # A machine-id once known is not forgotten where it cannot be read now.
        known = [("machine", self._machine)] if self._machine else []
        return [("node", self._node), *known]

    def _is_ours(self, whose: Mapping[str, str]) -> bool:
        if "node" not in whose:
            raise sqlite3.DatabaseError("it does not say whose it is")
        machines = {whose.get("machine", ""), self._machine} - {""}
        return whose["node"] == self._node and len(machines) <= 1

    def _leave(self, whose: Mapping[str, str]) -> None:
        aside = self._set_aside("foreign")
        log.warning(
            "the spool in %s belongs to node %r%s, not to this one (%r): nothing of it is sent. "
            "It is kept as %s; delete it if that node is gone.",
            self._state,
            whose["node"],
            "" if whose["node"] != self._node else " on another machine",
            self._node,
            aside.name,
        )

    def _is_whole(self, row: Mapping[str, object]) -> bool:
        """Whether a salvaged row's columns agree with the frame beside them."""
        try:
            frame = Frame.FromString(bytes(row["body"]))  # type: ignore[call-overload]
        except Exception:  # protobuf's DecodeError, or a column of another type
            return False
        return (
            frame.node == self._node
            and (signed(frame.epoch), frame.seq) == (row["epoch"], row["seq"])
            and row["energy_uj"] == energy_uj(frame)
            and row["state"] in range(AGAIN, REFUSED + 1)
            and all(isinstance(row[key], int) for key in ("window_start_ms", "changed_at_ms"))
            and all(isinstance(row[key], str) for key in ("reason", "detail"))
        )

    def _set_aside(self, kind: str) -> Path:
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._now_ms() / 1000))
        aside, twin = self._state / f"spool.{kind}-{at}", 1
        while aside.exists():
            twin += 1
            aside = self._state / f"spool.{kind}-{at}-{twin}"
        self._here.rename(aside)
        kept = sorted(
            (*self._state.glob("spool.foreign-*"), *self._state.glob("spool.corrupt-*")),
            key=lambda path: path.stat().st_mtime_ns,
        )
        for old in kept[:-KEEP_ASIDE]:
            log.warning("deleting %s: only the last %d spools set aside are kept", old, KEEP_ASIDE)
            shutil.rmtree(old, ignore_errors=True)
        return aside

    def _complete(self) -> None:
        (self._coming / "complete").touch()
        _fsync_directory(self._coming)

    def _put_in_place(self) -> None:
        self._coming.rename(self._here)
        _fsync_directory(self._state)


def energy_uj(frame: Frame) -> int:
    """What the devices of a frame drew together, uJ, as far as a signed 64-bit number goes."""
    return min(sum(device.energy_uj for device in frame.devices), 2**63 - 1)


def signed(bits: int) -> int:
    """64 bits as SQLite's signed integer."""
    return bits - 2**64 if bits >= 2**63 else bits


def is_damage(exc: sqlite3.Error) -> bool:
    """Whether an error says that the file's content is wrong, not that it cannot be reached."""
    if isinstance(exc, (sqlite3.ProgrammingError, sqlite3.IntegrityError)):
        return False
    # Python's own complaints, such as text that is not UTF-8, carry no code. A lost table is
    # SQLITE_ERROR; a file that ends too early may be a short read.
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
    )


def is_passing(exc: Exception, state: Path) -> bool:
    """Whether an error is a disk's bad moment (full, read-only, failing), not a wrong setting."""
    if isinstance(exc, OSError):
        return exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):  # or may this user not write?
        with contextlib.suppress(OSError):
            return bool(os.statvfs(state).f_flag & os.ST_RDONLY)
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _carry(db: sqlite3.Connection, row: Mapping[str, object]) -> None:
    # Of two versions of a frame the later state is the newer one: it may have been folded, or
    # offered, and must not change back.
    db.execute(
        f"INSERT INTO frames ({COLUMNS}) VALUES ({', '.join('?' * len(row))})"  # noqa: S608
        " ON CONFLICT DO UPDATE SET state = excluded.state, changed_at_ms = excluded.changed_at_ms,"
        " reason = excluded.reason, detail = excluded.detail, crc = excluded.crc,"
        " body = excluded.body WHERE excluded.state > state",
        tuple(row.values()),
    )


def _dropped(damaged: sqlite3.Connection | None) -> list[tuple[str, int]]:
    """The counts of lost joules, where they can still be read."""
    if damaged is None:
        return []
    try:
        found = damaged.execute("SELECT key, value FROM meta WHERE key LIKE 'dropped_uj:%'")
        return [(key, uj) for key, uj in found if isinstance(uj, int)]
    except sqlite3.Error:
        return []


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
    try:
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file; an old one keeps its own
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 8000000")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tell_of_strangers(state: Path) -> None:
    status = state.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
        log.warning(
            "%s belongs to another user, or others may write to it: they can replace what this "
            "agent keeps there. Give it a folder of its own with --state DIR.",
            state,
        )


def _lock(state: Path) -> int:
    # Not through a link: whoever could make one here would have us write to a file of their choice.
    descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise SpoolInUse(
            f"the state directory {state} is in use by the agent with process id {holder}. Stop "
            "that agent, or give this one a directory of its own with --state DIR."
        ) from exc
    with contextlib.suppress(OSError):  # a full disk: the lock holds without our name in it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
