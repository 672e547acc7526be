"""CPU time of cgroups: the truth per workload, short-lived processes included.

Reads  v2: <cgroupfs>/**/cpu.stat (usage_usec), cgroup.type
       v1: <cgroupfs>/{cpu,cpuacct | cpuacct}/**/cpuacct.usage
Format https://docs.kernel.org/admin-guide/cgroup-v2.html

A cgroup's counter holds its descendants'. What the root counts is the whole machine and is
made in another way (ticks against precise switches), so the root's counter is never read.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from joulegram.agent.clock import Clock
from joulegram.agent.procfs import raise_file_limit
from joulegram.agent.textfile import ATTEMPTS, PAUSE_S, as_count

V1_CONTROLLERS = ("cpu,cpuacct", "cpuacct,cpu", "cpuacct")
DEPTH_MAX = 32
COUNTER_BYTES = 1024
RETRIES_PER_SCAN = 40  # bounds the waiting for files that stay torn
FILES_SHARE = 4  # counters are kept open within a fourth of the files that may be

# A cgroup's name may hold what ends a line elsewhere; only a new entry ends an entry.
MEMBERSHIP = re.compile(rb"\n(?=\d+:[^:\n]*:)")


@dataclass(slots=True, eq=False)
class Cgroup:
    """One cgroup below the root."""

    path: str  # /system.slice/foo.service; bytes that are not UTF-8 as os.fsdecode keeps them
    inode: int
    threaded: bool
    born_ns: int | None  # monotonic, it came after this; None: it was here, or is counted already
    file: int = -1  # its counter, kept open
    raw: bytes = b""
    used_ns: int = -1  # its counter when last read well; -1: it has none that answers
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
        self._files_left = raise_file_limit() // FILES_SHARE
        self._retries = 0

    def scan(self, plausible_ns: int) -> list[Change]:
        """Read every cgroup's counter once, parents before children.

        Args:
            plausible_ns: what a cgroup can have used since the last scan; one that appears
                with more was there before, unseen, and is charged from here on.
        """
        changes: list[Change] = []
        present: set[str] = set()
        self._retries = RETRIES_PER_SCAN
        for path, inode in self._walk():
            present.add(path)
            group = self._known.get(path)
            if group is not None and group.inode != inode:  # removed and made again
                self._close(group)
                group = None
            if group is None:
                group = self._known[path] = self._open(path, inode)
            used_ns = self._value(group)
            if used_ns is None:
                continue
            now_ns = self._clock.mono_ns()
            before_ns, since_ns = group.used_ns, group.read_ns
            group.used_ns, group.read_ns = used_ns, now_ns
            if group.born_ns is not None:
                if used_ns <= plausible_ns and not 0 <= before_ns <= used_ns:
                    before_ns, since_ns = 0, group.born_ns
                group.born_ns = None
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
        try:
            kind = Path(f"{self._root}{path}", "cgroup.type").read_bytes()
        except OSError:
            kind = b""
        return Cgroup(path, inode, kind.strip() == b"threaded", self._before_ns)

    def _close(self, group: Cgroup) -> None:
        if group.file >= 0:
            os.close(group.file)
            group.file = -1
            self._files_left += 1

    def _value(self, group: Cgroup) -> int | None:
        """The counter now, ns; None when it cannot be read."""
        for attempt in range(ATTEMPTS):
            if attempt:
                if self._retries <= 0:
                    return None
                self._retries -= 1
                time.sleep(PAUSE_S)
            try:
                raw = self._bytes(group)
            except OSError:
                self._close(group)
                group.used_ns = -1  # what it uses is its parent's until it answers again
                return None
            if raw == group.raw and group.used_ns >= 0:
                return group.used_ns
            if (value := self._read(raw)) is not None:
                group.raw = raw
                return value
        return None

    def _bytes(self, group: Cgroup) -> bytes:
        if group.file >= 0:
            raw = os.pread(group.file, COUNTER_BYTES, 0)
            if raw != group.raw or os.fstat(group.file).st_nlink:
                return raw
            # It stands still because it was removed, and maybe made again in the same inode.
            self._close(group)
            group.born_ns = self._before_ns
        file = os.open(f"{self._root}{group.path}/{self._counter}", os.O_RDONLY)
        try:
            raw = os.pread(file, COUNTER_BYTES, 0)
        except OSError:
            os.close(file)
            raise
        if self._files_left > 0:
            group.file = file
            self._files_left -= 1
        else:
            os.close(file)
        return raw


def memberships(groups: bytes) -> list[tuple[str, str]]:
    """(controllers, path) per line of a /proc/<pid>/cgroup; controllers is "" for v2."""
    found = []
    for line in MEMBERSHIP.split(groups.removesuffix(b"\n")):
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
