"""Which processes can have run since the last tick: the short cut.

A process whose cgroup's counter stood still has not run, and is not read. That is exact as
long as every process is known by the cgroup that counts it, and nobody tells when a process
moves to another (a scheduler moves its children after the fork, so each job begins that way).
So what a cgroup counted is held against what its processes say, and where they disagree by
more than rounding, its own list of processes is read, and those of them that were long idle.
The root and cgroups without a counter are always read.

Reads  <cgroupfs>/**/cgroup.procs, through cgroups.py
Format https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from joulegram.agent.use.cgroups import ROOT, Cgroups
from joulegram.agent.use.procfs import TICK_NS, Process, Processes

DISAGREE_NS = 3 * TICK_NS
# Of a cgroup that counted, those are read at once that ran within so many ticks.
LATELY = 10
# Every process is read after so many ticks all the same: no surprise lasts longer.
READ_ALL_WITHIN = 120

Group = dict[Process, None]  # in the order in which they came


class Members:
    """The processes, by the cgroup whose counter holds their use."""

    def __init__(self, processes: Processes, cgroups: Cgroups) -> None:
        self._processes = processes
        self._cgroups = cgroups
        # Counting cgroup (None: none below the root does) -> path of a cgroup -> its processes.
        self._paths: dict[str | None, dict[str, Group]] = {}
        self._counted_by: dict[str, str | None] = {}  # path -> counting cgroup
        self._beyond_ns: defaultdict[str, int] = defaultdict(int)  # counted and nobody's, so far
        self._round: Iterator[Process] = iter(())
        self._share = 1  # of the round that are read at a tick
        self._tick = 0

    def due(self) -> list[Process]:
        """Who can have run since the last tick, as far as the counters just read say."""
        if self._cgroups.reshaped:
            self._regroup()
        self._tick += 1
        since = self._tick - LATELY
        due = list(self._of(None))
        for group in self._cgroups.moved:
            due += [process for process in self._of(group) if process.ran_at >= since]
        return due

    def sample(self) -> list[Process]:
        """Some of all that may run, others at every tick."""
        some = list(islice(self._round, self._share))
        if len(some) < self._share:
            # Thousands of zombies may wait for a listing that finds them gone.
            living = [process for process in self._processes.all() if not process.zombie]
            self._round, self._share = iter(living), len(living) // READ_ALL_WITHIN + 1
        return some

    def put(self, process: Process) -> None:
        """It came, ran or moved, and its `groups` were just read."""
        process.ran_at = self._tick
        if process.groups is process.path_of or process.zombie:
            return
        path = self._cgroups.path_of(process.groups)
        self.drop(process)
        process.path, process.path_of = path, process.groups
        if path not in self._counted_by:
            self._add(path, {})
        self._paths[self._counted_by[path]][path][process] = None

    def drop(self, process: Process) -> None:
        """It ended, or moved."""
        if (path := process.path) is None:
            return
        process.path = process.path_of = None
        paths = self._paths[self._counted_by[path]]
        del paths[path][process]
        if not paths[path]:
            del paths[path], self._counted_by[path]

    def unexplained(self, counted_ns: Mapping[str, int], used_ns: Mapping[str, int]) -> list[str]:
        """Cgroups of which somebody used what the processes read did not, or the reverse.

        Args:
            counted_ns: per cgroup, what its counter holds of this tick beyond its children's.
            used_ns: per cgroup, what its processes are known to have used in this tick.
        """
        found = []
        for group in {*counted_ns, *used_ns}:
            self._beyond_ns[group] += counted_ns.get(group, 0) - used_ns.get(group, 0)
            if abs(self._beyond_ns[group]) > DISAGREE_NS:
                self._beyond_ns[group] = 0
                found.append(group)
        return found

    def unread(self, groups: Iterable[str]) -> list[Process]:
        """Their processes that were long idle."""
        since = self._tick - LATELY
        return [p for group in groups for p in self._of(group) if p.ran_at < since]

    def strangers(self, groups: Iterable[str]) -> set[Process]:
        """Processes that may have moved into or out of these, or the root."""
        found: set[Process] = set()
        for group in groups:
            found |= self._moved(self._of(group), self._cgroups.procs(group))
        # Nothing is held against the root; its list is read at every tick.
        if (pids := self._cgroups.root_procs()) is not None:
            found |= self._moved((p for p in self._of(None) if p.path == "/"), pids)
        return found

    def _moved(self, known: Iterable[Process], pids: set[int] | None) -> set[Process]:
        """Of a cgroup's known processes and those on its list, those that are not both."""
        here = set(known)
        if pids is None:
            return here
        moved = {process for process in here if process.pid not in pids}
        for pid in pids.difference([process.pid for process in here]):
            process = self._processes.get(pid)
            if process is None:
                self._processes.list_again()
            elif not process.zombie:
                moved.add(process)
        return moved

    def _of(self, group: str | None) -> Iterator[Process]:
        for members in self._paths.get(group, {}).values():
            yield from members

    def _add(self, path: str, members: Group) -> None:
        # What the root counts is sampled, and too coarse to tell who ran.
        group = self._counted_by[path] = self._cgroups.owner(ROOT if path == "/" else path) or None
        self._paths.setdefault(group, {})[path] = members

    def _regroup(self) -> None:
        """Cgroups came or went: some processes are counted elsewhere now."""
        before, self._paths = self._paths, {}
        for paths in before.values():
            for path, members in paths.items():
                self._add(path, members)
        for group in [g for g in self._beyond_ns if self._cgroups.owner(g) != g]:
            del self._beyond_ns[group]
