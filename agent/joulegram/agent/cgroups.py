"""CPU time of cgroups: the truth per workload, short-lived processes included.

Reads  v2: <cgroupfs>/**/cpu.stat (usage_usec), cgroup.type
       v1: <cgroupfs>/{cpu,cpuacct | cpuacct}/**/cpuacct.usage
Format https://docs.kernel.org/admin-guide/cgroup-v2.html

A cgroup's counter holds its descendants'. What the root counts is the whole machine and is
made in another way (ticks against precise switches), so the root's counter is never read.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from joulegram.agent.clock import Clock
from joulegram.agent.textfile import ATTEMPTS, PAUSE_S, as_count

V1_CONTROLLERS = ("cpu,cpuacct", "cpuacct,cpu", "cpuacct")
DEPTH_MAX = 32
COUNTER_BYTES = 1024


@dataclass(slots=True, eq=False)
class Cgroup:
    """One cgroup below the root."""

    path: str  # /system.slice/foo.service; bytes that are not UTF-8 as os.fsdecode keeps them
    inode: int
    threaded: bool
    file: int  # its counter, kept open
    used_ns: int = -1  # its counter when last read well; -1: never
    read_ns: int = 0  # monotonic


@dataclass(frozen=True, slots=True)
class Change:
    """What a cgroup and all below it used between two readings."""

    path: str  # the cgroup that owns it: the nearest domain
    parent: str | None  # the owner above it, which counted the same use; None: only the root
    since_ns: int
    at_ns: int
    used_ns: int


class Cgroups:
    """The cgroup tree that counts CPU time, read again at every tick.

    The first scan is the baseline. A cgroup that appears later is charged with all it counted.
    """

    def __init__(self, cgroupfs: Path, clock: Clock) -> None:
        self._clock = clock
        self._root, self._counter, self._read = _hierarchy(cgroupfs)
        self._known: dict[str, Cgroup] = {}
        self._before_ns: int | None = None

    def scan(self, plausible_ns: int) -> list[Change]:
        """Read every cgroup's counter once, parents before children.

        Args:
            plausible_ns: what a cgroup can have used since the last scan; one that appears
                with more was there before, unseen, and is charged from here on.
        """
        changes: list[Change] = []
        present: set[str] = set()
        for path, inode in self._walk():
            present.add(path)
            group = self._known.get(path)
            if group is not None and group.inode != inode:  # removed and made again
                self._close(group)
                group = None
            is_new = group is None
            if group is None:
                group = self._known[path] = self._open(path, inode)
            used_ns = self._value(group)
            if used_ns is None:
                continue
            now_ns = self._clock.mono_ns()
            before_ns, since_ns = group.used_ns, group.read_ns
            group.used_ns, group.read_ns = used_ns, now_ns
            if is_new and self._before_ns is not None and used_ns <= plausible_ns:
                before_ns, since_ns = 0, self._before_ns
            if 0 <= before_ns < used_ns and (owner := self.owner(path)) is not None:
                parent = self.owner(_above(path))
                changes.append(Change(owner, parent, since_ns, now_ns, used_ns - before_ns))
        for path in self._known.keys() - present:
            self._close(self._known.pop(path))
        self._before_ns = self._clock.mono_ns()
        return changes

    def owner(self, path: str) -> str | None:
        """The nearest cgroup at or above `path` that owns processes and has a counter."""
        while path:
            group = self._known.get(path)
            if group is not None and group.used_ns >= 0 and not group.threaded:
                return path
            path = _above(path)
        return None

    @property
    def count_anything(self) -> bool:
        """Whether any cgroup below the root has a counter."""
        return any(group.used_ns >= 0 for group in self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def path_of(self, groups: bytes) -> str:
        """The path in this hierarchy of a process with this /proc/<pid>/cgroup."""
        for controllers, path in memberships(groups):
            if (self._counter == "cpu.stat") == (controllers == "") and (
                not controllers or "cpuacct" in controllers.split(",")
            ):
                return path
        return "/"

    def _walk(self) -> Iterable[tuple[str, int]]:
        """(path, inode) of every cgroup below the root, parents first."""
        waiting = [("", 0)] if self._root is not None else []
        while waiting:
            above, depth = waiting.pop()
            try:
                with os.scandir(f"{self._root}{above}") as entries:
                    found = [
                        (f"{above}/{entry.name}", entry.inode())
                        for entry in entries
                        if entry.is_dir(follow_symlinks=False)
                    ]
            except OSError:
                continue
            yield from found
            if depth < DEPTH_MAX:
                waiting.extend((path, depth + 1) for path, _ in found)

    def _open(self, path: str, inode: int) -> Cgroup:
        folder = f"{self._root}{path}"
        try:
            file = os.open(f"{folder}/{self._counter}", os.O_RDONLY)
        except OSError:
            file = -1
        try:
            threaded = Path(folder, "cgroup.type").read_bytes().strip() == b"threaded"
        except OSError:
            threaded = False
        return Cgroup(path, inode, threaded, file)

    def _close(self, group: Cgroup) -> None:
        if group.file >= 0:
            os.close(group.file)
            group.file = -1

    def _value(self, group: Cgroup) -> int | None:
        """The counter now, ns; None when it cannot be read."""
        if group.file < 0:
            return None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_S)
            try:
                raw = os.pread(group.file, COUNTER_BYTES, 0)
            except OSError:
                return None
            if (value := self._read(raw)) is not None:
                return value
        return None


def memberships(groups: bytes) -> list[tuple[str, str]]:
    """(controllers, path) per line of a /proc/<pid>/cgroup; controllers is "" for v2."""
    found = []
    for line in groups.splitlines():
        _, controllers, path = [*line.split(b":", 2), b"", b""][:3]
        found.append((controllers.decode(errors="replace"), _clean(os.fsdecode(path))))
    return found


def _clean(path: str) -> str:
    path = path.removesuffix(" (deleted)")
    # Above the root of the agent's own cgroup namespace: nothing is known of it.
    return "/" if path.startswith("/..") else path


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _hierarchy(cgroupfs: Path) -> tuple[Path | None, str, Callable[[bytes], int | None]]:
    """(root, counter file, its reader) of the hierarchy that counts CPU time; root may be None."""
    if not (cgroupfs / "cgroup.controllers").exists():
        for name in V1_CONTROLLERS:
            if (cgroupfs / name).is_dir():
                return cgroupfs / name, "cpuacct.usage", as_count
        if (cgroupfs / "unified").is_dir():
            return cgroupfs / "unified", "cpu.stat", _usage_ns
    return (cgroupfs if cgroupfs.is_dir() else None), "cpu.stat", _usage_ns


def _usage_ns(raw: bytes) -> int | None:
    for line in raw.splitlines(keepends=True):
        if line.startswith(b"usage_usec "):
            value = as_count(line.removeprefix(b"usage_usec "))
            return None if value is None else value * 1000
    return None
