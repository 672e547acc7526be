"""Power and intensity over time, for charts, gauges and the live page. Blocking."""

import math
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from joulegram.collector.accounting.choose import SLOT_S, UNKNOWN, Chosen
from joulegram.collector.energy import COMPONENTS
from joulegram.collector.errors import BadQuestion
from joulegram.collector.grid import table
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.rates import HOLD_S, rates

MAX_POINTS = 20_000

# Per frame first: two sockets are two devices of one frame, whose time counts once. A frame
# counts once its header is there, and once, however often it arrived.
_POWER = """
SELECT intDiv(toUInt32(window), {step:UInt32}) * {step:UInt32} AS t, node, part,
       sum(uj) AS all_uj, sum(if(covered_ms > 0, covered_ms, if(uj > 0, whole_ms, 0))) AS ms,
       max(made_up) AS simulated
FROM (SELECT node, window, epoch, seq,
             if(component IN ('cpu', 'dram', 'gpu'), component, 'other') AS part,
             sum(energy_uj) AS uj, avg(coverage) * any(window_ms) AS covered_ms,
             toFloat64(any(window_ms)) AS whole_ms, max(simulated) AS made_up
      FROM devices FINAL
      WHERE window >= toDateTime({since:UInt32}, 'UTC')
        AND window < toDateTime({until:UInt32}, 'UTC')
        AND (node, window, epoch, seq) IN (
            SELECT node, window, epoch, seq FROM rows
            WHERE row = 0 AND window >= toDateTime({since:UInt32}, 'UTC')
              AND window < toDateTime({until:UInt32}, 'UTC'))
      GROUP BY node, window, epoch, seq, part)
GROUP BY t, node, part HAVING ms > 0"""


def power_series(ledger: Ledger, since: datetime, until: datetime, step_s: int) -> dict[str, Any]:
    """Mean watts by component in steps of `step_s`, which should be a multiple of the window.

    Returns: {"t": [epoch seconds of each step's start], "cpu": [W or None], "dram": ...,
        "gpu": ..., "other": ...}, all of equal length, and {"simulated": whether some of it was
        made by a simulator}. A node's watts are the mean over the
        time that was measured; nodes that measured nothing in a step add nothing to it. None:
        nobody measured.
    Raises: BadQuestion for more than MAX_POINTS steps.
    """
    if step_s <= 0 or until <= since:
        raise BadQuestion(f"step_s = {step_s}, since = {since}, until = {until}: nothing to show.")
    since_s = int(since.timestamp()) // step_s * step_s
    until_s = math.ceil(until.timestamp())
    times = range(since_s, until_s, step_s)
    if len(times) > MAX_POINTS:
        raise BadQuestion(f"{len(times)} steps of {step_s} s: at most {MAX_POINTS}; widen step_s.")
    found = ledger.query(_POWER, {"since": since_s, "until": until_s, "step": step_s})
    watts: dict[tuple[str, int], float] = defaultdict(float)
    simulated = False
    for row in found.to_pylist():
        simulated |= bool(row["simulated"])
        watts[row["part"], int(row["t"])] += row["all_uj"] / 1e6 / (row["ms"] / 1e3)
    return {
        "t": list(times),
        **{part: [watts.get((part, t)) for t in times] for part in COMPONENTS},
        "simulated": simulated,
    }


def intensity_now(ledger: Ledger, now: datetime | None = None) -> dict[str, Any]:
    """The site's grid intensity in the running slot.

    Returns: {"zone", "pue", "basis" (of the value), "wanted_basis", "g_per_kwh" (None: unknown),
        "quality", "provider", "valid_from", "valid_to" (ISO 8601), "known_at"}; what nobody
        knows is "unknown", and None for times.
    """
    now = now or datetime.now(UTC)
    now_s, now_ms = int(now.timestamp()), int(now.timestamp() * 1000)
    slot_s = now_s // SLOT_S * SLOT_S
    rate = rates(ledger, slot_s, slot_s + SLOT_S, now_ms)
    (site,), (chosen,) = rate.sites, rate.chosen
    named = _point(chosen, 0)
    value = named.pop("g_per_kwh")
    rows = table.read(ledger, site.zone, slot_s - max(HOLD_S.values()), slot_s + SLOT_S, now_ms)
    # The row behind it: valid now, or, of a value held on, the latest one.
    behind = [r for r in rows if (r.provider, r.basis) == (named["provider"], named["basis"])]
    row = max(
        behind,
        key=lambda r: (
            r.valid_from_s <= now_s < r.valid_to_s,
            r.quality != "forecast",
            r.valid_to_s if r.valid_to_s <= now_s else 0,
            r.known_at_ms,
        ),
        default=None,
    )
    return {
        "zone": site.zone,
        "pue": site.pue,
        "wanted_basis": site.basis,
        **{name: UNKNOWN if value is None else value for name, value in named.items()},
        "g_per_kwh": value,
        "valid_from": row and _iso(row.valid_from_s),
        "valid_to": row and _iso(row.valid_to_s),
        "known_at": row and _iso(row.known_at_ms / 1000),
    }


def intensity_series(
    ledger: Ledger, since: datetime, until: datetime, as_of: datetime | None = None
) -> list[dict[str, Any]]:
    """The chosen intensity by slot: [{"t" (epoch s), "g_per_kwh", "quality", "basis", "provider"}].

    A forecast ahead of now is part of it. Raises: BadQuestion for more than MAX_POINTS slots.
    """
    since_s = int(since.timestamp()) // SLOT_S * SLOT_S
    until_s = -(-math.ceil(until.timestamp()) // SLOT_S) * SLOT_S
    if until_s <= since_s or (until_s - since_s) // SLOT_S > MAX_POINTS:
        raise BadQuestion(f"from {since} to {until}: from 1 to {MAX_POINTS} slots of {SLOT_S} s.")
    as_of = as_of or datetime.now(UTC)
    rate = rates(ledger, since_s, until_s, int(as_of.timestamp() * 1000))
    points: list[dict[str, Any]] = [{} for _ in rate.slots_s]
    for index, chosen in enumerate(rate.chosen):
        for own, slot in enumerate((rate.site == index).nonzero()[0]):
            points[slot] = {"t": int(rate.slots_s[slot]), **_point(chosen, own)}
    return points


def _point(chosen: Chosen, slot: int) -> dict[str, Any]:
    """A slot's value and what answers for most of it."""
    value = float(chosen.g_per_kwh[slot])
    most = {}
    for sort in ("quality", "basis", "provider"):
        shares = getattr(chosen, sort)
        name = max(shares, key=lambda n: float(shares[n][slot]), default=UNKNOWN)
        most[sort] = None if name == UNKNOWN else name
    return {"g_per_kwh": None if math.isnan(value) else value, **most}


def _iso(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).isoformat().replace("+00:00", "Z")
