"""Slots go, and what teams drew stays: the same answers before and after, kills and races too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from joulegram.collector import energy, sealed
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.retention import drop_expired
from joulegram.collector.rollup import Rollup
from joulegram.collector.rules import check_rules
from joulegram.collector.teams import record_rules
from joulegram.collector.totals import EnergyTotals
from tests.collector.carbon import START, Place, ms
from tests.collector.made import IDLE, SYSTEM, Node, Row, workload

DAY = timedelta(days=1)
LATER = datetime(2026, 12, 5, tzinfo=UTC)  # September is two whole months ago
MONTHS = 2
TRAIN = workload("slurm", "42", scope="cluster", user="ada", project="ml", name="train")
WEB = workload("systemd", "web.service", scope="node1", name="web.service")
RULES = [{"team": "ml", "user": "ada"}, {"team": "shop", "unit": "web*"}]
AUTUMN = START + 8 * DAY  # the 29th
WHOLE: dict[str, Any] = {"since": AUTUMN - DAY, "until": LATER}


@dataclass
class Watched:
    """A ledger that tells what is about to be done to it, and what is asked."""

    ledger: Ledger
    before: Callable[[str, str], None]  # ("insert" or "execute" or "query", table or statement)
    exclusive: bool = True
    cluster: str = ""

    def insert(self, table: str, columns: Mapping[str, Any]) -> None:
        self.before("insert", table)
        self.ledger.insert(table, columns)

    def execute(self, sql: str) -> None:
        self.before("execute", sql)
        self.ledger.execute(sql)

    def query(self, sql: str, params: Any = None) -> Any:
        self.before("query", sql)
        return self.ledger.query(sql, params)

    def close(self, timeout_s: float = 2.0) -> bool:
        return True


def autumn(site: Place) -> None:
    """Two nodes in September, one of which falls silent, and one in October."""
    site.configure(zone="GB")
    record_rules(site.ledger, check_rules(RULES), ms(START))
    frames = []
    for name, slots in (("node1", 40), ("node2", 20)):
        node = Node(name, epoch=ord(name[-1]), quality="derived" if name == "node2" else "measured")
        rows = [
            Row(TRAIN, 100.0, 20.0, 50.0),
            Row(WEB, 7.0),
            Row(workload("system", scope=name), 1.0),
            Row(workload("idle", scope=name), 30.0, gpu_j=5.0),
        ]
        frames += [node.frame(ms(AUTUMN) + 300_000 * i, rows, 300_000) for i in range(slots)]
    node = Node("node1", epoch=77, coverage=0.5)
    start = ms(AUTUMN + 6 * DAY)
    frames += [
        node.frame(
            start + 300_000 * i, [Row(TRAIN, 10.0), Row(SYSTEM, 1.0), Row(IDLE, 2.0)], 300_000
        )
        for i in range(3)
    ]
    site.store(frames)
    site.grid(0, 200, hours=24 * 40)
    site.now = LATER


def expire(site: Place, ledger: Any = None) -> list[str]:
    ledger = ledger or site.ledger
    gone = drop_expired(ledger, Rollup(ledger), 1.0, MONTHS, LATER)
    return [one.partition for one in gone if one.table == "slots"]


def answers(site: Place) -> dict[str, Any]:
    """What must be the same, however much was sealed."""
    asked = {by: site.report(by=by, **WHOLE) for by in ("team", "component", "kind")}
    teams = {r["key"]: (r["energy_uj"], r["g_co2e"]) for r in asked["team"]["rows"]}
    kinds = {r["key"]: r["energy_uj"] for r in asked["kind"]["rows"]}
    return {
        "metered": asked["team"]["metered_uj"],
        "teams": {k: (uj, pytest.approx(g)) for k, (uj, g) in teams.items()},
        "components": {r["key"]: r["energy_uj"] for r in asked["component"]["rows"]},
        "reserved": {k: kinds[k] for k in ("idle", "system")},
        "coverage": pytest.approx(asked["team"]["total"]["coverage"]),
        "quality": asked["team"]["total"]["quality"],
    }


def counted(ledger: Ledger) -> list[tuple[str, str, int]]:
    totals = EnergyTotals()
    totals.load(ledger)
    return totals.items()


def test_a_month_of_which_the_slots_went_answers_as_before(site: Place) -> None:
    autumn(site)
    before, joules = answers(site), counted(site.ledger)
    assert before["metered"] > 0 and len(before["teams"]) == 3
    assert expire(site) == ["202609"]
    found = site.ledger.query("SELECT toUInt32(min(slot)) AS s FROM slots")["s"][0].as_py()
    assert found >= datetime(2026, 10, 1, tzinfo=UTC).timestamp()
    assert answers(site) == before
    assert counted(site.ledger) == joules
    report = site.report(by="workload", **WHOLE)
    assert report["totals_until"] == "2026-10-01T00:00:00Z"
    assert {"older/ml", "older/shop"} <= {row["key"] for row in report["rows"]}
    assert expire(site) == []


def test_a_rule_that_moves_changes_the_past_until_the_month_is_sealed(site: Place) -> None:
    autumn(site)
    moved = [{"team": "ops", "user": "ada", "since": "2026-09-29T13:00:00Z"}, *RULES]

    def team_uj() -> dict[str, int]:
        return {r["key"]: r["energy_uj"] for r in site.report(by="team", **WHOLE)["rows"]}

    first = team_uj()
    record_rules(site.ledger, check_rules(moved), ms(START) + 1)
    second = team_uj()
    assert second["ops"] > 0 and second["ops"] + second["ml"] == first["ml"]
    record_rules(site.ledger, check_rules(RULES), ms(START) + 2)
    assert team_uj() == first
    expire(site)
    record_rules(site.ledger, check_rules(moved), ms(LATER))
    kept = site.report(by="team", since=AUTUMN, until=AUTUMN + 4 * timedelta(hours=1))
    assert {r["key"] for r in kept["rows"]} == {"ml", "shop", "unassigned"}


def test_sealing_again_with_other_rules_and_back_ends_with_the_last(site: Place) -> None:
    """A team's total goes 100, 0, 100: the third is no repetition of the first."""
    autumn(site)
    site.now = LATER + timedelta(minutes=1)
    before = answers(site)

    def stop_at_settings(what: str, table: str) -> None:
        if (what, table) == ("insert", "settings"):
            raise InterruptedError

    since, until = datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC)
    other = [{"team": "elsewhere", "kind": "*"}]
    for turn, rules in enumerate((RULES, other, RULES)):
        now_ms = ms(LATER) + turn * 1000
        record_rules(site.ledger, check_rules(rules), now_ms)
        if turn < 2:
            with pytest.raises(InterruptedError):  # killed when all days are written
                sealed.seal(Watched(site.ledger, stop_at_settings), since, until, now_ms)
    sealed.seal(site.ledger, since, until, now_ms)
    assert answers(site) == before


