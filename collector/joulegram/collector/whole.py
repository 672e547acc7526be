"""Which frames are there whole, looked at one by one.

A frame is its header, all its rows, and devices that drew what the rows hold. Two writers that
do not know of each other can both take one identity for new, with other content. Then rows and
devices of both lie there until a merge leaves, of each row and of each device, the one inserted
last. `FINAL` reads what a merge would leave, so that no answer depends on when it comes; and
rows of one insert have one `landed_at_ms`, so that what is left of the other content differs in
it from the header. Of a cluster, each shard merges its own: where two shards have a frame, the
one that landed last counts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from joulegram.collector.accounting.choose import SLOT_S
from joulegram.collector.checked import Identity
from joulegram.collector.ledger.ledger import Ledger, literal

Place: TypeAlias = tuple[str, int, int, int]  # node, window in s since 1970, epoch, seq
# Which of a device counts where two shards have it.
DEVICES_FIRST = "uj, name, component"
_Energy: TypeAlias = Counter[tuple[str, str]]  # uJ by component and, of GPUs, device


@dataclass(frozen=True, slots=True)
class Whole:
    """A frame that counts."""

    place: Place
    landed_ms: int
    hash: int
    window_ms: int
    rows: int
    energy_uj: int
    left_over: tuple[int, ...] = ()  # devices of another content that had more of them


_MIXED = Whole(("", 0, 0, 0), 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found in some slots."""

    # node, start of the slot in s -> its frames
    whole: dict[tuple[str, int], list[Whole]] = field(default_factory=dict)
    # Frames of which rows and devices are of two contents, so that neither can count.
    mixed: dict[tuple[str, int], set[Identity]] = field(default_factory=dict)
    # Frames of which one content counts and another was there, too.
    settled: set[Identity] = field(default_factory=set)


def look(ledger: Ledger, inside: str) -> Looked:
    """The frames of some slots.

    Args:
        inside: SQL for "in one of these slots", of `rows` and of `devices`.
    """
    found: dict[Place, list[dict[str, Any]]] = {}
    once = once_by(ledger, "node, window_s, epoch, seq, landed_ms, row")
    for row in ledger.query(
        "SELECT node, window_s, epoch, seq, landed_ms, device, min(row) AS first, "
        "max(hash) AS content, max(window_ms) AS ms, max(row_count) AS promised, "
        "max(total_uj) AS promised_uj, count() AS n, sum(toUInt64(row)) AS numbers, "
        "sum(cpu_uj) AS cpu, sum(dram_uj) AS dram, sum(gpu_uj) AS gpu, sum(other_uj) AS other "
        "FROM (SELECT node, toUInt32(window) AS window_s, epoch, seq, landed_at_ms AS landed_ms, "
        "device, row, hash, window_ms, row_count, total_uj, cpu_uj, dram_uj, gpu_uj, other_uj "
        f"FROM rows FINAL WHERE {inside} {once}) "
        "GROUP BY node, window_s, epoch, seq, landed_ms, device"
    ).to_pylist():
        found.setdefault(_place(row), []).append(row)
    drawn: dict[Place, dict[int, dict[str, Any]]] = {}
    for row in ledger.query(
        "SELECT node, toUInt32(window) AS window_s, epoch, seq, device, component, name, "
        f"energy_uj AS uj FROM devices FINAL WHERE {inside} ORDER BY device, {DEVICES_FIRST}"
    ).to_pylist():
        drawn.setdefault(_place(row), {}).setdefault(row["device"], row)

    looked = Looked()
    taken: set[tuple[str, int, int, int]] = set()  # identities, by slot
    for place in sorted(found):
        frame = _frame(place, found[place], list(drawn.get(place, {}).values()))
        if frame is None:
            continue
        node, window_s, epoch, seq = place
        slot_s = window_s // SLOT_S * SLOT_S
        identity = node, epoch, seq
        if (node, slot_s, epoch, seq) in taken:  # another window of the slot has it
            looked.settled.add(identity)
        elif frame is _MIXED:
            looked.mixed.setdefault((node, slot_s), set()).add(identity)
        else:
            taken.add((node, slot_s, epoch, seq))
            looked.whole.setdefault((node, slot_s), []).append(frame)
            looked.mixed.get((node, slot_s), set()).discard(identity)
    looked.settled.update(_of_two_contents(ledger, inside))
    for mixed in looked.mixed.values():
        looked.settled.difference_update(mixed)
    return looked


