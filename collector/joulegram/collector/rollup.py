"""Rows -> slots: energy per (node, 5-minute slot), recomputed whole and never incremented.

What is out of date is derived: a slot is dirty when the headers in its rows differ, in count or
in the sum of their hashes, from those its newest generation was made from. All days are compared
once after a start; from then on only the slots that commits touched are looked at: by `refresh`
at once, in the background when no frame has come for a while, so that a slot that is filling is
not written over and over.
"""

import asyncio
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from joulegram.collector import counters
from joulegram.collector.ledger.ledger import Ledger, literal
from joulegram.collector.ledger.partitions import partitions
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

SlotKey: TypeAlias = tuple[str, int]  # node, start of the slot in s since 1970 UTC

SLOT_S = 300
DAY_S = 86_400
MAX_SLOTS = 512  # looked at together
MAX_FRAMES = 5_000  # summed together
MAX_TOUCHED = 200_000  # beyond it their days are compared whole again
# Longer than the usual window, so that a slot is made once when it is over and not again at
# every frame of its 5 minutes. Readers do not wait for it: they refresh what they ask for.
QUIET_S = 20.0
# Every node's slot is over at the same moment. In the background they are made one batch after
# another with rests between, so that frames which come meanwhile are stored as soon as ever.
REST = 3.0
MAX_REST_S = 2.0
# Where others write too, days whose parts changed are compared again this often.
SHARED_EVERY_S = 60.0

_SLOT = "toUInt32(intDiv(toUInt32(window), 300) * 300)"
_ENTRY: Mapping[str, pa.DataType] = {
    "node": pa.string(),
    "slot": pa.uint32(),
    "generation": pa.uint64(),
    "entry": pa.string(),
    "workload": pa.uint64(),
    "holder": pa.uint64(),
    "device": pa.string(),
    "component": pa.string(),
    "frames": pa.uint32(),
    "frames_hash": pa.uint64(),
    "frames_ms": pa.uint64(),
    "cpu_uj": pa.uint64(),
    "dram_uj": pa.uint64(),
    "gpu_uj": pa.uint64(),
    "other_uj": pa.uint64(),
    "energy_uj": pa.uint64(),
    "idle_uj": pa.uint64(),
    "cpu_ns": pa.uint64(),
    "gpu_ns": pa.uint64(),
    "covered_ms": pa.float64(),
    "derived_uj": pa.uint64(),
    "modelled_uj": pa.uint64(),
    "reserved_ms": pa.float64(),
    "simulated": pa.uint8(),
    "host_node": pa.string(),
    "first_s": pa.uint32(),
    "end_s": pa.uint32(),
}


@dataclass(frozen=True, slots=True)
class _Made:
    """What a slot was, or is to be, made from."""

    frames: int
    frames_hash: int  # modulo 2^64
    frames_ms: int
    first_s: int = 0
    end_s: int = 0
    identities: tuple[tuple[int, int], ...] = ()  # (epoch, seq)
    once: bool = False  # no row of it came twice
    sums: "tuple[int, ...]" = ()  # what its headers promise: rows, their numbers, their energy


@dataclass(frozen=True, slots=True)
class _Sums:
    """Entries of slots: by workload, device and reservation."""

    workloads: pa.Table
    devices: pa.Table
    reserved: pa.Table


