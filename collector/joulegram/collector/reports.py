"""Slots x intensity -> an answer: who drew how much energy, and what the grid emitted for it.

    report      the answer of GET /api/v1/report and `joulegram report --json`
    team_grams  grams by team over a range, for the counters of /metrics
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from joulegram.collector.ledger.chdb import ChdbLedger

BY = ("workload", "user", "team", "node", "component", "kind")
IDLE_POLICIES = ("separate", "by_active", "by_reservation")
COMPONENTS = ("cpu", "dram", "gpu", "other")


class Refreshes(Protocol):
    """What a report needs of the roll-up: bring the slots of a range up to date."""

    def refresh(self, since: datetime, until: datetime) -> int: ...


def report(
    ledger: ChdbLedger,
    rollup: Refreshes,
    *,
    since: datetime,
    until: datetime,
    by: str = "workload",
    idle_policy: str = "separate",
    as_of: datetime | None = None,
    basis: str | None = None,
    components: Sequence[str] = COMPONENTS,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Answer `joulegram report`: blocking, call it in a thread.

    Args:
        since, until: timezone-aware; aligned outward to slots (300 s), echoed aligned.
        by: one of BY. idle_policy: one of IDLE_POLICIES.
        as_of: answer as it was known then; None: now.
        basis: `lifecycle` or `direct`; None: the site's own.
        components: which of COMPONENTS to count.
        now: the clock; None: the real one.
    Returns: JSON-ready, {since, until, as_of, by, idle_policy, basis, components, pue,
        intensity: {quality: share}, rows: [{key, team, energy_uj, g_co2e, coverage, quality}],
        total: {energy_uj, g_co2e, coverage, quality}, metered_uj} and more.
    Raises: BadQuestion naming what is accepted.
    """
    raise NotImplementedError


def team_grams(
    ledger: ChdbLedger, rollup: Refreshes, *, since: datetime, until: datetime
) -> dict[str, float]:
    """Operational gCO2e by team over [since, until), idle apart (team `unassigned`).

    For counters, ask for closed slots only, each once: the sum then only grows.
    """
    raise NotImplementedError
