"""Numbers that cost a query: refreshed on a clock, read by /metrics and the page at no cost."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from joulegram.collector import reports, series
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.stored_totals import StoredTotals
from joulegram.collector.totals import TeamGrams

log = logging.getLogger(__name__)

GRID_EVERY_S = 10.0
GRID_UNKNOWN_EVERY_S = 1.0
TEAMS_EVERY_S = 15.0
TEAMS_SHARE = 0.03  # of the time, at most: the slots that still grow are summed anew each time
ENERGY_EVERY_S = 2.0
ENERGY_SHARE = 0.1
# Revisions of a grid feed mostly touch the last two days; older grams are joined again each hour.
RECENT = timedelta(days=2)
OLDER_EVERY_S = 3600.0


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Standing:
    """The grid now, grams by team, and energy where it is not counted as it comes.

    A failure keeps the last answer and says so in `failing`.
    """

    ledger: Ledger
    rollup: reports.Refreshes
    teams: TeamGrams
    energy: StoredTotals | None = None
    now: Callable[[], datetime] = _now
    grid: dict[str, Any] | None = None  # as series.intensity_now answers
    failing: dict[str, str] = field(default_factory=dict)  # what: why
    _older: dict[str, float] = field(default_factory=dict)
    _older_until: datetime | None = None
    _older_at: datetime | None = None
    _tried: asyncio.Event = field(default_factory=asyncio.Event)

    async def first_try(self, within_s: float) -> None:
        """Return once all was asked for, or after a time; `run` must run."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), within_s)

    async def run(self) -> None:
        """Refresh until cancelled."""
        loop = asyncio.get_running_loop()
        # What it is, how often at most (s), and the most of the time that it may take.
        things: dict[str, tuple[Callable[[], None], Callable[[], float], float]] = {
            "grid intensity": (self.refresh_grid, self._grid_every_s, 1.0),
        }
        if self.energy is not None:
            things["energy"] = (self.energy.refresh, lambda: ENERGY_EVERY_S, ENERGY_SHARE)
        things["grams by team"] = (self.refresh_teams, lambda: TEAMS_EVERY_S, TEAMS_SHARE)
        due_s = dict.fromkeys(things, 0.0)
        # One thread, so that the queries keep their session.
        thread = ThreadPoolExecutor(1, "standing")
        try:
            while True:
                for what, (refresh, every_s, share) in things.items():
                    began_s = time.monotonic()
                    if began_s < due_s[what]:
                        continue
                    try:
                        await loop.run_in_executor(thread, refresh)
                    except Exception as failed:
                        self._keep(what, failed)
                    else:
                        self.failing.pop(what, None)
                    took_s = time.monotonic() - began_s
                    due_s[what] = began_s + max(every_s(), took_s / share)
                self._tried.set()
                await asyncio.sleep(max(0.1, min(due_s.values()) - time.monotonic()))
        finally:
            # Not waited for: it may take minutes, and ends once the ledger is closed.
            thread.shutdown(wait=False, cancel_futures=True)

    def _grid_every_s(self) -> float:
        known = self.grid is not None and self.grid["g_per_kwh"] is not None
        return GRID_EVERY_S if known else GRID_UNKNOWN_EVERY_S

    def _keep(self, what: str, failed: Exception) -> None:
        """Keep what was known of a thing; say so once."""
        reason = f"{type(failed).__name__}: {failed}"
        if what not in self.failing:
            log.warning("%s cannot be refreshed: %s", what, reason)
        self.failing[what] = reason[:500]

    def refresh_grid(self) -> None:
        self.grid = series.intensity_now(self.ledger, self.now())

    def refresh_teams(self) -> None:
        now = self.now()
        recent_since = datetime.combine((now - RECENT).date(), datetime.min.time(), UTC)
        stale = self._older_at is None or (now - self._older_at).total_seconds() > OLDER_EVERY_S
        if stale or self._older_until != recent_since:
            self._older = self._grams(self._oldest(), recent_since)
            self._older_until, self._older_at = recent_since, now
        grams = dict(self._older)
        for team, value in self._grams(recent_since, now).items():
            grams[team] = grams.get(team, 0.0) + value
        self.teams.update(grams)

    def _grams(self, since: datetime, until: datetime) -> dict[str, float]:
        if since >= until:
            return {}
        return reports.team_grams(self.ledger, self.rollup, since=since, until=until)

    def _oldest(self) -> datetime:
        """Start of the oldest thing kept; now when the ledger is empty."""
        oldest = [
            row["oldest"]
            for sql in (
                "SELECT count() AS n, toUnixTimestamp(min(window)) AS oldest FROM devices",
                "SELECT count() AS n, toUnixTimestamp(min(slot)) AS oldest FROM slots",
                "SELECT count() AS n, toUnixTimestamp(min(slot)) AS oldest FROM totals",
            )
            for row in self.ledger.query(sql).to_pylist()
            if row["n"]
        ]
        return datetime.fromtimestamp(min(oldest), UTC) if oldest else self.now()
