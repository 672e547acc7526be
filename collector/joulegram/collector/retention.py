"""Raw rows go after `raw_days`, a whole day at a time, and slots after `slot_months`, a whole
month at a time; what their slots, and their totals, say stays.

A day goes a day later than frames of it are refused, so that none can still be on its way to a
slot that could not be recomputed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from joulegram.collector import counters
from joulegram.collector.kafka.config import SPOOLS_KEEP_DAYS
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.partitions import drop_partition, partitions, period
from joulegram.collector.rollup import Rollup
from joulegram.collector.sealed import seal, sealed_until

log = logging.getLogger(__name__)

GRACE = timedelta(days=1)
EVERY_S = 3600.0

# Rows last: a day of which rows lie without devices is read from its slots.
RAW_TABLES = ("devices", "reservations", "rows")
TABLES = (*RAW_TABLES, "slots", "totals", "intensity")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A partition that went."""

    table: str
    partition: str
    rows: int


def warn_of_spools(raw_days: float) -> None:
    """Say so when an agent could come back with frames too old to be taken."""
    if raw_days <= SPOOLS_KEEP_DAYS:
        log.warning(
            "collector.raw_days = %g: agents keep what they could not send for %g days, unless "
            "their spool_max_days says less, and what is older than raw_days is refused. Raise "
            "raw_days, or set spool_max_days of every agent below it.",
            raw_days,
            SPOOLS_KEEP_DAYS,
        )


def drop_expired(
    ledger: Ledger, rollup: Rollup, raw_days: float, slot_months: int, now: datetime
) -> list[Dropped]:
    """Drop the raw rows of every day that is too old, once its slots hold all of it, and the
    slots of every month that is too old, once its totals do.

    Returns: what went, oldest first.
    """
    dropped = _drop_raw(ledger, rollup, now - timedelta(days=raw_days) - GRACE)
    return dropped + _drop_slots(ledger, rollup, _months_before(now, slot_months), now)


def kept(ledger: Ledger) -> Iterator[str]:
    """Lines that say what the ledger holds: by table the rows, from when to when."""
    for table in TABLES:
        found = partitions(ledger, table)
        span = f"  {min(found)} to {max(found)}" if found else ""
        yield f"  {table:<12} {sum(n for _, n in found.values()):>14,} rows{span}"
    sealed = sealed_until(ledger)
    if sealed.year > 1970:
        yield f"  before {sealed:%Y-%m-%d} energy is kept by zone, team and slot alone"


async def run(
    ledger: Ledger,
    rollup: Rollup,
    raw_days: float,
    slot_months: int,
    clock: Callable[[], float] = time.time,
) -> None:
    """Look every hour, until cancelled."""
    while True:
        now = datetime.fromtimestamp(clock(), UTC)
        try:
            await asyncio.to_thread(drop_expired, ledger, rollup, raw_days, slot_months, now)
        except Exception as exc:
            log.warning("old rows stay, trying again in %g s: %s", EVERY_S, exc)
        await asyncio.sleep(EVERY_S)


def _drop_raw(ledger: Ledger, rollup: Rollup, before: datetime) -> list[Dropped]:
    found = {table: partitions(ledger, table) for table in RAW_TABLES}
    days = sorted({day for of_table in found.values() for day in of_table})
    expired = [day for day in days if period(day)[1] <= before]
    for day in expired:
        rollup.refresh(*period(day))
    return [
        _drop(ledger, table, day, found[table][day][1])
        for day in expired
        for table in RAW_TABLES
        if day in found[table]
    ]


def _drop_slots(ledger: Ledger, rollup: Rollup, before: datetime, now: datetime) -> list[Dropped]:
    found = partitions(ledger, "slots")
    expired = [month for month in sorted(found) if period(month)[1] <= before]
    for month in expired:
        start, end = period(month)
        # Sealed but still there: a kill came between the two.
        if end > sealed_until(ledger):
            rollup.refresh(start, end)
            seal(ledger, start, end, int(now.timestamp() * 1000))
    return [_drop(ledger, "slots", month, found[month][1]) for month in expired]


def _drop(ledger: Ledger, table: str, partition: str, rows: int) -> Dropped:
    drop_partition(ledger, table, partition)
    log.warning("dropped partition %s of %s, %d rows: older than is kept", partition, table, rows)
    counters.DROPPED.labels(table).inc(rows)
    return Dropped(table, partition, rows)


def _months_before(now: datetime, months: int) -> datetime:
    """The start of the month so many before this one."""
    year, month = divmod(now.year * 12 + now.month - 1 - months, 12)
    return datetime(year, month + 1, 1, tzinfo=UTC)
