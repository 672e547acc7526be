"""Real ledgers for a test, and one whose inserts fail as a disk or a network would.

A test that takes `ledger` runs once for every kind: what holds on one database holds on all.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate

KINDS = ("chdb", "clickhouse")


@contextlib.contextmanager
def opened(request: pytest.FixtureRequest, kind: str, folder: Path) -> Iterator[Ledger]:
    """An empty ledger without tables: embedded, or a database of the session's server."""
    if kind == "chdb":
        embedded = ChdbLedger(folder)
        try:
            yield embedded
        finally:
            embedded.close()
        return
    server = request.getfixturevalue("clickhouse")
    with server.database() as name:
        ledger = ClickhouseLedger(server.config(name))
        try:
            yield ledger
        finally:
            ledger.close()


@pytest.fixture(params=KINDS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger of the newest schema."""
    with opened(request, request.param, tmp_path / "ledger") as made:
        migrate(made)
        yield made


@dataclass
class Unreliable:
    """Fails inserts as told: `before` nothing was kept, `after` all of it was."""

    ledger: Ledger
    faults: list[tuple[str, str]] = field(default_factory=list)  # (table, before or after)
    exclusive: bool = True
    cluster: str = ""

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        fault = self.faults.pop(0) if self.faults and self.faults[0][0] == table else None
        if fault and fault[1] == "before":
            raise OSError("no space left on device")
        self.ledger.insert(table, columns)
        if fault:
            raise TimeoutError("no answer")

    def query(self, sql: str) -> Any:
        return self.ledger.query(sql)
