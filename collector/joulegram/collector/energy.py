"""What the ledger holds of a range, by node and slot: entries as columns, in bounded chunks.

Two sources give the same entries: the slots, and, for an answer as of a past date, the raw
rows of the frames that had landed by then. Where slots are gone (see sealed.py) totals stand in:
all nodes are one, and a workload is all that a team did.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulegram.collector.accounting.choose import SLOT_S
from joulegram.collector.ledger.ledger import Ledger, Value

COMPONENTS = ("cpu", "dram", "gpu", "other")
OLDER_NODES = "(older)"  # all nodes together, where slots are gone
OLDER = "older"  # a workload: all that a team did there
TOTALS_S = 31 * 86_400  # of totals at once
CHUNK_ENTRIES = 1_000_000  # about 150 MB while a chunk is worked on

# The sums of one snapshot: every entry of a (node, slot) comes from one generation, which
# landed as one insert, so a recomputation meanwhile cannot mix two.
_SLOTS = """
SELECT toUInt32(slot) AS slot_s, node, entry, workload, holder, component,
       sum(s.cpu_uj) AS cpu_uj, sum(s.dram_uj) AS dram_uj, sum(s.gpu_uj) AS gpu_uj,
       sum(s.other_uj) AS other_uj, sum(s.energy_uj) AS energy_uj,
       sum(s.derived_uj) AS derived_uj, sum(s.modelled_uj) AS modelled_uj,
       sum(s.covered_ms) AS covered_ms, sum(s.reserved_ms) AS reserved_ms, count() AS parts,
       max(s.simulated) AS simulated
FROM (SELECT * FROM slots FINAL
      WHERE slot >= toDateTime({since:UInt32}, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC')
        AND (entry IN ('device', 'workload') OR (entry = 'reserved' AND device = ''))
        AND (node, slot, generation) IN (
            SELECT node, slot, max(generation) FROM slots
            WHERE slot >= toDateTime({since:UInt32}, 'UTC')
              AND slot < toDateTime({until:UInt32}, 'UTC') GROUP BY node, slot)) AS s
GROUP BY slot_s, node, entry, workload, holder, component
ORDER BY slot_s, node"""

_LANDED = """
(node, window, epoch, seq) IN (
    SELECT node, window, epoch, seq FROM rows
    WHERE row = 0 AND landed_at_ms <= {landed:UInt64}
      AND window >= toDateTime({since:UInt32}, 'UTC')
      AND window < toDateTime({until:UInt32}, 'UTC'))
AND window >= toDateTime({since:UInt32}, 'UTC') AND window < toDateTime({until:UInt32}, 'UTC')"""

_RAW = f"""
SELECT slot_s, node, 'workload' AS entry, workload, holder, '' AS component,
       sum(r.cpu_uj) AS cpu_uj, sum(r.dram_uj) AS dram_uj, sum(r.gpu_uj) AS gpu_uj,
       sum(r.other_uj) AS other_uj, toUInt64(0) AS energy_uj, toUInt64(0) AS derived_uj,
       toUInt64(0) AS modelled_uj, toFloat64(0) AS covered_ms, toFloat64(0) AS reserved_ms,
       count() AS parts, toUInt8(0) AS simulated
FROM (SELECT *, intDiv(toUInt32(window), {SLOT_S}) * {SLOT_S} AS slot_s FROM rows FINAL
      WHERE row > 0 AND {_LANDED}) AS r
GROUP BY slot_s, node, workload, holder
UNION ALL
SELECT slot_s, node, 'device', toUInt64(0), toUInt64(0), CAST(component AS String),
       toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), sum(d.energy_uj),
       sumIf(d.energy_uj, quality = 'derived'),
       sumIf(d.energy_uj, quality NOT IN ('measured', 'derived')),
       sum(d.coverage * d.window_ms), toFloat64(0), count(DISTINCT name), max(d.simulated)
FROM (SELECT *, intDiv(toUInt32(window), {SLOT_S}) * {SLOT_S} AS slot_s FROM devices FINAL
      WHERE {_LANDED}) AS d
GROUP BY slot_s, node, component
UNION ALL
SELECT slot_s, node, 'reserved', workload, toUInt64(0), '',
       toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0),
       toUInt64(0), toFloat64(0), sum(v.amount * v.window_ms), toUInt64(1), toUInt8(0)
FROM (SELECT *, intDiv(toUInt32(window), {SLOT_S}) * {SLOT_S} AS slot_s FROM reservations FINAL
      WHERE device = '' AND {_LANDED}) AS v
