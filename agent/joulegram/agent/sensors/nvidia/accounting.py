"""Processes that left an NVIDIA GPU between two looks, from the driver's accounting mode.

Only where an administrator has switched accounting on (nvidia-smi -am 1); the agent changes no
setting of a GPU. The driver then keeps, of every process that ended, how long it had a context
and which share of that time the GPU was busy.
Source https://docs.nvidia.com/deploy/nvml-api/ nvmlAccountingStats_t
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from joulegram.agent.sensors.nvidia.nvml import Board

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Owed:
    """What is left to count of a process that ended."""

    ns: int
    began_us: int  # UTC since 1970; 0: not told


@dataclass(slots=True)
class Accounting:
    """What was counted of whom, until the driver says how much it was in all."""

    board: Board
    _begun: bool = field(default=False, init=False)
    _settled: set[int] = field(default_factory=set, init=False)  # ended, nothing owed
    _counted_ns: dict[int, int] = field(default_factory=dict, init=False)

    def owed(
        self, opened: Collection[int], busy_ns: Mapping[int, int], elapsed_ns: int
    ) -> dict[int, Owed]:
        """What processes that ended since the look before did, beyond what was counted already.

        Args:
            opened: pids that have the GPU open now.
            busy_ns: what this look counts, by pid.
            elapsed_ns: since the look before. Nobody is owed more than the busy share of that:
                what lies further back is attributed, and what lies before us is not ours.
        Raises: Gone.
        """
        for pid, ns in busy_ns.items():
            self._counted_ns[pid] = self._counted_ns.get(pid, 0) + ns
        listed = set(self.board.told("nvmlDeviceGetAccountingPids") or ())
        if not self._begun:
            self._begun, self._settled = True, listed  # what ended before is not ours
        ended = listed - self._settled - set(opened)
        self._settled &= listed
        self._settled -= set(opened)  # a pid that is used again
        owed: dict[int, Owed] = {}
        for pid in ended:
            stats = self.board.told("nvmlDeviceGetAccountingStats", pid)
            if stats is None or stats.isRunning:
                continue
            self._settled.add(pid)
            share = stats.gpuUtilization if stats.gpuUtilization <= 100 else 0
            counted_ns = self._counted_ns.pop(pid, 0)
            left_ns = stats.time * NS_PER_MS * share // 100 - counted_ns
            room_ns = elapsed_ns * share // 100 - busy_ns.get(pid, 0)
            if min(left_ns, room_ns) > 0:
                owed[pid] = Owed(min(left_ns, room_ns), int(stats.startTime))
        alive = set(opened) | busy_ns.keys()
        self._counted_ns = {pid: ns for pid, ns in self._counted_ns.items() if pid in alive}
        return owed