def _place(row: Mapping[str, Any]) -> Place:
    return row["node"], row["window_s"], row["epoch"], row["seq"]


def _frame(
    place: Place, groups: Sequence[dict[str, Any]], devices: Sequence[dict[str, Any]]
) -> Whole | None:
    """The frame; _MIXED; None: not all of it has come."""
    headers = [group for group in groups if group["first"] == 0]
    headers.sort(key=lambda header: (header["landed_ms"], header["content"]), reverse=True)
    found = [_landed(place, header, groups, devices) for header in headers]
    whole = [frame for frame in found if frame is not None and frame is not _MIXED]
    return next(iter(whole or found), None)


def _landed(
    place: Place,
    header: Mapping[str, Any],
    groups: Sequence[dict[str, Any]],
    devices: Sequence[dict[str, Any]],
) -> Whole | None:
    """As `_frame`, of what landed with a header."""
    own = [group for group in groups if group["landed_ms"] == header["landed_ms"]]
    n_rows, promised_uj = header["promised"], header["promised_uj"]
    n = sum(group["n"] for group in own)
    if n <= n_rows or (promised_uj and not devices):
        return None
    held: _Energy = Counter()
    for group in own:
        for component in ("cpu", "dram", "other"):
            held[component, ""] += group[component]
        held["gpu", group["device"]] += group["gpu"]
    count = _drew(devices, held)
    numbers = sum(group["numbers"] for group in own)
    if (
        count is None
        or n != n_rows + 1
        or numbers != n_rows * (n_rows + 1) // 2
        or held.total() != promised_uj
    ):
        return _MIXED
    return Whole(
        place,
        header["landed_ms"],
        header["content"],
        header["ms"],
        n_rows,
        promised_uj,
        tuple(device["device"] for device in devices[count:]),
    )


def _drew(devices: Sequence[dict[str, Any]], held: _Energy) -> int | None:
    """How many of the devices, the first ones, drew what rows hold; None: that is none of them."""
    drawn: _Energy = Counter()
    count = 0 if held == drawn else None  # energies of 0 are as if they were not there
    for number, device in enumerate(devices, start=1):
        gpu = device["name"] if device["component"] == "gpu" else ""
        drawn[device["component"], gpu] += device["uj"]
        if drawn == held:
            count = number
    return count


def _of_two_contents(ledger: Ledger, inside: str) -> list[Identity]:
    found = ledger.query(
        "SELECT node, epoch, seq, uniqExact(hash) AS n "
        f"FROM rows WHERE {inside} AND row = 0 GROUP BY node, epoch, seq HAVING n > 1"
    ).to_pylist()
    return [(row["node"], row["epoch"], row["seq"]) for row in found]


def once_by(ledger: Ledger, key: str) -> str:
    """SQL after `FINAL` that leaves one row of a key, where shards may have one each."""
    return f"LIMIT 1 BY {key}" if ledger.cluster else ""


def rows_of(frames: Sequence[Whole]) -> str:
    """SQL for "a row of these frames, not its header", of `rows FINAL`."""
    places = ", ".join(f"({_sql(frame.place)}, {frame.landed_ms})" for frame in frames)
    return f"row > 0 AND (node, toUInt32(window), epoch, seq, landed_at_ms) IN ({places})"


def parts_of(frames: Sequence[Whole]) -> str:
    """SQL for "of one of these frames", of `devices FINAL` and `reservations FINAL`."""
    places = ", ".join(f"({_sql(frame.place)})" for frame in frames)
    return f"(node, toUInt32(window), epoch, seq) IN ({places})"


def devices_of(frames: Sequence[Whole]) -> str:
    """SQL for "a device of one of these frames", of `devices FINAL`."""
    places = ", ".join(f"({_sql(f.place)}, {device})" for f in frames for device in f.left_over)
    but = f" AND (node, toUInt32(window), epoch, seq, device) NOT IN ({places})" if places else ""
    return parts_of(frames) + but


def _sql(place: Place) -> str:
    node, *numbers = place
    return ", ".join((literal(node), *map(str, numbers)))
