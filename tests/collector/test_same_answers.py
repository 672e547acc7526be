"""chDB and a ClickHouse server, given the same frames, answer every question the same."""

import random
from collections.abc import Iterator
from datetime import timedelta
from itertools import cycle
from typing import Any

import pytest

from joulegram.collector import reports, series, teams
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.totals import EnergyTotals
from tests.collector.carbon import START, START_S, Place, ms
from tests.collector.ledgers import KINDS, opened
from tests.collector.made_frames import frame

HOUR = timedelta(hours=1)
LATE = START + 3 * HOUR


@pytest.fixture(scope="module")
def places(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Place]]:
    """The same site on every kind of ledger: late frames, revisions, holes, rules and a repeat."""
    embedded, server = KINDS
    folder = tmp_path_factory.mktemp("ledger")
    with opened(request, embedded, folder) as one, opened(request, server, folder) as other:
        both = {}
        for kind, ledger in ((embedded, one), (server, other)):
            migrate(ledger)
            both[kind] = Place(ledger)
            fill(both[kind])
        yield both


def fill(place: Place) -> None:
    rng = random.Random(7)
    place.configure(zone="GB", pue=1.3)
    rules: list[dict[str, str]] = [
        {"team": "ml", "kind": "slurm"},
        {"team": "web", "kind": "systemd"},
    ]
    teams.record_rules(place.ledger, rules, ms(START))
    frames = [
        frame(seq, node=node, start_ms=ms(START), gpu=seq % 3 == 0, rows=rng.randrange(1, 9))
        for node in ("n1", "n2", "o'brien\\")
        for seq in range(1, 400)
        if rng.random() > 0.1
    ]
    for number, one in enumerate(frames):
        one.devices[0].quality = ("measured", "derived", "modelled")[number % 3]
        one.devices[0].coverage = rng.choice((1.0, 0.5, 0.25))
    late, in_time = frames[::17], [f for n, f in enumerate(frames) if n % 17]
    place.store(in_time)
    place.store(late, LATE)
    place.ledger.execute("INSERT INTO devices SELECT * FROM devices")  # what a replay leaves behind
    for hour, g in enumerate((400.5, 300.25, 100.125)):
        place.grid(hour, g)
        place.grid(hour, g / 3, quality="forecast")
    place.grid(1, 160, known=LATE)
    place.now = START + 5 * HOUR


def the_same(one: Any, other: Any) -> bool:
    """Equal; floats to 1e-12, since sums of them may be added in another order."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(the_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(the_same, one, other))
    if isinstance(one, float):
        return bool(other == pytest.approx(one, rel=1e-12))
    return bool(one == other) and type(one) is type(other)


@pytest.mark.parametrize("as_of", [None, LATE - timedelta(minutes=1)], ids=["now", "as of"])
def test_reports(places: dict[str, Place], as_of: Any) -> None:
    bases = cycle((None, "lifecycle"))
    for by, policy, basis in zip(reports.BY, cycle(reports.IDLE_POLICIES), bases, strict=False):
        one, other = (
            place.report(by=by, idle_policy=policy, basis=basis, as_of=as_of)
            for place in places.values()
        )
        assert one["total"]["energy_uj"] > 0
        assert the_same(one, other), (by, policy, basis)


def test_series(places: dict[str, Place]) -> None:
    for step_s in (10, 60, 300):
        one, other = (
            series.power_series(place.ledger, START, START + 2 * HOUR, step_s)
            for place in places.values()
        )
        assert the_same(one, other)
        assert any(one["cpu"]) and any(one["gpu"])
    forecast, other_forecast = (
        series.intensity_series(place.ledger, START, START + 4 * HOUR, place.now)
        for place in places.values()
    )
    assert the_same(forecast, other_forecast)
    now, other_now = (series.intensity_now(place.ledger, place.now) for place in places.values())
    assert the_same(now, other_now)


def test_counters(places: dict[str, Place]) -> None:
    totals = []
    for place in places.values():
        energy = EnergyTotals()
        energy.load(place.ledger)
        totals.append((energy.items(), energy.newest_window_s))
    assert totals[0] == totals[1]
    assert totals[0][1] > START_S


def test_what_is_kept(places: dict[str, Place]) -> None:
    """The tables themselves, but for when a slot was made."""
    for table, order in (
        ("rows", "node, epoch, seq, row"),
        ("devices", "node, epoch, seq, device"),
        ("reservations", "node, epoch, seq, workload, device"),
        ("workloads", "workload, details"),
        ("slots", "node, slot, entry, workload, holder, device, component"),
        ("intensity", "zone, basis, valid_from, valid_to, provider, known_at_ms"),
        ("settings", "kind, name, valid_from, known_at_ms"),
    ):
        found = []
        for place in places.values():
            place.rollup.refresh(START, START + 4 * HOUR)
            whole = place.ledger.query(f"SELECT * FROM {table} FINAL ORDER BY {order}")
            kept = [name for name in whole.column_names if name != "generation"]
            found.append(whole.select(kept).combine_chunks().to_pylist())
        assert found[0], table
        assert the_same(*found), table
