"""Who used the CPU in each window: processes, and what their cgroups counted beyond them."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from joulegram.agent.identity import Identity, Place
from joulegram.agent.one_run.lineage import Lineage
from joulegram.agent.textfile import Torn
from joulegram.agent.use.cgroups import ROOT, Cgroups
from joulegram.agent.use.members import DISAGREE_NS, Members
from joulegram.agent.use.procfs import TICK_NS, Change, Process, Processes, Scan, cpu_times
from joulegram.agent.windows import Timeline, Window
from joulegram.agent.workloads import NOBODY, Owner

T = TypeVar("T")

CPUS_UNSAID = 64  # where /proc/stat lists none
# A reader may come a while after a scheduler or a replayed tree has written.
GROUP_SLACK_NS = 10_000_000_000
PROCESS_SLACK_NS = 1_000_000_000
# Sampled at clock ticks, the root's use may fall behind that of the cgroups below for as long as
# somebody's work hides from the ticks. It owes no more than the machine uses in a second: a debt
# of hours would swallow what runs in the root.
ROOT_OWES_MS = 1000
# And it may run ahead of them, which is nobody's: the standard deviation of a sampled use is at
# most the root of tick x use, and a tick is 10 ms at most. Small uses have more of other errors.
ROOT_AHEAD_SIGMAS = 3
ROOT_AHEAD = 0.1  # of what was used, at most
REAPED_WITHIN_NS = 2_000_000_000  # a child's end may be seen before its parent's waiting for it


@dataclass(frozen=True, slots=True)
class Use:
    """CPU time of one process, or of what a workload used beyond its listed processes."""

    owner: Owner
    process: Process | None  # None: the remainder
    cpu_ns: int


@dataclass(slots=True)
class Usage:
    """Reads processes and cgroups at every tick; says who used what when a window closes.

    Args:
        fold_cores: processes that used less than this many CPUs over a window are counted in
            their workload's remainder.
    """

    procfs: Path
    processes: Processes
    cgroups: Cgroups
    identity: Identity
    fold_cores: float
    _cpus: int = 0
    _interrupts: tuple[int, int] | None = None  # (monotonic ns, ns of interrupts)
    _before_ns: int | None = None
    _members: Members | None = None
    # Where processes were when last asked, and what they used since.
    _placed: dict[Process, tuple[Place | None, int]] = field(default_factory=dict)
    _owed_ns: dict[str, int] = field(default_factory=dict)  # per cgroup, <= 0
    _run_group: str | None = None  # whose counter holds what the run's last root used
    # Parent -> (use of its ended children that was charged while they lived, monotonic ns).
    _seen_ns: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Both must be the kernel's own: in a played tree a process's file may be written at
        # another moment than its cgroup's counter.
        if self.processes.counts_forks and self.cgroups.kernels:
            self._members = Members(self.processes, self.cgroups)

    def tick(self, timeline: Timeline, now_ns: int) -> None:
        """Read everything once. Raises: OSError when procfs is not there."""
        before_ns = self._before_ns
        elapsed_ns = now_ns - before_ns if before_ns is not None else 0
        self._before_ns = now_ns
        forks = self._read_machine(timeline, now_ns)
        cpus = self._cpus or CPUS_UNSAID
        counted_ns: dict[str, int] = {}
        # Counters before their processes: a process that ran on in between is a debt of its
        # cgroup, which the next reading settles, not a remainder that nobody can settle.
        for change in self.cgroups.scan((elapsed_ns + GROUP_SLACK_NS) * cpus):
            if not self._possible(change.used_ns, change.since_ns, change.at_ns):
                continue
            _add(counted_ns, change.path, change.used_ns)
            if change.parent is not None:
                _add(counted_ns, change.parent, -change.used_ns)
            for window, part, _ in timeline.spread(change.used_ns, change.since_ns, change.at_ns):
                _add(window.group_ns, change.path, part)
                if change.parent is not None:
                    _add(window.group_ns, change.parent, -part)
        plausible_ns = (elapsed_ns + PROCESS_SLACK_NS) * cpus
        run = self.identity.run
        run_ns = run.used_ns(self.processes.get) if run is not None else None
        members = self._members
        if self.cgroups.reshaped:
            self._placed.clear()
        counted_ns.pop(ROOT, None)  # the short cut holds nothing against it
        due = members.due() if members is not None else None
        scan = self.processes.scan(now_ns, plausible_ns, forks, due)
        used_ns = self._charge(timeline, scan)
        if members is not None:
            seen = len(scan.met), len(scan.changes)
            groups = members.unexplained(counted_ns, used_ns)
            late = members.unread(groups)
            late += [p for p in members.strangers(groups) if self._moved(p)]
            self.processes.read([*late, *members.sample()], scan, plausible_ns)
            # What they used in earlier ticks went to their cgroup's remainder by then.
            left_ns = {group: ns - used_ns.get(group, 0) for group, ns in counted_ns.items()}
            self._charge(timeline, scan, *seen, left_ns)
        if not self.cgroups.count_anything:
            self._charge_reaped(timeline, scan)
        if run is not None and run_ns is not None and before_ns is not None:
            self._charge_run(timeline, run, run_ns, before_ns, now_ns)

    def _charge(
        self,
        timeline: Timeline,
        scan: Scan,
        met: int = 0,
        changes: int = 0,
        left_ns: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """Place who was met and charge who used, from these indices of the scan on.

        Args:
            left_ns: what cgroups counted in this tick and nobody was charged for; None: no
                matter.
        Returns: use per cgroup whose counter holds it.
        """
        charged: dict[str, int] = {}
        run = self.identity.run
        for process in scan.met[met:]:
            self._place(process)
        for used in scan.changes[changes:]:
            if not self._possible(used.used_ns, used.since_ns, scan.at_ns):
                continue
            place = self._place_of(used)
            used_ns = used.used_ns
            if place.group is not None and place.group != ROOT:
                if left_ns is not None:
                    left = left_ns.get(place.group, 0) - charged.get(place.group, 0)
                    used_ns = min(used_ns, max(0, left))
                _add(charged, place.group, used_ns)
            if not used_ns:  # only its children did
                continue
            # Nobody says where it is (a path beyond PATH_MAX, on some kernels): it lies in some
            # cgroup's remainder, and would be counted twice.
            if not used.process.groups and self.cgroups.count_anything:
                continue
            if run is not None and place.owner == run.owner:
                run.charged_ns += used_ns
            key = used.process, place.owner, place.group
            for window, part, _ in timeline.spread(used_ns, used.since_ns, scan.at_ns):
                _add(window.process_ns, key, part)
        if self._members is not None:
            for process in (*scan.ended, *scan.zombies):
                self._members.drop(process)
                self._placed.pop(process, None)
        return charged

    def _possible(self, used_ns: int, since_ns: int, until_ns: int) -> bool:
        """Whether a machine can have used so much; a file of nonsense is nobody's use."""
        return used_ns <= (until_ns - since_ns + GROUP_SLACK_NS) * max(self._cpus, CPUS_UNSAID)

    def _place_of(self, used: Change) -> Place:
        """Where its use counts: looked at anew when it may matter.

        What is charged to the cgroup that a process has left stays below what members.py
        lets pass in any case.
        """
        process = used.process
        if self._members is None:
            return self._place(process)
        place, since_ns = self._placed.get(process, (None, 0))
        since_ns += used.used_ns
        if place is None or since_ns > DISAGREE_NS or process.groups is not process.path_of:
            place, since_ns = self._place(process), 0
        else:
            self._members.put(process)
        self._placed[process] = place, since_ns
        return place

    def _place(self, process: Process) -> Place:
        place = self.identity.place(process)
        if self._members is not None:
            self._members.put(process)
            self._placed.pop(process, None)
        return place

    def _moved(self, process: Process) -> bool:
        path, ran_at = process.path, process.ran_at
        self._place(process)
        if process.path != path:
            return True
        process.ran_at = ran_at
        return False

    def close(self, window: Window) -> list[Use]:
        """Everybody's use of a window, in a fixed order; every use is > 0."""
        claimed: dict[str, int] = defaultdict(int)
        rest: dict[Owner, int] = defaultdict(int, window.owner_ns)
        by_process: dict[tuple[Owner, Process], int] = defaultdict(int)
        fold_ns = self.fold_cores * window.length_ms * 1_000_000
        for (process, owner, group), used_ns in window.process_ns.items():
            if group is not None:
                claimed[group] += used_ns
            by_process[owner, process] += used_ns
        uses = []
        # Whoever used a GPU has a row of its own, however little CPU it took.
        on_gpu = {process for gpu in window.gpus.values() for _, process in gpu.uses}
        for (owner, process), used_ns in by_process.items():
            if used_ns >= fold_ns or process in on_gpu:
                uses.append(Use(owner, process, used_ns))
            else:
                rest[owner] += used_ns
        self._settle(window, claimed, rest)
        if (root_ns := self._beyond(ROOT, window, claimed)) and self.cgroups.root_is_sampled:
            used_ns = sum(use.cpu_ns for use in uses) + sum(rest.values())
            root_ns = _sampled(root_ns, used_ns, window.length_ms)
        self._charge_rest(self.identity.of_group(ROOT), ROOT, root_ns, rest)
        self._forget_debts()
        uses += [Use(owner, None, ns) for owner, ns in rest.items() if ns > 0]
        return sorted(uses, key=_fixed_order)

    def _settle(self, window: Window, claimed: Mapping[str, int], rest: dict[Owner, int]) -> None:
        """Charge what cgroups counted beyond their processes, the root's apart.

        Of one owner together: a process that moves among its cgroups is counted where it ran, and
        claimed where it was seen.
        """
        of_owner: dict[Owner, list[tuple[int, str]]] = defaultdict(list)
        for group in sorted((window.group_ns.keys() | claimed.keys()) - {ROOT}):
            if beyond_ns := self._beyond(group, window, claimed):
                of_owner[self.identity.of_group(group)].append((beyond_ns, group))
        for owner, beyond in of_owner.items():
            self._charge_rest(owner, min(beyond)[1], sum(ns for ns, _ in beyond), rest)

    def _beyond(self, group: str, window: Window, claimed: Mapping[str, int]) -> int:
        used_ns = window.group_ns.get(group, 0) - claimed.get(group, 0)
        return used_ns + self._owed_ns.pop(group, 0)

    def _charge_rest(
        self, owner: Owner, group: str, beyond_ns: int, rest: dict[Owner, int]
    ) -> None:
        if beyond_ns > 0:
            rest[owner] += beyond_ns
        elif beyond_ns < 0:
            self._owed_ns[group] = beyond_ns

    def _read_machine(self, timeline: Timeline, now_ns: int) -> int:
        """Charge interrupts. Returns: how many processes were forked so far; -1: unknown."""
        try:
            times = cpu_times(self.procfs)
        except (OSError, Torn):
            return -1  # the next reading says it all
        self._cpus = times.cpus
        if self._interrupts is not None:
            before_ns, counted_ns = self._interrupts
            used_ns = times.interrupts_ns - counted_ns
            if used_ns > 0 and self._possible(used_ns, before_ns, now_ns):
                in_root = self.cgroups.root_is_sampled
                for window, part, _ in timeline.spread(used_ns, before_ns, now_ns):
                    _add(window.owner_ns, NOBODY, part)
                    if in_root:
                        _add(window.group_ns, ROOT, -part)
        self._interrupts = now_ns, times.interrupts_ns
        return times.forks

    def _charge_reaped(self, timeline: Timeline, scan: Scan) -> None:
        """Where none below the root counts: who waited for children that came and went."""
        seen, run = self._seen_ns, self.identity.run
        in_root = self.cgroups.owner(ROOT) is not None
        for pid in [p for p, (_, at_ns) in seen.items() if scan.at_ns - at_ns > REAPED_WITHIN_NS]:
            del seen[pid]
        for process in scan.ended:
            before_ns, _ = seen.get(process.parent, (0, 0))
            seen[process.parent] = before_ns + process.used_ns + process.reaped_ns, scan.at_ns
        for change in scan.changes:
            # Who was not seen lived for less than the interval. A child seen for hours may
            # show here a tick before it is known to have ended: that is not a tick's use.
            most_ns = (scan.at_ns - change.since_ns) * (self._cpus or CPUS_UNSAID)
            credit_ns, at_ns = seen.pop(change.process.pid, (0, 0))
            if credit_ns > change.reaped_ns:
                seen[change.process.pid] = credit_ns - change.reaped_ns, at_ns
            unseen_ns = min(change.reaped_ns - credit_ns, most_ns)
            if unseen_ns > 0:
                owner = self.identity.place(change.process).owner
                if run is not None and (owner == run.owner or change.process.pid in run.roots()):
                    continue  # counted from its roots on
                for window, part, _ in timeline.spread(unseen_ns, change.since_ns, scan.at_ns):
                    _add(window.owner_ns, owner, part)
                    if in_root:
                        _add(window.group_ns, ROOT, -part)

    def _charge_run(
        self, timeline: Timeline, run: Lineage, used_ns: int, before_ns: int, now_ns: int
    ) -> None:
        """Children of the run that came and went between two ticks, whoever waited for them.

        They were in the run's cgroup, whose counter holds their use: it is claimed there.
        """
        unseen_ns = used_ns - run.charged_ns
        if unseen_ns <= 0:
            return
        run.charged_ns = used_ns
        root = next((p for pid in run.roots() if (p := self.processes.get(pid))), None)
        if root is not None:
            self._run_group = self.identity.place(root).group
        group = self._run_group
        for window, part, _ in timeline.spread(unseen_ns, before_ns, now_ns):
            if root is not None:
                _add(window.process_ns, (root, run.owner, group), part)
                continue
            _add(window.owner_ns, run.owner, part)
            if group is not None:
                _add(window.group_ns, group, -part)

    def _forget_debts(self) -> None:
        """A cgroup that is gone owes nobody."""
        for group in [g for g in self._owed_ns if self.cgroups.owner(g) != g]:
            del self._owed_ns[group]


def _add(to: dict[T, int], key: T, ns: int) -> None:
    to[key] = to.get(key, 0) + ns


def _sampled(beyond_ns: int, used_ns: int, length_ms: int) -> int:
    """What a sampled root holds beyond all else, as far as it can be told from its error, ns."""
    ahead_ns = min(ROOT_AHEAD * used_ns, ROOT_AHEAD_SIGMAS * math.sqrt(used_ns * TICK_NS))
    if 0 < beyond_ns <= ahead_ns:
        return 0
    return max(beyond_ns, -used_ns * ROOT_OWES_MS // length_ms)


def _fixed_order(use: Use) -> tuple[Owner, int, int]:
    process = use.process
    return use.owner, process.pid if process else 0, process.start_ticks if process else 0
