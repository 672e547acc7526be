"""Power and intensity over time, from a real ledger."""

from datetime import timedelta
from typing import Any

import pytest

from joulegram.collector.errors import BadQuestion
from joulegram.collector.series import intensity_now, intensity_series, power_series
from joulegram.v1.telemetry_pb2 import Device
from tests.collector.carbon import START, START_S, Place, ms
from tests.collector.made import IDLE, SYSTEM, Node, Row


def power(site: Place, seconds: int, step_s: int = 10) -> dict[str, Any]:
    return power_series(site.ledger, START, START + timedelta(seconds=seconds), step_s)


def test_watts_by_component_and_none_where_nobody_measured(site: Place) -> None:
    node = Node()
    rows = [Row(SYSTEM, 400, 50), Row(IDLE, 600)]
    site.store([node.frame(ms(START) + 10_000 * i, rows) for i in (0, 2)])
    answer = power(site, 40)
    assert answer["t"] == [START_S, START_S + 10, START_S + 20, START_S + 30]
    assert answer["cpu"] == [100, None, 100, None]
    assert answer["dram"] == [5, None, 5, None]
    assert answer["gpu"] == answer["other"] == [None] * 4
    # A step that is half measured shows the power of that half.
    assert power(site, 40, 20)["cpu"] == [100, 100]


def test_nodes_add_and_sockets_of_a_node_add(site: Place) -> None:
    one, two = Node("n1").frame(ms(START), [Row(SYSTEM, 100)]), Node("n2", epoch=9)
    second = two.frame(ms(START), [Row(SYSTEM, 300)])
    # The same energy on two sockets.
    del second.devices[:]
    for name in ("cpu0", "cpu1"):
        second.devices.append(
            Device(
                name=name, component="cpu", energy_uj=150_000_000, coverage=1, quality="measured"
            )
        )
    site.store([one, second])
    assert power(site, 10)["cpu"] == [40]


def test_a_frame_that_arrived_twice_counts_once(site: Place) -> None:
    frame = Node().frame(ms(START), [Row(SYSTEM, 100)])
    site.store([frame])
    site.ledger.execute(
        "INSERT INTO devices SELECT * FROM devices"  # what a replay leaves behind
    )
    assert power(site, 10)["cpu"] == [10]


def test_made_up_watts_say_so(site: Place) -> None:
    site.store([Node().frame(ms(START), [Row(SYSTEM, 100)])])
    assert power(site, 10)["simulated"] is False
    made_up = Node("sim-1", more={"simulated": True})
    site.store([made_up.frame(ms(START) + 10_000, [Row(SYSTEM, 100)])])
    assert power(site, 10)["simulated"] is False
    assert power(site, 20)["simulated"] is True


def test_a_frame_without_its_header_does_not_count_yet(site: Place) -> None:
    site.store([Node().frame(ms(START), [Row(SYSTEM, 100)])])
    site.ledger.execute("TRUNCATE TABLE rows")
    assert power(site, 10)["cpu"] == [None]


def test_half_covered_windows_show_the_power_of_the_covered_half(site: Place) -> None:
    site.store([Node(coverage=0.5).frame(ms(START), [Row(SYSTEM, 500)])])
    assert power(site, 10)["cpu"] == [100]


def test_too_many_points_are_refused(site: Place) -> None:
    with pytest.raises(BadQuestion, match="widen step_s"):
        power(site, 10**6)
    with pytest.raises(BadQuestion):
        power(site, 10, 0)
    with pytest.raises(BadQuestion):
        intensity_series(site.ledger, START, START + timedelta(days=400))


def test_intensity_now_before_anything_is_known(site: Place) -> None:
    now = intensity_now(site.ledger, START)
    assert (now["g_per_kwh"], now["quality"], now["valid_from"]) == (None, "unknown", None)


def test_intensity_by_slot_holds_the_last_value_and_falls_back(site: Place) -> None:
    site.configure(zone="GB")
    site.grid(0, 100, hours=0.5)
    points = intensity_series(
        site.ledger, START, START + timedelta(hours=3), START + timedelta(hours=9)
    )
    assert [p["t"] for p in points] == [START_S + 300 * i for i in range(36)]
    assert [p["quality"] for p in points] == ["estimated"] * 6 + ["fallback"] * 30
    assert [p["g_per_kwh"] for p in points] == [100] * 24 + [176] * 12
    assert {p["provider"] for p in points[:24]} == {"neso"}
    now = intensity_now(site.ledger, START + timedelta(hours=1))
    assert (now["g_per_kwh"], now["quality"]) == (100, "fallback")
    assert now["valid_to"] == "2026-09-21T12:30:00Z"
    assert now["known_at"] == "2026-09-21T12:00:00Z"
