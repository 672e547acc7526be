"""How fast the CPUs run now, as a share of the fastest that they can.

Reads  <sysfs>/devices/system/cpu/cpu*/cpufreq/{scaling_cur_freq,cpuinfo_max_freq}
Format https://docs.kernel.org/admin-guide/pm/cpufreq.html, kHz
"""

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

# Kernels before 5.18 sleep up to 20 ms over a CPU's clock. A few CPUs at a time are read, in
# turn, and the mean is over the last ones.
READ_PER_TICK = 2
REMEMBERED = 16
CPUS_MAX = 8192
VALUE_BYTES = 32


@dataclass(slots=True)
class Pace:
    """The mean clock of some CPUs over the last ticks, relative to their greatest."""

    cpus: list[tuple[str, int]] = field(default_factory=list)  # path, greatest kHz
    _next: int = field(default=0, init=False)
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED), init=False)

    @classmethod
    def find(cls, sysfs: Path) -> Self:
        """CPUs spread over the machine. None is an answer: a VM has none."""
        root = f"{sysfs}/devices/system/cpu"
        try:
            names = [n for n in os.listdir(root) if n[:3] == "cpu" and n[3:].isdecimal()]  # noqa: PTH208
        except OSError:
            return cls()
        names = sorted(names, key=lambda name: (len(name), name))[:CPUS_MAX]
        return cls(
            [
                (f"{root}/{name}/cpufreq/scaling_cur_freq", greatest)
                for name in names[:: max(1, len(names) // REMEMBERED)][:REMEMBERED]
                if (greatest := _khz(f"{root}/{name}/cpufreq/cpuinfo_max_freq"))
            ]
        )

    def read(self) -> float | None:
        """Above 0, to 1; None where no clock can be read."""
        for _ in range(min(READ_PER_TICK, len(self.cpus))):
            path, greatest = self.cpus[self._next % len(self.cpus)]
            self._next += 1
            if khz := _khz(path):
                self._last.append(min(1.0, khz / greatest))
        return sum(self._last) / len(self._last) if self._last else None


def _khz(path: str) -> int:
    """0 where it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return 0
    try:
        raw = os.read(file, VALUE_BYTES).strip()
    except OSError:
        return 0
    finally:
        os.close(file)
    return int(raw) if raw.isdigit() else 0
