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
from joulegram.collector.web.threads import Threads

WITHIN_S = 5.0  # a need that is not answered by then is not met
GOOD_FOR_S = 1.0  # how old a look may be that answers a question


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


class _Look:
    """A look at a need, shared by all who ask: however many they are, one is on its way at most."""

    def __init__(self, need: Need, threads: Threads) -> None:
        self._need = need
        self._threads = threads
        self._looking: asyncio.Task[str] | None = None
        self._since_s = 0.0  # when it began, the loop's clock

    async def missing(self) -> models.Missing | None:
        now_s = asyncio.get_running_loop().time()
        looking = self._looking
        if looking is None or (looking.done() and now_s - self._since_s >= GOOD_FOR_S):
            looking = asyncio.create_task(self._threads.run(self._need.failing))
            self._looking, self._since_s = looking, now_s
        # Who asks and goes away must not end it for the others.
        await asyncio.wait({looking}, timeout=max(0.0, self._since_s + WITHIN_S - now_s))
        why = looking.result() if looking.done() else f"no answer within {WITHIN_S:g} s"
        if not why:
            return None
        return models.Missing(what=self._need.what, why=why, remedy=self._need.remedy)


def create_probe(registry: CollectorRegistry, access: Access, needs: Sequence[Need]) -> FastAPI:
    """The application of an intake or writer alone.

    Args:
        needs: at most one look at each a second, however many ask; more may come later.
    """
    threads = Threads()
    looks: dict[str, _Look] = {}

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

    @app.get(HEALTH)
    async def health(request: Request, response: Response) -> models.Health:
        """ready, or failed (503): the servers without which it does nothing do not answer."""
        looking = [looks.setdefault(need.what, _Look(need, threads)).missing() for need in needs]
        found = [one for one in await asyncio.gather(*looking) if one is not None]
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