class Rollup:
    """Keeps `slots` current. Thread-safe; blocking, so call it in a thread."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._working = threading.Lock()
        self._noting = threading.Lock()
        self._touched: dict[SlotKey, float] = {}  # and when last, monotonic s
        self._parts = partitions(ledger, "rows")
        self._uncompared = {_day_of(day) for day in self._parts}
        self._looked_at_s = monotonic_s()

    def touch(self, frames: Iterable[Frame]) -> None:
        """Note where frames became durable. Call it before anybody hears that they are."""
        at_s = self._monotonic_s()
        with self._noting:
            for frame in frames:
                key = frame.node, frame.window_start_ms // 1000 // SLOT_S * SLOT_S
                self._touched[key] = at_s
            if len(self._touched) > MAX_TOUCHED:
                self._uncompared |= {slot_s // DAY_S for _, slot_s in self._touched}
                self._touched.clear()

    def refresh(self, since: datetime, until: datetime) -> int:
        """Make every slot that overlaps [since, until) current.

        All that was durable when this was called is in the slots when it returns.
        Returns: how many slots were written.
        """
        since_s = int(since.timestamp()) // SLOT_S * SLOT_S
        return self._refresh(since_s, math.ceil(until.timestamp()), math.inf)

    def catch_up(self, rest: float = 0.0) -> int:
        """Make every slot current that no frame has come to for QUIET_S.

        Args:
            rest: how long to rest after each batch but the last, as a multiple of what it took.
        """
        return self._refresh(0, 2**32, self._monotonic_s() - QUIET_S, rest)

    async def run(self, every_s: float = 2.0) -> None:
        """Catch up every `every_s`, until cancelled."""
        failing = False
        loop = asyncio.get_running_loop()
        # One thread, so that the queries keep their session and its memory.
        thread = ThreadPoolExecutor(1, "rollup")
        try:
            while True:
                try:
                    if not self._ledger.exclusive:
                        await loop.run_in_executor(thread, self.look_at_others)
                    if self._touched or self._uncompared:
                        await loop.run_in_executor(thread, self.catch_up, REST)
                    failing = False
                except Exception as exc:
                    counters.ROLLUP_FAILED.inc()
                    if not failing:
                        log.warning("rolling up failed, trying again every %g s: %s", every_s, exc)
                    failing = True
                await asyncio.sleep(every_s)
        finally:
            # Not waited for: agents' last frames come first.
            thread.shutdown(wait=False, cancel_futures=True)

    def look_at_others(self, every_s: float = SHARED_EVERY_S) -> None:
        """Note days to which somebody has written since the last look, at most so often."""
        if self._monotonic_s() < self._looked_at_s + every_s:
            return
        self._looked_at_s = self._monotonic_s()
        parts = partitions(self._ledger, "rows")
        with self._noting:
            self._uncompared |= {
                _day_of(day) for day, state in parts.items() if self._parts.get(day) != state
            }
        self._parts = parts

    def _refresh(self, since_s: int, until_s: int, quiet_since_s: float, rest: float = 0.0) -> int:
        # Whoever takes a slot holds `_working` until it is written: so a slot that is not due
        # here is written, or touched later than this call. New ones wait for the next call.
        with self._working:
            while isinstance(due := self._due(since_s, until_s, quiet_since_s), int):
                self._compare(due)
        written = 0
        rest_s = 0.0
        for keys in _batches(due):
            time.sleep(rest_s)
            began_s = time.monotonic()
            with self._working:
                written += self._recompute(self._take(keys))
            rest_s = min(MAX_REST_S, rest * (time.monotonic() - began_s))
        return written

    def _due(self, since_s: int, until_s: int, quiet_since_s: float) -> int | list[SlotKey]:
        """A day to compare first; if there is none, touched slots."""
        with self._noting:
            days = [d for d in self._uncompared if since_s - DAY_S < d * DAY_S < until_s]
            if days:
                # Newest first: that is what people ask for.
                self._uncompared.discard(max(days))
                return max(days)
            return [
                key
                for key, at_s in self._touched.items()
                if since_s <= key[1] < until_s and at_s <= quiet_since_s
            ]

    def _take(self, keys: Iterable[SlotKey]) -> list[SlotKey]:
        """Those of these that are still touched, which ends with this."""
        with self._noting:
            return [key for key in keys if self._touched.pop(key, None) is not None]

    def _put_back(self, keys: Iterable[SlotKey]) -> None:
        with self._noting:
            for key in keys:
                self._touched.setdefault(key, -math.inf)

    def _compare(self, day: int) -> None:
        """Touch the dirty slots of a day."""
        try:
            keys = self._dirty(day)
        except BaseException:
            with self._noting:
                self._uncompared.add(day)
            raise
        self._put_back(keys)

    def _dirty(self, day: int) -> list[SlotKey]:
        start, end = _at(day * DAY_S), _at((day + 1) * DAY_S)
        headers = self._ledger.query(
            "SELECT node, slot_s, count() AS frames, sum(hash) AS frames_hash FROM ("
            f"SELECT node, {_SLOT} AS slot_s, hash FROM rows "
            f"WHERE window >= {start} AND window < {end} AND row = 0 "
            "LIMIT 1 BY node, slot_s, epoch, seq) GROUP BY node, slot_s"
        ).to_pylist()
        made = self._made(f"slot >= {start} AND slot < {end}")
        dirty = []
        for header in headers:
            key = header["node"], header["slot_s"]
            _, last = made.get(key, (0, None))
            if last is None or (last.frames, last.frames_hash) != (
                header["frames"],
                header["frames_hash"],
            ):
                dirty.append(key)
        return dirty

    def _made(self, where: str) -> dict[SlotKey, tuple[int, _Made]]:
        """(newest generation, what it was made from) of slots."""
        found = self._ledger.query(
            "SELECT node, toUInt32(slot) AS slot_s, max(generation) AS newest, "
            "argMax(frames, generation) AS n, argMax(frames_hash, generation) AS h, "
            f"argMax(frames_ms, generation) AS ms FROM slots WHERE {where} AND entry = 'frames' "
            "GROUP BY node, slot_s"
        ).to_pylist()
        return {
            (row["node"], row["slot_s"]): (row["newest"], _Made(row["n"], row["h"], row["ms"]))
            for row in found
        }

    def _recompute(self, keys: Sequence[SlotKey]) -> int:
        """Write slots of one day anew where their frames are others than they were made from."""
        if not keys:
            return 0
        written = 0
        try:
            inside = _inside(keys, "slot", "toUInt32(slot)")
            made = self._made(inside)
            changed = _newer(self._promised(keys), made)
            for some in _groups(changed):
                sums = self._plain_sums(some)
                if sums is None:
                    some = _newer(self._present(list(some)), made)
                    sums = self._exact_sums(some) if some else None
                if sums is not None:
                    self._write(some, self._generations(some, made), sums)
                    counters.ROLLED_UP.inc(len(some))
                    written += len(some)
            return written
        except BaseException:
            self._put_back(keys)
            raise

    def _promised(self, keys: Sequence[SlotKey]) -> dict[SlotKey, _Made]:
        """What the headers in slots say is there."""
        found = self._ledger.query(
            f"SELECT node, {_SLOT} AS slot_s, count() AS n, uniqExact(epoch, seq) AS frames, "
            "sum(hash) AS h, sum(toUInt64(window_ms)) AS ms, toUInt32(min(window)) AS first_s, "
            "toUInt32(max(toUInt32(window) + intDiv(window_ms + 999, 1000))) AS end_s, "
            "sum(toUInt64(row_count)) AS n_rows, "
            "sum(intDiv(toUInt64(row_count) * (row_count + 1), 2)) AS numbers, "
            "sum(total_uj) AS energy_uj "
            f"FROM rows WHERE {_inside(keys, 'window', _SLOT)} AND row = 0 GROUP BY node, slot_s"
        ).to_pylist()
        return {
            (row["node"], row["slot_s"]): _Made(
                row["frames"],
                row["h"] % 2**64,
                row["ms"],
                row["first_s"],
                row["end_s"],
                once=row["n"] == row["frames"],
                sums=(row["n_rows"], row["numbers"], row["energy_uj"]),
            )
            for row in found
        }

    def _plain_sums(self, slots: Mapping[SlotKey, _Made]) -> _Sums | None:
        """Sums over all that lies in slots; None unless that is what the headers promise.

        That is the rule. It is not when rows lie there twice, lack their header, or land
        meanwhile; then `_exact_sums` looks at each frame, which costs several times as much.
        """
        if not all(made.once for made in slots.values()):
            return None
        inside = _inside(list(slots), "window", _SLOT)
        headers = f"SELECT node, epoch, seq FROM rows WHERE {inside} AND row = 0"
        sums = _Sums(
            self._ledger.query(_of_workloads(f"{inside} AND row > 0")),
            self._ledger.query(_of_devices(inside)),
            self._ledger.query(_of_reserved(f"{inside} AND (node, epoch, seq) IN ({headers})")),
        )
        seen = self._ledger.query(
            f"SELECT node, {_SLOT} AS slot, uniqExact(epoch, seq) AS n FROM devices "
            f"WHERE {inside} GROUP BY node, slot"
        )
        if not _are_promised(sums.workloads, slots):
            return None
        energy = _per_slot(sums.devices, "energy_uj")
        frames = _per_slot(seen, "n")
        for key, made in slots.items():
            if energy.get(key, (0,)) != made.sums[2:]:
                return None
            if frames.get(key, (0,))[0] > made.frames:
                return None
        return sums

    def _present(self, keys: Sequence[SlotKey]) -> dict[SlotKey, _Made]:
        """The frames of slots that are there with their header and all their rows."""
        # Counting distinct rows is dear, and only needed where some came twice.
        found = self._ledger.query(
            f"SELECT node, {_SLOT} AS slot_s, epoch, seq, max(hash) AS h, max(window_ms) AS ms, "
            "toUInt32(min(window)) AS begin_s, max(row_count) AS n_rows, max(total_uj) AS uj, "
            "count() = max(row_count) + 1 AND max(row) = max(row_count) AND min(row) = 0 AS once "
            f"FROM rows WHERE {_inside(keys, 'window', _SLOT)} GROUP BY node, slot_s, epoch, seq"
        ).to_pylist()
        if not all(row["once"] for row in found):
            found = self._ledger.query(
                f"SELECT node, {_SLOT} AS slot_s, epoch, seq, max(hash) AS h, "
                "max(window_ms) AS ms, toUInt32(min(window)) AS begin_s, "
                "max(row_count) AS n_rows, max(total_uj) AS uj, 0 AS once "
                f"FROM rows WHERE {_inside(keys, 'window', _SLOT)} "
                "GROUP BY node, slot_s, epoch, seq "
                "HAVING min(row) = 0 AND uniqExact(row) = max(row_count) + 1"
            ).to_pylist()
        frames: dict[SlotKey, list[dict[str, Any]]] = {}
        for row in found:
            frames.setdefault((row["node"], row["slot_s"]), []).append(row)
        return {
            key: _Made(
                len(rows),
                sum(row["h"] for row in rows) % 2**64,
                sum(row["ms"] for row in rows),
                min(row["begin_s"] for row in rows),
                max(row["begin_s"] + -(-row["ms"] // 1000) for row in rows),
                tuple((row["epoch"], row["seq"]) for row in rows),
                all(row["once"] for row in rows),
                (
                    sum(row["n_rows"] for row in rows),
                    sum(row["n_rows"] * (row["n_rows"] + 1) // 2 for row in rows),
                    sum(row["uj"] for row in rows),
                ),
            )
            for key, rows in frames.items()
        }

    def _generations(
        self, slots: Mapping[SlotKey, _Made], before: Mapping[SlotKey, tuple[int, _Made]]
    ) -> dict[SlotKey, int]:
        """A generation for each slot, greater than the one before.

        Frames never leave a slot, so that more frames win over fewer, whatever the clocks of two
        writers say and whoever inserts last: count, ms since 1970, and bits that no other has.
        """
        now_ms, own = self._now_ms() % 2**42, secrets.randbits(8)
        return {
            key: max(
                min(made.frames, 2**14 - 1) << 50 | now_ms << 8 | own,
                before[key][0] + 1 if key in before else 0,
            )
            for key, made in slots.items()
        }

    def _exact_sums(self, slots: Mapping[SlotKey, _Made]) -> _Sums:
        # The frames are named, so that the sums over rows, devices and reservations are of the
        # same ones while commits go on.
        identities = ", ".join(
            f"({literal(node)}, {epoch}, {seq})"
            for (node, _), made in slots.items()
            for epoch, seq in made.identities
        )
        inside = f"{_inside(list(slots), 'window', _SLOT)} AND (node, epoch, seq) IN ({identities})"
        rows = f"{inside} AND row > 0"
        once = all(made.once for made in slots.values())
        workloads = self._ledger.query(_of_workloads(rows)) if once else None
        # Rows may have come a second time since they were looked at.
        if workloads is None or not _are_promised(workloads, slots):
            workloads = self._ledger.query(
                _of_workloads(f"{rows} LIMIT 1 BY node, slot, epoch, seq, row")
            )
        return _Sums(
            workloads,
            self._ledger.query(_of_devices(inside)),
            self._ledger.query(_of_reserved(inside)),
        )

    def _write(
        self, slots: Mapping[SlotKey, _Made], generations: Mapping[SlotKey, int], sums: _Sums
    ) -> None:
        frames = pa.table(
            {
                "node": [node for node, _ in slots],
                "slot": [slot_s for _, slot_s in slots],
                "frames": [made.frames for made in slots.values()],
                "frames_hash": pa.array([m.frames_hash for m in slots.values()], pa.uint64()),
                "frames_ms": [made.frames_ms for made in slots.values()],
                "first_s": [made.first_s for made in slots.values()],
                "end_s": [made.end_s for made in slots.values()],
            }
        )
        whole = pa.concat_tables(
            [
                _entries(frames, "frames"),
                _entries(sums.workloads, "workload"),
                _entries(sums.devices, "device"),
                _entries(sums.reserved, "reserved"),
            ]
        )
        columns = {name: whole[name].combine_chunks() for name in whole.column_names}
        columns["generation"] = _of_slots(columns["node"], columns["slot"], generations)
        self._ledger.insert("slots", columns)


def _of_workloads(where: str) -> str:
    return (
        "SELECT node, slot, workload, holder, device, sum(cpu) AS cpu_uj, "
        "sum(dram) AS dram_uj, sum(gpu) AS gpu_uj, sum(other) AS other_uj, "
        "sum(cpu_t) AS cpu_ns, sum(gpu_t) AS gpu_ns, "
        "count() AS n_rows, sum(toUInt64(row)) AS numbers, "
        "cpu_uj + dram_uj + gpu_uj + other_uj AS all_uj FROM ("
        f"SELECT node, {_SLOT} AS slot, row, workload, holder, device, cpu_uj AS cpu, "
        "dram_uj AS dram, gpu_uj AS gpu, other_uj AS other, cpu_ns AS cpu_t, gpu_ns AS gpu_t "
        f"FROM rows WHERE {where}) GROUP BY node, slot, workload, holder, device"
    )


def _of_devices(where: str) -> str:
    return (
        "SELECT node, slot, name AS device, component, sum(uj) AS energy_uj, "
        "sum(idle) AS idle_uj, sum(coverage * window_ms) AS covered_ms, "
        "sum(if(quality = 'derived', uj, 0)) AS derived_uj, "
        "sum(if(quality IN ('measured', 'derived'), 0, uj)) AS modelled_uj, "
        "max(made_up) AS simulated, any(host) AS host_node FROM ("
        f"SELECT node, {_SLOT} AS slot, name, component, energy_uj AS uj, idle_uj AS idle, "
        "coverage, window_ms, quality, simulated AS made_up, host_node AS host "
        f"FROM devices WHERE {where} LIMIT 1 BY node, slot, epoch, seq, device"
        ") GROUP BY node, slot, name, component"
    )


def _of_reserved(where: str) -> str:
    return (
        "SELECT node, slot, workload, device, sum(amount * window_ms) AS reserved_ms FROM ("
        f"SELECT node, {_SLOT} AS slot, workload, device, amount, window_ms "
        f"FROM reservations WHERE {where} LIMIT 1 BY node, slot, epoch, seq, workload, device"
        ") GROUP BY node, slot, workload, device"
    )


def _per_slot(table: pa.Table, *columns: str) -> dict[SlotKey, tuple[int, ...]]:
    """Sums over the rows of each slot."""
    sums = table.group_by(["node", "slot"]).aggregate([(name, "sum") for name in columns])
    values = zip(*(sums[f"{name}_sum"].to_pylist() for name in columns), strict=True)
    keys = zip(sums["node"].to_pylist(), sums["slot"].to_pylist(), strict=True)
    return dict(zip(keys, values, strict=True))


def _are_promised(workloads: pa.Table, slots: Mapping[SlotKey, _Made]) -> bool:
    """Whether the rows of these slots are those that their headers speak of, each once."""
    rows = _per_slot(workloads, "n_rows", "numbers", "all_uj")
    return all(rows.get(key, (0, 0, 0)) == made.sums for key, made in slots.items())


def _newer(
    now: Mapping[SlotKey, _Made], made: Mapping[SlotKey, tuple[int, _Made]]
) -> dict[SlotKey, _Made]:
    """Slots that should be written anew."""
    return {key: one for key, one in now.items() if key not in made or _is_newer(one, made[key][1])}


def _is_newer(now: _Made, made: _Made) -> bool:
    """Whether a slot should be written anew. Fewer frames mean that its rows are gone."""
    other = (made.frames, made.frames_hash) != (now.frames, now.frames_hash)
    return other and now.frames >= made.frames


def _of_slots(node: pa.Array, slot: pa.Array, values: Mapping[SlotKey, int]) -> Any:
    """The value of each entry's slot, as one array."""
    encoded = node.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    cell = slot.to_numpy().astype(np.int64) * len(names) + encoded.indices.to_numpy()
    cells, entry = np.unique(cell, return_inverse=True)
    of_cells = [values[names[c % len(names)], c // len(names)] for c in cells.tolist()]
    return np.array(of_cells, np.uint64)[entry]


def _entries(table: pa.Table, entry: str) -> pa.Table:
    """Rows of `slots`; what `table` does not say is 0 or empty."""
    columns = {}
    for name, kind in _ENTRY.items():
        if name == "entry":
            columns[name] = pa.repeat(pa.scalar(entry), table.num_rows)
        elif name in table.column_names:
            columns[name] = table[name].cast(kind)
        else:
            empty = "" if kind == pa.string() else 0
            columns[name] = pa.repeat(pa.scalar(empty, kind), table.num_rows)
    return pa.table(columns)


def _batches(keys: Iterable[SlotKey]) -> Iterator[list[SlotKey]]:
    """At most MAX_SLOTS of one day each, newest day first."""
    by_day: dict[int, list[SlotKey]] = {}
    for key in keys:
        by_day.setdefault(key[1] // DAY_S, []).append(key)
    for day in sorted(by_day, reverse=True):
        # Neighbours lie next to each other in `rows`: a batch reads its own and little else.
        of_day = sorted(by_day[day])
        for first in range(0, len(of_day), MAX_SLOTS):
            yield of_day[first : first + MAX_SLOTS]


def _groups(slots: Mapping[SlotKey, _Made]) -> Iterator[dict[SlotKey, _Made]]:
    """Slots with at most MAX_FRAMES frames, or one slot."""
    group: dict[SlotKey, _Made] = {}
    frames = 0
    for key, made in slots.items():
        if group and frames + made.frames > MAX_FRAMES:
            yield group
            group, frames = {}, 0
        group[key] = made
        frames += made.frames
    if group:
        yield group


def _inside(keys: Sequence[SlotKey], time_column: str, slot: str) -> str:
    """SQL for "in one of these slots"."""
    pairs = ", ".join(f"({literal(node)}, {slot_s})" for node, slot_s in keys)
    return f"{_near(keys, time_column)} AND (node, {slot}) IN ({pairs})"


def _near(keys: Sequence[SlotKey], time_column: str) -> str:
    """SQL that lets the index skip most of what is in none of these slots."""
    first, last = min(s for _, s in keys), max(s for _, s in keys)
    nodes = ", ".join(sorted({literal(node) for node, _ in keys}))
    return (
        f"{time_column} >= {_at(first)} AND {time_column} < {_at(last + SLOT_S)} "
        f"AND node IN ({nodes})"
    )


def _at(seconds: int) -> str:
    return f"toDateTime({seconds}, 'UTC')"


def _day_of(partition: str) -> int:
    """Days since 1970 of a partition named YYYYMMDD."""
    return int(datetime.strptime(partition, "%Y%m%d").replace(tzinfo=UTC).timestamp()) // DAY_S
