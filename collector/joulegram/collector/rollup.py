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
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from joulegram.collector import counters
from joulegram.collector.checked import Identity
from joulegram.collector.ledger.ledger import Ledger, literal
from joulegram.collector.ledger.partitions import partitions
from joulegram.collector.whole import (
    DEVICES_FIRST,
    Looked,
    Whole,
    devices_of,
    look,
    once_by,
    parts_of,
    rows_of,
)
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

SlotKey: TypeAlias = tuple[str, int]  # node, start of the slot in s since 1970 UTC

SLOT_S = 300
DAY_S = 86_400
MAX_SLOTS = 512  # looked at together
MAX_FRAMES = 5_000  # summed together
MAX_TOUCHED = 200_000  # beyond it their days are compared whole again
TRIES = 3  # at slots to which something happens while they are looked at
MAX_NOTED = 10_000  # frames of which it was said that another content has their identity
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
    once: bool = False  # no header in it came twice
    sums: "tuple[int, ...]" = ()  # what its headers promise: rows, their numbers, their energy
    whole: tuple[Whole, ...] = ()  # its frames, where they were looked at one by one
    mixed: int = 0  # frames that are there and do not count


@dataclass(frozen=True, slots=True)
class _Sums:
    """Entries of slots: by workload, device and reservation."""

    workloads: pa.Table
    devices: pa.Table
    reserved: pa.Table

    def without(self, slots: "set[SlotKey]") -> "_Sums":
        if not slots:
            return self
        return _Sums(*(_without(t, slots) for t in (self.workloads, self.devices, self.reserved)))


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
        self._noted: OrderedDict[tuple[Identity, str], None] = OrderedDict()

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
            "LIMIT 1 BY node, slot_s, epoch, seq, hash) GROUP BY node, slot_s"
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
                plain = {key: made for key, made in some.items() if made.once}
                if plain:
                    sums, doubtful = self._plain_sums(plain)
                    written += self._write(plain, made, sums, doubtful)
                    plain = {key: plain[key] for key in plain.keys() - doubtful}
                if others := some.keys() - plain.keys():
                    written += self._write_exact(others, made)
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

    def _plain_sums(self, slots: Mapping[SlotKey, _Made]) -> tuple[_Sums, set[SlotKey]]:
        """Sums over all that lies in slots, and those where they are not what headers promise.

        That is rare. Rows lie there twice, lack their header, are of another content, or land
        meanwhile; then `_exact_sums` looks at each frame, which costs several times as much.
        """
        inside = _inside(list(slots), "window", _SLOT)
        headers = f"SELECT node, epoch, seq FROM rows WHERE {inside} AND row = 0"
        sums = _Sums(
            self._ledger.query(_of_workloads("rows", f"{inside} AND row > 0")),
            self._ledger.query(_of_devices("devices", inside)),
            self._ledger.query(
                _of_reserved("reservations", f"{inside} AND (node, epoch, seq) IN ({headers})")
            ),
        )
        seen = self._ledger.query(
            f"SELECT node, {_SLOT} AS slot, uniqExact(epoch, seq) AS n FROM devices "
            f"WHERE {inside} GROUP BY node, slot"
        )
        frames = _per_slot(seen, "n")
        more = {key for key, made in slots.items() if frames.get(key, (0,))[0] > made.frames}
        return sums, more | _doubtful(sums, slots)

    def _write_exact(
        self, keys: Iterable[SlotKey], before: Mapping[SlotKey, tuple[int, _Made]]
    ) -> int:
        """Write slots frame by frame where that changes them."""
        written = 0
        left = set(keys)
        for _ in range(TRIES):
            slots = _newer(self._present(left), before)
            left = set()
            for some in _groups(slots):
                sums = self._exact_sums(some)
                doubtful = _doubtful(sums, some)
                written += self._write(some, before, sums, doubtful)
                left |= doubtful
            if not left:
                break
        self._put_back(left)
        return written

    def _present(self, keys: Iterable[SlotKey]) -> dict[SlotKey, _Made]:
        """Slots made from the frames that are there whole."""
        keys = list(keys)
        looked = look(self._ledger, _inside(keys, "window", _SLOT))
        self._note(looked)
        return {
            key: _made_of(looked.whole.get(key, []), len(looked.mixed.get(key, ())))
            for key in keys
            if key in looked.whole or looked.mixed.get(key)
        }

    def _note(self, looked: Looked) -> None:
        """Count frames whose identity has a second content, and speak of the first of a node."""
        mixed = [identity for some in looked.mixed.values() for identity in sorted(some)]
        for outcome, identities in (("left_out", mixed), ("one_counts", sorted(looked.settled))):
            for identity in identities:
                if (identity, outcome) in self._noted:
                    continue
                node, epoch, seq = identity
                if not any(noted[0] == node for noted, _ in self._noted):
                    log.warning(
                        "frame %d of epoch %#x of %s came with two contents, to two writers at "
                        "once: %s. Look for two agents with one name, or for a copied state "
                        "directory; more such frames of %s are counted and not logged",
                        seq,
                        epoch,
                        node,
                        "one of them counts"
                        if outcome == "one_counts"
                        else "its rows and devices are of both, so that reports leave it out",
                        node,
                    )
                counters.CONFLICTS.labels(outcome).inc()
                self._noted[identity, outcome] = None
                if len(self._noted) > MAX_NOTED:
                    self._noted.popitem(last=False)

    def _generations(
        self, slots: Mapping[SlotKey, _Made], before: Mapping[SlotKey, tuple[int, _Made]]
    ) -> dict[SlotKey, int]:
        """A generation for each slot, greater than the one before.

        Frames never leave a slot, so that more frames win over fewer, whatever the clocks of two
        writers say and whoever inserts last: count, ms since 1970, and bits that no other has.
        Frames that are there and do not count are seen, too.
        """
        now_ms, own = self._now_ms() % 2**42, secrets.randbits(8)
        return {
            key: max(
                min(made.frames + made.mixed, 2**14 - 1) << 50 | now_ms << 8 | own,
                before[key][0] + 1 if key in before else 0,
            )
            for key, made in slots.items()
        }

    def _exact_sums(self, slots: Mapping[SlotKey, _Made]) -> _Sums:
        # The frames are named, so that the sums over rows, devices and reservations are of the
        # same ones while commits go on.
        inside = _inside(list(slots), "window", _SLOT)
        frames = [frame for made in slots.values() for frame in made.whole]
        rows, devices, parts = (
            [of(frames) for of in (rows_of, devices_of, parts_of)] if frames else ("0", "0", "0")
        )
        once = once_by(self._ledger, "node, slot, epoch, seq, row")
        devices += f" ORDER BY {DEVICES_FIRST}"
        return _Sums(
            self._ledger.query(_of_workloads("rows FINAL", f"{inside} AND {rows} {once}")),
            self._ledger.query(_of_devices("devices FINAL", f"{inside} AND {devices}")),
            self._ledger.query(_of_reserved("reservations FINAL", f"{inside} AND {parts}")),
        )

    def _write(
        self,
        slots: Mapping[SlotKey, _Made],
        before: Mapping[SlotKey, tuple[int, _Made]],
        sums: _Sums,
        but: set[SlotKey],
    ) -> int:
        """Write slots, all but some. Returns: how many."""
        slots = {key: made for key, made in slots.items() if key not in but}
        if not slots:
            return 0
        sums = sums.without(but)
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
        columns["generation"] = _of_slots(
            columns["node"], columns["slot"], self._generations(slots, before)
        )
        self._ledger.insert("slots", columns)
        counters.ROLLED_UP.inc(len(slots))
        return len(slots)


