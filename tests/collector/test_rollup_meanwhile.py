"""Slots while frames land, and other things lie about, between a roll-up's queries."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from joulegram.collector import columns
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.rollup import SLOT_S, Rollup
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.ledgers import ledger
from tests.collector.made_frames import START_MS, WINDOW_MS, checked, energy_uj, frame
from tests.collector.test_rollup import EVER, NEWEST, expected, keep, slots

__all__ = ["ledger"]


@dataclass
class Interrupted:
    """A ledger to which things happen before queries."""

    ledger: Ledger
    happens: Callable[[], None] = lambda: None
    exclusive: bool = field(init=False)
    cluster: str = ""

    def __post_init__(self) -> None:
        self.exclusive = self.ledger.exclusive

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        self.ledger.insert(table, columns)

    def query(self, *arguments: Any) -> Any:
        self.happens()
        return self.ledger.query(*arguments)


def lay_rows(ledger: Ledger, one: Frame, kept: slice = slice(None)) -> None:
    """Some rows of a frame, its header being the first."""
    made = columns.of_rows(checked(one), [columns.hash_of(columns.content_of(one))], 1)
    ledger.insert("rows", {name: column[kept] for name, column in made.items()})


def lay_before_rows(ledger: Ledger, one: Frame) -> None:
    """What an insert that failed at its rows leaves."""
    devices = columns.of_devices(checked(one))
    if devices is not None:
        ledger.insert("devices", devices)
    reservations = columns.of_reservations(checked(one))
    if reservations is not None:
        ledger.insert("reservations", reservations)


def unpowered(one: Frame) -> Frame:
    """A frame whose devices and rows have no energy."""
    for device in one.devices:
        device.energy_uj = device.idle_uj = device.raw_uj = 0
    for name in ("cpu_uj", "dram_uj", "gpu_uj"):
        setattr(one.rows, name, b"")
    return one


def bare(one: Frame) -> Frame:
    """A frame of an agent that measures nothing."""
    unpowered(one)
    del one.devices[:]
    one.rows.Clear()
    return one


def details(ledger: Ledger) -> dict[str, tuple[float, ...]]:
    """What else slots sum, over all of them, as readers see it."""
    (found,) = ledger.query(
        "SELECT sum(idle_uj) AS idle, sum(covered_ms) AS covered, sum(reserved_ms) AS reserved, "
        f"sum(cpu_ns) AS ns FROM slots WHERE {NEWEST}"
    ).to_pylist()
    return found  # type: ignore[no-any-return]


def expected_details(frames: Sequence[Frame]) -> dict[str, float]:
    devices = [d for f in frames for d in f.devices]
    return {
        "idle": sum(d.idle_uj for d in devices),
        "covered": sum(d.coverage for d in devices) * WINDOW_MS,
        "reserved": sum(w.reserved_cpus for f in frames for w in f.workloads) * WINDOW_MS,
        "ns": sum(int(np.frombuffer(f.rows.cpu_ns, "<u8").sum()) for f in frames),
    }


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_between_its_queries_slots_end_right(ledger: Ledger, seed: int) -> None:
    ledger.execute("SYSTEM STOP MERGES rows")
    rng = random.Random(seed)
    store = Interrupted(ledger)
    rollup = Rollup(store)  # type: ignore[arg-type]
    frames = [
        frame(seq, node=node, rows=rng.randrange(1, 6), gpu=rng.random() < 0.2)
        for node in ("n1", "n2")
        for seq in range(1, 60, 2)
    ]
    for one in rng.sample(frames, 12):
        rng.choice((unpowered, bare))(one)
    kept: list[Frame] = []

    def land(one: Frame) -> Callable[[], None]:
        def now() -> None:
            keep(ledger, [one], rollup)
            kept.append(one)

        return now

    def lay(how: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        return lambda: how(ledger, *arguments)

    happenings: list[Callable[[], None]] = []
    for one in rng.sample(frames, len(frames)):
        fate = rng.random()
        some: list[Callable[[], None]] = []
        if fate < 0.15 or 0.4 < fate < 0.5:
            some.append(lay(lay_before_rows, one))  # it failed, and perhaps it comes again
        if 0.15 < fate < 0.25 and len(one.rows.workload) > 4:
            some.append(lay(lay_rows, one, slice(1, None)))  # no header
        elif 0.25 < fate < 0.4 and len(one.rows.workload) > 4:
            some.append(lay(lay_rows, one, slice(0, -1)))  # short
        elif fate >= 0.4:
            some.append(land(one))
            if fate > 0.85:
                some.append(lay(lay_rows, one))  # again, from somebody who is late
        happenings += some
    # What belongs together keeps its order; else they come as chance will have it.
    at = sorted(rng.random() for _ in happenings)
    queue = [what for _, what in sorted(zip(at, happenings, strict=True), key=lambda two: two[0])]

    def happens() -> None:
        while queue and rng.random() < 0.3:
            queue.pop(0)()

    while queue:
        queue.pop(0)()
        store.happens = happens
        rollup.refresh(*EVER)
        store.happens = lambda: None
    rollup.refresh(*EVER)
    assert slots(ledger) == expected(kept)
    assert details(ledger) == expected_details(kept)
    Rollup(ledger).refresh(*EVER)
    assert slots(ledger) == expected(kept)


def test_rows_that_land_again_between_two_queries_count_once(ledger: Ledger) -> None:
    ledger.execute("SYSTEM STOP MERGES rows")
    nodes = [f"{odd}{at}" for odd in ("plain", "odd") for at in range(1, 14)]
    frames = [frame(seq, node=node, gpu=True) for node in nodes for seq in range(1, 4)]
    keep(ledger, frames)
    store = Interrupted(ledger)
    rollup = Rollup(store)  # type: ignore[arg-type]
    rollup.refresh(*EVER)
    fourth = [frame(4, node=node) for node in nodes]
    for one in fourth:
        keep(ledger, [one], rollup)
        if one.node.startswith("odd"):  # so that its frames are looked at one by one
            lay_before_rows(ledger, frame(9, node=one.node))
        left = [int(one.node.removeprefix("plain").removeprefix("odd"))]

        def happens(one: Frame = one, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                lay_rows(ledger, one)

        store.happens = happens
        assert rollup.refresh(*EVER) == 1
    assert slots(ledger) == expected([*frames, *fourth])


def test_a_frame_that_two_writers_took_for_two_slots_stops_nobody(ledger: Ledger) -> None:
    """One identity, two windows: a copied state directory, and two writers that did not know."""
    ledger.execute("SYSTEM STOP MERGES rows")
    one, other = frame(1), frame(1, start_ms=START_MS + 1_000 * SLOT_S)
    keep(ledger, [one])
    rollup = Rollup(ledger)
    rollup.refresh(*EVER)
    for twice in (other, other):
        lay_before_rows(ledger, twice)
        lay_rows(ledger, twice)
    good = frame(2)
    keep(ledger, [good])
    assert Rollup(ledger).refresh(*EVER) == 2
    assert slots(ledger) == expected([one, good, other])
    assert energy_uj([one, good, other]) == sum(uj for _, uj, _ in slots(ledger).values())
