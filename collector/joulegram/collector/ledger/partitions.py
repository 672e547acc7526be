"""Partitions and parts of a table, and dropping a partition, on one server or on all of them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from joulegram.collector.ledger.cluster import local
from joulegram.collector.ledger.ledger import Ledger, literal


def partitions(ledger: Ledger, table: str) -> dict[str, tuple[int, int]]:
    """{partition: (when its parts last changed, epoch s; its rows)}, of whatever server."""
    found = ledger.query(
        "SELECT partition, toUInt32(max(modification_time)) AS changed_s, sum(rows) AS n "
        f"FROM {_active(ledger, table)} GROUP BY partition ORDER BY partition"
    )
    return {row["partition"]: (row["changed_s"], int(row["n"])) for row in found.to_pylist()}


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that the database keeps together; it never changes, but others may take its place."""

    name: str
    rows: int
    first_s: int  # least and greatest of the column by which the table is partitioned, epoch s
    last_s: int


def parts(ledger: Ledger, table: str) -> list[Part]:
    """The parts of a table now, of whatever server; two shards may each have an equal one."""
    found = ledger.query(
        "SELECT name, rows, toUInt32(min_time) AS first_s, toUInt32(max_time) AS last_s "
        f"FROM {_active(ledger, table)}"
    )
    return [Part(**row) for row in found.to_pylist()]


def drop_partition(ledger: Ledger, table: str, partition: str) -> None:
    """Drop one, everywhere. That it is gone already is no error."""
    everywhere = f" ON CLUSTER `{ledger.cluster}`" if ledger.cluster else ""
    ledger.execute(f"ALTER TABLE {_holder(ledger)}.{table}{everywhere} DROP PARTITION {partition}")


def period(partition: str) -> tuple[datetime, datetime]:
    """Start and end of a partition named YYYYMMDD or YYYYMM."""
    if len(partition) == 8:
        start = datetime.strptime(partition, "%Y%m%d").replace(tzinfo=UTC)
        return start, start + timedelta(days=1)
    start = datetime.strptime(partition, "%Y%m").replace(tzinfo=UTC)
    return start, (start + timedelta(days=31)).replace(day=1)


def _active(ledger: Ledger, table: str) -> str:
    # A cluster's `parts` asks every shard; see cluster.databases.
    source = "parts" if ledger.cluster else "system.parts"
    return (
        f"{source} WHERE active AND database = {literal(_holder(ledger))} "
        f"AND table = {literal(table)}"
    )


def _holder(ledger: Ledger) -> str:
    name: str = ledger.query("SELECT currentDatabase() AS name")["name"][0].as_py()
    return local(name) if ledger.cluster else name
