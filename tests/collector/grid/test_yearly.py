"""The shipped table answers for every zone and every time, and never guesses a zone."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from joulegram.collector.errors import UnknownZone
from joulegram.collector.grid import table, yearly, zones
from tests.collector.carbon import Place


def test_every_zone_answers_without_a_gap_from_the_beginning_to_the_end_of_time() -> None:
    assert len(zones.yearly_values()) == 352
    for zone in [*zones.yearly_values(), zones.WORLD]:
        rows = yearly.rows(zone, 7)
        assert rows[0].valid_from_s == 0 and rows[-1].valid_to_s == yearly.END_OF_TIME_S
        for before, after in pairwise(rows):
            assert before.valid_to_s == after.valid_from_s
        for row in rows:
            assert 0 < row.g_per_kwh < 1300 and row.quality == "fallback"
            assert row.basis == "average-lifecycle-production" and row.known_at_ms == 7


def test_great_britain() -> None:
    """Electricity Maps, yearly data: 239, 235, 200, 175, 176 gCO2e/kWh for 2021 to 2025."""
    assert [row.g_per_kwh for row in yearly.rows("GB", 0)] == [239, 235, 200, 175, 176]


@pytest.mark.parametrize(
    ("zone", "names"),
    [("UK", "GB"), ("gb", "GB"), ("germany", "DE"), ("US-CAL", "US-CAL-CISO"), ("FRA", "FR")],
)
def test_an_unknown_zone_is_an_error_with_the_nearest_names(zone: str, names: str) -> None:
    with pytest.raises(UnknownZone) as failed:
        yearly.rows(zone, 0)
    assert f"{names} (" in str(failed.value) and repr(zone) in str(failed.value)


@pytest.mark.parametrize("zone", ["", "qqqqqqq", "World", "GB\n", "GB' OR 1=1 --"])
def test_no_default_for_nonsense(zone: str) -> None:
    with pytest.raises(UnknownZone):
        yearly.rows(zone, 0)


def test_it_is_stored_once_and_again_when_it_says_something_new(site: Place) -> None:
    rows = yearly.rows("GB", 1000)
    assert table.append_new(site.ledger, rows) == 5
    assert table.append_new(site.ledger, yearly.rows("GB", 2000)) == 0
    revised = [
        *yearly.rows("GB", 3000)[:-1],
        table.IntensityRow(
            "GB",
            rows[-1].basis,
            rows[-1].valid_from_s,
            rows[-1].valid_to_s,
            rows[-1].provider,
            3000,
            0,
            150.0,
            "fallback",
        ),
    ]
    assert table.append_new(site.ledger, revised) == 1
    newest = table.read(site.ledger, "GB", 1_800_000_000, 1_800_000_300, 5000)
    assert [row.g_per_kwh for row in newest] == [150.0]
    before = table.read(site.ledger, "GB", 1_800_000_000, 1_800_000_300, 2999)
    assert [row.g_per_kwh for row in before] == [176.0]


@pytest.mark.parametrize("year", [1990, 2021, 2023, 2025, 2040])
@pytest.mark.parametrize("zone", ["GB", "FR", "WORLD"])
def test_whoever_has_no_ledger_gets_the_same_number(zone: str, year: int) -> None:
    at_s = datetime(year, 6, 1, tzinfo=UTC).timestamp()
    (row,) = (r for r in yearly.rows(zone, 0) if r.valid_from_s <= at_s < r.valid_to_s)
    value = zones.value_in(zone, year)
    assert (value.g_per_kwh, value.basis) == (row.g_per_kwh, row.basis)
    assert value.name and value.credit
