"""Who may ask what over HTTP: tokens, teams, and names that this machine goes by.

Without `read_tokens` everybody may ask everything. With them an operator's token shows all, a
team's what is its own, a scraper's /metrics; paths that are not named here are the operators'.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from fastapi import Request, Response

from joulegram.collector.security.counts import REQUESTS_DENIED
from joulegram.collector.security.fresh import Fresh
from joulegram.collector.security.tokens import Reader, Tokens

# The page's own files and the API's shapes tell nothing of anybody.
OPEN = ("/", "/api/openapi.json")
OPEN_BELOW = "/static/"
# Asked without a token it says only whether it is well: load balancers hold none.
HEALTH = "/api/v1/health"
# Routes that answer a team with its own, by asking `team_of`.
OF_TEAMS = frozenset(
    {HEALTH, *(f"/api/v1/{name}" for name in ("now", "nodes", "intensity", "report"))}
)
METRICS = "/metrics"

Answer = Callable[[Request], Awaitable[Response]]
Failure = Callable[..., Response]


@dataclass(frozen=True, slots=True)
class Access:
    """Args:
    tokens: who may read; None: everybody.
    hosts: names that a request may be for; None: any. Addresses and `localhost` always may.
    """

    tokens: Fresh[Tokens[Reader]] | None = None
    hosts: Sequence[str] | None = None

    def refuses(self, request: Request, failure: Failure) -> Response | None:
        """The answer to a request that may not be; None lets it through, its reader noted."""
        # A page of elsewhere can have its own name point here and read what it likes.
        if self.hosts is not None and not _is_named(request.headers.get("host", ""), self.hosts):
            REQUESTS_DENIED.labels("host").inc()
            return failure(
                421,
                "this is not the name of a collector",
                "ask for 127.0.0.1 or localhost, or add the name to `hosts` in [security]",
            )
        # Not request.url's: that is put together with what the Host header says.
        path = request.scope["path"]
        if self.tokens is None:
            return None
        authorization = request.headers.get("authorization", "")
        reader = self.tokens.value.of(authorization)
        request.state.reader = reader
        if path in OPEN or path.startswith(OPEN_BELOW):
            return None
        if reader is None:
            if path == HEALTH and not authorization:
                request.state.nobody = True
                return None
            REQUESTS_DENIED.labels("token" if authorization else "no token").inc()
            return failure(
                401,
                "this token is not known here" if authorization else "this takes a token",
                "send Authorization: Bearer TOKEN; `joulegram report --token-file FILE` does",
                **{"www-authenticate": 'Bearer realm="joulegram"'},
            )
        allowed = (
            reader.sees == "everything"
            or (reader.sees == "metrics" and path == METRICS)
            or (reader.sees == "team" and path in OF_TEAMS)
        )
        if allowed:
            return None
        REQUESTS_DENIED.labels("path").inc()
        return failure(
            403,
            f"this token does not show {path}",
            "a team's token shows its own part of /api/v1/now, nodes and report; ask an operator",
        )


def team_of(request: Request) -> str | None:
    """Whose part alone may be shown; None: everything."""
    reader: Reader | None = getattr(request.state, "reader", None)
    return reader.team if reader is not None and reader.sees == "team" else None


def is_nobody(request: Request) -> bool:
    """Whether it came without the token that others need."""
    return getattr(request.state, "nobody", False)


def _is_named(host: str, hosts: Sequence[str]) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.rstrip(".").lower()
    if name == "localhost" or name in {known.lower() for known in hosts}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
