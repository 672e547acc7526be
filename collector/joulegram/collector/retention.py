"""Raw rows go after `raw_days`, a whole day at a time; what their slots say stays.

A day goes a day later than frames of it are refused, so that none can still be on its way to a
slot that could not be recomputed.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.rollup import Rollup

log = logging.getLogger(__name__)

GRACE = timedelta(days=1)
EVERY_S = 3600.0

# Rows last: a day of which rows lie without devices is read from its slots.
TABLES = ("devices", "reservations", "rows")


def drop_expired(ledger: Ledger, rollup: Rollup, raw_days: float, now: datetime) -> int:
    """Drop the raw rows of every day that is too old, once its slots hold all of it.

    Returns: how many days went.
    """
    before = now - timedelta(days=raw_days) - GRACE
    found = ledger.query(
        "SELECT DISTINCT partition AS day FROM system.parts WHERE active "
        "AND database = currentDatabase() AND table IN ('rows', 'devices', 'reservations')"
    )
    expired = []
    for day in sorted(found["day"].to_pylist()):
        start = datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
        end = start + timedelta(days=1)
        if end <= before:
            rollup.refresh(start, end)
            expired.append(day)
    for day in expired:
        for table in TABLES:
            ledger.execute(f"ALTER TABLE {table} DROP PARTITION {day}")
    return len(expired)


async def run(
    ledger: Ledger,
    rollup: Rollup,
    raw_days: float,
    clock: Callable[[], float] = time.time,
) -> None:
    """Look every hour, until cancelled."""
    while True:
        now = datetime.fromtimestamp(clock(), UTC)
        try:
            gone = await asyncio.to_thread(drop_expired, ledger, rollup, raw_days, now)
            if gone:
                log.info("dropped the rows of %d days older than %g days", gone, raw_days)
        except Exception as exc:
            log.warning("old rows stay, trying again in %g s: %s", EVERY_S, exc)
        await asyncio.sleep(EVERY_S)
