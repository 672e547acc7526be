"""What stays of months whose slots go: energy per (zone, team, slot), for good.

Until then a team's energy is a join of slots and rules, so that a rule that moves changes past
answers at once. When a month is sealed the rules known at that moment decide for good, since
only slots can be joined again. Sealing may be killed between any two inserts: one statement
seals a month after all of its days are written, and until then the slots answer.
"""

import secrets
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from joulegram.collector import energy, reports, sites, teams
from joulegram.collector.accounting.choose import SLOT_S
from joulegram.collector.energy import COMPONENTS, OLDER, Chunk, Source
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.rules import RESERVED_KINDS, starts_s, team_of
from joulegram.collector.settings import record

DAY_S = 86_400
SLOTS = DAY_S // SLOT_S
_KINDS: dict[str, pa.DataType] = {
    **dict.fromkeys(("zone", "entry", "team", "kind", "node", "component"), pa.string()),
    "slot": pa.uint32(),
    "generation": pa.uint64(),
    **{f"{c}_uj": pa.uint64() for c in (*COMPONENTS, "energy", "derived", "modelled")},
    "covered_ms": pa.float64(),
    "expected_ms": pa.float64(),
    "simulated": pa.uint8(),
}
_NODES = """
SELECT node, component, if(max(host_node) = '', '', 'guest') AS kind, sum(s.energy_uj) AS energy_uj
FROM slots AS s FINAL
WHERE entry = 'device' AND slot >= toDateTime({since:UInt32}, 'UTC')
  AND slot < toDateTime({until:UInt32}, 'UTC') AND (node, slot, generation) IN (
      SELECT node, slot, max(generation) FROM slots WHERE slot >= toDateTime({since:UInt32}, 'UTC')
        AND slot < toDateTime({until:UInt32}, 'UTC') GROUP BY node, slot)
GROUP BY node, component"""


def seal(ledger: Ledger, since: datetime, until: datetime, now_ms: int) -> None:
    """Write the totals of every day in [since, until), then say that they answer from now on.

    The slots must be current, and no frame may come to them any more.
    """
    for day_s in range(int(since.timestamp()), int(until.timestamp()), DAY_S):
        _seal_day(ledger, day_s, now_ms)
    record(ledger, "sealed", True, now_ms=now_ms, valid_from_s=int(until.timestamp()))


def sealed_until(ledger: Ledger) -> datetime:
    """Before this totals answer, and slots may go."""
    return datetime.fromtimestamp(energy.sealed_until_s(ledger), UTC)


