"""The table of faults and outcomes, for people and as JSON."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chaos.count import Row


def show(shape: str, rows: Sequence[Row]) -> None:
    """Print it; energies in joules would hide a microjoule, so they are not."""
    table = Table("fault", title=f"{shape}: joules sent = joules in the ledger? (uJ)")
    columns = ("times", "sent", "stored", "counted as dropped", "lost", "doubled")
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.fault, *(f"{value:,}" for value in _numbers(row)))
    table.add_section()
    sums = [sum(column) for column in zip(*map(_numbers, rows), strict=True)]
    table.add_row("all", *(f"{value:,}" for value in sums))
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def _numbers(row: Row) -> tuple[int, ...]:
    return (
        row.times,
        row.sent_uj,
        row.stored_uj,
        row.dropped_uj,
        row.lost_uj,
        row.doubled_uj,
    )


def write(path: Path, found: Sequence[tuple[str, Row]]) -> None:
    """All shapes' rows, as one list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    entries = [{"shape": shape, **row.as_dict()} for shape, row in found]
    draft.write_text(json.dumps(entries, indent=2) + "\n")
    draft.replace(path)
