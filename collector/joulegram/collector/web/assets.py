"""The page's files, plotly.js among them, from this machine alone: no request leaves it."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from fastapi import Request, Response

STATIC = {
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
}
PLOTLY = "plotly.min.js"
A_YEAR = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is served: compressed once, named by its content."""

    content_type: str
    etag: str
    plain: bytes
    compressed: bytes


@lru_cache(maxsize=8)
def asset(name: str) -> Asset | None:
    """A file of the page; None when there is none of that name. Slow the first time."""
    if name == PLOTLY:
        content_type = STATIC["app.js"]
        plain = (files("plotly") / "package_data" / PLOTLY).read_bytes()
    elif name in STATIC:
        content_type = STATIC[name]
        plain = (files(__package__) / "static" / name).read_bytes()
    else:
        return None
    etag = hashlib.blake2b(plain, digest_size=8).hexdigest()
    return Asset(content_type, etag, plain, gzip.compress(plain, 6))


@lru_cache(maxsize=1)
def page() -> Asset:
    """The page, its files named with their content's hash, so that they may be kept for ever."""
    html = (files(__package__) / "static" / "index.html").read_text("utf-8")
    for name in (*STATIC, PLOTLY):
        found = asset(name)
        if found is not None:
            html = html.replace(f"/static/{name}", f"/static/{name}?v={found.etag}")
    plain = html.encode()
    etag = hashlib.blake2b(plain, digest_size=8).hexdigest()
    return Asset("text/html; charset=utf-8", etag, plain, gzip.compress(plain, 6))


def serve(request: Request, found: Asset) -> Response:
    """Compressed where the browser takes it; kept a year when named by its hash."""
    named = request.query_params.get("v") == found.etag
    headers = {
        "etag": f'"{found.etag}"',
        "cache-control": A_YEAR if named else "no-cache",
        "vary": "accept-encoding",
    }
    if f'"{found.etag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        return Response(found.compressed, media_type=found.content_type, headers=headers)
    return Response(found.plain, media_type=found.content_type, headers=headers)
