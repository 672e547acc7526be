"""What people may ask of the API: times, and parameters that are refused when unknown."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ACCEPTED_TIMES = (
    "a duration before now (90s, 30m, 1h, 7d, 2w), `now`, a date (2026-03-01), or a time in "
    "ISO 8601 (2026-03-01T14:00:00Z; without an offset it is UTC, or on the clocks of `tz`)"
)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class BadTime(ValueError):
    """A time that is neither a duration nor ISO 8601."""


def parse_time(text: str, now: datetime, zone: tzinfo = UTC) -> datetime:
    """A moment as people write it, in UTC; without an offset it is on the clocks of `zone`.

    Of an hour that comes twice the first is meant. Raises BadTime saying what is accepted.
    """
    text = text.strip()
    if text == "now":
        return now
    if duration := re.fullmatch(r"(\d{1,9})([smhdw])", text):
        try:
            return now - timedelta(seconds=int(duration[1]) * SECONDS[duration[2]])
        except OverflowError:
            raise BadTime(f"{text} ago is before time began; accepted: {ACCEPTED_TIMES}") from None
    # A `+` that nobody escaped arrives as a space.
    text = re.sub(r" (\d\d:?\d\d)$", r"+\1", text) if "T" in text else text
    try:
        moment = datetime.fromisoformat(text)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadTime(f"{text!r} is no time; accepted: {ACCEPTED_TIMES}") from None
    return moment


class Question(BaseModel):
    """Parameters of a route; one that it does not know is refused."""

    model_config = ConfigDict(extra="forbid")


class NowQuestion(Question):
    top: int = Field(20, ge=1, le=200, description="how many workloads and processes")


class SinceQuestion(Question):
    since: str = Field("1h", description=ACCEPTED_TIMES)


class NodesQuestion(Question):
    limit: int = Field(1000, ge=1, le=20_000)


class ReportQuestion(Question):
    since: str = Field("1h", description=ACCEPTED_TIMES)
    until: str = Field("now", description=ACCEPTED_TIMES)
    as_of: str | None = Field(None, description="answer as it was known then; " + ACCEPTED_TIMES)
    tz: str = Field(
        "UTC",
        description="whose clocks dates and days are read on: Europe/London, or +05:45",
    )
    by: Literal["workload", "user", "team", "node", "component", "kind", "day"] = "workload"
    idle_policy: Literal["separate", "by_active", "by_reservation"] = "separate"
    basis: Literal["lifecycle", "direct"] | None = Field(None, description="default: the site's")
    components: str = Field(
        "cpu,dram,gpu,other",
        pattern=r"^(cpu|dram|gpu|other)(,(cpu|dram|gpu|other))*$",
        description="which to count, separated by commas: cpu, dram, gpu, other",
    )
