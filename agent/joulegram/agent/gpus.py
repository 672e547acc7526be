"""Who used each GPU and who held it, window by window.

GPU sensors know pids; here they become processes and workloads. Held are the GPUs that a
scheduler gave to a workload, and of the rest those that a workload's process has open.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from joulegram.agent.attribution import WHOLE, GpuWork
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.identity import Identity
from joulegram.agent.owners.known import ALL_GPUS
from joulegram.agent.sensors.gpu import NO_PID, GpuOpen, GpuUse, GpuUsers
from joulegram.agent.use.ended import Ended, there_by_then, uptime_ns
from joulegram.agent.use.procfs import Process, Processes
from joulegram.agent.use.usage import Use
from joulegram.agent.windows import Timeline, Window
from joulegram.agent.workloads import RESERVED, UNATTRIBUTED, Owner

log = logging.getLogger(__name__)

GPUS_MAX = 256
OPENED_MAX = 4_096  # processes of one GPU that are remembered and may hold it
LONGEST_LOOK_NS = 60_000_000_000  # what is older says nothing of now
# A driver's last samples of a process come up to a second after its end.
REMEMBERED_NS = 2_500_000_000

# Workloads with the GPUs that their scheduler gave them, as it names them.
Holding: TypeAlias = Callable[[], Iterable[tuple[Owner, Sequence[str]]]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A process that has a GPU open, or had it a moment ago."""

    owner: Owner
    process: Process
    seen_ns: int  # monotonic


@dataclass(slots=True, eq=False)
class Gpu:
    """One GPU's users and what was last seen of them."""

    users: GpuUsers
    since_ns: int  # the last look that was answered
    held_ns: int  # until then its holders are said
    opened: dict[int, Opened] = field(default_factory=dict)  # by pid
    open_by: dict[GpuOpen, Owner] = field(default_factory=dict)  # at the last look
    parts: Mapping[str, str] = field(default_factory=dict)  # {other name: partition}
    error: str = ""


