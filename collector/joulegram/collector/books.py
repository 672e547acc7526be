"""Adds the entries of a range up into the rows of a report, chunk by chunk."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulegram.collector.accounting.choose import SLOT_S
from joulegram.collector.accounting.coverage import Span, ratio
from joulegram.collector.accounting.idle import share_idle
from joulegram.collector.energy import COMPONENTS, Chunk
from joulegram.collector.local_days import Day
from joulegram.collector.rates import Rates
from joulegram.collector.rules import RESERVED_KINDS, UNASSIGNED, starts_s, team_of

QUALITIES = ("measured", "derived", "modelled")  # best first
GPU = COMPONENTS.index("gpu")
MAX_NODES = 2**24  # so that a (slot, node) fits 63 bits as one number

Ints: TypeAlias = NDArray[np.int64]
# (slot_s, node, workload, uj by component) of workload rows
Held: TypeAlias = tuple[Ints, Ints, NDArray[np.uint64], NDArray[np.uint64]]
_NOBODY = dict.fromkeys(("scope", "id", "user", "project", "name"), "") | {
    "kind": "unknown",
    "attributes": {},
}


@dataclass(frozen=True, slots=True)
class Question:
    """How to add up: by what, sharing idle how, which components (indices), whose teams."""

    by: str
    idle_policy: str
    components: Sequence[int]
    rules: Sequence[Mapping[str, str]]
    team: str | None = None  # count nothing but what this team answers for; None: everything
    days: Sequence[Day] = ()  # of the range, where `by` is day


@dataclass(slots=True)
class _Account:
    """What one row of the answer adds up to."""

    energy_uj: int = 0
    held_idle_uj: int = 0
    grams: list[float] = field(default_factory=list)
    team_uj: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    nodes: set[int] = field(default_factory=set)
    quality: int = 0


class Books:
    """The accounts of one report.

    Args:
        rates: of every slot in the range.
        workloads: {workload: {scope, kind, id, user, project, name, attributes}}.
        spans: {node: when frames of it are expected}.
    """

    def __init__(
        self,
        question: Question,
        rates: Rates,
        workloads: Mapping[int, dict[str, Any]],
        spans: Mapping[str, Span],
    ) -> None:
        self._ask = question
        self._rates = rates
        self._workloads = workloads
        self._spans = list(spans.values())
        self.nodes = {name: index for index, name in enumerate(spans)}
        self.metered_uj = 0
        self.total_uj = 0
        self.slot_uj = np.zeros(len(rates.slots_s), dtype=np.uint64)
        self.simulated = False
        self._worst = 0
        # Covered ms by node, and by node and component; what a node has of no component is nan.
        self._covered = np.zeros(len(spans))
        self._covered_of = np.full((len(spans), len(COMPONENTS)), np.nan)
        self._accounts: dict[Any, _Account] = defaultdict(_Account)
        # Between two of these a workload's team, and the day, stay the same.
        starts = {*starts_s(question.rules), *(day.since_s for day in question.days)}
        self._starts = np.array(sorted(starts), dtype=np.int64)
        self._day_starts = np.array([day.since_s for day in question.days], dtype=np.int64)
        self._covered_on = np.zeros(len(question.days))  # ms, all nodes together
        self._teams: dict[tuple[int, int], str] = {}

    def add(self, chunk: Chunk) -> None:
        """Add the entries of some whole slots, each slot once."""
        self.simulated |= chunk.simulated
        kept = np.isin(chunk.device_component, self._ask.components)
        self.metered_uj += int(chunk.device_uj[kept].sum())
        drew = kept & (chunk.device_uj > 0)
        self._worst = max(self._worst, int(chunk.device_quality[drew].max(initial=0)))
        self._cover(chunk)

        rows = chunk.slot_s, chunk.node, chunk.workload, chunk.uj
        self._hold(chunk)
        if self._ask.idle_policy != "separate":
            rows = _shared_out(self._ask.idle_policy, chunk, self._is_idle(chunk.workload))
        slot_s, node, workload, uj = self._ours(rows)
        slot = np.searchsorted(self._rates.slots_s, slot_s)
        dropped = [c for c in range(len(COMPONENTS)) if c not in self._ask.components]
        uj = uj.copy()
        uj[:, dropped] = 0
        whole = uj.sum(axis=1, dtype=np.uint64)
        np.add.at(self.slot_uj, slot, whole)
        self.total_uj += int(whole.sum())
        if self._ask.team is not None:
            self.metered_uj = self.total_uj

        quality = _row_quality(chunk, slot_s, node, uj)
        if self._ask.by == "component":
            for component in self._ask.components:
                self._enter(
                    slot, node, workload, uj[:, component], quality[:, component], component
                )
        else:
            self._enter(slot, node, workload, whole, quality.max(axis=1, initial=0), None)

    def rows(self) -> list[dict[str, Any]]:
        """The answer's rows, greatest first."""
        if self._ask.by == "node" and self._ask.team is None:
            for node, span in enumerate(self._spans):  # a silent node has a row too
                if span.length_ms > 0:
                    self._accounts[node].nodes.add(node)
        for day in range(len(self._ask.days)):  # so has a day on which nothing was drawn
            self._accounts[day].energy_uj += 0
        keys = self._keys()
        total_uj = self.total_uj or 1
        rows = [
            {
                "key": keys[name],
                "team": _only(account.team_uj),
                "energy_uj": account.energy_uj,
                "g_co2e": _known(math.fsum(account.grams)),
                "coverage": self._coverage(name, account),
                "quality": QUALITIES[account.quality],
                "share": account.energy_uj / total_uj,
                "held_idle_uj": account.held_idle_uj,
                **self._who(name),
                **self._of_day(name),
            }
            for name, account in self._accounts.items()
            if account.energy_uj or account.held_idle_uj or self._ask.by in ("node", "day")
        ]
        if self._ask.by == "day":
            return sorted(rows, key=lambda row: row["since"])
        return sorted(rows, key=lambda row: (-row["energy_uj"], row["key"]))

    def total(self) -> dict[str, Any]:
        """All rows together; the grams are summed by slot, so every `by` has the same."""
        every = np.arange(len(self.slot_uj))
        worst, nodes = self._worst, set(range(len(self._spans)))
        if self._ask.team is not None:  # how others' nodes fare is not its business
            accounts = self._accounts.values()
            worst = max((account.quality for account in accounts), default=0)
            nodes = set().union(*(account.nodes for account in accounts))
        return {
            "energy_uj": self.total_uj,
            "g_co2e": _known(math.fsum(self._rates.grams(every, self.slot_uj))),
            "coverage": ratio((self._covered[n], self._spans[n].length_ms) for n in sorted(nodes)),
            "quality": QUALITIES[worst],
        }

    @property
    def node_count(self) -> int:
        """How many nodes the answer speaks of."""
        if self._ask.team is None:
            return len(self._spans)
        return len(set().union(*(account.nodes for account in self._accounts.values())))

    def _is_idle(self, workload: NDArray[np.uint64]) -> NDArray[np.bool_]:
        idle = [w for w, who in self._workloads.items() if who["kind"] == "idle"]
        return np.isin(workload, np.array(idle, dtype=np.uint64))

    def _cover(self, chunk: Chunk) -> None:
        """Add the covered time: of a node the mean over its devices, at most what is expected."""
        if not len(chunk.device_slot_s):
            return
        cells, cell = np.unique(_cell(chunk.device_slot_s, chunk.device_node), return_inverse=True)
        slot_s, node = np.divmod(cells, MAX_NODES)
        begin = np.maximum(slot_s, np.array([span.since_s for span in self._spans])[node])
        end = np.minimum(slot_s + SLOT_S, np.array([span.until_s for span in self._spans])[node])
        expected = np.maximum(end - begin, 0) * 1000.0
        together = np.array([span.expected_ms is not None for span in self._spans])
        expected[together[node]] = math.inf  # bounded node by node when they were added up
        covered = np.bincount(cell, chunk.device_covered_ms)
        parts = np.bincount(cell, chunk.device_parts)
        self._covered += np.bincount(
            node, np.minimum(covered / parts, expected), minlength=len(self._spans)
        )
        if self._ask.days:
            day = np.searchsorted(self._day_starts, slot_s, side="right") - 1
            np.add.at(self._covered_on, day, np.minimum(covered / parts, expected))
        for component in range(len(COMPONENTS)):
            its = chunk.device_component == component
            covered = np.bincount(cell[its], chunk.device_covered_ms[its], minlength=len(slot_s))
            parts = np.bincount(cell[its], chunk.device_parts[its], minlength=len(slot_s))
            has = parts > 0
            capped = np.minimum(covered[has] / parts[has], expected[has])
            seen = np.unique(node[has])
            fresh = seen[np.isnan(self._covered_of[seen, component])]
            self._covered_of[fresh, component] = 0.0
            np.add.at(self._covered_of[:, component], node[has], capped)

    def _hold(self, chunk: Chunk) -> None:
        """Note idle GPU energy with those who held the GPU; it stays in the idle row."""
        if self._ask.by in ("node", "component", "day") or GPU not in self._ask.components:
            return
        if self._ask.idle_policy != "separate":
            return
        for row in np.flatnonzero((chunk.holder != 0) & (chunk.uj[:, GPU] > 0)):
            holder = int(chunk.holder[row])
            period = int(self._period(chunk.slot_s[row : row + 1])[0])
            if self._ask.team not in (None, self._team(holder, period)):
                continue
            account = self._accounts[self._name(holder, int(chunk.node[row]), period)]
            account.held_idle_uj += int(chunk.uj[row, GPU])
            account.nodes.add(int(chunk.node[row]))

    def _ours(self, rows: Held) -> Held:
        """Those rows that the question is about."""
        if self._ask.team is None:
            return rows
        slot_s, _, workload, _ = rows
        pairs, which = np.unique(
            np.stack([workload.astype(np.uint64), self._period(slot_s).astype(np.uint64)]),
            axis=1,
            return_inverse=True,
        )
        of_team = [self._team(int(w), int(period)) == self._ask.team for w, period in pairs.T]
        kept = np.array(of_team, dtype=np.bool_)[which.reshape(-1)]
        slot_s, node, workload, uj = rows
        return slot_s[kept], node[kept], workload[kept], uj[kept]

    def _enter(
        self,
        slot: Ints,
        node: Ints,
        workload: NDArray[np.uint64],
        uj: NDArray[np.uint64],
        quality: Ints,
        component: int | None,
    ) -> None:
        """Add rows to their accounts; one of several components has an account of its own."""
        if not len(slot):
            return
        ids, which = np.unique(workload, return_inverse=True)
        period = self._period(self._rates.slots_s[slot])
        periods = len(self._starts) + 1
        sorts, sort = np.unique(
            (which * periods + period) * len(self._spans) + node, return_inverse=True
        )
        sort_uj = np.zeros(len(sorts), dtype=np.uint64)
        np.add.at(sort_uj, sort, uj)
        sort_quality = np.zeros(len(sorts), dtype=np.int64)
        np.maximum.at(sort_quality, sort, quality)

        places: dict[Any, int] = {}
        place_of_sort = np.zeros(len(sorts), dtype=np.int64)
        for index, (code, where) in enumerate(zip(*divmod(sorts, len(self._spans)), strict=True)):
            which_id, when = divmod(int(code), periods)
            owner, where = int(ids[which_id]), int(where)
            name = self._name(owner, where, when) if component is None else component
            place_of_sort[index] = places.setdefault(name, len(places))
            account = self._accounts[name]
            account.nodes.add(where)
            account.quality = max(account.quality, int(sort_quality[index]))
            if sort_uj[index]:
                account.energy_uj += int(sort_uj[index])
                account.team_uj[self._team(owner, when)] += int(sort_uj[index])
        self._add_grams(list(places), place_of_sort[sort], slot, uj)

    def _add_grams(self, names: Sequence[Any], place: Ints, slot: Ints, uj: Any) -> None:
        # First whole microjoules per account and slot, then one product each.
        order = np.lexsort((slot, place))
        place, slot, uj = place[order], slot[order], uj[order]
        first = np.flatnonzero(
            np.concatenate([[True], (np.diff(place) != 0) | (np.diff(slot) != 0)])
        )
        sums = np.add.reduceat(uj, first)
        grams = self._rates.grams(slot[first], sums)
        bounds = np.searchsorted(place[first], np.arange(len(names) + 1))
        for index, name in enumerate(names):
            self._accounts[name].grams.append(
                math.fsum(grams[bounds[index] : bounds[index + 1]].tolist())
            )

    def _period(self, slot_s: Ints) -> Ints:
        """Between which two starts of team rules, or of days, a slot lies."""
        return np.searchsorted(self._starts, slot_s, side="right")

    def _team(self, workload: int, period: int) -> str:
        if (workload, period) not in self._teams:
            at_s = int(self._starts[period - 1]) if period else 0
            who = self._workloads.get(workload, _NOBODY)
            # Where slots are gone, rules have decided for good.
            self._teams[workload, period] = who.get("team") or team_of(self._ask.rules, who, at_s)
        return self._teams[workload, period]

    def _name(self, workload: int, node: int, period: int) -> Any:
        """The account's name: what it is kept under until `_keys` makes it readable."""
        by = self._ask.by
        if by == "workload":
            return workload
        if by == "node":
            return node
        if by == "day":
            at_s = self._starts[period - 1]
            return int(np.searchsorted(self._day_starts, at_s, side="right")) - 1
        if by == "team":
            return self._team(workload, period)
        who = self._workloads.get(workload, _NOBODY)
        if by == "kind" or who["kind"] in RESERVED_KINDS:
            return who["kind"]
        return who["user"] or "unknown"

    def _keys(self) -> dict[Any, str]:
        """{name: key}: readable, and each one once."""
        if self._ask.by == "node":
            return {index: name for name, index in self.nodes.items()}
        if self._ask.by == "component":
            return dict(enumerate(COMPONENTS))
        if self._ask.by == "day":
            return {index: day.key for index, day in enumerate(self._ask.days)}
        if self._ask.by != "workload":
            return {name: name for name in self._accounts}
        short: dict[str, list[int]] = defaultdict(list)
        for workload in self._accounts:
            who = self._workloads.get(workload)
            if who is None:
                short[f"unknown/{workload:016x}"].append(workload)
            elif who["kind"] in RESERVED_KINDS:
                short[who["kind"]].append(workload)
            else:
                short[f"{who['kind']}/{who['id']}"].append(workload)
        keys = {}
        for key, those in short.items():
            for workload in those:
                scope = f"{self._workloads[workload]['scope']}/" if len(those) > 1 else ""
                keys[workload] = scope + key
        return keys

    def _who(self, name: Any) -> dict[str, Any]:
        if self._ask.by != "workload":
            return {}
        who = self._workloads.get(name, _NOBODY)
        return {key: who[key] for key in ("scope", "kind", "id", "name", "user", "project")}

    def _of_day(self, name: Any) -> dict[str, Any]:
        if self._ask.by != "day":
            return {}
        day = self._ask.days[name]
        return {
            "since": _iso(day.since_s),
            "until": _iso(day.until_s),
            "hours": (day.until_s - day.since_s) / 3600,
        }

    def _coverage(self, name: Any, account: _Account) -> float | None:
        """Of the time of the nodes it ran on, the measured part."""
        if self._ask.by == "day":
            if self._ask.team is not None:  # how others' nodes fare is not its business
                return None
            day = self._ask.days[name]
            due_ms = sum(span.within_ms(day.since_s, day.until_s) for span in self._spans)
            return ratio([(self._covered_on[name], due_ms)])
        if self._ask.by == "component":
            covered = self._covered_of[:, name]
            having = np.flatnonzero(~np.isnan(covered))
            return ratio((covered[n], self._spans[n].length_ms) for n in having)
        return ratio((self._covered[n], self._spans[n].length_ms) for n in account.nodes)


