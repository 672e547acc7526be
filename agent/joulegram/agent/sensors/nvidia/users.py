"""Who uses an NVIDIA GPU and who has it open, asked of NVML once a tick.

The driver samples the SM use of each process; weighted by time (sm_use.py) that is right as it
is for time-slicing and for MPS. No samples at the moment ("not found") is an answer: nobody was
busy. Where the driver never samples processes ("not supported"), the GPU's own utilisation goes
in equal parts to whoever has it open, and where it has not even that, its time does; both are
`modelled`.

Compute, graphics and MPS processes count as having it open. GPUs in MIG mode: mig_users.py.
What ended between two looks is owed what accounting mode says: accounting.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorFailed
from joulegram.agent.sensors.gpu import GpuLook, GpuOpen, GpuUse
from joulegram.agent.sensors.nvidia.accounting import Accounting
from joulegram.agent.sensors.nvidia.mig import instances
from joulegram.agent.sensors.nvidia.mig_users import MigUsers
from joulegram.agent.sensors.nvidia.names import names_of, others_of
from joulegram.agent.sensors.nvidia.nvml import Board
from joulegram.agent.sensors.nvidia.processes import opened, sm_samples
from joulegram.agent.sensors.nvidia.sm_use import SmUse

# How often to ask what hardly ever changes: MIG mode and its instances, accounting mode, indexes.
LAYOUT_EVERY_NS = 10_000_000_000


@dataclass(slots=True)
class Users:
    """One GPU's users."""

    board: Board
    clock: Clock
    _looked_ns: int | None = field(default=None, init=False)
    _laid_out_ns: int | None = field(default=None, init=False)
    _generation: int = field(default=0, init=False)
    _names: dict[str, float] = field(default_factory=dict, init=False)
    _mig: MigUsers | None = field(default=None, init=False)
    _accounting: Accounting | None = field(default=None, init=False)
    _use: SmUse = field(default_factory=SmUse, init=False)
    _pids: list[int] = field(default_factory=list, init=False)  # that had it open at that look

    def names(self) -> Mapping[str, float]:
        """From memory; a change is seen within LAYOUT_EVERY_NS."""
        return self._names

    def look(self) -> GpuLook:
        """Raises: SensorFailed."""
        now_ns = self.clock.mono_ns()
        if self._outdated(now_ns):
            self.lay_out()
        elapsed_ns = 0 if self._looked_ns is None else max(0, now_ns - self._looked_ns)
        try:
            look = self._mig.look(elapsed_ns) if self._mig else self._whole(elapsed_ns)
        except SensorFailed:
            self._laid_out_ns = None  # what it said in such trouble is not to be kept
            raise
        self._looked_ns = now_ns
        return look

    def lay_out(self) -> None:
        """Ask what hardly ever changes. Raises: Gone."""
        now_ns = self.clock.mono_ns()
        parts = instances(self.board)
        if not parts:
            self._mig = None
        elif self._mig is None:
            self._mig = MigUsers(self.board, self.clock, parts, others_of(self.board, parts))
        else:
            self._mig.replace(parts, others_of(self.board, parts))
        if not self.board.told("nvmlDeviceGetAccountingMode"):
            self._accounting = None
        elif self._accounting is None or self._generation != self.board.generation:
            self._accounting = Accounting(self.board)
        self._names = names_of(self.board, parts)
        self._laid_out_ns, self._generation = now_ns, self.board.generation

    def _outdated(self, now_ns: int) -> bool:
        return (
            self._laid_out_ns is None
            or now_ns - self._laid_out_ns >= LAYOUT_EVERY_NS
            or self._generation != self.board.generation
            or (self._mig is not None and self._mig.outdated)
        )

    def _whole(self, elapsed_ns: int) -> GpuLook:
        pids = list(dict.fromkeys(process.pid for process in opened(self.board.ask)))
        now_us = self.clock.wall_ns() // 1000
        samples = sm_samples(self.board.ask, self._use.since_us(now_us))
        if samples is not None:
            busy_ns = self._use.take(samples, now_us, elapsed_ns // 1000)
            weights = dict(busy_ns)
        else:
            busy_ns, weights = self._split_use(pids, self._pids, elapsed_ns)
        self._pids = pids
        # Whoever is sampled has it open, also where the driver lists nobody.
        open_by = pids or list(busy_ns if samples is not None else ())
        modelled = samples is None and any(weights.values())
        began_ns: dict[int, int] = {}
        if self._accounting is not None:
            for pid, owed in self._accounting.owed(pids, busy_ns, elapsed_ns).items():
                busy_ns[pid] = busy_ns.get(pid, 0) + owed.ns
                weights[pid] = weights.get(pid, 0) + owed.ns
                if 0 < owed.began_us <= now_us:
                    began_ns[pid] = (now_us - owed.began_us) * 1000
        uses = [
            GpuUse(pid, busy_ns.get(pid, 0), weight, began_ns=began_ns.get(pid, 0))
            for pid, weight in weights.items()
            if weight
        ]
        return GpuLook(uses, [GpuOpen(pid, "", 1.0) for pid in open_by], modelled)

    def _split_use(
        self, pids: Sequence[int], before: Sequence[int], elapsed_ns: int
    ) -> tuple[dict[int, int], dict[int, int]]:
        """(busy, weights) of a GPU that does not say which process did what.

        Args:
            pids: who has it open now.
            before: and at the look before; what it did is theirs where nobody has it now.
        """
        rates = self.board.told("nvmlDeviceGetUtilizationRates")
        if rates is None or not 0 <= rates.gpu <= 100:
            return {}, dict.fromkeys(pids, elapsed_ns // max(1, len(pids)))
        pids = pids or before
        busy_ns = dict.fromkeys(pids, elapsed_ns * int(rates.gpu) // 100 // max(1, len(pids)))
        return busy_ns, dict(busy_ns)