def _of_workloads(table: str, where: str) -> str:
    return (
        "SELECT node, slot, workload, holder, device, sum(cpu) AS cpu_uj, "
        "sum(dram) AS dram_uj, sum(gpu) AS gpu_uj, sum(other) AS other_uj, "
        "sum(cpu_t) AS cpu_ns, sum(gpu_t) AS gpu_ns, "
        "count() AS n_rows, sum(toUInt64(row)) AS numbers, "
        "cpu_uj + dram_uj + gpu_uj + other_uj AS all_uj FROM ("
        f"SELECT node, {_SLOT} AS slot, row, workload, holder, device, cpu_uj AS cpu, "
        "dram_uj AS dram, gpu_uj AS gpu, other_uj AS other, cpu_ns AS cpu_t, gpu_ns AS gpu_t "
        f"FROM {table} WHERE {where}) GROUP BY node, slot, workload, holder, device"
    )


def _of_devices(table: str, where: str) -> str:
    return (
        "SELECT node, slot, name AS device, component, sum(uj) AS energy_uj, "
        "sum(idle) AS idle_uj, sum(coverage * window_ms) AS covered_ms, "
        "sum(if(quality = 'derived', uj, 0)) AS derived_uj, "
        "sum(if(quality IN ('measured', 'derived'), 0, uj)) AS modelled_uj, "
        "max(made_up) AS simulated, any(host) AS host_node FROM ("
        f"SELECT node, {_SLOT} AS slot, name, component, energy_uj AS uj, idle_uj AS idle, "
        "coverage, window_ms, quality, simulated AS made_up, host_node AS host "
        f"FROM {table} WHERE {where} LIMIT 1 BY node, slot, epoch, seq, device"
        ") GROUP BY node, slot, name, component"
    )


