"""The embedded ledger: chDB, ClickHouse inside this process, one directory, no server.

One process owns a directory: our own lock file names the holder, so that a second one gets
an error a person can act on. Writes go through one session, one at a time;
every reading thread has a session of its own, since a session serialises its queries.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from joulegram.collector.errors import CollectorError, LedgerInUse, LedgerUnusable
from joulegram.collector.ledger.ledger import Value

# What can only be said at the start.
CONFIG = Path(__file__).with_name("chdb.xml")

# One insert must land as one part, whole or not at all: one thread writes it, as one block.
# We dedupe before inserting and when reading, so the server need not (it costs 40 %).
WRITE_SETTINGS: Mapping[str, Value] = {
    "async_insert": 0,
    "insert_deduplicate": 0,
    "max_insert_threads": 1,
    "max_threads": 1,
    "min_insert_block_size_rows": 1_000_000,
    "min_insert_block_size_bytes": 536_870_912,
    "optimize_on_insert": 0,
}

READ_SETTINGS: Mapping[str, Value] = {
    "max_execution_time": 30,
    "max_memory_usage": 2_000_000_000,
    "max_query_size": 16_777_216,
    "max_threads": 2,
}


class ChdbLedger:
    """A ledger directory, held by this process until `close`.

    A process can hold one directory at a time.
    Raises: LedgerInUse when another process holds it; LedgerUnusable when it cannot be locked, or
    its path cannot be said to chDB.
    """

    exclusive: bool = True
    cluster: str = ""

    def __init__(self, directory: Path) -> None:
        if "?" in str(directory):  # chDB would read a setting there
            raise LedgerUnusable(
                f"cannot keep a ledger in {directory}: its path has a question mark. Name another "
                "directory with --data DIR."
            )
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._lock = _lock(directory / "lock")
        self._writing = threading.Lock()
        self._local = threading.local()
        self._sessions: list[Any] = []
        self._idle = threading.Condition()
        self._running = 0
        self._closed = False
        try:
            self._writer = self._open({})
            self._writer.query("CREATE DATABASE IF NOT EXISTS joulegram")
            self._writer.query("USE joulegram")
            for key, value in WRITE_SETTINGS.items():
                self._writer.query(f"SET {key} = {value}")
        except BaseException:
            self.close()
            raise

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        """Append equal-length columns (numpy arrays or Arrow arrays) as one insert.

        Returns once they survive a kill of this process, and a power loss. Up to 500,000 rows
        and 128 MiB of one partition land whole or not at all.
        """
        block = pa.table(dict(columns))
        names = ", ".join(block.column_names)
        with self._busy(), self._writing:
            # chDB finds `block` by its name in this frame.
            self._writer.query(f"INSERT INTO {table} ({names}) SELECT {names} FROM Python(block)")

    def execute(self, sql: str) -> None:
        """Run one statement that changes the schema or drops partitions."""
        with self._busy(), self._writing:
            self._writer.query(sql)

    def query(self, sql: str, params: Mapping[str, Value] | None = None) -> pa.Table:
        """Run one SELECT in this thread's own session; `{name:Type}` takes its parameter."""
        with self._busy():
            if not hasattr(self._local, "session"):
                session = self._open(READ_SETTINGS)
                session.query("USE joulegram")
                self._local.session = session
            given = {name: _escaped(value) for name, value in (params or {}).items()}
            return self._local.session.query(sql, "ArrowTable", params=given)

    def close(self, timeout_s: float = 2.0) -> bool:
        """Refuse what comes, wait for what runs, let the directory go.

        Returns: False when something still runs; the directory is then held until the process
        ends, which is safe at any moment.
        """
        with self._idle:
            self._closed = True
            if not self._idle.wait_for(lambda: self._running == 0, timeout_s):
                return False
            sessions, self._sessions = self._sessions, []
            for session in sessions:
                session.close()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1
            return True

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise CollectorError(
                    f"the ledger {self._directory} is closed; this collector is stopping"
                )
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _open(self, settings: Mapping[str, Value]) -> Any:
        # Imported here: importing chDB reads a config.xml of the current directory, so the
        # collector first moves into its own.
        from chdb import session as chdb_session

        where = f"{self._directory / 'chdb'}?config-file={quote(str(CONFIG))}"
        session: Any = chdb_session.Session(where)  # type: ignore[no-untyped-call]
        self._sessions.append(session)
        for key, value in settings.items():
            session.query(f"SET {key} = {value}")
        return session


def _escaped(value: Value) -> Value:
    """As ClickHouse reads a parameter: texts with the escapes of its tab-separated format."""
    if not isinstance(value, str):
        return value
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _lock(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as denied:
        raise LedgerUnusable(
            f"cannot use the ledger in {path.parent}: {path.name}: {denied.strerror}. Run this as "
            "the user who keeps it, or name another directory with --data DIR."
        ) from denied
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise LedgerInUse(
            f"the ledger {path.parent} is in use by process {holder}. Stop that collector, "
            "or give this one a directory of its own with --data DIR."
        ) from exc
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
