"""HTTP connections that ask nothing, or ask it too slowly, are closed."""

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from joulegram.collector.security.tls import Certificates

HEAD_WITHIN_S = 10.0  # a request's line and headers; at most twice this
CONNECTIONS_MAX = 1_000  # more are answered 503


class Impatient(H11Protocol):
    """uvicorn waits for ever for a first request, or for the rest of a half-sent one."""

    _look: asyncio.TimerHandle | None = None
    _last: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look = self.loop.call_later(HEAD_WITHIN_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and self.cycle is self._last:
            self.transport.close()
            return
        self._last = self.cycle
        self._look = self.loop.call_later(HEAD_WITHIN_S, self._check)


def web_config(app: FastAPI, certificates: Certificates | None) -> uvicorn.Config:
    """How the page is served: bounded in connections, encrypted where there is a certificate."""
    config = uvicorn.Config(
        app,
        http=Impatient,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_graceful_shutdown=1,
    )
    if certificates is not None:
        context = certificates.for_browsers()
        config.ssl_context_factory = lambda *_: context
    return config
