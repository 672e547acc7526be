"""Energy by node as the ledger has it, where this process is not the only one that writes there.

A frame that is seen on its way may still be parked, refused, or known to the ledger already, and
frames of others never come by here. So totals are made from slots: a piece of time, an hour or an
older day, is read again when new parts of `slots` hold some of it. A day is settled once its raw
rows are gone, for then no frame can come to it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulegram.collector.accounting.choose import SLOT_S
from joulegram.collector.energy import sealed_until_s
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.partitions import Part, partitions, parts, period
from joulegram.collector.live import COMPONENTS, MAX_NODES
from joulegram.collector.reports import Refreshes
from joulegram.collector.totals import OLDER_SIMULATED, OTHER, TOTALS_UJ, simulated_before_slots

Piece: TypeAlias = tuple[int, int]  # start and length, s

HOUR_S, DAY_S = 3600, 86_400
# So old a day is one piece. Of younger ones slots are made at once; of older ones the roll-up makes
# them behind, one after the other.
RECENT = timedelta(days=2)
MAX_ENTRIES = 2_000_000  # read by one query
# After a start nothing is shown before all of it is read, lest counters fall and what they had
# counted before be counted again. What cannot be read so many times in a row is left out.
TRIES = 3

# Entries never vanish from a slot, so that the newest generation's are those of each key.
PIECE_UJ = """
SELECT node, component, sum(newest_uj) AS uj, max(made_up) AS simulated FROM (
    SELECT node, slot, device, component, argMax(energy_uj, generation) AS newest_uj,
           max(simulated) AS made_up
    FROM slots
    WHERE entry = 'device' AND slot >= toDateTime({since:UInt32}, 'UTC')
      AND slot < toDateTime({until:UInt32}, 'UTC')
    GROUP BY node, slot, device, component)
