"""Two writers at once, one identity, two contents: slots add up all the same, and stay so."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from joulegram.collector import columns, counters
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.reports import report
from joulegram.collector.rollup import SHARED_EVERY_S, SLOT_S, Rollup
from joulegram.collector.writer import Outcomes, Store
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.ledgers import ledger
from tests.collector.made_frames import START_MS, checked, energy_uj, frame
from tests.collector.test_rollup import EVER, expected, slots

__all__ = ["ledger"]

START = datetime.fromtimestamp(START_MS / 1000, UTC)
RAW = ("rows", "devices", "reservations")


class Meanwhile:
    """Servers that others write to; something happens before an insert into a table."""

    exclusive = False
    cluster = ""

    def __init__(self, ledger: Ledger, table: str, happens: Callable[[], object]) -> None:
        self._ledger = ledger
        self._table = table
        self._happens = happens

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        if table == self._table:
            self._happens()
        self._ledger.insert(table, columns)

    def query(self, *arguments: Any) -> Any:
        return self._ledger.query(*arguments)


def keep(ledger: Any, *frames: Frame, landed_ms: int = START_MS + 60_000) -> Outcomes:
    outcomes = Store(ledger, lambda: landed_ms).keep(checked(*frames))
    assert not outcomes.busy and not outcomes.refused
    return outcomes


def race(ledger: Ledger, one: Frame, other: Frame, moment: str, *, same_ms: bool = False) -> None:
    """`other` is stored whole just before `one`, taken for new, reaches a table."""
    before_ms = START_MS + (60_000 if same_ms else 59_000)
    between = Meanwhile(ledger, moment, lambda: keep(ledger, other, landed_ms=before_ms))
    keep(between, one)


def answered(ledger: Ledger, **more: Any) -> dict[str, Any]:
    until = START + timedelta(seconds=SLOT_S)
    now = START + timedelta(hours=1)
    answer = report(ledger, Rollup(ledger), since=START, until=until, by="node", now=now, **more)
    assert answer["metered_uj"] == answer["total"]["energy_uj"]
    return answer


def two(sizes: str) -> tuple[Frame, Frame]:
    one, other = frame(1, rows=4, seed=1), frame(1, rows=4, seed=2)
    if sizes == "longer":
        one = frame(1, rows=9, gpu=True, seed=1)
    elif sizes == "shorter":
        other = frame(1, rows=9, gpu=True, seed=2)
    elif sizes == "turned":  # the same sum, by other components
        other.CopyFrom(one)
        for device, component in zip(other.devices, ("dram", "cpu"), strict=True):
            device.component = component
        other.rows.cpu_uj, other.rows.dram_uj = one.rows.dram_uj, one.rows.cpu_uj
    return one, other


@pytest.mark.parametrize("sizes", ["same", "longer", "shorter", "turned"])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("moment", ["devices", "rows"])
def test_two_contents_of_one_identity_add_up(
    ledger: Ledger, moment: str, merged: bool, sizes: str
) -> None:
    if not merged:
        for table in RAW:
            ledger.execute(f"SYSTEM STOP MERGES {table}")
    one, other = two(sizes)
    good = [frame(2), *(frame(seq, node="n2", gpu=True) for seq in range(1, 4))]
    keep(ledger, *good)
    race(ledger, one, other, moment)
    if merged:
        optimize(ledger)
    rollup = Rollup(ledger)
    rollup.refresh(*EVER)
    # Devices of one and rows of another cannot be told apart any more.
    counting = [one, *good] if moment == "devices" else good
    assert slots(ledger) == expected(counting)
    assert answered(ledger)["metered_uj"] == energy_uj(counting)
    assert {row["key"]: row["energy_uj"] for row in answered(ledger)["rows"]}["n2"] == energy_uj(
        good[1:]
    )
    if not merged:
        for table in RAW:
            ledger.execute(f"SYSTEM START MERGES {table}")
        optimize(ledger)
    assert Rollup(ledger).refresh(*EVER) == 0
    assert slots(ledger) == expected(counting)
    # And with what comes next.
    late = frame(3)
    keep(ledger, late, landed_ms=START_MS + 1_800_000)
    Rollup(ledger).refresh(*EVER)
    assert slots(ledger) == expected([*counting, late])
    assert answered(ledger)["metered_uj"] == energy_uj([*counting, late])
    before = answered(ledger, as_of=START + timedelta(minutes=20))
    latest = before["energy_as_of"] == "latest"
    assert latest or before["metered_uj"] in (energy_uj(counting), energy_uj([one, *good]))


@pytest.mark.parametrize("sizes", ["same", "longer", "shorter"])
@pytest.mark.parametrize("moment", ["devices", "rows"])
def test_two_contents_that_landed_in_one_millisecond_add_up(
    ledger: Ledger, moment: str, sizes: str
) -> None:
    one, other = two(sizes)
    good = frame(2)
    keep(ledger, good)
    race(ledger, one, other, moment, same_ms=True)
    answers = {answered(ledger)["metered_uj"]}
    optimize(ledger)
    answers.add(answered(ledger)["metered_uj"])
    (answer,) = answers
    assert answer in (energy_uj([good]), energy_uj([one, good]))


def test_a_slot_that_was_made_before_the_second_content_came_follows_it(ledger: Ledger) -> None:
    one, other = two("longer")
    good = frame(2)
    keep(ledger, good)
    now_s = [0.0]
    rollup = Rollup(ledger, monotonic_s=lambda: now_s[0])

    def meanwhile() -> None:
        keep(ledger, other)
        Rollup(ledger).refresh(*EVER)
        assert slots(ledger) == expected([other, good])

    keep(Meanwhile(ledger, "rows", meanwhile), one, landed_ms=START_MS + 61_000)
    now_s[0] += SHARED_EVERY_S
    rollup.look_at_others()
    rollup.refresh(*EVER)
    assert slots(ledger) == expected([good])
    late = frame(3)
    keep(ledger, late)
    Rollup(ledger).refresh(*EVER)
    assert slots(ledger) == expected([good, late])


def test_a_frame_whose_devices_are_not_here_yet_is_waited_for(ledger: Ledger) -> None:
    """A replica may have the rows of an insert before it has the devices of an earlier one."""
    first, second = frame(1), frame(2)
    keep(ledger, first)
    Rollup(ledger).refresh(*EVER)
    made = columns.of_rows(checked(second), [1], START_MS)
    ledger.insert("rows", made)
    assert Rollup(ledger).refresh(*EVER) == 0
    assert slots(ledger) == expected([first])
    devices = columns.of_devices(checked(second))
    assert devices is not None
    ledger.insert("devices", devices)
    assert Rollup(ledger).refresh(*EVER) == 1
    assert slots(ledger) == expected([first, second])


def test_it_is_counted_and_said_once(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    for table in RAW:
        ledger.execute(f"SYSTEM STOP MERGES {table}")

    def counted() -> list[float]:
        outcomes = ("left_out", "one_counts")
        return [counters.CONFLICTS.labels(outcome)._value.get() for outcome in outcomes]

    before = counted()
    race(ledger, frame(1, seed=1), frame(1, rows=9, seed=2), "rows")
    race(ledger, frame(2, seed=1), frame(2, rows=9, seed=2), "devices")
    rollup = Rollup(ledger)
    with caplog.at_level("WARNING"):
        rollup.refresh(*EVER)
        keep(ledger, frame(3))
        rollup.touch([frame(3)])
        rollup.refresh(*EVER)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1]
    (said,) = caplog.messages
    assert "frame 1 of epoch 0xe90c of n1" in said
    assert "copied state directory" in said


def optimize(ledger: Ledger) -> None:
    for table in RAW:
        ledger.execute(f"OPTIMIZE TABLE {table} FINAL")
