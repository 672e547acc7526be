"""Who uses a GPU in MIG mode: slices times activity, by the first of these that tells anything.

1. Samples of SM use per process, of the MIG devices or of the GPU, times the instance's slices.
2. The GPU's performance monitor: SM activity per GPU instance, times its slices, to its processes;
   `modelled` where there are several. An instance that was busy without any keeps its weight: what
   it did is nobody else's.
3. The slices of instances that hold processes, in equal parts to these; `modelled`. So too while
   the monitor tells nothing of one that holds processes.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorFailed
from joulegram.agent.sensors.gpu import NO_PID, GpuLook, GpuOpen, GpuUse
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
    others: Mapping[str, str]  # {other name: UUID} of the parts
    outdated: bool = False  # instances came or went: list them again
    _board_use: SmUse = field(default_factory=SmUse, init=False)
    _part_use: dict[str, SmUse] = field(default_factory=dict, init=False)
    _sampled: bool = field(default=False, init=False)  # the driver was seen to sample processes
    _part_of: dict[int, Instance] = field(default_factory=dict, init=False)  # pid: its instance
    _activity: Activity = field(init=False)

    def __post_init__(self) -> None:
        self._activity = Activity(self.board)

    def replace(self, parts: Sequence[Instance], others: Mapping[str, str]) -> None:
        """The instances as they are now."""
        self.parts, self.others, self.outdated = parts, others, False
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
        # Who is listed nowhere is where nobody is, if anywhere: no less is kept from the others.
        empty = [part.slices for part, pids in inside if not pids]
        unlisted = max(empty or [part.slices for part in self.parts], default=1)
        uses = self._sampled_uses(elapsed_ns, {**before, **part_of}, unlisted)
        if self._sampled:
            return GpuLook(uses, opened_now, parts=self.others)
        percents = {gi: self._activity.percent(gi) for gi in {part.gi for part in self.parts}}
        untold = any(percents[part.gi] is None for part, pids in inside if pids)
        if untold or all(percent is None for percent in percents.values()):
            uses, modelled = by_slices(inside, elapsed_ns), True
        else:
            told = {gi: percent for gi, percent in percents.items() if percent is not None}
            ended = [
                (part, [pid for pid, there in before.items() if there.uuid == part.uuid])
                for part in self.parts
            ]
            uses, modelled = by_activity(inside, ended, told, elapsed_ns)
        return GpuLook(uses, opened_now, modelled and bool(uses), self.others)

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

    def _sampled_uses(
        self, elapsed_ns: int, part_of: Mapping[int, Instance], unlisted: int
    ) -> list[GpuUse]:
        """As far as the driver samples processes in MIG mode.

        Args:
            unlisted: slices of who is in no known instance.
        """
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
                slices = part_of[pid].slices if pid in part_of else unlisted
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


def by_slices(inside: Sequence[tuple[Instance, Sequence[int]]], elapsed_ns: int) -> list[GpuUse]:
    """Uses by who holds slices, since it is not told who was busy.

    Args:
        inside: each instance with its processes.
    """
    return [
        GpuUse(pid, 0, elapsed_ns // len(pids) * part.slices)
        for part, pids in inside
        for pid in pids
        if elapsed_ns >= len(pids)
    ]


def by_activity(
    inside: Sequence[tuple[Instance, Sequence[int]]],
    ended: Sequence[tuple[Instance, Sequence[int]]],
    percents: Mapping[int, float],
    elapsed_ns: int,
) -> tuple[list[GpuUse], bool]:
    """Uses by what GPU instances did, and whether somebody's part of that is modelled.

    Args:
        inside: each instance with its processes.
        ended: each with those of the look before: they did it where it holds none now.
        percents: SM activity by GPU instance, of those that told it.
    """
    uses, modelled = [], False
    for gi, percent in sorted(percents.items()):
        active_ns = round(elapsed_ns * percent / 100)
        parts = [(part, pids) for part, pids in inside if part.gi == gi]
        # Compute instances that share a GPU instance share its activity too.
        holding = [(part, pids) for part, pids in parts if pids] or [
            (part, pids) for part, pids in ended if part.gi == gi and pids
        ]
        if not active_ns or not parts:
            continue
        weight = active_ns * parts[0][0].gi_slices
        if not holding:
            partition = parts[0][0].uuid if len(parts) == 1 else ""
            uses.append(GpuUse(NO_PID, active_ns, weight, partition))
        slices = sum(part.slices for part, _ in holding)
        for part, pids in holding:
            share_ns = weight * part.slices // slices // len(pids)
            uses += [GpuUse(pid, active_ns // len(pids), share_ns) for pid in pids if share_ns]
        modelled = modelled or sum(len(pids) for _, pids in holding) > 1
    return uses, modelled
