"""The HTTP side of a process that serves no page: /metrics, and whether it can do its work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry

from joulegram.collector import metrics
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.web import models
from joulegram.collector.web.access import HEALTH, Access, is_nobody, team_of
from joulegram.collector.web.api import protect
from joulegram.collector.web.threads import Threads, TooBusy

WITHIN_S = 5.0  # a need that is not answered by then is not met


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a process cannot do its work without.

    Args:
        failing: why it is not met, "" while it is; called in a thread.
        remedy: what to do then.
    """

    what: str
    failing: Callable[[], str]
    remedy: str


def need_of(ledger: Ledger) -> Need:
    """That the ledger answers."""

    def failing() -> str:
        try:
            ledger.query("SELECT 1")
        except Exception as failed:
            return f"{type(failed).__name__}: {failed}"[:500]
        return ""

    return Need("ledger", failing, "look at this process's log, and at the ledger's servers")


def create_probe(registry: CollectorRegistry, access: Access, needs: Sequence[Need]) -> FastAPI:
    """The application of an intake or writer alone.

    Args:
        needs: looked at anew for each question; more may come later.
    """
    threads = Threads(workers=2, max_waiting=8)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await threads.close()

    app = FastAPI(
        title="joulegram", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan
    )

    @app.get("/metrics", include_in_schema=False)
    def scrape(request: Request) -> Response:
        body, content_type = metrics.exposition(registry, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def missing(need: Need) -> models.Missing | None:
        try:
            why = await asyncio.wait_for(threads.run(need.failing), WITHIN_S)
        except (TimeoutError, TooBusy):
            why = f"no answer within {WITHIN_S:g} s"
        return models.Missing(what=need.what, why=why, remedy=need.remedy) if why else None

    @app.get(HEALTH)
    async def health(request: Request, response: Response) -> models.Health:
        """ready, or failed (503): the servers without which it does nothing do not answer."""
        found = [one for one in await asyncio.gather(*map(missing, needs)) if one is not None]
        status = "ready"
        if found:
            response.status_code, status = 503, "failed"
        if is_nobody(request):
            return models.Health(status=status, version="", missing=[])
        if team_of(request) is not None:  # hosts and paths are the operators'
            found = []
        return models.Health(status=status, version=metrics.running_version(), missing=found)

    protect(app, access)
    return app


def until_draining(app: FastAPI) -> Callable[[], None]:
    """A call that makes an application unready (503), whatever it answers else.

    Who balances load sends no more then, while what is on its way still ends.
    """
    draining = asyncio.Event()

    @app.middleware("http")
    async def unready(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Any:
        if draining.is_set() and request.scope["path"] == HEALTH:
            said = {"status": "draining", "version": "", "missing": []}
            return JSONResponse(said, 503, {"cache-control": "no-store"})
        return await answer(request)

    return draining.set
