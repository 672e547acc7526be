"""What was sent against what the ledger's readers see: as integers, frame by frame."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.rollup import Rollup

Identity: TypeAlias = tuple[str, int, int]  # node, epoch, seq

CALM = "none"  # the row of what was sent before the first fault


@dataclass(frozen=True, slots=True)
class Made:
    """A frame that a node made."""

    identity: Identity
    uj: int
    at_s: float  # when, s since 1970
    kept: bool  # False: nobody knows whether the spool had it; the agent was killed meanwhile
    fault: str = ""  # its row in the table; "": that of the fault that began last before it


@dataclass(frozen=True, slots=True)
class Stored:
    """What the ledger says."""

    frames: Mapping[Identity, int]  # uJ of the rows of each, deduplicated by identity
    devices: Mapping[str, int]  # by node, uJ
    slots: Mapping[str, int]  # by node, uJ: the newest generation of each slot
    inserted: int  # headers as they lie there, those that were inserted again included


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    fault: str
    times: int
    sent_uj: int  # in frames that a spool had, and did not count as gone
    stored_uj: int
    dropped_uj: int  # in frames that an agent counted as gone from its spool; not in `sent_uj`
    lost_uj: int
    doubled_uj: int

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Outcome:
    """A run's end."""

    rows: list[Row]
    wrong: list[str] = field(default_factory=list)  # what must not be, in words


def read(ledger: Ledger) -> Stored:
    """All that is in a ledger, by its readers' own rules, slots brought up to date."""
    Rollup(ledger).refresh(datetime.fromtimestamp(0, UTC), datetime.now(UTC))
    energy = "sum(cpu_uj + dram_uj + gpu_uj + other_uj)"
    frames = ledger.query(
        f"SELECT node, epoch, seq, {energy} AS uj, min(row) AS header "
        "FROM rows FINAL GROUP BY node, epoch, seq"
    ).to_pylist()
    return Stored(
        # Without its header a frame does not count.
        {(r["node"], r["epoch"], r["seq"]): r["uj"] for r in frames if r["header"] == 0},
        _by_node(
            ledger,
            "SELECT node, sum(energy_uj) AS uj FROM devices FINAL WHERE (node, epoch, seq) IN "
            "(SELECT node, epoch, seq FROM rows WHERE row = 0) GROUP BY node",
        ),
        _by_node(
            ledger,
            f"SELECT node, {energy} AS uj FROM slots WHERE (node, slot, generation) IN "
            "(SELECT node, slot, max(generation) FROM slots GROUP BY node, slot) GROUP BY node",
        ),
        ledger.query("SELECT count() AS n FROM rows WHERE row = 0").to_pylist()[0]["n"],
    )


def _by_node(ledger: Ledger, sql: str) -> dict[str, int]:
    return {row["node"]: row["uj"] for row in ledger.query(sql).to_pylist()}


def made_by(node: str, record: Path) -> list[Made]:
    """The frames of an agent, from its record (chaos/agent.py)."""
    found: dict[tuple[int, int], tuple[int, float]] = {}
    kept = set()
    for line in record.read_text().splitlines() if record.exists() else ():
        word, epoch, seq, *more = line.split()
        if word == "made" and len(more) == 2:
            found[int(epoch), int(seq)] = int(more[0]), float(more[1])
        elif word == "kept":
            kept.add((int(epoch), int(seq)))
    return [Made((node, *key), uj, at_s, key in kept) for key, (uj, at_s) in found.items()]


def settle(
    made: Sequence[Made],
    stored: Stored,
    began: Sequence[tuple[float, str]],
    *,
    times: Mapping[str, int],
    dropped: Iterable[Identity] = (),
) -> Outcome:
    """Hold both against each other.

    Args:
        began: (s since 1970, name) of every fault, by time.
        times: of faults that have no beginning, how often.
        dropped: frames that may be missing: their agent counted them as gone.
    """
    sent: Counter[str] = Counter()
    there: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    doubled: Counter[str] = Counter()
    may_miss = set(dropped)
    wrong: list[str] = []
    by_node: dict[str, int] = defaultdict(int)
    known = set()
    for one in made:
        known.add(one.identity)
        fault = one.fault or _last_before(began, one.at_s)
        found = stored.frames.get(one.identity)
        if found is None and not one.kept:
            continue  # it never was in the spool
        if found is None and one.identity in may_miss:
            gone[fault] += one.uj
            continue
        sent[fault] += one.uj
        by_node[one.identity[0]] += found or 0
        there[fault] += found or 0
        if found is None or found < one.uj:
            lost[fault] += one.uj - (found or 0)
            wrong.append(f"lost: {_named(one.identity)}: sent {one.uj} uJ, stored {found or 0} uJ")
        elif found > one.uj:
            doubled[fault] += found - one.uj
            wrong.append(f"doubled: {_named(one.identity)}: sent {one.uj} uJ, stored {found} uJ")
    for identity, uj in stored.frames.items():
        if identity not in known:
            doubled[CALM] += uj
            wrong.append(f"nobody sent it: {_named(identity)}: {uj} uJ")
            by_node[identity[0]] += uj
    wrong += _disagreements(by_node, stored)
    counted = Counter(name for _, name in began) + Counter(times)
    names = list(dict.fromkeys([CALM, *sorted(counted)]))
    rows = [
        Row(name, counted[name], sent[name], there[name], gone[name], lost[name], doubled[name])
        for name in names
    ]
    return Outcome(rows, wrong)


def _disagreements(by_node: Mapping[str, int], stored: Stored) -> list[str]:
    """Other readers must see the same energy of every node."""
    return [
        f"{what} of {node} hold {other.get(node, 0)} uJ, its rows {by_node.get(node, 0)} uJ"
        for what, other in (("devices", stored.devices), ("slots", stored.slots))
        for node in sorted({*by_node, *other})
        if other.get(node, 0) != by_node.get(node, 0)
    ]


def _last_before(began: Sequence[tuple[float, str]], at_s: float) -> str:
    name = CALM
    for begin_s, fault in began:
        if begin_s > at_s:
            break
        name = fault
    return name


def _named(identity: Identity) -> str:
    node, epoch, seq = identity
    return f"{node}, epoch {epoch:#x}, frame {seq}"
