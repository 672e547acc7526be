"""The HTTP side of the collector: the API under /api/v1/, /metrics, and the page at /.

Every error is JSON {error, remedy}. Queries run in a few threads, with a bound on the queue.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from joulegram.collector import metrics, reports
from joulegram.collector.errors import CollectorError
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.live import Live
from joulegram.collector.standing import Standing
from joulegram.collector.web import assets
from joulegram.collector.web.access import Access
from joulegram.collector.web.questions import BadTime
from joulegram.collector.web.routes import Api, KnowsFeeds
from joulegram.collector.web.threads import Threads, TooBusy

log = logging.getLogger(__name__)

# Nothing from elsewhere is loaded, framed or asked. plotly.js writes style attributes.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# The first answer knows the grid, and /metrics the totals, unless that takes longer than this.
STANDING_WITHIN_S = 5.0
SEE = "see /api/openapi.json for what is accepted"


def _now() -> datetime:
    return datetime.now(UTC)


def create_app(
    *,
    ledger: Ledger,
    rollup: reports.Refreshes,
    live: Live,
    standing: Standing,
    feeds: KnowsFeeds,
    registry: CollectorRegistry,
    access: Access | None = None,
    clock: Callable[[], datetime] = _now,
) -> FastAPI:
    """The application.

    Args:
        standing: refreshed as long as the application runs.
        registry: what /metrics shows; metrics.CollectorMetrics and others register there.
        access: who may ask what; None: everybody, everything.
    """
    threads = Threads()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        refreshing = asyncio.create_task(standing.run())
        await standing.first_try(STANDING_WITHIN_S)
        yield
        refreshing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await refreshing
        await threads.close()

    app = FastAPI(
        title="joulegram",
        summary="The energy and carbon of every process, workload and team.",
        description="Power W, energy integer uJ, emissions gCO2e, intensity gCO2e/kWh, "
        "times ISO 8601 in UTC.",
        version=metrics.running_version(),
        openapi_url="/api/openapi.json",
        docs_url=None,  # these would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(Api(ledger, rollup, live, standing, feeds, threads, clock).router())

    @app.get("/metrics", include_in_schema=False)
    def scrape(request: Request) -> Response:
        body, content_type = metrics.exposition(registry, request.headers.get("accept", ""))
        # Set whole: media_type would have a charset added to it.
        return Response(body, headers={"content-type": content_type})

    @app.get("/", include_in_schema=False)
    def page(request: Request) -> Response:
        return assets.serve(request, assets.page())

    @app.get("/static/{name}", include_in_schema=False)
    def static(request: Request, name: str) -> Response:
        found = assets.asset(name)
        if found is None:
            return _failure(404, f"no file {name}", "the page is at /")
        return assets.serve(request, found)

    protect(app, access or Access())
    return app


def protect(app: FastAPI, access: Access) -> None:
    """Ask `access` of every request; give every answer its headers, every error its form."""

    @app.middleware("http")
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Any:
        return access.refuses(request, _failure) or await answer(request)

    app.middleware("http")(_with_headers)
    _speak_plainly(app)


async def _with_headers(
    request: Request, answer: Callable[[Request], Awaitable[Response]]
) -> Response:
    try:
        response = await answer(request)
    except Exception as failed:
        _log_rarely(request.url.path, failed)
        response = _failure(500, f"{type(failed).__name__} inside", "see the collector's log")
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.url.path.startswith("/api/"):
        response.headers.setdefault("cache-control", "no-store")
    return response


def _failure(status: int, error: str, remedy: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": error, "remedy": remedy}, status, headers)


def _speak_plainly(app: FastAPI) -> None:
    """Give every error its JSON {error, remedy}."""

    @app.exception_handler(RequestValidationError)
    async def not_accepted(_: Request, failed: RequestValidationError) -> Response:
        said = [_complaint(error) for error in failed.errors()[:5]]
        return _failure(422, "; ".join(said), SEE)

    @app.exception_handler(BadTime)
    async def bad_time(_: Request, failed: BadTime) -> Response:
        error, _sep, remedy = str(failed).partition("; ")
        return _failure(400, error, remedy or SEE)

    @app.exception_handler(CollectorError)
    async def bad_question(_: Request, failed: CollectorError) -> Response:
        error, _sep, remedy = str(failed).partition("; ")
        return _failure(400, error, remedy or SEE)

    @app.exception_handler(TooBusy)
    async def too_busy(_: Request, failed: TooBusy) -> Response:
        return _failure(
            503, "too many queries are waiting", "ask again in a second", **{"retry-after": "1"}
        )

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, failed: HTTPException) -> Response:
        remedy = "the page is at /, the API under /api/v1/, its shapes at /api/openapi.json"
        return _failure(failed.status_code, f"{request.url.path}: {failed.detail}", remedy)


_logged_at_s: dict[str, float] = {}


def _log_rarely(path: str, failed: Exception) -> None:
    """A page asks every few seconds: the same failure is told once a minute."""
    key = f"{path.split('/')[-1][:40]} {type(failed).__name__}"
    if time.monotonic() - _logged_at_s.get(key, -60.0) < 60.0:
        return
    if len(_logged_at_s) > 100:
        _logged_at_s.clear()
    _logged_at_s[key] = time.monotonic()
    log.error("%s failed", path, exc_info=failed)


def _complaint(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"][1:]) or "request"
    if error["type"] == "extra_forbidden":
        return f"no parameter {name}"
    # Of a pattern pydantic shows the expression; the parameter's description says it in words.
    said = (
        "takes cpu, dram, gpu, other, separated by commas"
        if error["type"] == "string_pattern_mismatch"
        else error["msg"]
    )
    return f"{name}={str(error.get('input'))[:80]!r}: {said}"
