"""Power and intensity over time, for charts, gauges and the live page. Blocking."""

from datetime import datetime
from typing import Any

from joulegram.collector.ledger.chdb import ChdbLedger


def power_series(
    ledger: ChdbLedger, since: datetime, until: datetime, step_s: int
) -> dict[str, list[Any]]:
    """Mean watts by component in steps of `step_s` (a multiple of 10 is sensible).

    Returns: {"t": [epoch seconds of each step's start], "cpu": [W or None], "dram": ...,
        "gpu": ..., "other": ...}, all of equal length. None: nobody measured then.
    """
    raise NotImplementedError


def intensity_now(ledger: ChdbLedger, now: datetime | None = None) -> dict[str, Any]:
    """The site's grid intensity in the running slot.

    Returns: {"zone", "pue", "basis" (of the value), "wanted_basis", "g_per_kwh" (None: unknown),
        "quality", "provider", "valid_from", "valid_to" (ISO 8601), "known_at"}.
    """
    raise NotImplementedError


def intensity_series(
    ledger: ChdbLedger, since: datetime, until: datetime, as_of: datetime | None = None
) -> list[dict[str, Any]]:
    """The chosen intensity by slot: [{"t", "g_per_kwh", "quality", "basis", "provider"}]."""
    raise NotImplementedError
