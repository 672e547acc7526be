"""A real ledger for a test, and one whose inserts fail as a disk or a network would."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.migrate import migrate


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ChdbLedger]:
    """An empty ledger of the newest schema."""
    made = ChdbLedger(tmp_path / "ledger")
    migrate(made)
    yield made
    made.close()


@dataclass
class Unreliable:
    """Fails inserts as told: `before` nothing was kept, `after` all of it was."""

    ledger: ChdbLedger
    faults: list[tuple[str, str]] = field(default_factory=list)  # (table, before or after)
    exclusive: bool = True

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        fault = self.faults.pop(0) if self.faults and self.faults[0][0] == table else None
        if fault and fault[1] == "before":
            raise OSError("no space left on device")
        self.ledger.insert(table, columns)
        if fault:
            raise TimeoutError("no answer")

    def query(self, sql: str) -> Any:
        return self.ledger.query(sql)