def _seal_day(ledger: Ledger, day_s: int, now_ms: int) -> None:
    source = Source(day_s, day_s + DAY_S)
    details = energy.workload_details(ledger, source)
    spans = reports.spans(ledger, source, now_ms)
    nodes = {node: index for index, node in enumerate(spans)}
    since_s = np.array([span.since_s for span in spans.values()])
    until_s = np.array([span.until_s for span in spans.values()])
    rules = teams.rules(ledger, now_ms)
    starts = np.array(starts_s(rules), np.int64)

    owners: dict[tuple[str, str], int] = {}
    team_uj = np.zeros((SLOTS, 0, len(COMPONENTS)), np.uint64)
    device_uj = np.zeros((3, SLOTS, len(COMPONENTS)), np.uint64)  # measured, derived, modelled
    covered_ms = np.zeros(SLOTS)
    cells = 0
    simulated = False
    for chunk in energy.chunks(ledger, source, nodes):
        simulated |= chunk.simulated
        owner = _owners(chunk, details, rules, starts, owners)
        team_uj = np.pad(team_uj, ((0, 0), (0, len(owners) - team_uj.shape[1]), (0, 0)))
        np.add.at(team_uj, ((chunk.slot_s - day_s) // SLOT_S, owner), chunk.uj)
        slot = (chunk.device_slot_s - day_s) // SLOT_S
        np.add.at(device_uj, (chunk.device_quality, slot, chunk.device_component), chunk.device_uj)
        cell, which = np.unique(slot * len(nodes) + chunk.device_node, return_inverse=True)
        of_slot, of_node = np.divmod(cell, len(nodes)) if len(cell) else (cell, cell)
        mean_ms = np.bincount(which, chunk.device_covered_ms) / np.maximum(
            1, np.bincount(which, chunk.device_parts)
        )
        due_ms = _due_ms(day_s + of_slot * SLOT_S, since_s[of_node], until_s[of_node])
        np.add.at(covered_ms, of_slot, np.minimum(mean_ms, due_ms))
        cells += len(cell)
    expected_ms = np.array(
        [_due_ms(day_s + i * SLOT_S, since_s, until_s).sum() for i in range(SLOTS)]
    )
    if not cells and not expected_ms.any():  # before the first node
        return
    places = sites.sites(ledger, now_ms)
    zone = [sites.site_at(places, day_s + i * SLOT_S).zone for i in range(SLOTS)]
    rows: list[dict[str, Any]] = []
    for i in range(SLOTS):
        at = {"zone": zone[i], "slot": day_s + i * SLOT_S, "simulated": int(simulated)}
        for (team, kind), index in owners.items():
            if team_uj[i, index].any():
                uj = {f"{c}_uj": int(v) for c, v in zip(COMPONENTS, team_uj[i, index], strict=True)}
                rows.append({**at, "entry": "team", "team": team, "kind": kind, **uj})
        # Every component, so that a slot in which nothing was measured says so.
        for index, component in enumerate(COMPONENTS):
            measured, derived, modelled = (int(v) for v in device_uj[:, i, index])
            rows.append(
                {
                    **at,
                    "entry": "device",
                    "component": component,
                    "energy_uj": measured + derived + modelled,
                    "derived_uj": derived,
                    "modelled_uj": modelled,
                    "covered_ms": float(covered_ms[i]),
                    "expected_ms": float(expected_ms[i]),
                }
            )
    first = {"zone": zone[0], "slot": day_s, "entry": "node"}
    rows += [{**first, **row} for row in ledger.query(_NODES, source.params).to_pylist()]
    ledger.insert("totals", _columns(rows, _generation(cells, now_ms)))


def _owners(
    chunk: Chunk,
    details: dict[int, dict[str, Any]],
    rules: list[dict[str, str]],
    starts: Any,
    owners: dict[tuple[str, str], int],
) -> Any:
    """The index of each row's (team, kind); new ones are added to `owners`."""
    ids, workload = np.unique(chunk.workload, return_inverse=True)
    period = np.searchsorted(starts, chunk.slot_s, side="right")
    pairs, pair = np.unique(workload * (len(starts) + 1) + period, return_inverse=True)
    found = []
    nobody = {"kind": "unknown", "attributes": {}} | dict.fromkeys(
        ("scope", "id", "user", "project", "name"), ""
    )
    for code in pairs.tolist():
        index, when = divmod(code, len(starts) + 1)
        who = details.get(int(ids[index]), nobody)
        team = team_of(rules, who, int(starts[when - 1]) if when else 0)
        kind = who["kind"] if who["kind"] in RESERVED_KINDS else OLDER
        found.append(owners.setdefault((team, kind), len(owners)))
    return np.array(found, np.int64)[pair]


def _due_ms(slot_s: Any, since_s: Any, until_s: Any) -> Any:
    """The part of slots in which frames are expected, ms."""
    begin, end = np.maximum(slot_s, since_s), np.minimum(slot_s + SLOT_S, until_s)
    return np.maximum(end - begin, 0) * 1000.0


def _generation(cells: int, now_ms: int) -> int:
    """Who saw fewer slots of nodes came when some were gone already: the others win over it."""
    return min(cells, 2**21 - 1) << 42 | now_ms // 1000 % 2**32 << 10 | secrets.randbits(10)


def _columns(rows: list[dict[str, Any]], generation: int) -> dict[str, Any]:
    return {
        name: pa.array(
            [
                generation
                if name == "generation"
                else row.get(name, "" if kind == pa.string() else 0)
                for row in rows
            ],
            kind,
        )
        for name, kind in _KINDS.items()
    }
