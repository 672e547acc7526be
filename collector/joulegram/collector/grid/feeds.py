"""Keeps the `intensity` table filled: the yearly table once, the live feed for ever.

A feed that fails costs its own numbers: the last good values stay in the ledger, the
failure is counted under its reason, and the feed is asked again after a growing pause.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge

from joulegram.collector.config import GridConfig
from joulegram.collector.grid import neso, table, yearly, zones
from joulegram.collector.ledger.ledger import Ledger

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 1800.0
LONGEST_RETRY_AFTER_S = 6 * 3600.0
# Asking again would not help: the operator has to change something first.
FINAL = ("http_401", "http_403", "http_410")


@dataclass(slots=True)
class FeedState:
    """What the page shows of one feed."""

    provider: str
    zone: str
    running: bool = True  # False: it gave up, `last_error` says why; a restart asks again
    last_good_ms: int = 0  # when it last answered well; 0: never
    last_error: str = ""  # "reason: detail" of the latest failure, "" after a good answer
    failures: int = 0  # in a row


class Feeds:
    """The grid feeds of one collector: the yearly table, and NESO where the zone is GB."""

    def __init__(
        self,
        ledger: Ledger,
        config: GridConfig,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        answer_within_s: float = neso.ANSWER_WITHIN_S,
    ) -> None:
        self._ledger = ledger
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._within_s = answer_within_s
        self._tried_yearly = asyncio.Event()
        self._metrics = FeedMetrics(registry)
        world = config.zone == zones.WORLD
        self._yearly = FeedState(yearly.WORLD_PROVIDER if world else yearly.PROVIDER, config.zone)
        live = config.zone == neso.ZONE and config.neso_url
        self._live = FeedState(neso.PROVIDER, neso.ZONE) if live else None
        if self._live is not None:
            self._metrics.stopped.labels(self._live.provider).set(0)

    def states(self) -> list[FeedState]:
        """One per feed, for the page."""
        return [self._yearly] if self._live is None else [self._live, self._yearly]

    async def first_try(self, within_s: float) -> None:
        """Return once the yearly table is in or was refused, or after a time; `run` must run."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._tried_yearly.wait(), within_s)

    async def run(self) -> None:
        """Fill and poll until cancelled; nothing that one feed does ends it or the other."""
        await asyncio.gather(self._fill_yearly(), self._poll_for_ever())

    async def _fill_yearly(self) -> None:
        while True:
            try:
                rows = yearly.rows(self._config.zone, self._now_ms())
                stored = await asyncio.to_thread(table.append_new, self._ledger, rows)
            except Exception as exc:  # the ledger may be busy or full; every answer waits for this
                self._failed(self._yearly, "ledger", str(exc))
                self._tried_yearly.set()
                await self._sleep(_pause_s(self._yearly.failures, FIRST_PAUSE_S))
            else:
                self._succeeded(self._yearly, stored)
                self._tried_yearly.set()
                return

    async def _poll_for_ever(self) -> None:
        while self._live is not None and self._live.running:
            await self._sleep(await self._poll(self._live))

    async def _poll(self, state: FeedState) -> float:
        """Ask once; returns how long to wait before the next time, seconds."""
        first_pause_s = min(FIRST_PAUSE_S, self._config.neso_poll_s)
        try:
            # A client each time: the next poll is minutes away, and a bad certificate store is
            # then a failure like any other.
            async with httpx.AsyncClient(
                timeout=10.0,
                follow_redirects=True,
                max_redirects=3,
                headers={"User-Agent": "joulegram"},
            ) as client:
                stored = await self._ask_neso(client)
        except neso.FeedFailure as failure:
            self._failed(state, failure.reason, str(failure))
            if failure.reason in FINAL:
                state.running = False
                self._metrics.stopped.labels(state.provider).set(1)
                log.error("grid feed %s stops until a restart: %s", state.provider, failure)
            pause_s = _pause_s(state.failures, first_pause_s)
            asked_s = min(failure.retry_after_s or 0.0, LONGEST_RETRY_AFTER_S)
            return max(pause_s, asked_s)
        except Exception as exc:  # the ledger, or what nobody thought of: stay up, count, retry
            self._failed(state, "ledger", f"{type(exc).__name__}: {exc}")
            return _pause_s(state.failures, first_pause_s)
        self._succeeded(state, stored)
        return self._config.neso_poll_s * random.uniform(0.9, 1.1)  # noqa: S311

    async def _ask_neso(self, client: httpx.AsyncClient) -> int:
        """Forecasts ahead and what was published since; returns how many rows were new.

        The last day is asked for each time: actuals come late and are revised without a flag.
        After a longer silence the question reaches back to the last value we hold.
        """
        url, now = self._config.neso_url, datetime.fromtimestamp(self._clock(), UTC)
        newest_s = await asyncio.to_thread(
            table.newest_end_s, self._ledger, neso.ZONE, neso.PROVIDER
        )
        stored = await self._store(await neso.ahead(client, url, now, self._within_s))
        since = now - timedelta(hours=24)
        if newest_s:
            since = min(since, datetime.fromtimestamp(newest_s, UTC))
        past = await neso.past(client, url, since, now, self._within_s)
        return stored + await self._store(past)

    async def _store(self, payload: object) -> int:
        answer = neso.parse(payload, self._now_ms())
        for reason, count in answer.quarantined.items():
            self._metrics.quarantined.labels(neso.PROVIDER, reason).inc(count)
        return await asyncio.to_thread(table.append_new, self._ledger, answer.rows)

    def _succeeded(self, state: FeedState, stored: int) -> None:
        if state.failures:
            log.info("grid feed %s answers again", state.provider)
        state.failures, state.last_error, state.last_good_ms = 0, "", self._now_ms()
        self._metrics.requests.labels(state.provider, "ok").inc()
        self._metrics.stored.labels(state.provider).inc(stored)
        self._metrics.last_good.labels(state.provider).set(state.last_good_ms / 1000)

    def _failed(self, state: FeedState, reason: str, detail: str) -> None:
        state.failures += 1
        state.last_error = detail[:300]
        self._metrics.requests.labels(state.provider, reason).inc()
        # The first of a row of failures; the counter has the others.
        if state.failures == 1:
            log.warning(
                "grid feed %s: %s. It is asked again; until then a fallback fills in, marked so",
                state.provider,
                state.last_error,
            )

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


class FeedMetrics:
    """What /metrics says of the feeds; labels are providers and fixed lists of reasons."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "joulegram_feed_polls",
            "Polls of a grid feed by result: ok, or why it gave nothing new.",
            ["provider", "result"],
            registry=registry,
        )
        self.quarantined = Counter(
            "joulegram_feed_quarantined_values",
            "Grid values set aside: zero (an outage reads as 0), outlier, shape, interval.",
            ["provider", "reason"],
            registry=registry,
        )
        self.stored = Counter(
            "joulegram_feed_stored_values",
            "Grid values stored because they said something new.",
            ["provider"],
            registry=registry,
        )
        self.last_good = Gauge(
            "joulegram_feed_last_success_timestamp_seconds",
            "When a grid feed last answered well; alert when it is hours old.",
            ["provider"],
            registry=registry,
        )
        self.stopped = Gauge(
            "joulegram_feed_stopped",
            "1: the provider ended the feed or refuses us, and it is not asked until a restart.",
            ["provider"],
            registry=registry,
        )


def _pause_s(failures: int, first_s: float) -> float:
    """Twice as long after each failure, with jitter, so that collectors do not ask in step."""
    longest_s = min(LONGEST_PAUSE_S, first_s * 2.0 ** min(failures - 1, 16))
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311
