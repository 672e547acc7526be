"""Counters that never fall, a restart included: joules by node, grams by team.

A counter of Prometheus that falls reads as a restart from zero, and everything it ever
counted would be counted again. So both kinds start from the ledger.
"""

import json
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.live import COMPONENTS, MAX_NODES
from joulegram.v1.telemetry_pb2 import Frame

MAX_TEAMS = 500
OTHER = "other"  # the label at the bound

# Raw rows where they are kept, else the slots, else the totals; a frame counts once its header is
# there.
RAW_UJ = """
SELECT node, component, sum(energy_uj) AS uj, max(simulated) AS made_up FROM devices FINAL
WHERE (node, window, epoch, seq) IN (SELECT node, window, epoch, seq FROM rows WHERE row = 0)
GROUP BY node, component"""
SLOTS_UJ = """
SELECT node, component, sum(energy_uj) AS uj, max(simulated) AS made_up FROM slots FINAL
WHERE entry = 'device'
  AND slot >= (SELECT max(valid_from) FROM settings WHERE kind = 'sealed')
  AND slot < (SELECT if(count() = 0, toDateTime('2100-01-01 00:00:00', 'UTC'),
                        toStartOfDay(min(window))) FROM devices)
  AND (node, slot, generation) IN (
      SELECT node, slot, max(generation) FROM slots GROUP BY node, slot)
GROUP BY node, component"""
TOTALS_UJ = """
SELECT node, component, sum(energy_uj) AS uj, toUInt8(0) AS made_up FROM totals FINAL
WHERE entry = 'node'
  AND slot < (SELECT max(valid_from) FROM settings WHERE kind = 'sealed')
  AND (slot, generation) IN (SELECT slot, max(generation) FROM totals GROUP BY slot)
GROUP BY node, component"""
# Of energy that is kept without slots it is known that some is simulated, not of which node.
OLDER_SIMULATED = "older"
_SIMULATED_BEFORE_SLOTS = """
SELECT count() AS n FROM totals
WHERE simulated = 1 AND slot < (SELECT max(valid_from) FROM settings WHERE kind = 'sealed')"""
NEWEST = "SELECT count() AS frames, toUnixTimestamp(max(window)) AS newest FROM devices"


class Totals(Protocol):
    """What /metrics needs of them."""

    newest_window_s: int  # start of the newest window that is durable; 0: none

    @property
    def simulated(self) -> Collection[str]:
        """Labels of nodes that have made-up energy in the totals."""

    def items(self) -> Sequence[tuple[str, str, int]]:
        """(node, component, uJ), each pair once, in order."""


def simulated_before_slots(ledger: Ledger) -> bool:
    """Whether some energy that is kept without slots was made up."""
    return bool(ledger.query(_SIMULATED_BEFORE_SLOTS)["n"][0].as_py())


@dataclass(slots=True)
class EnergyTotals:
    """Energy by (node, component), uJ: what the ledger holds, and every durable frame since.

    For a process that alone writes to its ledger; StoredTotals is for the others. Load before
    the first frame comes; then offer each frame that was stored exactly once. Beyond `max_nodes`
    new nodes share the label `other`.
    """

    max_nodes: int = MAX_NODES
    newest_window_s: int = 0  # start of the newest window that is durable; 0: none
    simulated: set[str] = field(default_factory=set)  # labels of nodes with made-up energy
    _uj: dict[tuple[str, str], int] = field(default_factory=dict)
    _nodes: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """As they stand in a ledger. Blocking."""
        made = cls()
        made.load(ledger)
        return made

    def load(self, ledger: Ledger) -> None:
        """Start from the ledger. Blocking."""
        for sql in (RAW_UJ, SLOTS_UJ, TOTALS_UJ):
            for row in ledger.query(sql).to_pylist():
                self._add(row["node"], row["component"], int(row["uj"]), bool(row["made_up"]))
        if simulated_before_slots(ledger):
            self.simulated.add(OLDER_SIMULATED)
        (newest,) = ledger.query(NEWEST).to_pylist()
        if newest["frames"]:
            self.newest_window_s = int(newest["newest"])

    def on_durable(self, frames: Sequence[Frame]) -> None:
        """Add frames that were stored now; a duplicate must not come here."""
        with self._lock:
            for frame in frames:
                for device in frame.devices:
                    self._add(frame.node, device.component, device.energy_uj, frame.simulated)
                self.newest_window_s = max(self.newest_window_s, frame.window_start_ms // 1000)

    def items(self) -> list[tuple[str, str, int]]:
        """(node, component, uJ), each pair once, in order."""
        with self._lock:
            return sorted((node, component, uj) for (node, component), uj in self._uj.items())

    def _add(self, node: str, component: str, uj: int, made_up: bool) -> None:
        if node not in self._nodes:
            if len(self._nodes) >= self.max_nodes:
                node = OTHER
            self._nodes.add(node)
        if made_up and node not in self.simulated:
            self.simulated = self.simulated | {node}  # a new set: others may be reading it
        key = (node, component if component in COMPONENTS else "other")
        self._uj[key] = self._uj.get(key, 0) + uj


class TeamGrams:
    """Grams by team as a counter: never lower than it was ever shown.

    Grams are a join, so a revised intensity may lower what is known of the past. The counter
    then stands still until it is caught up; what it withholds meanwhile is a gauge. What was
    shown is kept in the ledger, since a restart must not lower it either.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._loaded = False
        self._shown: dict[str, float] = {}
        self._known: dict[str, float] = {}

    def _load(self) -> None:
        """What was shown before the restart."""
        stored = self._ledger.query(
            "SELECT value FROM settings WHERE kind = 'shown' AND name = 'team_co2e_grams'"
        )
        # Versions that were not merged yet may stand side by side; each is only ever greater.
        for value in stored.column("value").to_pylist():
            self._raise(json.loads(value))
        self._loaded = True

    def update(self, grams: Mapping[str, float]) -> None:
        """Take what the join says now, and keep it before it is shown. Blocking."""
        if not self._loaded:
            self._load()
        self._known = _bounded(grams, self._shown)
        before = dict(self._shown)
        self._raise(self._known)
        if self._shown != before:
            self._keep()

    def items(self) -> Iterator[tuple[str, float, float]]:
        """(team, grams shown, grams withheld)."""
        for team, shown in sorted(self._shown.items()):
            yield team, shown, shown - self._known.get(team, 0.0)

    def _raise(self, grams: Mapping[str, float]) -> None:
        # A new dict, so that a reader in another thread never sees it half made.
        raised = dict(self._shown)
        for team, value in grams.items():
            raised[team] = max(value, raised.get(team, 0.0))
        self._shown = raised

    def _keep(self) -> None:
        self._ledger.insert(
            "settings",
            {
                "kind": ["shown"],
                "name": ["team_co2e_grams"],
                "valid_from": [0],
                "known_at_ms": [0],  # one key, so that merges leave one row
                "value": [json.dumps(self._shown)],
            },
        )


def _bounded(grams: Mapping[str, float], shown: Mapping[str, float]) -> dict[str, float]:
    """At most MAX_TEAMS labels; a team that has one keeps it, later ones share `other`."""
    bounded: dict[str, float] = {}
    labels = set(shown)
    for team in sorted(grams):
        label = team
        if team not in labels:
            if len(labels) >= MAX_TEAMS:
                label = OTHER
            labels.add(label)
        bounded[label] = bounded.get(label, 0.0) + grams[team]
    return bounded
