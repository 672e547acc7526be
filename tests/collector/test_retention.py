"""Rows go, the energy that slots say stays."""

from datetime import UTC, datetime, timedelta

from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.retention import drop_expired
from joulegram.collector.rollup import Rollup
from tests.collector.ledgers import ledger
from tests.collector.made_frames import START_MS, frame
from tests.collector.test_rollup import EVER, expected, keep, slots

__all__ = ["ledger"]

DAY_MS = 86_400_000
TODAY = datetime.fromtimestamp(START_MS / 1000, UTC)


def days(ledger: Ledger, table: str) -> list[str]:
    found = ledger.query(
        "SELECT DISTINCT partition AS day FROM system.parts WHERE active "
        f"AND database = currentDatabase() AND table = '{table}' ORDER BY day"
    )
    return [str(day) for day in found["day"].to_pylist()]


def test_only_days_that_no_frame_can_reach_go_and_their_slots_stay(ledger: Ledger) -> None:
    frames = [frame(1, epoch=d + 1, start_ms=START_MS - d * DAY_MS) for d in range(6)]
    keep(ledger, frames)
    rollup = Rollup(ledger)
    assert len(drop_expired(ledger, rollup, 2.0, 13, TODAY)) == 6
    kept = [f"{TODAY - timedelta(days=d):%Y%m%d}" for d in (3, 2, 1, 0)]
    for table in ("rows", "devices", "reservations"):
        assert days(ledger, table) == kept
    assert drop_expired(ledger, rollup, 2.0, 13, TODAY) == []
    rollup.refresh(*EVER)
    Rollup(ledger).refresh(*EVER)
    assert slots(ledger) == expected(frames)


def test_a_slot_whose_rows_are_gone_is_never_written_from_the_few_that_are_left(
    ledger: Ledger,
) -> None:
    rollup = Rollup(ledger)
    frames = [frame(seq) for seq in range(1, 6)]
    keep(ledger, frames, rollup)
    rollup.refresh(*EVER)
    ledger.execute(f"ALTER TABLE rows DROP PARTITION {TODAY:%Y%m%d}")
    keep(ledger, [frame(6)], rollup)
    rollup.refresh(*EVER)
    assert slots(ledger) == expected(frames)