def test_a_kill_between_any_two_steps_changes_no_answer(site: Place) -> None:
    autumn(site)
    Rollup(site.ledger).refresh(AUTUMN - DAY, LATER)
    before, joules = answers(site), counted(site.ledger)
    kills = 0
    while True:
        left = [kills]

        def die(what: str, _: str, left: list[int] = left) -> None:
            if what != "query":
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1

        try:
            gone = expire(site, Watched(site.ledger, die))
        except KeyboardInterrupt:
            kills += 1
            assert answers(site) == before
            assert counted(site.ledger) == joules
        else:
            break
    assert kills > 3
    assert gone == ["202609"] or not gone
    assert answers(site) == before


def test_who_seals_after_the_slots_went_does_not_win(site: Place) -> None:
    """Two writers seal at once; the slow one finds slots of one node only."""
    autumn(site)
    before = answers(site)
    slow_day: dict[str, Any] = {}

    def keep_away(what: str, table: str) -> None:
        if (what, table) == ("insert", "totals"):
            raise InterruptedError

    class Slow(Watched):
        def insert(self, table: str, columns: Mapping[str, Any]) -> None:
            slow_day.update(columns)
            super().insert(table, columns)

        def query(self, sql: str, params: Any = None) -> Any:
            # As if the partition of one shard were gone already.
            return super().query(
                sql.replace("(entry IN ('device',", "node = 'node2' AND (entry IN ('device',"),
                params,
            )

    midnight = datetime(2026, 9, 29, tzinfo=UTC)
    with pytest.raises(InterruptedError):
        slow = Slow(site.ledger, keep_away)
        sealed.seal(slow, midnight, midnight + DAY, ms(LATER) + 60_000)
    expire(site)
    site.ledger.insert("totals", slow_day)
    assert answers(site) == before


def test_a_month_s_question_reads_no_raw_rows(site: Place) -> None:
    autumn(site)
    Rollup(site.ledger).refresh(AUTUMN - DAY, LATER)
    asked: list[str] = []
    place = site.ledger
    site.ledger = Watched(place, lambda what, sql: asked.append(sql))
    try:
        for by in ("workload", "node", "team", "component"):
            site.report(by=by, since=AUTUMN, until=AUTUMN + 30 * DAY)
    finally:
        site.ledger = place
    raw = [sql for sql in asked if any(f"FROM {t}" in sql for t in ("rows", "devices", "reserv"))]
    assert len(asked) > 8 and raw == []


def test_nothing_is_sealed_where_nothing_is(site: Place) -> None:
    assert energy.sealed_until_s(site.ledger) == 0
    assert expire(site) == []