def _of_reserved(table: str, where: str) -> str:
    return (
        "SELECT node, slot, workload, device, sum(amount * window_ms) AS reserved_ms FROM ("
        f"SELECT node, {_SLOT} AS slot, workload, device, amount, window_ms "
        f"FROM {table} WHERE {where} LIMIT 1 BY node, slot, epoch, seq, workload, device"
        ") GROUP BY node, slot, workload, device"
    )


def _per_slot(table: pa.Table, *columns: str) -> dict[SlotKey, tuple[int, ...]]:
    """Sums over the rows of each slot."""
    sums = table.group_by(["node", "slot"]).aggregate([(name, "sum") for name in columns])
    values = zip(*(sums[f"{name}_sum"].to_pylist() for name in columns), strict=True)
    keys = zip(sums["node"].to_pylist(), sums["slot"].to_pylist(), strict=True)
    return dict(zip(keys, values, strict=True))


def _doubtful(sums: _Sums, slots: Mapping[SlotKey, _Made]) -> set[SlotKey]:
    """Those of these slots whose rows and devices are not those that their headers speak of."""
    rows = _per_slot(sums.workloads, "n_rows", "numbers", "all_uj")
    drawn = _per_slot(sums.devices, "energy_uj")
    doubtful = {
        key
        for key, made in slots.items()
        if rows.get(key, (0, 0, 0)) != made.sums or drawn.get(key, (0,)) != made.sums[2:]
    }
    return doubtful | (_apart(sums) & slots.keys())


def _apart(sums: _Sums) -> set[SlotKey]:
    """Slots whose workloads do not hold what devices drew, by component and GPU."""

    def parts(table: pa.Table, part: Any, uj: Any) -> pa.Table:
        names = {"node": pa.string(), "slot": pa.uint32()}
        columns = {name: table[name].cast(kind) for name, kind in names.items()}
        return pa.table({**columns, "part": part, "uj": uj})

    def of_gpu(device: Any) -> Any:
        return pc.binary_join_element_wise("gpu", device.cast(pa.string()), " ")

    held, drawn = sums.workloads, sums.devices
    component = drawn["component"].cast(pa.string())
    by_part = [
        parts(
            drawn,
            pc.if_else(pc.equal(component, "gpu"), of_gpu(drawn["device"]), component),
            pc.negate(drawn["energy_uj"].cast(pa.int64(), safe=False)),
        )
    ]
    for name in ("cpu", "dram", "gpu", "other"):
        part = of_gpu(held["device"]) if name == "gpu" else pa.repeat(name, held.num_rows)
        by_part.append(parts(held, part, held[f"{name}_uj"].cast(pa.int64(), safe=False)))
    left = pa.concat_tables(by_part).group_by(["node", "slot", "part"]).aggregate([("uj", "sum")])
    left = left.filter(pc.not_equal(left["uj_sum"], 0))
    return set(zip(left["node"].to_pylist(), left["slot"].to_pylist(), strict=True))


def _without(table: pa.Table, slots: set[SlotKey]) -> pa.Table:
    keys = zip(table["node"].to_pylist(), table["slot"].to_pylist(), strict=True)
    return table.filter(pa.array([key not in slots for key in keys], pa.bool_()))


def _made_of(frames: Sequence[Whole], mixed: int) -> _Made:
    begins_s = [frame.place[1] for frame in frames]
    ends_s = [frame.place[1] + -(-frame.window_ms // 1000) for frame in frames]
    return _Made(
        len(frames),
        sum(frame.hash for frame in frames) % 2**64,
        sum(frame.window_ms for frame in frames),
        min(begins_s, default=0),
        max(ends_s, default=0),
        sums=(
            sum(frame.rows for frame in frames),
            sum(frame.rows * (frame.rows + 1) // 2 for frame in frames),
            sum(frame.energy_uj for frame in frames),
        ),
        whole=tuple(frames),
        mixed=mixed,
    )


def _newer(
    now: Mapping[SlotKey, _Made], made: Mapping[SlotKey, tuple[int, _Made]]
) -> dict[SlotKey, _Made]:
    """Slots that should be written anew."""
    nothing = 0, _Made(0, 0, 0)
    return {key: one for key, one in now.items() if _is_newer(one, made.get(key, nothing)[1])}


def _is_newer(now: _Made, made: _Made) -> bool:
    """Whether a slot should be written anew. Fewer frames mean that its rows are gone."""
    other = (made.frames, made.frames_hash) != (now.frames, now.frames_hash)
    return other and now.frames + now.mixed >= made.frames


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
