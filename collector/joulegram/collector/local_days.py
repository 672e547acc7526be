"""Time as a wall clock shows it: zones by name or offset, and days of 23, 24 and 25 hours. Pure."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from joulegram.collector.errors import BadQuestion

MAX_DAYS = 4_000  # that an answer may have rows for
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")


@dataclass(frozen=True, slots=True)
class Day:
    """A calendar day of some zone, epoch seconds; the first and the last may be cut short."""

    key: str  # 2026-03-29
    since_s: int
    until_s: int


def zone_of(text: str) -> tzinfo:
    """A zone named as in the IANA database, or an offset such as +05:45. Raises: BadQuestion."""
    if text in ("", "UTC", "Z"):
        return UTC
    # A `+` that nobody escaped arrives as a space.
    if match := _OFFSET.fullmatch(re.sub(r"^ ", "+", text)):
        offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
        if offset < timedelta(hours=24) and int(match[3]) < 60:
            return timezone(-offset if match[1] == "-" else offset, text.replace(" ", "+"))
    elif re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*", text):
        try:
            return ZoneInfo(text)
        except (ZoneInfoNotFoundError, OSError):
            pass
    raise BadQuestion(
        f"tz = {text!r}: write a name of the IANA database such as Europe/London, an offset such "
        "as +05:45, or UTC"
    )


def days(since_s: int, until_s: int, zone: tzinfo) -> list[Day]:
    """The days of [since_s, until_s), cut to it. Raises: BadQuestion for more than MAX_DAYS."""
    if until_s - since_s > (MAX_DAYS - 1) * 86_400:
        raise BadQuestion(f"by = 'day': at most {MAX_DAYS} days; ask for less at once.")
    found = []
    day = datetime.fromtimestamp(since_s, zone).date()
    while (start_s := _midnight_s(day, zone)) < until_s:
        following = day + timedelta(days=1)
        begin_s, end_s = max(start_s, since_s), min(_midnight_s(following, zone), until_s)
        if begin_s < end_s:
            found.append(Day(day.isoformat(), begin_s, end_s))
        day = following
    return found


def _midnight_s(day: date, zone: tzinfo) -> int:
    # Where a clock skips midnight, this is the moment at which it skips.
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