@dataclass(slots=True)
class Gpus:
    """Looks at every GPU once a tick.

    Args:
        holding: asked once a tick, and only where there are GPUs.
    """

    processes: Processes
    identity: Identity
    holding: Holding
    ended: Ended = field(default_factory=Ended)
    _known: dict[str, Gpu] = field(default_factory=dict)

    def add(self, users: GpuUsers, now_ns: int) -> None:
        """Look at one more GPU, or at one that is known by what was found of it now."""
        if (known := self._known.get(users.device)) is not None:
            known.users = users
        elif len(self._known) < GPUS_MAX:
            self._known[users.device] = Gpu(users, now_ns, now_ns)

    def tick(self, timeline: Timeline, now_ns: int) -> None:
        """Look at all of them. Processes must have been read just before."""
        if not self._known:
            return
        self.ended.note(self.processes.ended, now_ns)
        holding = [(owner, names) for owner, names in self.holding() if names]
        for gpu in self._known.values():
            self._look(gpu, timeline, now_ns, holding)

    def _look(
        self,
        gpu: Gpu,
        timeline: Timeline,
        now_ns: int,
        holding: Sequence[tuple[Owner, Sequence[str]]],
    ) -> None:
        try:
            look = gpu.users.look()
        except (SensorDenied, SensorFailed, OSError) as exc:
            if str(exc) != gpu.error:
                gpu.error = str(exc)
                log.warning("%s: who uses it is not known: %s", gpu.users.device, exc)
            self._hold(gpu, timeline, now_ns, holding, self._still_open(gpu, now_ns))
            return
        gpu.error, gpu.parts = "", look.parts
        since_ns = max(gpu.since_ns, now_ns - LONGEST_LOOK_NS)
        gpu.since_ns = now_ns
        gpu.opened = {
            pid: known
            for pid, known in gpu.opened.items()
            if since_ns - known.seen_ns <= REMEMBERED_NS
        }
        gpu.open_by = {}
        for at in look.opened[:OPENED_MAX]:
            process, known = self.processes.get(at.pid), gpu.opened.get(at.pid)
            if process is not None:
                known = Opened(self.identity.place(process).owner, process, now_ns)
            if known is not None:
                gpu.opened[at.pid] = replace(known, seen_ns=now_ns)
                gpu.open_by[at] = known.owner
        device = gpu.users.device
        key: tuple[Owner, Process | None]
        for use in look.uses:
            if use.pid == NO_PID:
                holder = only_holder(use.partition, gpu.users.names(), holding, gpu.parts)
                key = holder or Owner(UNATTRIBUTED), None
            else:
                key = self._found(use, gpu, since_ns, now_ns) or (Owner(UNATTRIBUTED), None)
            for window, weight, _ in timeline.spread(use.weight, since_ns, now_ns):
                window.gpu(device).add_use(key, weight, 0)
            for window, busy_ns, _ in timeline.spread(use.busy_ns, since_ns, now_ns):
                window.gpu(device).add_use(key, 0, busy_ns)
        for window, _, inside_ns in timeline.spread(0, since_ns, now_ns):
            window.gpu(device).modelled |= look.modelled and inside_ns > 0
        self._hold(gpu, timeline, now_ns, holding, gpu.open_by)

    def _hold(
        self,
        gpu: Gpu,
        timeline: Timeline,
        now_ns: int,
        holding: Sequence[tuple[Owner, Sequence[str]]],
        opened: Mapping[GpuOpen, Owner],
    ) -> None:
        """Say who held it since that was said before."""
        since_ns = max(gpu.held_ns, now_ns - LONGEST_LOOK_NS)
        gpu.held_ns = now_ns
        device = gpu.users.device
        for owner, fraction in held(gpu.users.names(), holding, opened, gpu.parts).items():
            part = round(fraction * (now_ns - since_ns))
            for window, held_ns, _ in timeline.spread(part, since_ns, now_ns):
                window.gpu(device).add_held(owner, held_ns)
        for window, held_ns, _ in timeline.spread(now_ns - since_ns, since_ns, now_ns):
            window.gpu(device).looked_ns += held_ns

    def _still_open(self, gpu: Gpu, now_ns: int) -> dict[GpuOpen, Owner]:
        """Who had it open at the last look, and lives: a look that fails takes it from nobody."""
        if now_ns - gpu.since_ns > LONGEST_LOOK_NS:
            return {}
        return {
            at: owner
            for at, owner in gpu.open_by.items()
            if (known := gpu.opened.get(at.pid)) and self.processes.get(at.pid) is known.process
        }

    def _found(
        self, use: GpuUse, gpu: Gpu, since_ns: int, now_ns: int
    ) -> tuple[Owner, Process] | None:
        """Who used it, once it is known who has it open."""
        living, known = self.processes.get(use.pid), gpu.opened.get(use.pid)
        # One that has just ended is known from when it still had the GPU open, also where its
        # pid is another's by now.
        before = known if known is not None and known.process is not living else None
        up_ns = uptime_ns(self.identity.procfs) if use.began_ns else None
        process: Process | None
        if up_ns is not None and use.began_ns <= up_ns:
            those = self.ended.of(use.pid, now_ns - use.began_ns)
            if before is not None and before.process not in those:
                those.insert(0, before.process)
            if living is not None:
                those.insert(0, living)
            process = there_by_then(those, up_ns, use.began_ns)
        elif before is not None:
            process = before.process
        else:
            # Who has its pid since the last look has the GPU open, or did not use it.
            just = self.ended.of(use.pid, since_ns) if known is None else []
            late = self.ended.of(use.pid, since_ns - REMEMBERED_NS)
            process = next(iter(just), None) or living or next(iter(late), None)
        if process is None:
            return None
        if before is not None and process is before.process:
            return before.owner, process
        return self.identity.place(process).owner, process


