"""Which requests pass, judged one by one; test_security_readers.py asks a real collector."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response

from joulegram.collector.security.fresh import Fresh
from joulegram.collector.security.tokens import readers
from joulegram.collector.web.access import Access, team_of
from tests.certificates import token_file

TOKENS = {
    "operator": "0123456789-operator",
    "team": "0123456789-team",
    "scraper": "0123456789-scraper",
}


@pytest.fixture
def access(tmp_path: Path) -> Access:
    entries = [
        (TOKENS["operator"], 'sees = "everything"'),
        (TOKENS["team"], 'team = "blue"'),
        (TOKENS["scraper"], 'sees = "metrics"'),
    ]
    path = token_file(tmp_path / "readers.toml", entries)
    return Access(Fresh("read_tokens", [path], lambda: readers(path)))


def asked(path: str, who: str = "", host: str = "collector.example") -> Request:
    headers = [(b"host", host.encode())]
    if who:
        headers.append((b"authorization", f"Bearer {TOKENS[who]}".encode()))
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "scheme": "https",
        "path": path,
        "query_string": b"",
        "headers": headers,
        "server": ("127.0.0.1", 7470),
    }
    return Request(scope)


def status(access: Access, request: Request) -> int:
    refused = access.refuses(request, lambda code, *_, **__: Response(status_code=code))
    return 200 if refused is None else refused.status_code


def test_a_host_header_opens_no_path(access: Access) -> None:
    """Frameworks put the URL together from it: `Host: x/static/?` would look like an open path."""
    for host in ("x/static/?", "x/static/#", "x/?", "x/api/v1/health?", "x@y/static/?"):
        for path in ("/metrics", "/api/v1/report", "/api/v1/nodes"):
            assert status(access, asked(path, host=host)) == 401


@pytest.mark.parametrize(
    ("path", "nobody", "team", "scraper"),
    [
        ("/", 200, 200, 200),
        ("/static/app.js", 200, 200, 200),
        ("/api/openapi.json", 200, 200, 200),
        ("/api/v1/health", 200, 200, 403),
        ("/api/v1/report", 401, 200, 403),
        ("/api/v1/now", 401, 200, 403),
        ("/api/v1/power", 401, 403, 403),
        ("/metrics", 401, 403, 200),
        ("/api/v1/something-new", 401, 403, 403),
        ("/static", 401, 403, 403),
        ("/STATIC/app.js", 401, 403, 403),
        ("//", 401, 403, 403),
        ("", 401, 403, 403),
    ],
)
def test_what_is_not_named_is_the_operators(
    access: Access, path: str, nobody: int, team: int, scraper: int
) -> None:
    assert status(access, asked(path)) == nobody
    assert status(access, asked(path, "team")) == team
    assert status(access, asked(path, "scraper")) == scraper
    assert status(access, asked(path, "operator")) == 200


def test_whose_part_is_shown_is_what_the_token_says(access: Access) -> None:
    for who, team in (("operator", None), ("team", "blue")):
        request = asked("/api/v1/report", who)
        assert status(access, request) == 200
        assert team_of(request) == team


def test_without_tokens_all_is_open_and_names_are_still_asked_for() -> None:
    assert status(Access(), asked("/metrics")) == 200
    local = Access(hosts=("joulegram.example",))
    assert status(local, asked("/metrics")) == 421
    assert status(local, asked("/metrics", host="JOULEGRAM.example:443")) == 200
    assert status(local, asked("/metrics", host="[::1]:7470")) == 200
