"""Which processes are a run's: those whose parents lead to it; once the run's, always the run's.

Reads  <procfs>/<pid>/stat, <procfs>/<pid>/task/*/children
Format https://docs.kernel.org/filesystems/proc.html

Each root is a `joulegram run` that adopts what its command leaves behind (a child subreaper), so
that parents lead to it even after a double fork. What the roots waited for and what the living
processes used and waited for is all that the run ever used: a process's CPU time goes to whoever
waits for it. So children that came and went between two ticks are in it, each once.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.agent.textfile import matching
from joulegram.agent.use.procfs import TICK_NS, Process
from joulegram.agent.workloads import Owner

KIND = "run"
DEPTH_MAX = 1_000  # parents on the way to a root
STRANGERS_MAX = 100_000
READ_MAX = 5_000  # a larger run waits for its end to have its short-lived children counted
STAT_BYTES = 4_096

Key = tuple[int, int]  # pid, start ticks
Find = Callable[[int], Process | None]


@dataclass(frozen=True, slots=True)
class Stat:
    """What of a process's stat matters here."""

    parent: int
    start_ticks: int
    used_ns: int  # by itself
    waited_ns: int  # by the children it waited for


@dataclass(slots=True)
class Root:
    """One `joulegram run` and what it has waited for since it began."""

    pid: int
    start_ticks: int
    base_ns: int
    before: frozenset[int]  # children that were there before its command
    waited_ns: int = 0
    ended: bool = False


def stat_of(procfs: Path, pid: int) -> Stat | None:
    """None when it is gone."""
    try:
        file = os.open(f"{procfs}/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        raw = os.read(file, STAT_BYTES)
    except OSError:
        return None
    finally:
        os.close(file)
    fields = raw[raw.rfind(b")") + 1 :].split(None, 20)
    try:
        parent, start = int(fields[1]), int(fields[19])
        user, system, waited_user, waited_system = map(int, fields[11:15])
    except (IndexError, ValueError):
        return None
    return Stat(parent, start, (user + system) * TICK_NS, (waited_user + waited_system) * TICK_NS)


def children_of(procfs: Path, pid: int) -> frozenset[int]:
    """Where the kernel tells (CONFIG_PROC_CHILDREN); else nobody."""
    found: set[int] = set()
    for file in matching(procfs / str(pid), "task/*/children"):
        try:
            found.update(map(int, file.read_text().split()))
        except (OSError, ValueError):
            continue
    return frozenset(found)


@dataclass(slots=True)
class Lineage:
    """Tells a run's processes from all others.

    Args:
        own: pid of the metering process; it and what it starts are nobody's run.
    """

    procfs: Path
    owner: Owner
    own: int
    charged_ns: int = 0  # CPU time that was charged to the run so far
    _roots: dict[int, Root] = field(default_factory=dict)
    _members: dict[Key, None] = field(default_factory=dict)  # parents before their children
    _strangers: set[Key] = field(default_factory=set)

    def add(self, pid: int) -> bool:
        """From now on, what this process starts is the run's. False: it is gone."""
        stat = stat_of(self.procfs, pid)
        if stat is None:
            return False
        before = children_of(self.procfs, pid)
        self._roots[pid] = Root(pid, stat.start_ticks, stat.waited_ns, before)
        return True

    def end(self, pid: int, waited_ns: int | None) -> None:
        """A root has ended its command; what it waited for, exactly, where it could say so."""
        root = self._roots.get(pid)
        if root is not None and not root.ended:
            root.waited_ns = waited_ns if waited_ns is not None else self._waited_ns(root)
            root.ended = True

    def roots(self) -> list[int]:
        """Their pids, of those that have ended their command, too."""
        return list(self._roots)

    def holds(self, process: Process, find: Find) -> bool:
        """Whether a process is the run's."""
        key = process.pid, process.start_ticks
        if key in self._members:
            return True
        if key in self._strangers:
            return False
        path: list[Key] = []
        verdict = self._verdict(process, find, path)
        if verdict:
            for known in reversed(path):
                self._members.setdefault(known)
        elif verdict is not None:
            if len(self._strangers) > STRANGERS_MAX:
                self._strangers.clear()
            self._strangers.update(path)
        return bool(verdict)

    def used_ns(self, find: Find | None = None) -> int | None:
        """CPU time of the run until now, and no more than that; None: too many to ask.

        Roots are read before processes and parents before their children: what moves up
        meanwhile is missed until the next time, and nothing is counted twice.

        Args:
            find: who was there at the last scan; others have ended and are not asked.
        """
        if len(self._members) > READ_MAX and find is not None:
            for pid, start in list(self._members):
                found = find(pid)
                if found is None or found.start_ticks != start:
                    del self._members[pid, start]
        if len(self._members) > READ_MAX:
            return None
        total = 0
        for root in list(self._roots.values()):
            root.waited_ns = self._waited_ns(root)
            total += root.waited_ns
        for key in list(self._members):
            stat = stat_of(self.procfs, key[0])
            if stat is None or stat.start_ticks != key[1]:
                del self._members[key]
            else:
                total += stat.used_ns + stat.waited_ns
        return total

    def left(self) -> int:
        """How many of its processes are still there."""
        self._forget_ended()
        return len(self._members)

    def _is_there(self, root: Root) -> bool:
        """Its pid may be another's, once it has ended."""
        stat = stat_of(self.procfs, root.pid) if root.ended else None
        return not root.ended or (stat is not None and stat.start_ticks == root.start_ticks)

    def _forget_ended(self) -> None:
        for key in list(self._members):
            stat = stat_of(self.procfs, key[0])
            if stat is None or stat.start_ticks != key[1]:
                del self._members[key]

    def _waited_ns(self, root: Root) -> int:
        if root.ended:
            return root.waited_ns
        stat = stat_of(self.procfs, root.pid)
        if stat is None or stat.start_ticks != root.start_ticks:
            return root.waited_ns
        return max(root.waited_ns, stat.waited_ns - root.base_ns)

    def _verdict(self, process: Process, find: Find, path: list[Key]) -> bool | None:
        """Follow the parents, noting who lies on the way. None: the way is not known yet."""
        pid, start, parent = process.pid, process.start_ticks, process.parent
        for _ in range(DEPTH_MAX):
            key = pid, start
            if key in self._members or key in self._strangers:
                return key in self._members
            path.append(key)
            if pid == self.own:
                return False
            root = self._roots.get(parent)
            if root is not None and root.start_ticks <= start and self._is_there(root):
                return pid not in root.before
            if parent <= 1:
                return False
            above = find(parent)
            if above is not None and above.start_ticks <= start:
                pid, start, parent = above.pid, above.start_ticks, above.parent
                continue
            # Not met, or it ended and somebody adopted the child: the kernel knows by now.
            now = stat_of(self.procfs, pid)
            if now is None or now.start_ticks != start:
                return None
            if now.parent != parent:
                path.pop()
                parent = now.parent
                continue
            unmet = stat_of(self.procfs, parent)
            if unmet is None or unmet.start_ticks > start:
                return None
            pid, start, parent = parent, unmet.start_ticks, unmet.parent
        return None
