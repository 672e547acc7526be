"""What the API answers. Each method is one route under /api/v1."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query, Request, Response

from joulegram.collector import reports, series
from joulegram.collector.grid.feeds import FeedState
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.live import Live, Now
from joulegram.collector.local_days import zone_of
from joulegram.collector.metrics import running_version
from joulegram.collector.standing import Standing
from joulegram.collector.web import models, views
from joulegram.collector.web.access import is_nobody, team_of
from joulegram.collector.web.own import own
from joulegram.collector.web.questions import (
    BadTime,
    NodesQuestion,
    NowQuestion,
    ReportQuestion,
    SinceQuestion,
    parse_time,
)
from joulegram.collector.web.threads import Threads

MOST_POINTS = 360  # of a power series
LONGEST_SERIES = timedelta(days=31)


class KnowsFeeds(Protocol):
    """What the API needs of the grid feeds."""

    def states(self) -> list[FeedState]: ...


@dataclass(frozen=True, slots=True)
class Api:
    """The routes and what they draw on."""

    ledger: Ledger
    rollup: reports.Refreshes
    live: Live
    standing: Standing
    feeds: KnowsFeeds
    threads: Threads
    clock: Callable[[], datetime]

    def router(self) -> APIRouter:
        refused: dict[int | str, dict[str, Any]] = {
            400: {"model": models.Failure, "description": "a parameter that cannot hold"},
            422: {"model": models.Failure, "description": "a parameter that is not accepted"},
            503: {"model": models.Failure, "description": "too busy, or no ledger: ask again"},
        }
        router = APIRouter(prefix="/api/v1", responses=refused)
        for path, method in (
            ("/now", self.now),
            ("/nodes", self.nodes),
            ("/power", self.power),
            ("/intensity", self.intensity),
            ("/report", self.report),
            ("/health", self.health),
        ):
            router.add_api_route(path, method, name=path[1:])
        return router

    async def now(self, request: Request, asked: Annotated[NowQuestion, Query()]) -> models.Now:
        """Who draws the watts now, and what the grid emits for it."""
        answer = views.now(self._live(request), self.standing.grid, asked.top)
        if answer.state == "waiting" and team_of(request) is not None:
            answer.state = "nothing"
        return answer

    async def nodes(
        self, request: Request, asked: Annotated[NodesQuestion, Query()]
    ) -> models.NodeList:
        """Every node that was heard of since the start, by name."""
        answer = views.nodes(self._live(request), asked.limit)
        if team_of(request) is not None:
            for node in answer.nodes:
                node.host_node = ""
        return answer

    async def power(self, asked: Annotated[SinceQuestion, Query()]) -> models.PowerSeries:
        """Mean power by component since a time, in at most 360 steps."""
        now, since = self._since(asked)
        step_s = step_for((now - since).total_seconds(), self.live.window_s())
        start = datetime.fromtimestamp(since.timestamp() // step_s * step_s, now.tzinfo)
        answer = await self.threads.run(series.power_series, self.ledger, start, now, step_s)
        return models.PowerSeries(step_s=step_s, **answer)

    async def intensity(self, asked: Annotated[SinceQuestion, Query()]) -> models.IntensitySeries:
        """The grid intensity that reports use, by 5-minute slot, since a time."""
        now, since = self._since(asked)
        points = await self.threads.run(series.intensity_series, self.ledger, since, now)
        return models.IntensitySeries(
            points=[models.IntensityPoint.model_validate(point) for point in points]
        )

    async def report(
        self, request: Request, asked: Annotated[ReportQuestion, Query()]
    ) -> models.Report:
        """Energy and grams of a past time: what `joulegram report --json` prints."""
        now = self.clock()
        zone = zone_of(asked.tz)
        answer = await self.threads.run(
            reports.report,
            self.ledger,
            self.rollup,
            since=parse_time(asked.since, now, zone),
            until=parse_time(asked.until, now, zone),
            zone=zone,
            by=asked.by,
            idle_policy=asked.idle_policy,
            as_of=None if asked.as_of is None else parse_time(asked.as_of, now, zone),
            basis=asked.basis,
            components=tuple(dict.fromkeys(asked.components.split(","))),
            team=team_of(request),
            now=now,
        )
        return models.Report.model_validate(answer)

    async def health(self, request: Request, response: Response) -> models.Health:
        """ready; degraded with what is missing; failed (503) when the ledger does not answer."""
        missing = list(self._missing())
        status = "degraded" if missing else "ready"
        try:
            await self.threads.run(self.ledger.query, "SELECT 1")
        except Exception as failed:
            response.status_code, status = 503, "failed"
            missing.insert(
                0,
                models.Missing(
                    what="ledger",
                    why=f"{type(failed).__name__}: {failed}"[:500],
                    remedy="look at the collector's log and at the disk of --data",
                ),
            )
        if is_nobody(request):
            return models.Health(status=status, version="", missing=[])
        if team_of(request) is not None:  # nodes' names, paths and hosts are the operators'
            missing = []
        return models.Health(status=status, version=running_version(), missing=missing)

    def _live(self, request: Request) -> Now:
        """Now, or a team's part of it."""
        team = team_of(request)
        return self.live.now() if team is None else own(self.live.now(), team)

    def _missing(self) -> list[models.Missing]:
        found: list[models.Missing] = []

        def miss(what: str, why: str, remedy: str) -> None:
            found.append(models.Missing(what=what, why=why, remedy=remedy))

        live = self.live.now()
        if not live.nodes and not live.silent:
            miss("nodes", "no frame since the start", "start `joulegram agent` on a node")
        for node in live.silent[:10]:
            since = views.iso(node.received_at_ms)
            miss(f"node {node.node}", f"silent since {since}", "is its agent running?")
        for feed in self.feeds.states():
            if feed.last_error:
                miss(
                    f"grid feed {feed.provider}",
                    feed.last_error,
                    "nothing to do: it is asked again, and a fallback fills in until then",
                )
        grid = self.standing.grid
        if grid is None or grid["g_per_kwh"] is None:
            miss("grid intensity", "unknown for the running slot", "set --zone to your grid zone")
        for what, why in sorted(self.standing.failing.items()):
            miss(what, why, "the last known value is shown; see the collector's log")
        return found

    def _since(self, asked: SinceQuestion) -> tuple[datetime, datetime]:
        now = self.clock()
        since = parse_time(asked.since, now)
        if not timedelta(0) < now - since <= LONGEST_SERIES:
            raise BadTime(
                f"since={asked.since} is not within the last {LONGEST_SERIES.days} days; a report "
                "reaches further back"
            )
        return now, since


def step_for(span_s: float, window_s: float) -> int:
    """Step of a chart, s: a multiple of the window (10 s at least) with at most 360 steps."""
    grain = max(10, math.ceil(window_s))
    return grain * max(1, math.ceil(span_s / MOST_POINTS / grain))
