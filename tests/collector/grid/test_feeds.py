"""The feeds against a local NESO that behaves and misbehaves; no clock of the real world."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from joulegram.collector import series
from joulegram.collector.config import GridConfig
from joulegram.collector.errors import LedgerFailed
from joulegram.collector.grid import feeds, neso, table
from joulegram.collector.grid.feeds import Feeds
from joulegram.collector.sites import record_site, site_of
from tests.collector.carbon import START, START_S, Place, ms
from tests.neso_server import SHAPES, NesoServer, neso_server

HALF_HOUR = 1800


class Clock:
    def __init__(self) -> None:
        self.now_s = float(START_S)

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[NesoServer]:
    with neso_server(clock) as made:
        yield made


class Polls:
    """Feeds whose sleep is the end of a poll: each `poll()` lets one more of them happen."""

    def __init__(
        self, site: Place, clock: Clock, url: str, zone: str = "GB", within_s: float = 10.0
    ) -> None:
        self.registry = CollectorRegistry()
        self.pauses: list[float] = []
        self.feeds = Feeds(
            site.ledger,
            GridConfig(zone=zone, neso_url=url),
            self.registry,
            clock=clock,
            sleep=self._sleep,
            answer_within_s=within_s,
        )
        record_site(site.ledger, site_of(GridConfig(zone=zone, neso_url=url)), ms(START))
        self._wanted = 0

    async def _sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        if len(self.pauses) >= self._wanted:
            while not self.feeds.states()[-1].last_good_ms:  # the yearly table, filled beside it
                await asyncio.sleep(0.01)
            raise asyncio.CancelledError

    def poll(self, times: int = 1) -> float:
        """Poll; returns the pause that followed."""
        self._wanted = len(self.pauses) + times
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(asyncio.wait_for(self.feeds.run(), 60))
        return self.pauses[-1] if self.pauses else 0.0

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"joulegram_feed_{name}", labels) or 0.0


@pytest.fixture
def polls(site: Place, clock: Clock, server: NesoServer) -> Polls:
    return Polls(site, clock, server.url)


def stored(site: Place, at_s: int, as_of_s: float = START_S + 10**6) -> list[tuple[float, str]]:
    rows = table.read(site.ledger, "GB", at_s, at_s + 300, int(as_of_s * 1000))
    return [(row.g_per_kwh, row.quality) for row in rows if row.provider == "neso"]


def test_the_first_poll_has_the_last_day_and_the_next_two(
    site: Place, polls: Polls, server: NesoServer
) -> None:
    pause_s = polls.poll()
    assert 540 <= pause_s <= 660
    for hours in (-23.5, -12, -1):
        at_s = START_S + round(hours * 3600)
        assert stored(site, at_s) == [(server.actual(at_s), "estimated")]
    for hours in (0, 24, 47.5):
        at_s = START_S + round(hours * 3600)
        assert stored(site, at_s) == [(server.forecast(at_s), "forecast")]
    assert [state.provider for state in polls.feeds.states()] == [
        "neso",
        "electricity-maps-yearly",
    ]
    assert all(state.last_good_ms == ms(START) for state in polls.feeds.states())
    assert polls.count("polls_total", provider="neso", result="ok") == 1


def test_an_actual_replaces_the_forecast_when_it_comes_and_the_past_remembers(
    site: Place, polls: Polls, clock: Clock, server: NesoServer
) -> None:
    polls.poll()
    now = series.intensity_now(site.ledger, START)
    assert (now["g_per_kwh"], now["quality"]) == (server.forecast(START_S), "forecast")
    assert (now["valid_from"], now["valid_to"]) == (
        "2026-09-21T12:00:00Z",
        "2026-09-21T12:30:00Z",
    )
    clock.now_s += 2 * 3600
    polls.poll()
    (point, *_) = series.intensity_series(
        site.ledger, START, START + timedelta(minutes=5), START + timedelta(hours=2)
    )
    assert (point["g_per_kwh"], point["quality"]) == (server.actual(START_S), "estimated")
    (before, *_) = series.intensity_series(
        site.ledger, START, START + timedelta(minutes=5), START + timedelta(hours=1)
    )
    assert before["quality"] == "forecast"


def test_what_is_unchanged_is_not_stored_again(
    polls: Polls, clock: Clock, server: NesoServer
) -> None:
    polls.poll()
    first = polls.count("stored_values_total", provider="neso")
    clock.now_s += 1
    polls.poll()
    assert polls.count("stored_values_total", provider="neso") == first
    # A revision says something new, and so does going back on it.
    for value in (150, 151, 150):
        clock.now_s += 1
        server.changes[START_S - 7200] = {"actual": value}
        polls.poll()
    assert polls.count("stored_values_total", provider="neso") == first + 3


def test_after_a_long_silence_the_gap_is_asked_for(
    site: Place, polls: Polls, clock: Clock, server: NesoServer
) -> None:
    polls.poll()
    clock.now_s += 5 * 86_400
    polls.poll()
    at_s = START_S + 2 * 86_400
    assert stored(site, at_s, clock.now_s) == [(server.actual(at_s), "estimated")]
    clock.now_s += 40 * 86_400
    polls.poll()
    assert polls.feeds.states()[0].last_error == ""
    at_s = int(clock.now_s) - 13 * 86_400
    assert stored(site, at_s, clock.now_s) == [(server.actual(at_s), "estimated")]


def test_an_outage_of_zeros_is_counted_and_the_forecast_stands(
    site: Place, polls: Polls, server: NesoServer
) -> None:
    server.changes[START_S - 7200] = {"actual": 0}
    server.changes[START_S + 7200] = {"forecast": 13_456}
    server.changes[START_S - 3600] = {"actual": None}
    polls.poll()
    assert stored(site, START_S - 7200) == [(server.forecast(START_S - 7200), "forecast")]
    assert stored(site, START_S + 7200) == []
    assert stored(site, START_S - 3600) == [(server.forecast(START_S - 3600), "forecast")]
    assert polls.count("quarantined_values_total", provider="neso", reason="zero") == 1
    assert polls.count("quarantined_values_total", provider="neso", reason="outlier") == 1


def misbehave(**fields: Any) -> Callable[[NesoServer], None]:
    def apply(server: NesoServer) -> None:
        for name, value in fields.items():
            setattr(server, name, value)

    return apply


FAILURES = {
    "http_500": (misbehave(status=500), "http_5xx"),
    "http_404": (misbehave(status=404), "http_404"),
    "http_400": (misbehave(status=400), "http_4xx"),
    "http_429": (misbehave(status=429), "http_429"),
    "html": (misbehave(shape="html"), "content_type"),
    "no_type": (misbehave(shape="no_type"), "content_type"),
    "truncated": (misbehave(shape="truncated"), "json"),
    "empty_body": (misbehave(shape="empty_body"), "json"),
    "not_utf8": (misbehave(shape="not_utf8"), "json"),
    "error_in_200": (misbehave(shape="error_in_200"), "shape"),
    "renamed": (misbehave(shape="renamed"), "shape"),
    "empty_list": (misbehave(shape="empty_list"), "empty"),
    "reset": (misbehave(shape="reset"), "network"),
    "slow": (misbehave(shape="slow"), "timeout"),
    "drip": (misbehave(shape="drip"), "timeout"),
    "too_large": (misbehave(shape="too_large"), "too_large"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_counted_and_the_last_good_values_stay(
    site: Place, clock: Clock, server: NesoServer, name: str
) -> None:
    apply, reason = FAILURES[name]
    polls = Polls(site, clock, server.url, within_s=1.0)
    polls.poll()
    before = stored(site, START_S)
    apply(server)
    assert polls.poll() <= feeds.FIRST_PAUSE_S
    (state, yearly) = polls.feeds.states()
    assert state.last_error.startswith(reason) and state.running and yearly.last_error == ""
    assert polls.count("polls_total", provider="neso", result=reason) == 1
    assert stored(site, START_S) == before
    assert reason in neso.REASONS
    server.status, server.shape = 200, ""
    polls.poll()
    assert (state.failures, state.last_error) == (0, "")


@pytest.mark.parametrize("shape", ["gzip", "redirect"])
def test_answers_that_only_look_different_are_good(
    polls: Polls, server: NesoServer, shape: str
) -> None:
    server.shape = shape
    polls.poll()
    assert polls.feeds.states()[0].last_error == ""


def test_the_local_server_plays_every_shape() -> None:
    played = {shape for shape in SHAPES if shape in FAILURES} | {"gzip", "redirect", "bare"}
    assert played == set(SHAPES)


def test_pauses_grow_with_jitter_and_have_an_end(polls: Polls, server: NesoServer) -> None:
    server.status = 500
    polls.poll(14)
    longest = [min(feeds.LONGEST_PAUSE_S, 10.0 * 2**i) for i in range(14)]
    for pause_s, most_s in zip(polls.pauses, longest, strict=True):
        assert most_s / 2 <= pause_s <= most_s
    assert len(set(polls.pauses)) == len(polls.pauses)


@pytest.mark.parametrize(
    ("header", "least_s", "most_s"),
    [("120", 120, 120), ("1", 1, 10), ("999999999", 21_600, 21_600), ("soon", 1, 10)],
)
def test_retry_after_is_honoured_within_reason(
    polls: Polls, server: NesoServer, header: str, least_s: float, most_s: float
) -> None:
    server.status, server.headers = 429, {"Retry-After": header}
    assert least_s <= polls.poll() <= most_s


def test_retry_after_may_be_a_date(polls: Polls, server: NesoServer) -> None:
    server.status, server.headers = 503, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}
    assert polls.poll() == feeds.LONGEST_RETRY_AFTER_S


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_final_no_stops_the_feed_with_an_alarm(
    site: Place, polls: Polls, server: NesoServer, status: int
) -> None:
    server.status = status
    polls.poll()
    asked = len(server.paths)
    polls.poll()
    assert len(server.paths) == asked
    assert polls.count("stopped", provider="neso") == 1
    assert not polls.feeds.states()[0].running
    now = series.intensity_now(site.ledger, START)
    assert (now["g_per_kwh"], now["quality"]) == (176, "fallback")


def test_a_server_that_is_not_there_costs_only_its_own_numbers(site: Place, clock: Clock) -> None:
    polls = Polls(site, clock, "http://127.0.0.1:9")
    polls.poll()
    (live, yearly) = polls.feeds.states()
    assert live.last_error.startswith("network") and yearly.last_good_ms == ms(START)
    now = series.intensity_now(site.ledger, START)
    assert (now["quality"], now["provider"]) == ("fallback", "electricity-maps-yearly")


def test_elsewhere_nobody_asks_neso(site: Place, clock: Clock, server: NesoServer) -> None:
    for zone, url in (("FR", server.url), ("GB", "")):
        elsewhere = Polls(site, clock, url, zone)
        elsewhere.poll()
        assert [s.provider for s in elsewhere.feeds.states()] == ["electricity-maps-yearly"]
    assert server.paths == []


class Slow:
    """A ledger that does not answer until it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def query(self, *_: Any) -> Any:
        self.go.wait(20)
        raise LedgerFailed("gone")


