"""Idle floors learnt: what a device draws at its quietest, from its own windows.

A floor is the lowest mean power of any window of the last DAYS days, known once LEARN_MS of
windows were seen. So it is never above what the device drew in some window; on a device that
never rests it is too high by what never rested. Kept across restarts in floors.json beside the
spool; a file that cannot be read costs what it had learnt.
"""

import contextlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

log = logging.getLogger(__name__)

DAY_MS = 86_400_000
DAYS = 14
LEARN_MS = 4 * 3_600_000
DEVICES_MAX = 1_024
FILE_BYTES_MAX = 4_000_000


@dataclass(slots=True)
class Day:
    """What one device's windows of one day said."""

    lowest_uw: int
    seen_ms: int


@dataclass(slots=True)
class Floors:
    """Learns from every whole window; says a floor once it has seen enough of them.

    Args:
        path: where it is kept; None: nowhere.
        node: whose floors these are. A file of another node is left alone.
    """

    path: Path | None = None
    node: str = ""
    _days: dict[str, dict[int, Day]] = field(default_factory=dict)

    @classmethod
    def kept_in(cls, state: Path, node: str) -> Self:
        """Those of a state folder; of one below a home that nobody knows, none."""
        try:
            floors = cls(state.expanduser() / "floors.json", node)
        except RuntimeError:
            return cls()
        floors.load()
        return floors

    def note(self, device: str, start_ms: int, length_ms: int, energy_uj: int) -> None:
        """A window that was measured whole."""
        power_uw = energy_uj * 1000 // length_ms
        if device not in self._days and len(self._days) >= DEVICES_MAX:
            return
        days = self._days.setdefault(device, {})
        today = start_ms // DAY_MS
        day = days.get(today)
        if day is None:
            days[today] = Day(power_uw, length_ms)
            for old in [d for d in days if not today - DAYS < d <= today]:
                del days[old]
        else:
            day.lowest_uw = min(day.lowest_uw, power_uw)
            day.seen_ms += length_ms

    def floor_uw(self, device: str) -> int:
        """The learnt floor; 0 while too little was seen."""
        days = self._days.get(device, {}).values()
        if sum(day.seen_ms for day in days) < LEARN_MS:
            return 0
        return min(day.lowest_uw for day in days)

    def seen_h(self, device: str) -> float:
        """Hours of windows that speak for the device's floor."""
        return sum(day.seen_ms for day in self._days.get(device, {}).values()) / 3_600_000

    def load(self) -> None:
        """Go on from what was kept, if anything was."""
        if self.path is None:
            return
        try:
            with self.path.open("rb") as file:
                kept = json.loads(file.read(FILE_BYTES_MAX))
            if kept["node"] == self.node:
                self._days = {
                    str(device): {int(day): Day(*_two_counts(d)) for day, d in days.items()}
                    for device, days in list(kept["devices"].items())[:DEVICES_MAX]
                }
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            log.warning("%s: learnt idle floors are learnt anew: %s", self.path, exc)

    def save(self) -> None:
        """Keep what was learnt; a disk that takes nothing costs that alone."""
        if self.path is None or not self._days:
            return
        kept = {
            "node": self.node,
            "devices": {
                device: {str(n): [day.lowest_uw, day.seen_ms] for n, day in days.items()}
                for device, days in self._days.items()
            },
        }
        draft = self.path.with_suffix(".draft")
        try:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()  # whatever it is: a link would lead elsewhere
            with draft.open("x") as file:
                json.dump(kept, file)
            draft.replace(self.path)
        except OSError as exc:
            log.warning("%s: learnt idle floors are not kept: %s", self.path, exc)
            with contextlib.suppress(OSError):
                draft.unlink()


def _two_counts(raw: Any) -> tuple[int, int]:
    lowest_uw, seen_ms = raw
    if not all(isinstance(n, int) and 0 <= n < 10**18 for n in (lowest_uw, seen_ms)):
        raise ValueError(f"not [uW, ms]: {raw!r:.80}")
    return lowest_uw, seen_ms
