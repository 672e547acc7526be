"""CPU energy estimated from load, for machines whose sensors nobody can read (VMs).

    watts = TDP x (IDLE_SHARE + LOAD_SHARE x load ^ LOAD_EXPONENT)

Fitted to the measured rows that CodeCarbon publishes for two servers (MIT; loads above 2 %):
mean absolute error 20 %, where a straight line through the TDP is off by 40 %. Every number
made this way says `modelled`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from joulegram.agent.clock import Clock
from joulegram.agent.procfs import CpuTimes

IDLE_SHARE = 0.02
LOAD_SHARE = 0.56
LOAD_EXPONENT = 0.75

# TDP per logical CPU where nobody says it: between 2.2 W (EPYC 7763, 280 W / 128 threads) and
# 7.1 W (2 x Xeon E5-2620 v3, 170 W / 24 threads); makers' data sheets. A VM's CPU is a thread.
TDP_W_PER_CPU = 4.5


@dataclass(slots=True)
class LoadModel:
    """A counter that grows with the machine's CPU time. Read like any other.

    Args:
        times: machine-wide CPU times; raises OSError or Torn when they cannot be read.
        tdp_w: TDP of all packages together; 0: estimated from the number of CPUs.
    """

    times: Callable[[], CpuTimes]
    clock: Clock
    tdp_w: float = 0.0
    device: str = field(default="cpu0", init=False)
    component: str = field(default="cpu", init=False)
    range_uj: int = field(default=0, init=False)
    max_power_w: float = field(default=math.inf, init=False)
    quality: str = field(default="modelled", init=False)
    _counted_uj: int = field(default=0, init=False)
    _before: tuple[int, CpuTimes] | None = field(default=None, init=False)

    def read_uj(self) -> int:
        """Energy since the first reading. Raises: OSError, Torn."""
        now_ns, times = self.clock.mono_ns(), self.times()
        if self._before is not None:
            before_ns, before = self._before
            elapsed_ns = now_ns - before_ns
            used_ns = max(0, times.use_ns - before.use_ns)
            load = min(1.0, used_ns / (elapsed_ns * max(1, times.cpus))) if elapsed_ns > 0 else 0.0
            self._counted_uj += round(self.watts(load, times.cpus) * elapsed_ns / 1000)
        self._before = now_ns, times
        return self._counted_uj

    def watts(self, load: float, cpus: int) -> float:
        """Power at a load (0..1 of all CPUs), W."""
        tdp_w = self.tdp_w or max(1, cpus) * TDP_W_PER_CPU
        return tdp_w * (IDLE_SHARE + LOAD_SHARE * math.pow(load, LOAD_EXPONENT))

    @property
    def floor_w(self) -> float:
        """What the model says of a machine at rest, W."""
        try:
            return self.watts(0.0, self.times().cpus)
        except (OSError, ValueError):
            return 0.0
