"""Energy by node as the ledger has it, where this process is not the only one that writes there.

A frame that is seen on its way may still be parked, refused, or known to the ledger already, and
frames of others never come by here. So totals are made from slots: a day is read again when new
parts of `slots` hold some of it, and is settled once its raw rows are gone, for then no frame can
come to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from joulegram.collector.energy import sealed_until_s
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.partitions import Part, partitions, parts, period
from joulegram.collector.live import COMPONENTS, MAX_NODES
from joulegram.collector.reports import Refreshes
from joulegram.collector.totals import OLDER_SIMULATED, OTHER, TOTALS_UJ, simulated_before_slots

DAY_S = 86_400
# Of these days slots are made at once; older ones the roll-up makes behind, one after the other.
RECENT = timedelta(days=2)

# Entries never vanish from a slot, so that the newest generation's are those of each key.
DAY_UJ = """
SELECT node, component, sum(newest_uj) AS uj, max(made_up) AS simulated FROM (
    SELECT node, slot, device, component, argMax(energy_uj, generation) AS newest_uj,
           max(simulated) AS made_up
    FROM slots
    WHERE entry = 'device' AND slot >= toDateTime({since:UInt32}, 'UTC')
      AND slot < toDateTime({until:UInt32}, 'UTC')
    GROUP BY node, slot, device, component)
GROUP BY node, component"""
NEWEST = """
SELECT count() AS frames, toUInt32(max(window)) AS newest FROM rows
WHERE row = 0 AND window > toDateTime({known:UInt32}, 'UTC')"""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class StoredTotals:
    """Energy by (node, component), uJ, as of the last `refresh`; nothing before the first.

    Beyond `max_nodes` new nodes share the label `other`. Nothing falls while this lives.
    """

    ledger: Ledger
    rollup: Refreshes
    max_nodes: int = MAX_NODES
    now: Callable[[], datetime] = _now
    newest_window_s: int = 0  # start of the newest window that is durable; 0: none
    simulated: frozenset[str] = frozenset()  # labels of nodes that have made-up energy
    _shown: Sequence[tuple[str, str, int]] = ()
    _nodes: set[str] = field(default_factory=set)
    _at: dict[tuple[str, str], int] = field(default_factory=dict)  # where in the arrays
    _settled: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    _settled_days: set[int] = field(default_factory=set)
    _days: dict[int, NDArray[np.uint64]] = field(default_factory=dict)  # that may still change
    _parts: frozenset[Part] = frozenset()
    _stale: set[int] = field(default_factory=set)
    _sealed_s: int | None = None  # None: not asked yet

    def items(self) -> Sequence[tuple[str, str, int]]:
        """(node, component, uJ), each pair once, in order."""
        return self._shown

    def refresh(self) -> None:
        """Take what the ledger has now. Blocking; in one thread at a time."""
        now = self.now()
        self.rollup.refresh(now - RECENT, now + RECENT)
        if self._sealed_s is None:
            self._read_sealed()
        raw = partitions(self.ledger, "rows")
        self._find_stale()
        if self._stale:
            for day in sorted(self._stale):
                self._read(day, settled=f"{_start(day):%Y%m%d}" not in raw)
                self._stale.discard(day)
            self._show()
        if raw:
            self._find_newest_window(max(raw))

    def _read_sealed(self) -> None:
        """Energy whose slots may be gone."""
        sealed_s = sealed_until_s(self.ledger)
        made_up = simulated_before_slots(self.ledger)
        self._settled = self._array(self.ledger.query(TOTALS_UJ).to_pylist())
        self.simulated = frozenset({OLDER_SIMULATED} if made_up else ())
        self._sealed_s = sealed_s

    def _find_stale(self) -> None:
        assert self._sealed_s is not None
        now = frozenset(parts(self.ledger, "slots"))
        for part in now - self._parts:
            first = max(part.first_s, self._sealed_s) // DAY_S
            self._stale.update(range(first, part.last_s // DAY_S + 1))
        self._stale -= self._settled_days
        self._parts = now

    def _read(self, day: int, *, settled: bool) -> None:
        since_s = day * DAY_S
        found = self.ledger.query(DAY_UJ, {"since": since_s, "until": since_s + DAY_S}).to_pylist()
        uj = self._array(found)
        made_up = {self._label(row["node"]) for row in found if row["simulated"]}
        if not made_up <= self.simulated:
            self.simulated |= made_up
        if (known := self._days.pop(day, None)) is not None:
            # A replica that lags behind may know less than was shown.
            uj = np.maximum(uj, _grown(known, len(uj)))
        if settled:
            self._settled = _grown(self._settled, len(uj)) + uj
            self._settled_days.add(day)
        else:
            self._days[day] = uj

    def _show(self) -> None:
        size = len(self._at)
        total = _grown(self._settled, size).copy()
        for uj in self._days.values():
            total += _grown(uj, size)
        # A new list, so that a reader in another thread never sees it half made.
        self._shown = sorted((*key, int(total[index])) for key, index in self._at.items())

    def _find_newest_window(self, newest_day: str) -> None:
        # Parts that hold nothing newer are not looked into.
        known_s = max(self.newest_window_s, int(period(newest_day)[0].timestamp()) - 1)
        (row,) = self.ledger.query(NEWEST, {"known": known_s}).to_pylist()
        if row["frames"]:
            self.newest_window_s = int(row["newest"])

    def _array(self, rows: Sequence[dict[str, Any]]) -> NDArray[np.uint64]:
        at = [self._index(row["node"], row["component"]) for row in rows]
        uj = np.zeros(len(self._at), np.uint64)
        np.add.at(uj, np.array(at, np.int64), np.array([row["uj"] for row in rows], np.uint64))
        return uj

    def _index(self, node: str, component: str) -> int:
        key = self._label(node), component if component in COMPONENTS else "other"
        return self._at.setdefault(key, len(self._at))

    def _label(self, node: str) -> str:
        if node not in self._nodes:
            if len(self._nodes) >= self.max_nodes:
                return OTHER
            self._nodes.add(node)
        return node


def _grown(uj: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    return uj if len(uj) >= size else np.pad(uj, (0, size - len(uj)))


def _start(day: int) -> datetime:
    return datetime.fromtimestamp(day * DAY_S, UTC)
