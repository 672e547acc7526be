"""A real ledger with the carbon side set up, and frames put through the real writer."""

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from joulegram.collector import reports
from joulegram.collector.config import GridConfig
from joulegram.collector.grid import table, yearly
from joulegram.collector.grid.table import IntensityRow
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.rollup import Rollup
from joulegram.collector.sites import record_site, site_of
from joulegram.collector.writer import Writer
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.made_frames import checked

START = datetime(2026, 9, 21, 12, tzinfo=UTC)  # the start of a slot
START_S = int(START.timestamp())
DIRECT = "average-direct-consumption"

TABLES = (
    "rows",
    "devices",
    "reservations",
    "workloads",
    "slots",
    "totals",
    "intensity",
    "settings",
)


class Place:
    """A site's ledger, its roll-up and its clock."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.clear()

    def clear(self) -> None:
        for name in TABLES:
            self.ledger.execute(f"TRUNCATE TABLE {name}")
        self.now = START + timedelta(hours=4)
        self.rollup = Rollup(self.ledger)

    def configure(self, *, at: datetime = START, **grid: Any) -> None:
        """What a start of the collector does with [grid]."""
        config = GridConfig(**grid)
        record_site(self.ledger, site_of(config), ms(at))
        table.append_new(self.ledger, yearly.rows(config.zone, ms(at)))

    def store(self, frames: Sequence[Frame], landed: datetime | None = None) -> None:
        """Through the real writer, landing at a time; default: a second after the last window."""
        last_ms = max(f.window_start_ms + f.window_ms for f in frames)
        landed_ms = ms(landed) if landed else last_ms + 1000

        async def write() -> None:
            writer = Writer(
                self.ledger,
                group_s=0.0,
                now_ms=lambda: landed_ms,
                on_durable=[self.rollup.touch],
            )
            running = asyncio.create_task(writer.run())
            refused = await writer.send(checked(*frames))
            assert not refused, refused
            writer.close()
            await running

        asyncio.run(write())

    def grid(
        self,
        hour: float,
        g_per_kwh: float,
        *,
        known: datetime = START,
        quality: str = "estimated",
        hours: float = 1,
        zone: str = "GB",
        provider: str = "neso",
    ) -> None:
        """An intensity over an hour after START."""
        start_s = START_S + round(hour * 3600)
        end_s = start_s + round(hours * 3600)
        row = IntensityRow(zone, DIRECT, start_s, end_s, provider, ms(known), 0, g_per_kwh, quality)
        table.append_new(self.ledger, [row])

    def report(self, hours: float = 4, **more: Any) -> dict[str, Any]:
        asked = {"since": START, "until": START + timedelta(hours=hours), "now": self.now} | more
        return reports.report(self.ledger, self.rollup, **asked)


@contextmanager
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as directory:
        ledger = ChdbLedger(Path(directory))
        try:
            migrate(ledger)
            yield Place(ledger)
        finally:
            ledger.close()


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