def _row_quality(chunk: Chunk, slot_s: Ints, node: Ints, uj: NDArray[np.uint64]) -> Ints:
    """The quality of each row's energy by component, shape (n, 4); 0 where it has none."""
    device_cell = _cell(chunk.device_slot_s, chunk.device_node)
    cells = np.unique(device_cell)
    worst = np.zeros((len(cells) + 1, len(COMPONENTS)), dtype=np.int64)
    at = np.searchsorted(cells, device_cell)
    np.maximum.at(worst, (at, chunk.device_component), chunk.device_quality)
    return worst[np.searchsorted(cells, _cell(slot_s, node))] * (uj > 0)


def _cell(slot_s: Ints, node: Ints) -> Ints:
    """One number for a (slot, node)."""
    return slot_s * MAX_NODES + node


def _shared_out(policy: str, chunk: Chunk, idle: NDArray[np.bool_]) -> Held:
    """Workload rows with the idle energy shared out; what nobody takes stays in idle rows."""
    reserved: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for slot_s, node, workload, ms in zip(
        chunk.reserved_slot_s.tolist(),
        chunk.reserved_node.tolist(),
        chunk.reserved_workload.tolist(),
        chunk.reserved_ms.tolist(),
        strict=True,
    ):
        reserved[slot_s, node][workload] = round(ms * 1000)
    out: list[tuple[int, int, int, list[int]]] = []
    for (slot_s, node), rows in _cells(chunk):
        is_idle, uj = idle[rows].tolist(), chunk.uj[rows].tolist()
        owners, holders = chunk.workload[rows].tolist(), chunk.holder[rows].tolist()
        if not any(is_idle):
            continue
        gains: dict[int, list[int]] = defaultdict(lambda: [0] * len(COMPONENTS))
        nobody = owners[is_idle.index(True)]
        for component in range(len(COMPONENTS)):
            idle_uj: dict[int, int] = defaultdict(int)
            active_uj: dict[int, int] = defaultdict(int)
            for owner, holder, apart, energies in zip(owners, holders, is_idle, uj, strict=True):
                if energies[component]:
                    whose = (idle_uj, holder) if apart else (active_uj, owner)
                    whose[0][whose[1]] += energies[component]
            if not idle_uj:
                continue
            cpus = {} if component == GPU else reserved.get((slot_s, node), {})
            taken, left = share_idle(policy, idle_uj, active_uj, cpus)
            for workload, gain in taken.items():
                gains[workload][component] += gain
            gains[nobody][component] += left
        out.extend((slot_s, node, owner, gain) for owner, gain in gains.items() if any(gain))
    active = ~idle
    columns: Sequence[Sequence[Any]] = list(zip(*out, strict=True)) or [(), (), (), ()]
    return (
        np.concatenate([chunk.slot_s[active], np.array(columns[0], dtype=np.int64)]),
        np.concatenate([chunk.node[active], np.array(columns[1], dtype=np.int64)]),
        np.concatenate([chunk.workload[active], np.array(columns[2], dtype=np.uint64)]),
        np.concatenate(
            [chunk.uj[active], np.array(columns[3], dtype=np.uint64).reshape(-1, len(COMPONENTS))]
        ),
    )


def _cells(chunk: Chunk) -> Iterator[tuple[tuple[int, int], Ints]]:
    """Each (slot, node) and the indices of its workload rows."""
    order = np.lexsort((chunk.node, chunk.slot_s))
    if not len(order):
        return
    slot_s, node = chunk.slot_s[order], chunk.node[order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(slot_s) != 0) | (np.diff(node) != 0)]))
    for start, rows in zip(starts, np.split(order, starts[1:]), strict=True):
        yield (int(slot_s[start]), int(node[start])), rows


def _only(team_uj: Mapping[str, int]) -> str | None:
    """The one team; none of them where there are several; unassigned where nothing was drawn."""
    if len(team_uj) > 1:
        return None
    return next(iter(team_uj), UNASSIGNED)


def _iso(epoch_s: int) -> str:
    return f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _known(grams: float) -> float | None:
    return None if math.isnan(grams) else float(grams)
