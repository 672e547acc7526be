"""From NVML's samples of SM use to time: who was busy on a GPU, and for how long.

A sample says which share of the SMs a process kept busy over the time just before it. It counts
from that process's sample before; for a process that was not there, from the look before, and
for at most one sampling period.
Source https://docs.nvidia.com/deploy/nvml-api/ nvmlDeviceGetProcessUtilization
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

# NVML, nvmlUtilization_t: "the sample period may be between 1 second and 1/6 second".
PERIOD_US = 1_000_000
# A rare look (a long tick) finds rare samples: one may stand for the time since the last look,
# for so long at most.
LOOK_MAX_US = 10_000_000
# Newer than now by more than this: the clock was set back, or the sample is no sample.
AHEAD_US = 1_000_000


@dataclass(frozen=True, slots=True)
class SmSample:
    pid: int
    at_us: int  # since 1970
    percent: int  # SM use, 0..100; drivers also give nonsense above


@dataclass(slots=True)
class SmUse:
    """What was counted so far of one GPU's, or one MIG instance's, samples."""

    cursor_us: int = 0  # of the newest sample counted; 0: none yet
    _begun: bool = field(default=False, init=False)
    _look: int = field(default=0, init=False)
    _last: dict[int, tuple[int, int]] = field(default_factory=dict, init=False)

    def since_us(self, now_us: int) -> int:
        """Ask for samples newer than this. A clock that was set back begins anew."""
        if self.cursor_us > now_us + AHEAD_US:
            self._restart(0)
            self._begun = False
        return self.cursor_us

    def take(self, samples: Iterable[SmSample], now_us: int, elapsed_us: int) -> dict[int, int]:
        """Count what is new.

        Args:
            now_us: UTC since 1970.
            elapsed_us: since the look before; 0 for the first.
        Returns: {pid: busy ns}. Empty at first, and after a clock was set back: what such
            samples stand for was before anybody looked.
        """
        self._look += 1
        good = sorted(
            (s.pid, s.at_us, s.percent)
            for s in samples
            if 0 < s.pid < 1 << 31 and 0 <= s.percent <= 100 and 0 < s.at_us <= now_us + AHEAD_US
        )
        begun, self._begun = self._begun, True
        if not good:
            return {}
        before_us, newest_us = self.cursor_us, max(at_us for _, at_us, _ in good)
        if not begun or newest_us < before_us:
            self._restart(newest_us)
            self._last = {pid: (at_us, self._look) for pid, at_us, _ in good}
            return {}
        busy_ns: dict[int, int] = {}
        # Samples may be dated by another clock than ours: the look before lies so far before the
        # newest of them.
        looked_us = max(before_us, newest_us - elapsed_us)
        rare_us = max(PERIOD_US, min(elapsed_us, LOOK_MAX_US))
        for pid, at_us, percent in good:
            if at_us <= before_us:
                continue
            last_us, look = self._last.get(pid, (looked_us, 0))
            covered_us = min(at_us - last_us, rare_us if look >= self._look - 1 else PERIOD_US)
            covered_us = max(0, covered_us)
            busy_ns[pid] = busy_ns.get(pid, 0) + covered_us * 10 * percent
            self._last[pid] = at_us, self._look
        self.cursor_us = newest_us
        oldest_us = newest_us - PERIOD_US
        self._last = {
            pid: (at_us, look)
            for pid, (at_us, look) in self._last.items()
            if at_us >= oldest_us or look == self._look
        }
        return busy_ns

    def _restart(self, at_us: int) -> None:
        self.cursor_us = at_us
        self._last = {}
