"""Frames straight into a ledger directory: the writer's own way, without the wire."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from joulegram.collector.checked import Checked
from joulegram.collector.errors import LedgerUnusable
from joulegram.collector.ledger.config import ClickhouseConfig
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.ledger.open import open_ledger
from joulegram.collector.packed import PackedFrame
from joulegram.collector.rollup import Rollup
from joulegram.collector.simulate.fleet import Fleet
from joulegram.collector.simulate.frames import CHUNK, Made, Maker
from joulegram.collector.simulate.totals import TEAM_NAMES, Totals
from joulegram.collector.writer import Store

DAY_S = 86_400
GROUP_ROWS = 200_000  # as many as a busy collector commits together


def fill(fleet: Fleet, data: Path, progress: Callable[[int], None]) -> Totals:
    """Write all frames of a fleet into the ledger in `data`, slots included.

    Frames that are there already stay as they are and are counted all the same.

    Args:
        progress: told how many windows of a node are done each time.
    Raises: LedgerInUse while a collector runs on it; LedgerUnusable when it cannot be
            made or a write fails.
    """
    ledger = open_ledger(data, ClickhouseConfig())
    try:
        migrate(ledger)
        rollup = Rollup(ledger)
        store = Store(ledger, lambda: time.time_ns() // 1_000_000)
        totals = Totals()
        makers = [Maker(fleet, node, TEAM_NAMES) for node in fleet.nodes]
        group: list[Made] = []
        window_s = fleet.plan.window_s
        rows = 0

        def commit() -> None:
            nonlocal rows
            frames = [
                Checked.of(PackedFrame.FromString(made.packed), made.packed) for made in group
            ]
            outcome = store.keep(frames)
            if outcome.busy:
                raise LedgerUnusable(
                    f"the ledger {data} did not take an insert (is its disk full?); run the same "
                    "command again: what is stored stays, and is not stored twice"
                )
            rollup.touch([one.frame for one in outcome.stored])
            for frame, made in zip(frames, group, strict=True):
                if frame in outcome.refused:
                    totals.refused += 1
                else:
                    totals.add(made)
            group.clear()
            rows = 0

        rolled_up_s = fleet.plan.since_s
        for first in range(0, fleet.plan.windows, CHUNK):
            for maker in makers:
                made = maker.chunk(first)
                group += made
                rows += sum(one.rows for one in made)
                if rows >= GROUP_ROWS:
                    commit()
                progress(min(CHUNK, fleet.plan.windows - first))
            done_s = fleet.plan.since_s + min(first + CHUNK, fleet.plan.windows) * window_s
            # A day at a time: a month of slots would be too many to remember.
            if done_s - rolled_up_s >= DAY_S or first + CHUNK >= fleet.plan.windows:
                commit()
                rollup.refresh(
                    datetime.fromtimestamp(rolled_up_s, UTC), datetime.fromtimestamp(done_s, UTC)
                )
                rolled_up_s = done_s
        return totals
    finally:
        ledger.close()
