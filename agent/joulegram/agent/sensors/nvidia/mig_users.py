"""Who uses a GPU in MIG mode: slices times activity, by the first of these that tells anything.

1. Samples of SM use per process, of the MIG devices or of the GPU, times the instance's slices.
2. The GPU's performance monitor: SM activity per instance, times its slices, in equal parts to
   the processes of the instance; `modelled` where there are several.
3. The slices of instances that hold processes, in equal parts to these; `modelled`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorFailed
from joulegram.agent.sensors.gpu import GpuLook, GpuOpen, GpuUse
from joulegram.agent.sensors.nvidia.mig import Activity, Instance
from joulegram.agent.sensors.nvidia.nvml import Board
from joulegram.agent.sensors.nvidia.processes import NO_INSTANCE, Ask, opened, sm_samples
from joulegram.agent.sensors.nvidia.sm_use import SmUse

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class MigUsers:
    """The users of one GPU's instances."""

    board: Board
    clock: Clock
    parts: Sequence[Instance]
    outdated: bool = False  # instances came or went: list them again
    _board_use: SmUse = field(default_factory=SmUse, init=False)
    _part_use: dict[str, SmUse] = field(default_factory=dict, init=False)
    _sampled: bool = field(default=False, init=False)  # the driver was seen to sample processes
    _part_of: dict[int, Instance] = field(default_factory=dict, init=False)  # pid: its instance
    _activity: Activity = field(init=False)

    def __post_init__(self) -> None:
        self._activity = Activity(self.board)

    def replace(self, parts: Sequence[Instance]) -> None:
        """The instances as they are now."""
        self.parts, self.outdated = parts, False
        uuids = {part.uuid for part in parts}
        self._part_use = {uuid: use for uuid, use in self._part_use.items() if uuid in uuids}
        self._activity.keep({part.gi for part in parts})

    def look(self, elapsed_ns: int) -> GpuLook:
        """Raises: SensorFailed."""
        inside = self._inside()
        part_of = {pid: part for part, pids in inside for pid in pids}
        # One that ended since the look before is still known from there.
        self._part_of, before = part_of, self._part_of
        opened_now = [GpuOpen(p, part.uuid, part.fraction) for part, pids in inside for p in pids]
        uses = self._sampled_uses(elapsed_ns, {**before, **part_of})
        if self._sampled:
            return GpuLook(uses, opened_now)
        percents = {gi: self._activity.percent(gi) for gi in {part.gi for part in self.parts}}
        return active_look(inside, percents, opened_now, elapsed_ns)

    def _inside(self) -> list[tuple[Instance, list[int]]]:
        """Every instance with the processes that have it open."""
        by_id = {(part.gi, part.ci): part for part in self.parts}
        by_gi = {part.gi: part for part in reversed(self.parts)}
        inside: dict[str, dict[int, None]] = {part.uuid: {} for part in self.parts}
        lost = None
        for process in opened(self.board.ask):
            part = by_id.get((process.gi, process.ci)) or by_gi.get(process.gi)
            if part is not None:
                inside[part.uuid][process.pid] = None
            else:
                lost = process
                self.outdated = self.outdated or process.gi != NO_INSTANCE
        # Without the right to see all of the GPU each MIG device still shows its own.
        if lost or not any(inside.values()):
            for part in self.parts:
                for process in self._of(part, opened) or ():
                    inside[part.uuid][process.pid] = None
        return [(part, list(inside[part.uuid])) for part in self.parts]

    def _sampled_uses(self, elapsed_ns: int, part_of: Mapping[int, Instance]) -> list[GpuUse]:
        """As far as the driver samples processes in MIG mode."""
        now_us, elapsed_us = self.clock.wall_ns() // 1000, elapsed_ns // 1000
        uses: dict[int, list[GpuUse]] = {}
        for part in self.parts:
            use = self._part_use.setdefault(part.uuid, SmUse())
            samples = self._of(part, partial(sm_samples, since_us=use.since_us(now_us)))
            self._sampled = self._sampled or bool(samples)
            for pid, ns in use.take(samples or (), now_us, elapsed_us).items():
                uses.setdefault(pid, []).append(GpuUse(pid, ns, ns * part.slices))
        samples = sm_samples(self.board.ask, self._board_use.since_us(now_us))
        self._sampled = self._sampled or bool(samples)
        for pid, ns in self._board_use.take(samples or (), now_us, elapsed_us).items():
            if pid not in uses:
                slices = part_of[pid].slices if pid in part_of else 1
                uses[pid] = [GpuUse(pid, ns, ns * slices)]
        return [use for several in uses.values() for use in several if use.weight]

    def _of(self, part: Instance, what: Callable[[Ask], T]) -> T | None:
        """What one instance says; one that was destroyed says nothing."""
        try:
            return what(partial(self.board.ask_part, part.handle))
        except SensorFailed as exc:
            log.debug("%s", exc)
            self.outdated = True
            return None


def active_look(
    inside: Sequence[tuple[Instance, Sequence[int]]],
    percents: Mapping[int, float | None],
    opened_now: Sequence[GpuOpen],
    elapsed_ns: int,
) -> GpuLook:
    """Uses from what instances did, or, where no instance tells, from who holds them.

    Args:
        inside: each instance with its processes.
        percents: SM activity by GPU instance.
    """
    told = any(percent is not None for percent in percents.values())
    # Compute instances that share a GPU instance share its activity too.
    holders = [part.gi for part, pids in inside for _ in pids]
    uses, modelled = [], False
    for part, pids in inside:
        percent = percents.get(part.gi)
        if not pids or (told and percent is None):
            continue
        active_ns = elapsed_ns if percent is None else round(elapsed_ns * percent / 100)
        share_ns = active_ns // len(pids)
        if share_ns:
            busy_ns = 0 if percent is None else share_ns
            uses += [GpuUse(pid, busy_ns, share_ns * part.slices) for pid in pids]
            modelled = modelled or percent is None or holders.count(part.gi) > 1
    return GpuLook(uses, opened_now, modelled)
