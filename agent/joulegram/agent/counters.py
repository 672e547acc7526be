"""From a counter's readings to the energy of each window.

A counter says how much it has counted so far; an interval lies between two successive good
readings. What happened in it is spread evenly over its time, so an interval that crosses a
window's end is cut there, in integers that add up to the whole again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

NS_PER_S = 1_000_000_000

# Where the kernel does not say what a zone can draw at most. No CPU package draws 1 kW...
UNKNOWN_MAX_POWER_W = 1000.0
# ...and no node 20 kW: a platform's counter may step forward by so much.
PLATFORM_MAX_POWER_W = 20_000.0

# Two readings this much further apart than a tick missed at least one: a gap.
GAP_SLACK_S = 1.0

# A counter that moves in steps (a slow firmware, a replayed tree) has gathered for longer than
# the last tick. Its power is judged over the time since its last step, but for so long only.
STEP_MEMORY_S = 2.0

# Two clocks are read one after the other: what they differ by for less is no suspend.
SUSPEND_NS = 200_000_000


class Interval(NamedTuple):
    """What a counter counted between two good readings, on the monotonic clock."""

    start_ns: int
    end_ns: int
    energy_uj: int
    bridged: bool  # readings are missing in between; the energy is measured, its shape is not
    asleep_uj: int = 0  # of the energy, what is taken to have been drawn while suspended


def cut(amount: int, start_ns: int, end_ns: int, edges_ns: Sequence[int]) -> list[int]:
    """Cut an amount, spread evenly over [start, end), at the given times.

    Args:
        amount: what to cut, >= 0; microjoules or nanoseconds, say.
        edges_ns: ascending times, each within [start, end].
    Returns: len(edges) + 1 integers that sum to `amount` exactly (floor, telescoping).
    """
    length = end_ns - start_ns
    marks = [amount * (edge - start_ns) // length if length else 0 for edge in edges_ns]
    return [b - a for a, b in zip([0, *marks], [*marks, amount], strict=True)]


@dataclass(slots=True)
class Counter:
    """One energy counter's history: turns its readings into intervals.

    Args:
        range_uj: the counter starts again from 0 after this value; 0 when it never does.
        max_power_w: the most the device can draw; tells a wrap from a reset.
        tick_s: how often it is meant to be read.
        jump_w: a forward step of twice this power is a reset, not a burst.
    """

    range_uj: int
    max_power_w: float
    tick_s: float
    jump_w: float = UNKNOWN_MAX_POWER_W
    last_ns: int | None = None
    _value_uj: int = field(default=0, init=False)
    _moved_ns: int = field(default=0, init=False)
    _asleep_ns: int = field(default=0, init=False)
    _failed: bool = field(default=False, init=False)

    def failed(self) -> None:
        """Note a reading that did not come; the next good one bridges it."""
        self._failed = True

    def read(self, now_ns: int, value_uj: int, asleep_ns: int = 0) -> Interval | None:
        """Take a good reading.

        The monotonic clock stands still while the machine is suspended, and some counters do
        not. Such time is a gap, and gets its part of the energy by its length.

        Args:
            asleep_ns: how long the machine was suspended so far.
        Returns: the interval it ends, or None for the first reading and after a reset, when
        nothing is known of the time since the last one.
        """
        before_ns, before_uj = self.last_ns, self._value_uj
        bridged, self._failed = self._failed, False
        moved_ns = self._moved_ns
        slept_ns = asleep_ns - self._asleep_ns
        slept_ns = slept_ns if slept_ns >= SUSPEND_NS else 0
        self.last_ns, self._value_uj, self._asleep_ns = now_ns, value_uj, asleep_ns
        if before_ns is None or value_uj != before_uj:
            self._moved_ns = now_ns
        if before_ns is None or now_ns <= before_ns:
            return None
        elapsed_ns = now_ns - before_ns + slept_ns
        elapsed_s = elapsed_ns / NS_PER_S
        bridged = bridged or slept_ns > 0 or elapsed_s > self.tick_s + GAP_SLACK_S
        stood_s = min((now_ns - moved_ns + slept_ns) / NS_PER_S, max(elapsed_s, STEP_MEMORY_S))
        if slept_ns and value_uj < before_uj:
            return None  # it began again, most likely; a wrap looks the same
        energy_uj = self._difference_uj(before_uj, value_uj, stood_s)
        if energy_uj is None:
            return None
        if bridged and self._may_have_wrapped(elapsed_s):
            return None
        asleep_uj = energy_uj * slept_ns // elapsed_ns
        return Interval(before_ns, now_ns, energy_uj, bridged, asleep_uj)

    def _difference_uj(self, before_uj: int, after_uj: int, over_s: float) -> int | None:
        """None: a reset, whose energy nobody knows."""
        if after_uj >= before_uj:
            # Twice the limit is let pass: short bursts exceed what a zone states as its
            # maximum, and only a forward jump that no hardware can draw is a reset.
            limit_w = 2 * max(self.max_power_w, self.jump_w)
            energy_uj = after_uj - before_uj
        elif self.range_uj:
            limit_w = self.max_power_w
            energy_uj = (after_uj - before_uj) % self.range_uj
        else:
            return None
        return energy_uj if energy_uj <= limit_w * 1e6 * over_s else None

    def _may_have_wrapped(self, elapsed_s: float) -> bool:
        return bool(self.range_uj) and elapsed_s * self.max_power_w * 1e6 >= self.range_uj