GROUP BY slot_s, node, workload"""

_NEWEST_TOTALS = """
slot >= toDateTime({since:UInt32}, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC')
AND (slot, generation) IN (
    SELECT slot, max(generation) FROM totals
    WHERE slot >= toDateTime({since:UInt32}, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC')
    GROUP BY slot)"""

# As _SLOTS; `component` of team entries is empty, as is `kind` of device entries.
_TOTALS = f"""
SELECT toUInt32(slot) AS slot_s, entry, team, kind, component,
       sum(t.cpu_uj) AS cpu_uj, sum(t.dram_uj) AS dram_uj, sum(t.gpu_uj) AS gpu_uj,
       sum(t.other_uj) AS other_uj, sum(t.energy_uj) AS energy_uj,
       sum(t.derived_uj) AS derived_uj, sum(t.modelled_uj) AS modelled_uj,
       sum(t.covered_ms) AS covered_ms, max(t.simulated) AS simulated
FROM (SELECT * FROM totals FINAL
      WHERE entry IN ('team', 'device') AND {_NEWEST_TOTALS}) AS t
GROUP BY slot_s, entry, team, kind, component ORDER BY slot_s"""

_EXPECTED = f"""
SELECT sum(ms) AS expected_ms FROM (
    SELECT slot, max(expected_ms) AS ms FROM totals
    WHERE entry = 'device' AND {_NEWEST_TOTALS} GROUP BY slot)"""

_RANGE = "slot >= toDateTime({since:UInt32}, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC')"
_RAW_RANGE = _RANGE.replace("slot ", "window ")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a report's energy comes from: the slots, or frames landed by a time."""

    since_s: int  # of whole slots, epoch seconds
    until_s: int
    landed_ms: int | None = None  # None: the slots

    @property
    def params(self) -> dict[str, Value]:
        landed = {} if self.landed_ms is None else {"landed": self.landed_ms}
        return {"since": self.since_s, "until": self.until_s, **landed}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Entries of some whole slots, as columns of equal length per group.

    Workload and idle rows: `slot_s`, `node` (the caller's index), `workload`, `holder`, `uj`
    (n, 4) by COMPONENTS. Devices and reservations likewise with a prefix.
    """

    slot_s: NDArray[np.int64]
    node: NDArray[np.int64]
    workload: NDArray[np.uint64]
    holder: NDArray[np.uint64]
    uj: NDArray[np.uint64]
    device_slot_s: NDArray[np.int64]
    device_node: NDArray[np.int64]
    device_component: NDArray[np.int64]  # index into COMPONENTS
    device_uj: NDArray[np.uint64]
    device_quality: NDArray[np.int64]  # 0 measured, 1 derived, 2 modelled: the worst in it
    device_covered_ms: NDArray[np.float64]  # summed over `device_parts` devices
    device_parts: NDArray[np.int64]
    reserved_slot_s: NDArray[np.int64]
    reserved_node: NDArray[np.int64]
    reserved_workload: NDArray[np.uint64]
    reserved_ms: NDArray[np.float64]
    simulated: bool


def chunks(ledger: Ledger, source: Source, nodes: Mapping[str, int]) -> Iterator[Chunk]:
    """The entries of a range in time order, of the nodes named: {name: index}.

    A node whose very first frame arrives while an answer is made is in the next answer.
    """
    if source.landed_ms is None and OLDER_NODES in nodes:
        sealed_s = min(sealed_until_s(ledger), source.until_s)
        for since_s in range(source.since_s, sealed_s, TOTALS_S):
            piece = Source(since_s, min(since_s + TOTALS_S, sealed_s))
            yield _older(ledger.query(_TOTALS, piece.params), nodes[OLDER_NODES])
        source = Source(max(source.since_s, sealed_s), source.until_s)
    for since_s, until_s in _pieces(ledger, source):
        piece = Source(since_s, until_s, source.landed_ms)
        table = ledger.query(_SLOTS if piece.landed_ms is None else _RAW, piece.params)
        yield _chunk(table, nodes)


def sealed_until_s(ledger: Ledger) -> int:
    """Before this (epoch s) totals answer and slots may be gone; 0: nothing is sealed."""
    found = ledger.query(
        "SELECT toUInt32(max(valid_from)) AS until_s FROM settings WHERE kind = 'sealed'"
    )
    return int(found["until_s"][0].as_py())


def totals_expected_ms(ledger: Ledger, since_s: int, until_s: int) -> float:
    """The time that all nodes together should have measured, where slots are gone."""
    found = ledger.query(_EXPECTED, {"since": since_s, "until": until_s})
    return float(found["expected_ms"][0].as_py() or 0.0)


def older_workload(team: str, kind: str) -> int:
    """The id of all that a team did of a kind, where slots are gone."""
    key = f"{OLDER}\0{team}\0{kind}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def _older(table: pa.Table, node: int) -> Chunk:
    rows = table.to_pylist()
    work = [row for row in rows if row["entry"] == "team"]
    devices = [row for row in rows if row["entry"] == "device"]
    components = {name: index for index, name in enumerate(COMPONENTS)}
    nothing = np.zeros(0)
    return Chunk(
        slot_s=np.array([row["slot_s"] for row in work], np.int64),
        node=np.full(len(work), node, np.int64),
        workload=np.array([older_workload(r["team"], r["kind"]) for r in work], np.uint64),
        holder=np.zeros(len(work), np.uint64),
        uj=np.array([[r[f"{c}_uj"] for c in COMPONENTS] for r in work], np.uint64).reshape(-1, 4),
        device_slot_s=np.array([row["slot_s"] for row in devices], np.int64),
        device_node=np.full(len(devices), node, np.int64),
        device_component=np.array([components[r["component"]] for r in devices], np.int64),
        device_uj=np.array([row["energy_uj"] for row in devices], np.uint64),
        device_quality=np.array(
            [2 if r["modelled_uj"] else 1 if r["derived_uj"] else 0 for r in devices], np.int64
        ),
        device_covered_ms=np.array([row["covered_ms"] for row in devices], np.float64),
        device_parts=np.ones(len(devices), np.int64),
        reserved_slot_s=nothing.astype(np.int64),
        reserved_node=nothing.astype(np.int64),
        reserved_workload=nothing.astype(np.uint64),
        reserved_ms=nothing,
        simulated=any(row["simulated"] for row in rows),
    )


def _pieces(ledger: Ledger, source: Source) -> list[tuple[int, int]]:
    """Ranges of whole slots that hold at most CHUNK_ENTRIES rows, or are one slot."""
    if source.landed_ms is None:
        sql = f"SELECT toUInt32(slot) AS slot_s, count() AS n FROM slots WHERE {_RANGE}"
    else:
        sql = (
            f"SELECT intDiv(toUInt32(window), {SLOT_S}) * {SLOT_S} AS slot_s, count() AS n "
            f"FROM rows WHERE {_RAW_RANGE}"
        )
    counts = ledger.query(f"{sql} GROUP BY slot_s ORDER BY slot_s", _range(source)).to_pylist()
    pieces: list[tuple[int, int]] = []
    filled = CHUNK_ENTRIES
    for row in counts:
        start, end = int(row["slot_s"]), int(row["slot_s"]) + SLOT_S
        if filled + row["n"] > CHUNK_ENTRIES:
            pieces.append((start, end))
            filled = 0
        pieces[-1] = (pieces[-1][0], end)
        filled += row["n"]
    return pieces


def _range(source: Source) -> dict[str, Value]:
    return {"since": source.since_s, "until": source.until_s}


def _chunk(table: pa.Table, nodes: Mapping[str, int]) -> Chunk:
    column: dict[str, Any] = {
        name: table[name].to_numpy()
        for name in table.column_names
        if name not in ("node", "entry", "component")
    }
    slot_s = column["slot_s"].astype(np.int64)
    node = _indices(table["node"], nodes, -1)
    kinds = {"workload": 0, "device": 1, "reserved": 2}
    entry = np.where(node >= 0, _indices(table["entry"], kinds, -1), -1)
    work, device, reserved = (entry == e for e in kinds.values())
    uj = np.stack([column[f"{c}_uj"] for c in COMPONENTS], axis=1).astype(np.uint64)
    worst = np.where(column["modelled_uj"] > 0, 2, np.where(column["derived_uj"] > 0, 1, 0))
    components = {name: index for index, name in enumerate(COMPONENTS)}
    component = _indices(table["component"], components, components["other"])
    return Chunk(
        slot_s[work],
        node[work],
        column["workload"][work],
        column["holder"][work],
        uj[work],
        slot_s[device],
        node[device],
        component[device],
        column["energy_uj"][device],
        worst[device],
        column["covered_ms"][device],
        column["parts"][device].astype(np.int64),
        slot_s[reserved],
        node[reserved],
        column["workload"][reserved],
        column["reserved_ms"][reserved],
        bool(column["simulated"].any()),
    )


def _indices(texts: pa.ChunkedArray, known: Mapping[str, int], other: int) -> NDArray[np.int64]:
    """Each text's number; of a million rows only the distinct texts are looked up."""
    encoded = texts.combine_chunks().dictionary_encode()
    numbers = [known.get(text, other) for text in encoded.dictionary.to_pylist()]
    indices: NDArray[np.int64] = encoded.indices.to_numpy()
    return np.array(numbers, dtype=np.int64)[indices]


def landed_by(ledger: Ledger, since_s: int, until_s: int, as_of_ms: int) -> Source | None:
    """The source that answers as of a time; None: the raw rows that could tell are gone."""
    params: dict[str, Value] = {"since": since_s, "until": until_s, "as_of": as_of_ms}
    (raw,) = ledger.query(
        "SELECT count(DISTINCT tuple(node, window, epoch, seq)) AS frames, "
        "countIf(landed_at_ms > {as_of:UInt64}) AS later "
        f"FROM rows WHERE row = 0 AND {_RAW_RANGE}",
        params,
    ).to_pylist()
    (kept,) = ledger.query(
        "SELECT sum(frames) AS frames FROM slots FINAL WHERE entry = 'frames' AND "
        f"{_RANGE} AND (node, slot, generation) IN (SELECT node, slot, max(generation) FROM slots "
        f"WHERE {_RANGE} GROUP BY node, slot)",
        {"since": since_s, "until": until_s},
    ).to_pylist()
    if raw["frames"] < (kept["frames"] or 0) or since_s < sealed_until_s(ledger):
        return None
    return Source(since_s, until_s, as_of_ms if raw["later"] else None)


def heard_s(ledger: Ledger, source: Source) -> dict[str, tuple[int, int]]:
    """{node: (start of its first frame ever, end of its last)}, epoch seconds.

    Of every node seen before the range ends; the end is 0 where slots do not say it.
    """
    slots = ledger.query(
        "SELECT node, min(if(first_s > 0, first_s, toUInt32(slot))) AS begin_s, "
        "max(end_s) AS finish_s FROM slots WHERE entry = 'frames' "
        "AND slot < toDateTime({until:UInt32}, 'UTC') GROUP BY node",
        {"until": source.until_s},
    )
    older = ledger.query(
        "SELECT node, toUInt32(min(slot)) AS begin_s FROM totals WHERE entry = 'node' "
        "AND kind != 'guest' AND slot < toDateTime({until:UInt32}, 'UTC') GROUP BY node",
        {"until": min(source.until_s, sealed_until_s(ledger))},
    )
    heard = {row["node"]: (int(row["begin_s"]), 0) for row in older.to_pylist()}
    for row in slots.to_pylist():
        first_s, _ = heard.get(row["node"], (row["begin_s"], 0))
        heard[row["node"]] = min(first_s, int(row["begin_s"])), int(row["finish_s"])
    if source.landed_ms is not None:
        raw = ledger.query(
            "SELECT node, toUInt32(min(window)) AS begin_s, "
            "max(toUInt32(window) + intDiv(window_ms, 1000)) AS finish_s FROM rows "
            "WHERE row = 0 AND landed_at_ms <= {landed:UInt64} "
            "AND window < toDateTime({until:UInt32}, 'UTC') GROUP BY node",
            {"until": source.until_s, "landed": source.landed_ms},
        )
        for row in raw.to_pylist():
            first_s, _ = heard.get(row["node"], (row["begin_s"], 0))
            heard[row["node"]] = min(first_s, int(row["begin_s"])), int(row["finish_s"])
    return heard


def guests(ledger: Ledger, source: Source) -> set[str]:
    """Nodes that run on another one, whose energy holds theirs."""
    found = ledger.query(
        "SELECT DISTINCT node FROM slots WHERE host_node != '' AND "
        "slot < toDateTime({until:UInt32}, 'UTC')",
        {"until": source.until_s},
    )
    return set(found["node"].to_pylist())


def workload_details(ledger: Ledger, source: Source) -> dict[int, dict[str, Any]]:
    """{workload: {scope, kind, id, user, project, name, attributes}} as seen last."""
    seen = (
        f"SELECT workload FROM slots WHERE {_RANGE}"
        if source.landed_ms is None
        else f"SELECT workload FROM rows WHERE {_RAW_RANGE}"
    )
    columns = ("scope", "kind", "id", "user", "project", "name", "labels", "label_values")
    newest = ", ".join(f"argMax({c}, seen_at_ms) AS newest_{c}" for c in columns)
    table = ledger.query(
        f"SELECT workload, {newest} FROM workloads WHERE workload IN ({seen}) GROUP BY workload",
        _range(source),
    )
    details = {
        row["workload"]: {
            **{c: row[f"newest_{c}"] for c in columns[:6]},
            "attributes": dict(zip(row["newest_labels"], row["newest_label_values"], strict=True)),
        }
        for row in table.to_pylist()
    }
    return details | _older_details(ledger, source)


def _older_details(ledger: Ledger, source: Source) -> dict[int, dict[str, Any]]:
    """As `workload_details`, with the `team` that is theirs for good."""
    found = ledger.query(
        f"SELECT DISTINCT team, kind FROM totals WHERE entry = 'team' AND {_RANGE}", _range(source)
    ).to_pylist()
    return {
        older_workload(row["team"], row["kind"]): {
            "scope": OLDER,
            "kind": row["kind"],
            "id": row["team"],
            **dict.fromkeys(("user", "project", "name"), ""),
            "attributes": {},
            "team": row["team"],
        }
        for row in found
    }