async def test_the_start_waits_for_the_yearly_table_but_not_for_ever(site: Place) -> None:
    async def start(ledger: Any, within_s: float) -> tuple[Feeds, asyncio.Task[None]]:
        made = Feeds(ledger, GridConfig(zone="FR"), CollectorRegistry())
        running = asyncio.create_task(made.run())
        await made.first_try(within_s)
        return made, running

    good, running = await start(site.ledger, 60)
    assert good.states()[0].last_good_ms > 0
    await running
    slow = Slow()
    late, running = await start(slow, 0.05)
    assert not late.states()[0].last_error
    slow.go.set()
    await late.first_try(60)
    assert late.states()[0].last_error == "gone"
    running.cancel()


def test_stamps_of_the_running_half_hour(clock: Clock) -> None:
    """The server's own contract: actuals are null until their half hour is over and published."""
    with neso_server(clock) as server:
        _, payload = server.payload("/intensity/2026-09-21T12:00Z/pt24h/")
        assert [e["from"] for e in payload["data"]][-1] == "2026-09-21T11:30Z"
        assert payload["data"][-1]["intensity"]["actual"] is None
        assert payload["data"][-3]["intensity"]["actual"] is not None
        assert server.payload("/intensity/2026-01-01T00:00Z/2026-02-01T00:00Z")[0] == 400
        assert datetime.fromisoformat(payload["data"][0]["to"])
