"""CPU energy estimated from load and clock, for machines whose sensors nobody can read (VMs).

    watts = TDP x LEVEL x (IDLE + ACTIVE x load ^ LOAD_EXPONENT x pace ^ PACE_EXPONENT)

`load` is the busy share of all logical CPUs, `pace` their mean clock as a share of the greatest;
where nobody shows the clock, what is likely at that load. docs/load-model.md says where each
number comes from and how far off it is. Every number made this way says `modelled`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from joulegram.agent.clock import Clock
from joulegram.agent.sensors.load.cpufreq import Pace
from joulegram.agent.sensors.load.rating import UNKNOWN, Rating, rating_of
from joulegram.agent.use.procfs import CpuTimes, cpu_times

# The course over load: Teads measured Amazon's bare-metal Xeons under stress tests at 0.12,
# 0.32, 0.75 and 1.02 of their TDP for loads of 0, 10, 50 and 100 % (2021; the "Teads curve").
# 0.12 + 0.90 x load^0.6 is within 0.04 of those four.
IDLE, ACTIVE, LOAD_EXPONENT = 0.12, 0.90, 0.6
# Power goes with clock x voltage^2, and the mean clock counts sleeping CPUs too: less than 1.
PACE_EXPONENT = 0.75
# An unknown clock: half of the hosts hold the greatest (governor `performance`), half let the
# clock follow the load as the two fitted servers do (0.42 at rest, 0.90 at full load). The mean.
PACE_AT_REST, PACE_PER_LOAD = 0.71, 0.24
# Fitted to the same two servers, by the error that is reported (bench/load_model.py).
LEVEL = 0.758


def likely_pace(
    load: float, at_rest: float = PACE_AT_REST, per_load: float = PACE_PER_LOAD
) -> float:
    """Mean clock / greatest clock at a load of 0..1, where no clock can be read."""
    return min(1.0, at_rest + per_load * load)


def share_of_tdp(load: float, pace: float | None, level: float = LEVEL) -> float:
    """Power as a share of the TDP.

    Args:
        load: busy share of all logical CPUs; what is outside 0..1 is cut.
        pace: mean clock / greatest clock, above 0; None: not known.
    """
    load = min(1.0, max(0.0, load))
    pace = likely_pace(load) if pace is None else min(1.0, max(0.0, pace))
    return level * (IDLE + ACTIVE * math.pow(load, LOAD_EXPONENT) * math.pow(pace, PACE_EXPONENT))


@dataclass(slots=True)
class LoadModel:
    """A counter that grows with the machine's CPU time. Read like any other.

    Args:
        times: machine-wide CPU times; raises OSError or Torn when they cannot be read.
        tdp_w: TDP of all packages together, which wins over `rating`; 0: not said.
        rating: this machine's TDP, and from where it is known.
        pace: its clock, where that can be read.
    """

    times: Callable[[], CpuTimes]
    clock: Clock
    tdp_w: float = 0.0
    rating: Rating = UNKNOWN
    pace: Pace = field(default_factory=Pace)
    device: str = field(default="cpu0", init=False)
    component: str = field(default="cpu", init=False)
    range_uj: int = field(default=0, init=False)
    max_power_w: float = field(default=math.inf, init=False)
    quality: str = field(default="modelled", init=False)
    _counted_uj: int = field(default=0, init=False)
    _before: tuple[int, CpuTimes] | None = field(default=None, init=False)

    @classmethod
    def find(
        cls, sysfs: Path, procfs: Path, clock: Clock, tdp_w: float = 0.0, instance_type: str = ""
    ) -> Self:
        """The model of this machine. Never raises: what is not known is assumed, and said."""
        known = rating_of(sysfs, procfs, tdp_w, instance_type)
        return cls(lambda: cpu_times(procfs), clock, rating=known, pace=Pace.find(sysfs))

    @property
    def basis(self) -> str:
        """What was assumed, and from where."""
        tdp = f"TDP {self.tdp_w:g} W, configured" if self.tdp_w else self.rating.basis
        if self.pace.cpus:
            return f"{tdp}; clock read"
        return (
            f"{tdp}; clock taken as {likely_pace(0):.0%} of the greatest at rest, "
            f"{likely_pace(1):.0%} at full load"
        )

    def read_uj(self) -> int:
        """Energy since the first reading. Raises: OSError, Torn."""
        now_ns, times, pace = self.clock.mono_ns(), self.times(), self.pace.read()
        if self._before is not None:
            before_ns, before = self._before
            elapsed_ns = max(0, now_ns - before_ns)
            used_ns = max(0, times.use_ns - before.use_ns)
            load = used_ns / (elapsed_ns * max(1, times.cpus)) if elapsed_ns else 0.0
            self._counted_uj += round(self.watts(load, times.cpus, pace) * elapsed_ns / 1000)
        self._before = now_ns, times
        return self._counted_uj

    def watts(self, load: float, cpus: int, pace: float | None = None) -> float:
        """Power at a load (0..1 of all CPUs), W."""
        return (self.tdp_w or self.rating.of(cpus)) * share_of_tdp(load, pace)

    @property
    def floor_w(self) -> float:
        """What the model says of a machine at rest, W."""
        try:
            return self.watts(0.0, self.times().cpus)
        except (OSError, ValueError):
            return 0.0
