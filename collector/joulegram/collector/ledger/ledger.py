"""What every part may ask of a ledger, whichever database keeps it."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

Value: TypeAlias = str | int | float


class Ledger(Protocol):
    """Tables in columns. Every call may come from any thread."""

    exclusive: bool  # nobody but this process writes here
    cluster: str  # of servers whose tables are replicated; "": none

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        """Append equal-length columns (numpy arrays, Arrow arrays or lists) as one insert.

        Returns once they are durable. Up to 500,000 rows and 128 MiB of one partition land
        whole or not at all.
        """

    def execute(self, sql: str) -> None:
        """Run one statement that changes the schema or drops partitions."""

    def query(self, sql: str, params: Mapping[str, Value] | None = None) -> pa.Table:
        """Run one SELECT; `{name:Type}` takes its parameter."""

    def close(self, timeout_s: float = 2.0) -> bool:
        """Refuse what comes, wait for what runs. False when something still runs."""


def literal(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
