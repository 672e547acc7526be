"""Days as people have them: 23, 24 and 25 hours, and offsets that are no whole hours."""

from datetime import UTC, datetime, timedelta

import pytest

from joulegram.collector.errors import BadQuestion
from joulegram.collector.local_days import days, zone_of
from joulegram.collector.web.questions import parse_time
from tests.collector.carbon import START, Place, ms
from tests.collector.made import Node, Row, workload

TRAIN = workload("slurm", "42", scope="cluster", user="ada")
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def hours(since: str, until: str, tz: str) -> list[tuple[str, float]]:
    zone = zone_of(tz)
    span = [int(parse_time(text, NOW, zone).timestamp()) for text in (since, until)]
    return [(d.key, (d.until_s - d.since_s) / 3600) for d in days(span[0], span[1], zone)]


@pytest.mark.parametrize(
    ("since", "until", "tz", "expected"),
    [
        ("2026-03-28", "2026-03-31", "Europe/London", [24, 23, 24]),
        ("2026-10-24", "2026-10-27", "Europe/London", [24, 25, 24]),
        ("2026-03-28", "2026-03-31", "UTC", [24, 24, 24]),
        ("2026-03-28", "2026-03-30", "Asia/Kathmandu", [24, 24]),
        ("2026-03-28", "2026-03-30", "+05:45", [24, 24]),
        ("2026-03-28T12:00", "2026-03-29T01:30", "-03:30", [12, 1.5]),
        ("2026-04-04", "2026-04-06", "Australia/Lord_Howe", [24, 24.5]),
        ("2026-10-03", "2026-10-05", "America/Asuncion", [24, 24]),  # stays on -03 since 2024
        ("2023-09-02", "2023-09-04", "America/Santiago", [24, 23]),  # its clocks skip midnight
        ("2011-12-29", "2012-01-01", "Pacific/Apia", [24, 24]),  # there was no 30th
    ],
)
def test_days(since: str, until: str, tz: str, expected: list[float]) -> None:
    found = hours(since, until, tz)
    assert [length for _, length in found] == expected
    assert found[0][0] == since[:10]


def test_dates_are_read_on_the_clocks_of_the_zone() -> None:
    london, nepal = zone_of("Europe/London"), zone_of("Asia/Kathmandu")
    assert parse_time("2026-07-01", NOW, london) == datetime(2026, 6, 30, 23, tzinfo=UTC)
    assert parse_time("2026-07-01", NOW, nepal) == datetime(2026, 6, 30, 18, 15, tzinfo=UTC)
    assert parse_time("2026-07-01", NOW, zone_of(" 05:45")) == parse_time("2026-07-01", NOW, nepal)
    assert parse_time("2026-07-01T12:00Z", NOW, nepal).hour == 12
    # 01:30 comes twice that night; the first is meant.
    assert parse_time("2026-10-25T01:30", NOW, london) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert parse_time("1h", NOW, nepal) == NOW - timedelta(hours=1)


@pytest.mark.parametrize("tz", ["Mars/Base", "+5", "+25:00", "../etc/passwd", "/etc/x", "+05:99"])
def test_what_is_no_zone_is_refused(tz: str) -> None:
    with pytest.raises(BadQuestion, match="Europe/London"):
        zone_of(tz)


@pytest.mark.parametrize(
    ("tz", "first", "lengths"),
    [
        ("Europe/London", "2026-10-24", [24, 25, 24]),
        ("+05:45", "2026-10-24", [24, 24, 24]),
    ],
)
def test_a_report_by_day_splits_every_joule_at_local_midnight(
    site: Place, tz: str, first: str, lengths: list[float]
) -> None:
    zone = zone_of(tz)
    since = parse_time(first, NOW, zone)
    until = parse_time("2026-10-27", NOW, zone)
    node = Node()
    slots = int((until - since).total_seconds()) // 300
    # 1 J in the first slot, 2 J in the second, ...; then two days of silence.
    half = slots * 2 // 3
    site.store(
        [node.frame(ms(since) + 300_000 * i, [Row(TRAIN, i + 1.0)], 300_000) for i in range(half)]
    )
    site.configure(zone="GB", at=START)
    site.now = until
    answer = site.report(by="day", since=since, until=until, zone=zone)
    assert [row["hours"] for row in answer["rows"]] == lengths
    assert [row["key"] for row in answer["rows"]] == ["2026-10-24", "2026-10-25", "2026-10-26"]
    at = 0
    for row, length in zip(answer["rows"], lengths, strict=True):
        own = range(at, at + int(length * 12))
        assert row["energy_uj"] == sum(1_000_000 * (i + 1) for i in own if i < half)
        covered = sum(1 for i in own if i < half)
        assert row["coverage"] == pytest.approx(covered / len(own), abs=0.01)
        at += len(own)
    assert sum(row["energy_uj"] for row in answer["rows"]) == answer["metered_uj"]
    by_workload = site.report(since=since, until=until)
    assert answer["total"] == by_workload["total"]
    assert answer["tz"] == tz and answer["since_local"].startswith("2026-10-24T00:00:00")
