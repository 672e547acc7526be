"""Which intensity counts. Times are seconds after T, the start of a slot."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.collector.accounting.choose import QUALITIES, Chosen, choose

T = 1_790_000_100
DIRECT = "average-direct-consumption"
LIFECYCLE = "average-lifecycle-production"
MARGINAL = "marginal-direct-consumption"


@dataclass(frozen=True)
class Row:
    g_per_kwh: float
    quality: str = "estimated"
    provider: str = "a"
    known_at_ms: int = 1
    valid_from_s: int = T
    valid_to_s: int = T + 1800
    basis: str = DIRECT


def at(rows: list[Row], slots: int = 1, as_of_ms: int = 1000, **more: object) -> Chosen:
    asked = {"wanted_basis": DIRECT, "as_of_ms": as_of_ms} | more
    return choose(rows, [T + 300 * i for i in range(slots)], **asked)  # type: ignore[arg-type]


def value(rows: list[Row], **more: object) -> float:
    return float(at(rows, **more).g_per_kwh[0])  # type: ignore[arg-type]


def test_newest_knowledge_of_a_provider_wins_and_the_past_remembers() -> None:
    rows = [Row(100, known_at_ms=10), Row(160, known_at_ms=20)]
    assert value(rows) == 160
    assert value(rows, as_of_ms=19) == 100
    assert math.isnan(value(rows, as_of_ms=9))


def test_a_forecast_never_replaces_a_value_of_the_same_provider() -> None:
    rows = [Row(100, known_at_ms=10), Row(90, "forecast", known_at_ms=20)]
    assert value(rows) == 100
    assert value(rows[1:]) == 90


def test_a_late_value_replaces_a_forecast_that_was_known_before() -> None:
    rows = [Row(90, "forecast", known_at_ms=10), Row(100, known_at_ms=20)]
    assert value(rows) == 100
    before = at(rows, as_of_ms=15)
    assert (before.g_per_kwh[0], before.quality["forecast"][0]) == (90, 1)


def test_providers_go_by_configured_order_then_by_quality() -> None:
    rows = [Row(1, "measured", "a"), Row(2, "estimated", "b"), Row(3, "forecast", "c")]
    assert value(rows) == 1
    assert value(rows, providers=["c", "b"]) == 3
    assert value(rows, providers=["b"]) == 2


def test_of_equal_places_quality_decides_by_instant_not_by_provider() -> None:
    """A provider that is better in one half hour is not better in the next."""
    later = {"valid_from_s": T + 300, "valid_to_s": T + 600}
    rows = [
        Row(1, "forecast", "a", valid_to_s=T + 300),
        Row(2, "estimated", "b", valid_to_s=T + 300),
        Row(3, "measured", "a", **later),  # type: ignore[arg-type]
        Row(4, "estimated", "b", **later),  # type: ignore[arg-type]
    ]
    assert at(rows, slots=2).g_per_kwh.tolist() == [2, 3]


def test_any_real_value_outranks_a_fallback() -> None:
    rows = [
        Row(500, "fallback", "table", known_at_ms=999),
        Row(90, "forecast", "z", known_at_ms=1),
    ]
    assert value(rows, providers=["table"]) == 90


def test_a_fallback_fills_its_own_basis_first() -> None:
    live = Row(50, "measured", "live", basis=DIRECT)
    yearly = Row(176, "fallback", "table", basis=LIFECYCLE)
    assert value([live, yearly], wanted_basis=LIFECYCLE) == 176
    assert value([live, yearly]) == 50


def test_another_basis_fills_in_and_the_share_is_stated() -> None:
    half = Row(50, "measured", "live", valid_to_s=T + 300)
    yearly = Row(176, "fallback", "table", basis=LIFECYCLE)
    chosen = at([half, yearly], slots=2)
    assert chosen.g_per_kwh.tolist() == [50, 176]
    assert chosen.basis[DIRECT].tolist() == [1, 0]
    assert chosen.basis[LIFECYCLE].tolist() == [0, 1]


def test_a_marginal_value_never_stands_in_for_an_average() -> None:
    assert math.isnan(value([Row(50, basis=MARGINAL)]))


def test_lifecycle_or_direct_weighs_more_than_production_or_consumption() -> None:
    rows = [
        Row(1, basis="average-direct-production"),
        Row(2, basis="average-lifecycle-consumption"),
    ]
    assert value(rows) == 1
    assert value(rows, wanted_basis=LIFECYCLE) == 2


def test_a_slot_is_the_time_weighted_mean_of_what_lies_in_it() -> None:
    rows = [
        Row(100, valid_from_s=T - 900, valid_to_s=T + 60),
        Row(200, "forecast", valid_from_s=T + 60),
    ]
    chosen = at(rows)
    assert chosen.g_per_kwh[0] == pytest.approx((60 * 100 + 240 * 200) / 300)
    assert chosen.quality["estimated"][0] == pytest.approx(0.2)
    assert chosen.quality["forecast"][0] == pytest.approx(0.8)


def test_what_nobody_knows_is_said_and_not_stretched() -> None:
    chosen = at([Row(100, valid_to_s=T + 60)], slots=2)
    assert chosen.g_per_kwh[0] == 100
    assert chosen.quality["unknown"].tolist() == [0.8, 1.0]
    assert np.isnan(chosen.g_per_kwh[1])


def test_the_last_value_is_held_on_as_a_fallback_and_only_while_young() -> None:
    rows = [
        Row(90, valid_from_s=T - 600, valid_to_s=T - 300, known_at_ms=50),
        Row(100, valid_from_s=T - 300, valid_to_s=T, known_at_ms=10),
        Row(176, "fallback", "table", known_at_ms=10),
    ]
    chosen = at(rows, slots=3, hold_s={"a": 600})
    # The latest half hour, though the one before it came to be known later.
    assert chosen.g_per_kwh.tolist() == [100, 100, 176]
    assert chosen.quality["fallback"].tolist() == [1, 1, 1]
    assert chosen.provider["a"].tolist() == [1, 1, 0]


def test_a_forecast_made_for_the_slot_outranks_the_last_value() -> None:
    rows = [Row(100, valid_from_s=T - 300, valid_to_s=T), Row(90, "forecast", "z")]
    assert value(rows, hold_s={"a": 600}, providers=["a"]) == 90


def test_a_forecast_is_not_held_on() -> None:
    rows = [Row(100, "forecast", valid_from_s=T - 300, valid_to_s=T)]
    assert math.isnan(value(rows, hold_s={"a": 600}))


def test_steps_of_different_length_weigh_by_their_time() -> None:
    """Golden: a mixed 30 and 15 minute series has a time-weighted mean, not a row mean."""
    steps = [(1800, 200.0), (900, 240.0), (900, 220.0), (1800, 180.0)]
    rows, start = [], T
    for length, g in steps:
        rows.append(Row(g, valid_from_s=start, valid_to_s=start + length))
        start += length
    mean = float(at(rows, slots=18).g_per_kwh.mean())
    assert mean == pytest.approx((200 * 2 + 240 + 220 + 180 * 2) / 6)
    assert mean != pytest.approx(sum(g for _, g in steps) / len(steps))


def test_slots_may_have_gaps_between_them() -> None:
    rows = [Row(1), Row(2, valid_from_s=T + 1800, valid_to_s=T + 3600)]
    slots = [T, T + 1500, T + 1800]
    chosen = choose(rows, slots, wanted_basis=DIRECT, as_of_ms=9)
    assert chosen.g_per_kwh.tolist() == [1, 1, 2]
    assert chosen.quality["estimated"].tolist() == [1, 1, 1]


ROWS = st.builds(
    Row,
    g_per_kwh=st.integers(1, 900).map(float),
    quality=st.sampled_from(QUALITIES),
    provider=st.sampled_from("abc"),
    known_at_ms=st.integers(0, 50),
    valid_from_s=st.integers(T - 900, T + 900),
    basis=st.sampled_from([DIRECT, LIFECYCLE]),
).map(lambda row: replace(row, valid_to_s=row.valid_from_s + 450))


@given(st.lists(ROWS, max_size=12), st.integers(0, 50), st.randoms())
def test_shares_sum_to_one_and_order_of_rows_is_nothing(rows, as_of_ms, random) -> None:  # type: ignore[no-untyped-def]
    chosen = at(rows, slots=4, as_of_ms=as_of_ms, hold_s={"a": 300})
    for shares in (chosen.quality, chosen.basis, chosen.provider):
        assert sum(shares.values()) == pytest.approx(np.ones(4))
    for i in range(4):
        assert math.isnan(chosen.g_per_kwh[i]) == (
            chosen.quality.get("unknown", np.zeros(4))[i] == 1
        )
    # Equal knowledge of one provider about one instant cannot come from a ledger.
    unique = {(r.provider, r.basis, r.known_at_ms): r for r in rows}
    shuffled = list(unique.values())
    expected = at(shuffled, slots=4, as_of_ms=as_of_ms)
    random.shuffle(shuffled)
    again = at(shuffled, slots=4, as_of_ms=as_of_ms)
    assert again.g_per_kwh == pytest.approx(expected.g_per_kwh, nan_ok=True)


@given(st.lists(ROWS, max_size=8), st.integers(0, 50))
def test_what_came_to_be_known_later_changes_no_earlier_answer(rows, as_of_ms) -> None:  # type: ignore[no-untyped-def]
    known = [row for row in rows if row.known_at_ms <= as_of_ms]
    assert at(rows, 4, as_of_ms).g_per_kwh == pytest.approx(
        at(known, 4, as_of_ms).g_per_kwh, nan_ok=True
    )
