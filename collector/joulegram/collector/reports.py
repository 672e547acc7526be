"""Slots x intensity -> an answer: who drew how much energy, and what the grid emitted for it.

report      the answer of GET /api/v1/report and `joulegram report --json`
team_grams  grams by team over a range, for the counters of /metrics
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any, Protocol

from joulegram.collector import energy, teams
from joulegram.collector.accounting.choose import SLOT_S
from joulegram.collector.accounting.coverage import Span
from joulegram.collector.books import Books, Question
from joulegram.collector.config import BASES
from joulegram.collector.energy import COMPONENTS
from joulegram.collector.errors import BadQuestion
from joulegram.collector.grid.yearly import END_OF_TIME_S
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.local_days import days
from joulegram.collector.rates import Rates, rates
from joulegram.collector.settings import in_force, known

BY = ("workload", "user", "team", "node", "component", "kind", "day")
IDLE_POLICIES = ("separate", "by_active", "by_reservation")

# A frame waits up to 30 s for a late counter, then it travels: what is younger than this is
# not missing yet.
UNDER_WAY_S = 45
LONGEST_RANGE_S = 20 * 366 * 86400


class Refreshes(Protocol):
    """What a report needs of the roll-up: bring the slots of a range up to date."""

    def refresh(self, since: datetime, until: datetime) -> int: ...


def report(
    ledger: Ledger,
    rollup: Refreshes,
    *,
    since: datetime,
    until: datetime,
    by: str = "workload",
    idle_policy: str = "separate",
    as_of: datetime | None = None,
    basis: str | None = None,
    components: Sequence[str] = COMPONENTS,
    team: str | None = None,
    zone: tzinfo = UTC,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Answer `joulegram report`. Blocking: call it in a thread.

    Args:
        since, until: timezone-aware; aligned outward to slots (300 s), echoed aligned.
        by: one of BY. idle_policy: one of IDLE_POLICIES.
        as_of: answer as it was known then; None: now.
        basis: `lifecycle` or `direct`; None: the site's own.
        components: which of COMPONENTS to count.
        team: count nothing but its own; `metered_uj` is then what its workloads drew.
        zone: whose days and clocks; only `by = "day"` and what is echoed depend on it.
        now: the clock; None: the real one.
    Returns: JSON-ready, {since, until, as_of, by, idle_policy, basis, components, pue,
        intensity: {quality: share}, rows: [{key, team, energy_uj, g_co2e, coverage, quality}],
        total: {energy_uj, g_co2e, coverage, quality}, metered_uj} and more. Shares are of the
        energy. Before `totals_until`, where it is there, slots are gone and only energy by team
        is known. `g_co2e` is None where the intensity of some of the energy is unknown, `team`
        where a row belongs to several.
    Raises: BadQuestion naming what is accepted; RuntimeError when the two sums of the energy,
        over devices and over workloads, differ.
    Source: GHG Protocol Scope 2 Guidance (2015): operational, location-based, average.
    """
    now = now or datetime.now(UTC)
    _check(since, until, as_of, by, idle_policy, basis, components)
    as_of = min(as_of or now, now)
    as_of_ms = _ms(as_of)
    since_s = int(since.timestamp()) // SLOT_S * SLOT_S
    until_s = -(-math.ceil(until.timestamp()) // SLOT_S) * SLOT_S
    rollup.refresh(_utc(since_s), _utc(until_s))

    source: energy.Source | None = energy.Source(since_s, until_s)
    if as_of < now:
        source = energy.landed_by(ledger, since_s, until_s, as_of_ms)
    energy_as_of = "latest" if source is None else _iso(as_of)
    source = source or energy.Source(since_s, until_s)

    sealed_s = min(energy.sealed_until_s(ledger), until_s)
    grid = rates(ledger, since_s, until_s, as_of_ms, basis)
    kept = [index for index, name in enumerate(COMPONENTS) if name in components]
    by_day = days(since_s, until_s, zone) if by == "day" else []
    question = Question(by, idle_policy, kept, teams.rules(ledger, as_of_ms), team, by_day)
    books = _books(ledger, source, question, grid, as_of_ms)
    if books.metered_uj != books.total_uj and source.landed_ms is not None:
        # Frames of two contents, which slots leave out, lie in the raw rows.
        energy_as_of = "latest"
        source = energy.Source(since_s, until_s)
        books = _books(ledger, source, question, grid, as_of_ms)
    if books.metered_uj != books.total_uj:
        # Two sums of different columns; a frame whose rows do not hold never passes the intake.
        raise RuntimeError(
            f"the ledger does not add up from {_iso(_utc(since_s))} to {_iso(_utc(until_s))}: "
            f"devices drew {books.metered_uj} uJ, workloads hold {books.total_uj} uJ. "
            "This is a fault of joulegram: please report it."
        )
    return {
        "since": _iso(_utc(since_s)),
        "until": _iso(_utc(until_s)),
        "tz": str(zone),
        "since_local": _utc(since_s).astimezone(zone).isoformat(),
        "until_local": _utc(until_s).astimezone(zone).isoformat(),
        "as_of": _iso(as_of),
        "energy_as_of": energy_as_of,
        "by": by,
        "idle_policy": idle_policy,
        **grid.summary(books.slot_uj),
        "components": [COMPONENTS[index] for index in kept],
        "rows": books.rows(),
        "total": books.total(),
        "metered_uj": books.metered_uj,
        "nodes": books.node_count,
        **({"totals_until": _iso(_utc(sealed_s))} if since_s < sealed_s else {}),
        "simulated": books.simulated,
    }


def _books(
    ledger: Ledger, source: energy.Source, question: Question, grid: Rates, as_of_ms: int
) -> Books:
    details = energy.workload_details(ledger, source)
    books = Books(question, grid, details, spans(ledger, source, as_of_ms))
    for chunk in energy.chunks(ledger, source, books.nodes):
        books.add(chunk)
    return books


def team_grams(
    ledger: Ledger, rollup: Refreshes, *, since: datetime, until: datetime
) -> dict[str, float]:
    """Operational gCO2e by team over [since, until), idle apart (team `unassigned`).

    A team of whose energy some has no known intensity is left out.
    """
    answer = report(ledger, rollup, since=since, until=until, by="team")
    return {row["key"]: row["g_co2e"] for row in answer["rows"] if row["g_co2e"] is not None}


def _check(
    since: datetime,
    until: datetime,
    as_of: datetime | None,
    by: str,
    idle_policy: str,
    basis: str | None,
    components: Sequence[str],
) -> None:
    for name, value, accepted in (
        ("by", by, BY),
        ("idle_policy", idle_policy, IDLE_POLICIES),
        ("basis", basis, (None, *BASES)),
        *(("components", component, COMPONENTS) for component in components),
    ):
        if value not in accepted:
            choices = ", ".join(str(a) for a in accepted if a)
            raise BadQuestion(f"{name} = {value!r}: one of {choices}.")
    if not components:
        raise BadQuestion(f"components is empty: any of {', '.join(COMPONENTS)}.")
    for name, moment in (("since", since), ("until", until), ("as_of", as_of)):
        if moment is not None and moment.tzinfo is None:
            raise BadQuestion(f"{name} = {moment.isoformat()}: add a time zone, Z for UTC.")
        if moment is not None and not 0 <= moment.timestamp() < END_OF_TIME_S:
            raise BadQuestion(
                f"{name} = {moment.isoformat()} is out of range; ask for a time from 1970 to 2099"
            )
    if until <= since:
        raise BadQuestion(
            f"until {until:%Y-%m-%dT%H:%M:%SZ} is not after since "
            f"{since:%Y-%m-%dT%H:%M:%SZ}; choose an earlier since or a later until"
        )
    if (until - since).total_seconds() > LONGEST_RANGE_S:
        raise BadQuestion("from since to until is more than 20 years; ask for less at once")


def spans(ledger: Ledger, source: energy.Source, as_of_ms: int) -> dict[str, Span]:
    """{node: when frames of it are expected}, of every node seen before the range ends.

    Guests are left out: their energy is in their host's already. Where slots are gone all nodes
    are one together.
    """
    missing_s = as_of_ms / 1000 - UNDER_WAY_S
    retired = known(ledger, "retired", as_of_ms)
    guests = energy.guests(ledger, source)
    found = {}
    sealed_s = min(energy.sealed_until_s(ledger), source.until_s)
    for node, (first_s, end_s) in sorted(energy.heard_s(ledger, source).items()):
        if node in guests:
            continue
        until_s = min(source.until_s, max(missing_s, end_s))
        gone = in_force([s for s in retired if s.name == node], source.until_s)
        if gone and gone.value:
            until_s = min(until_s, gone.valid_from_s)
        found[node] = Span(max(source.since_s, sealed_s, first_s), until_s)
    if source.since_s < sealed_s:
        expected_ms = energy.totals_expected_ms(ledger, source.since_s, sealed_s)
        found[energy.OLDER_NODES] = Span(source.since_s, sealed_s, expected_ms)
    return found


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _utc(epoch_s: int) -> datetime:
    return datetime.fromtimestamp(epoch_s, UTC)


def _iso(moment: datetime) -> str:
    # Milliseconds, as knowledge time has them: an echoed `as_of` asks the same again.
    timespec = "milliseconds" if moment.microsecond else "seconds"
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
