"""Totals read from the ledger are what it holds, whoever stored it, and never fall."""

from datetime import datetime, timedelta

from joulegram.collector import sealed
from joulegram.collector.rollup import Rollup
from joulegram.collector.stored_totals import DAY_S, HOUR_S, Piece, StoredTotals
from joulegram.collector.totals import EnergyTotals
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.carbon import START, START_S, Place, ms
from tests.collector.made import IDLE, Node, Row


def frames(node: Node, count: int = 1, *, day: int = 0, joules: float = 1.0) -> list[Frame]:
    """Windows of a node, one after the other, some days after START."""
    start_ms = ms(START) + day * DAY_S * 1000
    rows = [Row(IDLE, cpu_j=joules, dram_j=joules / 2)]
    return [node.frame(start_ms + (node.seq * 10_000), rows) for _ in range(count)]


def cpu_uj(totals: StoredTotals) -> dict[str, int]:
    return {node: uj for node, component, uj in totals.items() if component == "cpu"}


def totals_of(site: Place) -> StoredTotals:
    """Of a process that writes nothing and sees nothing that others write."""
    return StoredTotals(site.ledger, Rollup(site.ledger), now=lambda: START)


def test_what_others_store_is_counted_once_it_is_in_a_slot(site: Place) -> None:
    totals = totals_of(site)
    assert totals.items() == () and totals.newest_window_s == 0
    totals.refresh()
    assert totals.items() == () and totals.newest_window_s == 0
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
    hours = [(START_S, HOUR_S), (START_S + DAY_S, HOUR_S)]
    assert [piece for piece in totals.read if piece in hours] == hours
    totals.read.clear()
    totals.refresh()
    assert totals.read == []
    site.store(frames(Node("n3"), 1, day=1))
    totals.refresh()
    assert totals.read == hours[1:]
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
    for table in ("rows", "devices", "reservations"):
        site.ledger.execute(f"ALTER TABLE {table} DROP PARTITION {START:%Y%m%d}")
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


def test_made_up_energy_says_so(site: Place) -> None:
    made_up = Node("sim-1", more={"simulated": True})
    site.store([*frames(made_up), *frames(Node("n1"))])
    site.rollup.refresh(START, START + timedelta(hours=1))
    totals = totals_of(site)
    totals.refresh()
    assert totals.simulated == {"sim-1"} == EnergyTotals.of(site.ledger).simulated
    month = START.replace(day=1, hour=0)
    sealed.seal(site.ledger, month, month + timedelta(days=30), ms(START + timedelta(days=60)))
    for table in ("rows", "devices", "reservations"):
        site.ledger.execute(f"ALTER TABLE {table} DROP PARTITION {START:%Y%m%d}")
    site.ledger.execute(f"ALTER TABLE slots DROP PARTITION {START:%Y%m}")
    again = totals_of(site)
    again.refresh()
    assert again.simulated == {"older"} == EnergyTotals.of(site.ledger).simulated
