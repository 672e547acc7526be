"""Totals read from the ledger are what it holds, whoever stored it, and never fall."""

import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from joulegram.collector import sealed
from joulegram.collector.errors import CollectorError
from joulegram.collector.ledger.ledger import Ledger, Value
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.rollup import Rollup
from joulegram.collector.stored_totals import (
    DAY_S,
    ENTRIES,
    HOUR_S,
    PIECE_UJ,
    TRIES,
    Piece,
    StoredTotals,
)
from joulegram.collector.totals import TOTALS_UJ, EnergyTotals
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.carbon import START, START_S, Place, ms
from tests.collector.ledgers import opened
from tests.collector.made import IDLE, Node, Row


def frames(node: Node, count: int = 1, *, day: int = 0, joules: float = 1.0) -> list[Frame]:
    """Windows of a node, one after the other, some days after START."""
    start_ms = ms(START) + day * DAY_S * 1000
    rows = [Row(IDLE, cpu_j=joules, dram_j=joules / 2)]
    return [node.frame(start_ms + (node.seq * 10_000), rows) for _ in range(count)]


def cpu_uj(totals: StoredTotals) -> dict[str, int]:
    return {node: uj for node, component, uj in totals.items() if component == "cpu"}


def drop_raw(site: Place, day: int) -> None:
    gone = START + timedelta(days=day)
    for table in ("rows", "devices", "reservations"):
        site.ledger.execute(f"ALTER TABLE {table} DROP PARTITION {gone:%Y%m%d}")


def totals_of(site: Place) -> StoredTotals:
    """Of a process that writes nothing and sees nothing that others write."""
    return StoredTotals(site.ledger, Rollup(site.ledger), now=lambda: START)


def test_what_others_store_is_counted_once_it_is_in_a_slot(site: Place) -> None:
    totals = totals_of(site)
    assert not totals.items() and totals.newest_window_s == 0
    totals.refresh()
    assert not totals.items() and totals.newest_window_s == 0
    node = Node("n1")
    site.store(frames(node, 3))
    site.rollup.refresh(START, START + timedelta(hours=1))
    totals.refresh()
    assert totals.items() == [("n1", "cpu", 3_000_000), ("n1", "dram", 1_500_000)]
    assert totals.newest_window_s == START_S + 20
    # More of the same slot, another day, another node.
    site.store([*frames(node, 2), *frames(Node("n2"), 1, day=1)])
    site.rollup.refresh(START, START + timedelta(days=2))
    totals.refresh()
    assert cpu_uj(totals) == {"n1": 5_000_000, "n2": 1_000_000}
    assert totals.newest_window_s == START_S + DAY_S
    fresh = totals_of(site)
    fresh.refresh()
    assert fresh.items() == totals.items() == EnergyTotals.of(site.ledger).items()
    assert fresh.newest_window_s == totals.newest_window_s


class Watched(StoredTotals):
    """Notes what it reads."""

    read: list[Piece]

    def _read(self, piece: Piece) -> None:
        self.read.append(piece)
        super()._read(piece)


def watched(site: Place, now: datetime = START) -> Watched:
    totals = Watched(site.ledger, site.rollup, now=lambda: now)
    totals.read = []
    return totals


def test_only_pieces_with_new_parts_are_read_again(site: Place) -> None:
    totals = watched(site)
    site.store([*frames(Node("n1"), 1), *frames(Node("n2"), 1, day=1)])
    totals.refresh()
    hours = [(START_S + DAY_S, HOUR_S), (START_S, HOUR_S)]  # the newest first
    assert [piece for piece in totals.read if piece in hours] == hours
    totals.read.clear()
    totals.refresh()
    assert totals.read == []
    site.store(frames(Node("n3"), 1, day=1))
    totals.refresh()
    assert totals.read == hours[:1]
    assert cpu_uj(totals) == {"n1": 1_000_000, "n2": 1_000_000, "n3": 1_000_000}