def only_holder(
    partition: str,
    names: Mapping[str, float],
    holding: Iterable[tuple[Owner, Sequence[str]]],
    parts: Mapping[str, str],
) -> Owner | None:
    """The one workload that a scheduler gave a part of a GPU to; None: none, or several.

    Args:
        partition: "" is none.
        names, holding, parts: as in `held`.
    """
    owners = {
        owner
        for owner, own in holding
        for name in own
        if owner.kind not in RESERVED
        and (name == ALL_GPUS or names.get(name, 0.0) >= 1.0 or parts.get(name, name) == partition)
    }
    return owners.pop() if partition and len(owners) == 1 else None


def held(
    names: Mapping[str, float],
    holding: Iterable[tuple[Owner, Sequence[str]]],
    opened: Mapping[GpuOpen, Owner],
    parts: Mapping[str, str],
) -> dict[Owner, float]:
    """What fraction of a GPU each workload holds.

    Args:
        names: every name of the GPU and of its parts, each with its fraction.
        holding: what schedulers gave out. It goes before what is merely open.
        opened: workloads that have the GPU or a part of it open.
        parts: {other name of a part: the one that `opened` has}.
    Returns: fractions in a fixed order; together at most 1. Workloads that share one part have
        equal shares of it. Reserved kinds hold nothing.
    """
    fractions: dict[Owner, float] = defaultdict(float)
    claims: dict[str, set[Owner]] = defaultdict(set)  # by name of the GPU or of its part
    for owner, own in holding:
        for name in own:
            fraction = 1.0 if name == ALL_GPUS else names.get(name)
            if fraction is not None and owner.kind not in RESERVED:
                # Index, UUID and address are one thing.
                claims["" if fraction >= 1.0 else parts.get(name, name)].add(owner)
    sizes = {part: names.get(part, 1.0) for part in claims}
    if "" not in claims:
        given = set(claims)
        for at, owner in opened.items():
            if at.partition not in given and owner.kind not in RESERVED:
                claims[at.partition].add(owner)
                sizes[at.partition] = at.fraction
    for part, owners in claims.items():
        for owner in owners:
            fractions[owner] += sizes[part] / len(owners)
    over = max(1.0, sum(fractions.values()))
    return {owner: fractions[owner] / over for owner in sorted(fractions)}


def with_gpus(window: Window, uses: Sequence[Use]) -> tuple[list[Use], dict[str, dict[Owner, int]]]:
    """The window's uses, with those who used a GPU alone, and who held which GPU.

    Returns: uses, each once; {device: {owner: its part of WHOLE over the window}}.
    """
    seen = {(use.owner, use.process) for use in uses}
    more = sorted(
        {key for gpu in window.gpus.values() for key in gpu.uses} - seen,
        key=lambda key: (key[0], key[1].pid if key[1] else 0, key[1].start_ticks if key[1] else 0),
    )
    holders = {
        device: {
            owner: min(WHOLE, held_ns * WHOLE // max(1, gpu.looked_ns))
            for owner, held_ns in sorted(gpu.held.items())
        }
        for device, gpu in window.gpus.items()
    }
    return [*uses, *(Use(owner, process, 0) for owner, process in more)], holders


def work(
    window: Window,
    uses: Sequence[Use],
    held: Mapping[str, Mapping[Owner, int]],
    index: Mapping[Owner, int],
) -> dict[str, GpuWork]:
    """What attribution needs to know of each GPU.

    Args:
        uses, held: as `with_gpus` returns them.
        index: of a workload in the frame.
    """
    place = {(use.owner, use.process): n for n, use in enumerate(uses)}
    return {
        device: GpuWork(
            sorted((place[key], weight, busy) for key, (weight, busy) in gpu.uses.items()),
            {index[owner]: share for owner, share in held[device].items()},
            gpu.modelled,
        )
        for device, gpu in window.gpus.items()
    }
