"""The embedded ledger: chDB, ClickHouse inside this process, one directory, no server.

One process owns a directory: our own lock file names the holder, so that a second one gets
an error a person can act on instead of chDB's. Writes go through one session, one at a time;
every reading thread has a session of its own, since a session serialises its queries.
"""

import fcntl
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from joulegram.collector.errors import LedgerInUse

Value: TypeAlias = str | int | float

READ_SETTINGS: Mapping[str, Value] = {
    "max_execution_time": 30,
    "max_memory_usage": 2_000_000_000,
    "max_threads": 2,
}


class ChdbLedger:
    """A ledger directory, held by this process until `close`.

    Raises: LedgerInUse when another process holds it.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._lock = _lock(directory / "lock")
        self._writing = threading.Lock()
        self._local = threading.local()
        self._writer = _session(directory)
        self._writer.query("CREATE DATABASE IF NOT EXISTS joulegram")
        self._writer.query("USE joulegram")

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        """Append equal-length columns (numpy arrays or Arrow arrays) as one insert.

        Returns once they survive a kill of this process; lands whole or not at all.
        """
        block = pa.table(dict(columns))
        names = ", ".join(block.column_names)
        with self._writing:
            # chDB finds `block` by its name in this frame.
            self._writer.query(f"INSERT INTO {table} ({names}) SELECT {names} FROM Python(block)")

    def execute(self, sql: str) -> None:
        """Run one statement that changes the schema or drops partitions."""
        with self._writing:
            self._writer.query(sql)

    def query(self, sql: str, params: Mapping[str, Value] | None = None) -> pa.Table:
        """Run one SELECT in this thread's own session; `{name:Type}` takes its parameter."""
        if not hasattr(self._local, "session"):
            self._local.session = _session(self._directory)
            self._local.session.query("USE joulegram")
            for key, value in READ_SETTINGS.items():
                self._local.session.query(f"SET {key} = {value}")
        return self._local.session.query(sql, "ArrowTable", params=dict(params or {}))

    def close(self) -> None:
        self._writer.close()
        os.close(self._lock)


def _session(directory: Path) -> Any:
    # Imported here: importing chDB reads a config.xml of the current directory, so the
    # collector first moves into its own.
    from chdb.session import Session

    return Session(str(directory / "chdb"))


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
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