def test_hours_become_a_day_that_may_still_change(site: Place) -> None:
    totals = watched(site)
    node = Node("n1")
    site.store([*frames(node, 2), *frames(Node("n2"), 1, day=3)])
    site.rollup.refresh(START, START + timedelta(days=4))
    totals.refresh()
    totals.now = lambda: START + timedelta(days=3)
    totals.read.clear()
    totals.refresh()
    assert totals.read == [] and cpu_uj(totals) == {"n1": 2_000_000, "n2": 1_000_000}
    late = frames(node, 3)
    site.store(late)
    site.rollup.refresh(START, START + timedelta(hours=1))
    totals.refresh()
    day = (START_S // DAY_S * DAY_S, DAY_S)
    assert totals.read == [day] and cpu_uj(totals) == {"n1": 5_000_000, "n2": 1_000_000}


def test_many_entries_are_read_in_several_steps(site: Place) -> None:
    many = [one for name in "abcdef" for one in frames(Node(name), 100)]  # four slots
    site.store(many)
    site.rollup.refresh(START, START + timedelta(hours=1))
    totals = StoredTotals(site.ledger, site.rollup, max_entries=10, now=lambda: START)
    totals.refresh()
    assert cpu_uj(totals) == dict.fromkeys("abcdef", 100_000_000)


def test_nothing_falls_when_raw_rows_slots_and_months_go(site: Place) -> None:
    totals = totals_of(site)
    site.store([*frames(Node("n1"), 4), *frames(Node("n2"), 1, day=40)])
    site.rollup.refresh(START, START + timedelta(days=50))
    totals.refresh()
    shown = totals.items()
    drop_raw(site, 0)
    totals.refresh()
    again = totals_of(site)
    again.refresh()
    assert totals.items() == again.items() == shown
    month = START.replace(day=1, hour=0)
    sealed.seal(site.ledger, month, month + timedelta(days=30), ms(START + timedelta(days=60)))
    site.ledger.execute(f"ALTER TABLE slots DROP PARTITION {START:%Y%m}")
    totals.refresh()
    again = totals_of(site)
    again.refresh()
    assert totals.items() == again.items() == shown


def test_nodes_beyond_the_bound_share_a_label(site: Place) -> None:
    site.store([one for name in "abcd" for one in frames(Node(name))])
    site.rollup.refresh(START, START + timedelta(hours=1))
    totals = StoredTotals(site.ledger, site.rollup, max_nodes=2, now=lambda: START)
    totals.refresh()
    found = cpu_uj(totals)
    assert len(found) == 3 and found["other"] == 2_000_000
    assert sum(found.values()) == 4_000_000


def leave_sealed_alone(site: Place) -> None:
    """As retention leaves a month: its totals, and neither rows nor slots."""
    month = START.replace(day=1, hour=0)
    sealed.seal(site.ledger, month, month + timedelta(days=30), ms(START + timedelta(days=60)))
    drop_raw(site, 0)
    site.ledger.execute(f"ALTER TABLE slots DROP PARTITION {START:%Y%m}")


def test_made_up_energy_says_so(site: Place) -> None:
    made_up = Node("sim-1", more={"simulated": True})
    site.store([*frames(made_up), *frames(Node("n1"))])
    site.rollup.refresh(START, START + timedelta(hours=1))
    totals = totals_of(site)
    totals.refresh()
    assert totals.simulated == {"sim-1"} == EnergyTotals.of(site.ledger).simulated
    leave_sealed_alone(site)
    again = totals_of(site)
    again.refresh()
    assert again.simulated == {"older"} == EnergyTotals.of(site.ledger).simulated


class Meanwhile:
    """A ledger where something happens just before a query."""

    exclusive = False
    cluster = ""

    def __init__(self, ledger: Ledger, happens: Callable[[str, Mapping[str, Any]], None]) -> None:
        self.ledger = ledger
        self.happens = happens

    def query(self, sql: str, params: Mapping[str, Value] | None = None) -> pa.Table:
        self.happens(sql, params or {})
        return self.ledger.query(sql, params)


def totals_while(site: Place, happens: Callable[[str, Mapping[str, Any]], None]) -> StoredTotals:
    ledger = cast(Ledger, Meanwhile(site.ledger, happens))
    return StoredTotals(ledger, Rollup(site.ledger), now=lambda: START)


class Broken(Meanwhile):
    """A day of slots cannot be read."""

    def __init__(self, ledger: Ledger, day: int) -> None:
        super().__init__(ledger, self._fail)
        self.at_s = START_S + day * DAY_S
        self.repaired = False

    def _fail(self, sql: str, params: Mapping[str, Any]) -> None:
        of_piece = not self.repaired and sql in (ENTRIES, PIECE_UJ)
        if of_piece and params["since"] <= self.at_s < params["until"]:
            raise OSError("checksum does not match")


def test_a_piece_that_cannot_be_read_costs_that_piece(site: Place) -> None:
    node = Node("n1")
    site.store([*frames(Node("old"), day=-10), *frames(node, 2), *frames(Node("n2"), day=-20)])
    site.rollup.refresh(START - timedelta(days=30), START + timedelta(hours=1))
    broken = Broken(site.ledger, -10)
    totals = StoredTotals(cast(Ledger, broken), Rollup(site.ledger), now=lambda: START)
    for _ in range(TRIES):
        assert not totals.items()  # lest it be less than before a restart
        with pytest.raises(OSError, match="checksum"):
            totals.refresh()
        assert totals.newest_window_s == START_S + 10
    assert cpu_uj(totals) == {"n1": 2_000_000, "n2": 1_000_000}
    site.store(frames(node, 1))
    site.rollup.refresh(START, START + timedelta(hours=1))
    with pytest.raises(OSError, match="checksum"):
        totals.refresh()
    assert cpu_uj(totals) == {"n1": 3_000_000, "n2": 1_000_000}
    broken.repaired = True
    totals.refresh()
    assert cpu_uj(totals) == {"n1": 3_000_000, "n2": 1_000_000, "old": 1_000_000}


def test_a_day_is_not_settled_before_all_of_it_is_read(site: Place) -> None:
    node, day = Node("n1"), START - timedelta(days=10)
    broken = Broken(site.ledger, -10)
    totals = StoredTotals(cast(Ledger, broken), Rollup(site.ledger), now=lambda: START)
    for broken.repaired in (True, False):
        site.store(frames(node, 1, day=-10))
        site.rollup.refresh(day, day + timedelta(hours=1))
        with contextlib.suppress(OSError):
            totals.refresh()
        assert cpu_uj(totals) == {"n1": 1_000_000}
    drop_raw(site, -10)
    with pytest.raises(OSError, match="checksum"):
        totals.refresh()
    broken.repaired = True
    for _ in range(2):
        totals.refresh()
        assert cpu_uj(totals) == {"n1": 2_000_000}


def test_no_piece_is_tried_of_a_ledger_that_is_closed(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with opened(request, "clickhouse", tmp_path) as ledger:
        migrate(ledger)
        site = Place(ledger)
        site.store([frame for day in range(5) for frame in frames(Node(f"n{day}"), day=-5 * day)])
        site.rollup.refresh(START - timedelta(days=30), START + timedelta(hours=1))
        tried = []

        def happens(sql: str, params: Mapping[str, Any]) -> None:
            if sql == ENTRIES:
                tried.append(params["since"])
                ledger.close()

        totals = totals_while(site, happens)
        with pytest.raises(CollectorError, match="is closed"):
            totals.refresh()
        assert tried == [START_S] and not totals.items()


class TwoShards(Meanwhile):
    """Each shard names its parts by a count of its own."""

    def query(self, sql: str, params: Mapping[str, Value] | None = None) -> pa.Table:
        found = super().query(sql, params)
        if not sql.startswith("SELECT name, rows"):
            return found
        return found.set_column(0, "name", pa.array(["202609_4_4_0"] * len(found)))


def test_equal_parts_of_two_shards_are_two(site: Place) -> None:
    site.ledger.execute("SYSTEM STOP MERGES slots")
    try:
        shards = cast(Ledger, TwoShards(site.ledger, lambda sql, params: None))
        totals = StoredTotals(shards, Rollup(site.ledger), now=lambda: START)
        for names in (["n1"], ["n1", "n2"]):
            site.store(frames(Node(names[-1])))
            site.rollup.refresh(START, START + timedelta(hours=1))
            totals.refresh()
            assert cpu_uj(totals) == dict.fromkeys(names, 1_000_000)
    finally:
        site.ledger.execute("SYSTEM START MERGES slots")


@pytest.mark.parametrize("when", [TOTALS_UJ, ENTRIES])
def test_a_month_that_is_sealed_meanwhile_counts_once(site: Place, when: str) -> None:
    site.store([*frames(Node("n1"), 4), *frames(Node("n2"), 1, day=40)])
    site.rollup.refresh(START, START + timedelta(days=50))
    month = START.replace(day=1, hour=0)
    events: list[Any] = [when]

    def happens(sql: str, params: Mapping[str, Any]) -> None:
        if sql in events:
            events.remove(sql)
            now_ms = ms(START + timedelta(days=60))
            sealed.seal(site.ledger, month, month + timedelta(days=30), now_ms)
            site.ledger.execute(f"ALTER TABLE slots DROP PARTITION {START:%Y%m}")

    totals = totals_while(site, happens)
    totals.refresh()
    assert not totals.items() and not events
    totals.refresh()
    assert cpu_uj(totals) == {"n1": 4_000_000, "n2": 1_000_000}


def test_energy_without_slots_is_shown(site: Place) -> None:
    site.store(frames(Node("n1"), 4))
    site.rollup.refresh(START, START + timedelta(hours=1))
    leave_sealed_alone(site)
    totals = totals_of(site)
    totals.refresh()
    assert cpu_uj(totals) == {"n1": 4_000_000}