GROUP BY node, component"""
ENTRIES = """
SELECT count() AS n FROM slots
WHERE slot >= toDateTime({since:UInt32}, 'UTC') AND slot < toDateTime({until:UInt32}, 'UTC')"""
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
    max_entries: int = MAX_ENTRIES
    now: Callable[[], datetime] = _now
    newest_window_s: int = 0  # start of the newest window that is durable; 0: none
    simulated: frozenset[str] = frozenset()  # labels of nodes that have made-up energy
    _shown: Sequence[tuple[str, str, int]] = ()
    _nodes: set[str] = field(default_factory=set)
    _at: dict[tuple[str, str], int] = field(default_factory=dict)  # where in the arrays
    _settled: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    _settled_pieces: set[Piece] = field(default_factory=set)
    _pieces: dict[Piece, NDArray[np.uint64]] = field(default_factory=dict)  # that may still change
    _hourly_since_s: int = 0
    _parts: Counter[Part] = field(default_factory=Counter)
    _stale: set[Piece] = field(default_factory=set)
    _tries: int = 0
    _sealed_s: int | None = None  # None: not asked yet

    def items(self) -> Sequence[tuple[str, str, int]]:
        """(node, component, uJ), each pair once, in order."""
        return self._shown

    def refresh(self) -> None:
        """Take what the ledger has now. Blocking; in one thread at a time.

        A piece that cannot be read costs that piece, and is tried again the next time.

        Raises: what the first one raised, once the others are shown.
        """
        now = self.now()
        raw = partitions(self.ledger, "rows")
        if raw:
            self._find_newest_window(max(raw))
        self.rollup.refresh(now - RECENT, now + RECENT)
        if self._sealed_s is None:
            self._read_sealed()
        self._divide(int(now.timestamp()) // DAY_S * DAY_S - DAY_S)
        self._find_stale()
        self._settle(raw)
        self._read_stale()

    def _read_sealed(self) -> None:
        """Energy whose slots may be gone."""
        sealed_s = sealed_until_s(self.ledger)
        made_up = simulated_before_slots(self.ledger)
        self._settled = self._array(self.ledger.query(TOTALS_UJ).to_pylist())
        self.simulated = frozenset({OLDER_SIMULATED} if made_up else ())
        self._sealed_s = sealed_s

    def _divide(self, hourly_since_s: int) -> None:
        """Make whole days of hours that are older than this."""
        if hourly_since_s <= self._hourly_since_s:
            return
        self._hourly_since_s = hourly_since_s
        pieces: dict[Piece, NDArray[np.uint64]] = {}
        for (since_s, _), uj in self._pieces.items():
            piece = self._piece(since_s)
            pieces[piece] = _sum(pieces[piece], uj) if piece in pieces else uj
        self._pieces = pieces
        self._stale = {self._piece(since_s) for since_s, _ in self._stale}

    def _piece(self, at_s: int) -> Piece:
        length_s = HOUR_S if at_s >= self._hourly_since_s else DAY_S
        return at_s // length_s * length_s, length_s

    def _find_stale(self) -> None:
        assert self._sealed_s is not None
        now = Counter(parts(self.ledger, "slots"))
        for part in now - self._parts:
            at_s = max(part.first_s, self._sealed_s)
            while at_s <= part.last_s:
                piece = self._piece(at_s)
                self._stale.add(piece)
                at_s = sum(piece)
        self._stale -= self._settled_pieces
        self._parts = now

    def _read_stale(self) -> None:
        """Read all pieces that may have changed, the newest first, and show what is there."""
        failures = []
        new = bool(self._stale) or not self._shown
        for piece in sorted(self._stale, reverse=True):
            try:
                self._read(piece)
            except Exception as failed:
                failures.append(failed)
                # Raises where it is the ledger that fails, a shard of it, or that it is closed.
                partitions(self.ledger, "slots")
            else:
                self._stale.discard(piece)
        if not self._shown and sealed_until_s(self.ledger) != self._sealed_s:
            self._forget()
            return
        self._tries += 1
        if new and (not failures or self._shown or self._tries >= TRIES):
            self._show()
        if failures:
            raise failures[0]

    def _forget(self) -> None:
        """Read all anew: of a month that was sealed meanwhile some would count twice or never."""
        self._sealed_s = None
        self._pieces, self._settled_pieces = {}, set()
        self._parts, self._stale = Counter(), set()

    def _read(self, piece: Piece) -> None:
        since_s, until_s = piece[0], sum(piece)
        entries = self.ledger.query(ENTRIES, {"since": since_s, "until": until_s})["n"][0].as_py()
        slots = piece[1] // SLOT_S
        step_s = max(1, slots // (1 + entries // self.max_entries)) * SLOT_S
        uj = np.zeros(len(self._at), np.uint64)
        for begin_s in range(since_s, until_s, step_s):
            params = {"since": begin_s, "until": min(begin_s + step_s, until_s)}
            found = self.ledger.query(PIECE_UJ, params).to_pylist()
            uj = _sum(uj, self._array(found))
            made_up = {self._label(row["node"]) for row in found if row["simulated"]}
            if not made_up <= self.simulated:
                self.simulated |= made_up
        if (known := self._pieces.get(piece)) is not None:
            # A replica that lags behind may know less than was shown.
            uj = np.maximum(uj, _grown(known, len(uj)))
        self._pieces[piece] = uj

    def _settle(self, raw: Collection[str]) -> None:
        """Let go of days that cannot change any more, but for what they add.

        Args:
            raw: days of which there were rows before it was looked which pieces are stale.
        """
        for piece in self._pieces.keys() - self._stale:
            day = datetime.fromtimestamp(piece[0], UTC)
            if piece[1] == DAY_S and f"{day:%Y%m%d}" not in raw:
                self._settled = _sum(self._settled, self._pieces.pop(piece))
                self._settled_pieces.add(piece)

    def _show(self) -> None:
        total = _grown(self._settled, len(self._at))
        for uj in self._pieces.values():
            total = _sum(total, uj)
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


def _sum(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    size = max(len(one), len(other))
    return np.add(_grown(one, size), _grown(other, size))
