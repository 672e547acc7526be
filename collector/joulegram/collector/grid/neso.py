"""Great Britain's live intensity: the NESO Carbon Intensity API, keyless.

API    https://carbon-intensity.github.io/api-definitions/ (data CC BY 4.0)
Basis  average, direct, consumption (imports counted): nuclear, wind, solar and hydro are 0
Step   30 minutes; `from` names the start, UTC
"""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from joulegram.collector.grid.table import IntensityRow

PROVIDER = "neso"
ZONE = "GB"
BASIS = "average-direct-consumption"

# The dirtiest fuel of /intensity/factors is coal at 937 gCO2/kWh: no mix can be above it.
# Forecasts beyond 13,000 have been published.
MAX_G_PER_KWH = 937.0
MAX_BODY_BYTES = 4_000_000  # 14 days are about 100 kB
ANSWER_WITHIN_S = 30.0
MAX_RANGE = timedelta(days=14)  # of /intensity/{from}/{to}
MAX_DISTANCE_S = 30 * 86400  # nothing we ask for is further from now

# Every reason of a failed request, for the label of a metric.
REASONS = (
    "timeout", "network", "http_401", "http_403", "http_404", "http_410", "http_429",
    "http_4xx", "http_5xx", "http_other", "too_large", "content_type", "json", "shape", "empty",
)  # fmt: skip
# Every reason for which one value of a good answer is set aside.
QUARANTINED = ("zero", "outlier", "shape", "interval")


class FeedFailure(Exception):
    """A request gave nothing to store. `reason` is one of REASONS."""

    def __init__(self, reason: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Answer:
    """What one good request said; values set aside are counted by reason."""

    rows: list[IntensityRow] = field(default_factory=list)
    quarantined: Counter[str] = field(default_factory=Counter)


async def ahead(
    client: httpx.AsyncClient, url: str, since: datetime, within_s: float = ANSWER_WITHIN_S
) -> Any:
    """The 48 hours from `since` on, decoded. Raises: FeedFailure."""
    return await _get(client, f"{url.rstrip('/')}/intensity/{_stamp(since)}/fw48h", within_s)


async def past(
    client: httpx.AsyncClient,
    url: str,
    since: datetime,
    until: datetime,
    within_s: float = ANSWER_WITHIN_S,
) -> Any:
    """What was: the last day, or from `since` on, at most MAX_RANGE. Raises: FeedFailure."""
    if until - since <= timedelta(hours=24):
        return await _get(client, f"{url.rstrip('/')}/intensity/{_stamp(until)}/pt24h", within_s)
    since = max(since, until - MAX_RANGE)
    return await _get(
        client, f"{url.rstrip('/')}/intensity/{_stamp(since)}/{_stamp(until)}", within_s
    )


def parse(payload: Any, known_at_ms: int) -> Answer:
    """Rows of a decoded answer, {"data": [{"from", "to", "intensity": {...}}]}.

    An interval with an `actual` gives that, else its forecast, never both.
    Raises: FeedFailure when the answer as a whole has another shape.
    """
    data = payload.get("data") if isinstance(payload, dict) else None
    if isinstance(data, dict):  # one interval comes as a list or bare
        data = [data]
    if not isinstance(data, list):
        raise FeedFailure("shape", f"no list under `data` in {str(payload)[:120]!r}")
    if not data:
        raise FeedFailure("empty", "the list under `data` is empty")
    answer = Answer()
    for entry in data:
        _read(entry, known_at_ms, answer)
    if answer.quarantined["shape"] + answer.quarantined["interval"] == len(data):
        raise FeedFailure("shape", f"no interval can be read in {str(data[0])[:120]!r}")
    return answer


def _read(entry: Any, known_at_ms: int, answer: Answer) -> None:
    try:
        start_s, end_s = _epoch_s(entry["from"]), _epoch_s(entry["to"])
        intensity = entry["intensity"]
        # "actual" is itself a model, metered generation times a table of factors, and is revised
        # without a flag: it is an estimate, and never called measured.
        values = {
            "estimated": _number(intensity.get("actual")),
            "forecast": _number(intensity["forecast"]),
        }
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        answer.quarantined["shape"] += 1
        return
    near = abs(start_s - known_at_ms / 1000) <= MAX_DISTANCE_S
    if not (near and 0 < end_s - start_s <= 3600):
        answer.quarantined["interval"] += 1
        return
    for quality, value in values.items():
        if value is None:
            continue  # not published: never 0
        if value == 0:
            # An outage reads as 0; the cleanest half hour so far had 14.
            answer.quarantined["zero"] += 1
            continue
        if not (math.isfinite(value) and 0 < value <= MAX_G_PER_KWH):
            answer.quarantined["outlier"] += 1
            continue
        answer.rows.append(
            IntensityRow(ZONE, BASIS, start_s, end_s, PROVIDER, known_at_ms, 0, value, quality)
        )
        return


async def _get(client: httpx.AsyncClient, url: str, within_s: float) -> Any:
    try:
        # httpx's own timeouts start again with every byte: a server that drips needs this one.
        async with asyncio.timeout(within_s):
            status, headers, body = await _body(client, url)
    except (TimeoutError, httpx.TimeoutException) as exc:
        raise FeedFailure("timeout", f"no whole answer from {url} in time") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise FeedFailure("network", f"{url}: {type(exc).__name__} {exc}".strip()) from exc
    if status != 200:
        raise FeedFailure(
            _status_reason(status),
            f"{url} answered {status} {_excerpt(body)}",
            _retry_after_s(headers),
        )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise FeedFailure("content_type", f"{url} answered {kind or 'no type'} {_excerpt(body)}")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise FeedFailure("json", f"{url} answered no whole JSON: {_excerpt(body)}") from exc


async def _body(client: httpx.AsyncClient, url: str) -> tuple[int, Mapping[str, str], bytes]:
    request = client.build_request("GET", url, headers={"Accept": "application/json"})
    response = await client.send(request, stream=True)
    try:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise FeedFailure("too_large", f"{url} sent more than {MAX_BODY_BYTES} bytes")
        return response.status_code, response.headers, bytes(body)
    finally:
        await response.aclose()


def _status_reason(status: int) -> str:
    exact = f"http_{status}"
    if exact in REASONS:
        return exact
    return {4: "http_4xx", 5: "http_5xx"}.get(status // 100, "http_other")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After is a number of seconds or a date (RFC 9110)."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _epoch_s(stamp: str) -> int:
    return int(datetime.strptime(stamp, "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC).timestamp())


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")


def _excerpt(body: bytes) -> str:
    return repr(body[:120].decode(errors="replace"))
