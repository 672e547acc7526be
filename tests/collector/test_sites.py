"""[grid] is checked at the start, and remembered."""

from collections.abc import Iterator
from typing import Any

import pytest

from joulegram.collector import teams
from joulegram.collector.config import GridConfig
from joulegram.collector.errors import BadSetting, UnknownZone
from joulegram.collector.sites import record_site, site_at, site_of, sites
from tests.collector.carbon import START, START_S, Place, ms, place


@pytest.fixture(scope="module")
def site() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.mark.parametrize("pue", [1.0, 1.2, 3.0])
def test_a_pue_that_can_be(pue: float) -> None:
    assert site_of(GridConfig(pue=pue)).pue == pue


@pytest.mark.parametrize("pue", [0.0, 0.8, 3.01, 120.0, -1.2, float("nan"), float("inf")])
def test_a_pue_that_cannot_be_is_refused_with_the_remedy(pue: float) -> None:
    with pytest.raises(BadSetting, match=r"grid\.pue = .*Write 1\.2, not 120 %"):
        site_of(GridConfig(pue=pue))


@pytest.mark.parametrize(
    ("grid", "basis"),
    [
        ({"zone": "GB"}, "average-direct-consumption"),
        ({"zone": "GB", "neso_url": ""}, "average-lifecycle-production"),
        ({"zone": "GB", "basis": "lifecycle"}, "average-lifecycle-production"),
        ({"zone": "FR"}, "average-lifecycle-production"),
        ({"zone": "FR", "basis": "direct"}, "average-direct-consumption"),
        ({}, "average-lifecycle-production"),
    ],
)
def test_auto_takes_the_basis_that_the_live_feed_counts(grid: dict[str, Any], basis: str) -> None:
    assert site_of(GridConfig(**grid)).basis == basis


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"basis": "marginal"}, "lifecycle, direct, or auto"),
        ({"neso_poll_s": 0.0}, "grid.neso_poll_s = 0"),
        ({"neso_poll_s": float("nan")}, "grid.neso_poll_s"),
        ({"neso_url": "api.carbonintensity.org.uk"}, "http"),
    ],
)
def test_what_cannot_hold_is_refused_with_the_remedy(grid: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        site_of(GridConfig(**grid))


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(UnknownZone, match=r"GB \(Great Britain\)"):
        site_of(GridConfig(zone="UK"))


def test_only_a_change_is_recorded_and_the_past_is_remembered(site: Place) -> None:
    first, second = site_of(GridConfig(zone="GB")), site_of(GridConfig(zone="FR", pue=1.1))
    assert record_site(site.ledger, first, 1000)
    assert not record_site(site.ledger, first, 2000)
    assert record_site(site.ledger, second, 3000)
    assert record_site(site.ledger, first, 4000)
    for known_at_ms, then in ((1000, first), (2999, first), (3000, second), (4000, first)):
        assert site_at(sites(site.ledger, known_at_ms), START_S) == then
    assert site_at(sites(site.ledger, 999), START_S).zone == "WORLD"


def test_rules_are_recorded_once_each_time_they_change(site: Place) -> None:
    ada, bob = {"team": "a", "user": "ada"}, {"team": "b", "user": 'bob\\\'s\t"x"'}
    at_ms = ms(START)
    assert not teams.record_rules(site.ledger, [], at_ms)
    assert teams.record_rules(site.ledger, [ada, bob], at_ms)
    assert not teams.record_rules(site.ledger, [ada, bob], at_ms + 1)
    assert teams.record_rules(site.ledger, [bob, ada], at_ms + 2), "order is part of it"
    assert teams.record_rules(site.ledger, [], at_ms + 3)
    assert teams.rules(site.ledger, at_ms - 1) == []
    assert teams.rules(site.ledger, at_ms) == [ada, bob]
    assert teams.rules(site.ledger, at_ms + 2) == [bob, ada]
    assert teams.rules(site.ledger, at_ms + 3) == []
