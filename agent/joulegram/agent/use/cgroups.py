"""CPU time of cgroups: the truth per workload, short-lived processes included.

Reads  v2: <cgroupfs>/**/cpu.stat (usage_usec; of the root user_usec, system_usec), cgroup.type,
       cgroup.procs; cgroup.stat of the root (nr_descendants)
       v1: <cgroupfs>/{cpu,cpuacct | cpuacct}/**/cpuacct.usage
Format https://docs.kernel.org/admin-guide/cgroup-v2.html

A cgroup's counter holds its descendants'. The root's holds the whole machine, and v2 makes it
in another way than the others': by sampling at clock ticks, interrupts included, for they count
switches. Older kernels have none there.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from joulegram.agent.clock import Clock
from joulegram.agent.textfile import ATTEMPTS, PAUSE_S, as_count, read_file, whole
from joulegram.agent.use.delegation import Delegation
from joulegram.agent.use.mounts import is_kernels_cgroup2
from joulegram.agent.use.procfs import raise_file_limit

ROOT = ""  # the root's path, so that each path is its parent's, a slash and a name
THREADED = b"threaded"
V1_CONTROLLERS = ("cpu,cpuacct", "cpuacct,cpu", "cpuacct")
DEPTH_MAX = 32
COUNTER_BYTES = 1024
RETRIES_PER_SCAN = 40  # bounds the waiting for files that stay torn
TORN_FOR = 5  # scans; then a counter is none
FILES_SHARE = 4  # counters are kept open within a fourth of the files that may be
# Cgroups beyond these count in their parents, which hold their use anyway.
CGROUPS_MAX = 8192
IN_GIVEN_MAX = 1024  # below one user-<uid>.slice, or what was given to a user in another way
IN_ONE_MAX = 2048

# A cgroup's name may hold what ends a line elsewhere; only a new entry ends an entry.
MEMBERSHIP = re.compile(rb"\n(?=\d+:[^:\n]*:)")


LOGIN_SLICE = re.compile(r"/user\.slice/user-[^/]+")


@dataclass(slots=True, eq=False)
class Cgroup:
    """One cgroup."""

    path: str  # /system.slice/foo.service; ROOT; bytes that are not UTF-8 as os.fsdecode keeps them
    inode: int
    threaded: bool
    born_ns: int | None  # monotonic, it came after this; None: it was here, or is counted already
    given: str = ""  # the cgroup at or above it that a user was given; "": it is root's
    file: int = -1  # its counter, kept open
    raw: bytes = b""
    used_ns: int = -1  # its counter when last read well; -1: it has none that answers
    torn: int = 0  # scans in a row that met it half written
    read_ns: int = 0  # monotonic


class Change(NamedTuple):
    """What a cgroup and all below it used between two readings."""

    path: str  # the cgroup that owns it: the nearest domain
    parent: str | None  # the owner above it, which counted the same use; None: nobody did
    since_ns: int
    at_ns: int
    used_ns: int


class Cgroups:
    """The cgroup tree that counts CPU time, read again at every tick.

    The first scan is the baseline. A cgroup that appears later is charged with all it counted.

    Args:
        kernels: whether the tree is the kernel's own cgroup v2 (None: look). Its root counts
            the cgroups below, so that it is walked only when one came or went.
    """

    def __init__(self, cgroupfs: Path, clock: Clock, *, kernels: bool | None = None) -> None:
        self._clock = clock
        self._root, self._counter, self._read = _hierarchy(cgroupfs)
        if kernels is None:
            kernels = self._root is not None and is_kernels_cgroup2(self._root)
        self.kernels = kernels and self._counter == "cpu.stat"
        self.delegation = Delegation(cgroupfs)
        self._known: dict[str, Cgroup] = {}
        self._before_ns: int | None = None
        self._files_left = raise_file_limit() // FILES_SHARE
        self._retries = 0
        self._torn: list[str] = []  # of this scan
        self._begun: set[str] = set()  # whose counter begins with this scan: its use is not known
        self._walked_at = -1  # cgroups that the kernel counted before the last walk
        self._cut_short = False  # that walk left some out
        self._root_files: dict[str, int] = {}
        self._root_procs = b""
        self.moved: list[str] = []  # whose counter is not known to have stood still
        self.reshaped = True  # a process's nearest counting cgroup may be another one now

    def close(self) -> None:
        """Let go of every file."""
        for group in self._known.values():
            self._close(group)
        for file in self._root_files.values():
            os.close(file)
        self._root_files.clear()

    def scan(self, plausible_ns: int) -> list[Change]:
        """Read every cgroup's counter once, parents before children.

        Args:
            plausible_ns: what a cgroup can have used since the last scan; one that appears
                with more was there before, unseen, and is charged from here on.
        """
        changes: dict[str, Change] = {}
        self._retries = RETRIES_PER_SCAN
        self._torn = []
        self._begun.clear()
        self.moved, self.reshaped = [], False
        counted = self._descendants() if self.kernels else -1
        begun_ns = self._clock.mono_ns()
        if counted >= 0:
            pread = os.pread
            for group in list(self._known.values()):
                raw = None
                try:
                    if group.used_ns >= 0:
                        raw = pread(group.file, COUNTER_BYTES, 0)
                        if raw == group.raw:
                            group.read_ns = begun_ns
                            continue
                except OSError:
                    pass
                self._take(group, plausible_ns, changes, raw)
                # Removed, most likely; the walk finds it otherwise. The root is not removed.
                if group.used_ns < 0 and group.path != ROOT:
                    self._drop(group)
        if counted < 0 or counted != (self._walked_at if self._cut_short else len(self)):
            self._walked_at = counted
            self._look_around(plausible_ns, changes, new_only=counted >= 0)
        self._before_ns = self._clock.mono_ns()
        for path in self._torn:
            self._hold_above(path, changes)
        return list(changes.values())

    def _hold_above(self, path: str, changes: dict[str, Change]) -> None:
        """Take back what the cgroups above said: this one's part of it is not known yet."""
        while path != ROOT:
            path = _above(path)
            if (change := changes.pop(path, None)) is not None:
                group = self._known[path]
                group.used_ns -= change.used_ns
                group.read_ns = change.since_ns

    def _look_around(self, plausible_ns: int, changes: dict[str, Change], new_only: bool) -> None:
        present: set[str] = set()
        for path, inode in self._walk():
            present.add(path)
            group = self._known.get(path)
            if group is not None and group.inode != inode:  # removed and made again
                self._close(group)
                group = None
            if group is None:
                group = self._known[path] = self._open(path, inode)
                self.reshaped = True
            elif new_only:
                continue
            self._take(group, plausible_ns, changes)
        for path in self._known.keys() - present:
            self._drop(self._known[path])

    def _take(
        self,
        group: Cgroup,
        plausible_ns: int,
        changes: dict[str, Change],
        raw: bytes | None = None,
    ) -> None:
        """Note its use. `raw`: what its counter holds, where it was just read."""
        counted = group.used_ns >= 0
        used_ns = self._value(group, raw)
        self.reshaped |= counted != (group.used_ns >= 0 or used_ns is not None)
        if used_ns is None:
            self.moved.append(group.path)
            return
        now_ns = self._clock.mono_ns()
        before_ns, since_ns = group.used_ns, group.read_ns
        group.used_ns, group.read_ns = used_ns, now_ns
        if group.born_ns is not None:
            # The root was there before, whenever it is met.
            new = used_ns <= plausible_ns and not 0 <= before_ns <= used_ns
            if new and group.path != ROOT:
                before_ns, since_ns = 0, group.born_ns
            group.born_ns = None
        if before_ns < 0:
            self._begun.add(group.path)
        if used_ns == before_ns:
            return
        self.moved.append(group.path)
        if 0 <= before_ns < used_ns and (owner := self.owner(group.path)) is not None:
            parent = self._counted_above(group.path)
            while parent is not None and parent in self._begun:
                parent = self._counted_above(parent)
            change = Change(owner, parent, since_ns, now_ns, used_ns - before_ns)
            changes[group.path] = change

    def _drop(self, group: Cgroup) -> None:
        self._close(group)
        del self._known[group.path]
        self.reshaped = True

    def _descendants(self) -> int:
        """How many cgroups the kernel counts below the root; -1: it does not say."""
        name, _, count = self._of_root("cgroup.stat").partition(b"\n")[0].partition(b" ")
        return int(count) if name == b"nr_descendants" and count.isdigit() else -1

    def _of_root(self, name: str) -> bytes:
        """A file of the root, kept open; b"" when it cannot be read."""
        try:
            if name not in self._root_files:
                self._root_files[name] = os.open(f"{self._root}/{name}", os.O_RDONLY)
            return whole(self._root_files[name])
        except OSError:
            return b""

    def procs(self, path: str) -> set[int] | None:
        """Pids of the processes in a cgroup and, where it has threaded ones below, in those.

        Returns: None when it does not say: it is gone, or became threaded since it was met.
        """
        try:
            raw = read_file(f"{self._root}{path}/cgroup.procs")
        except OSError:
            group = self._known.get(path)
            if group is not None and not group.threaded and self._kind(path) == THREADED:
                group.threaded = self.reshaped = True
            return None
        return _pids(raw)

    def root_procs(self) -> set[int] | None:
        """Pids of the processes in the root, when they are others than when last asked."""
        raw = self._of_root("cgroup.procs")
        if raw == self._root_procs:
            return None
        self._root_procs = raw
        return _pids(raw)

    def owner(self, path: str) -> str | None:
        """The nearest cgroup at or above `path` that owns processes and has a counter."""
        while True:
            group = self._known.get(path)
            if group is not None and group.used_ns >= 0 and not group.threaded:
                return path
            if path == ROOT:
                return None
            path = _above(path)

    def _counted_above(self, path: str) -> str | None:
        return self.owner(_above(path)) if path != ROOT else None

    @property
    def count_anything(self) -> bool:
        """Whether any cgroup below the root has a counter."""
        return any(group.used_ns >= 0 and path != ROOT for path, group in self._known.items())

    @property
    def root_is_sampled(self) -> bool:
        """Whether the root has a counter made at clock ticks, interrupts included."""
        return self._counter == "cpu.stat" and self.owner(ROOT) is not None

    def __len__(self) -> int:
        """How many are known below the root."""
        return len(self._known) - (ROOT in self._known)

    def path_of(self, groups: bytes) -> str:
        """The path in this hierarchy of a process with this /proc/<pid>/cgroup."""
        for controllers, path in memberships(groups):
            if (self._counter == "cpu.stat") == (controllers == "") and (
                not controllers or "cpuacct" in controllers.split(",")
            ):
                return path
        return "/"

    def _walk(self) -> Iterable[tuple[str, int]]:
        """(path, inode) of the cgroups, parents first, all of one depth at a time.

        Bounded, so that nobody's thousands of cgroups keep the agent from those of others.
        """
        self._cut_short = False
        left = CGROUPS_MAX
        of_given: dict[str, int] = {}
        waiting = deque([(ROOT, 0)] if self._root is not None else [])
        # In a container, or of a part of the tree, what looks like the root has a type as every
        # other cgroup. Processes beyond it look as though they were in it, and it does not count
        # them.
        if self._root is not None and not self._kind(ROOT):
            yield ROOT, 0
        while waiting:
            above, depth = waiting.popleft()
            most = min(left, IN_ONE_MAX)
            given = self._given(above)
            if given:
                most = min(most, of_given.setdefault(given, IN_GIVEN_MAX))
            try:
                with os.scandir(f"{self._root}{above}") as entries:
                    folders = (e for e in entries if e.is_dir(follow_symlinks=False))
                    found = [(f"{above}/{e.name}", e.inode()) for e in islice(folders, most + 1)]
            except OSError:
                continue
            if len(found) > most:
                self._cut_short = True
                del found[most:]
            left -= len(found)
            if given:
                of_given[given] -= len(found)
            yield from found
            if depth < DEPTH_MAX:
                waiting.extend((path, depth + 1) for path, _ in found)
            elif found:
                self._cut_short = True

    def _open(self, path: str, inode: int) -> Cgroup:
        given = self._given(_above(path))
        if not given and self.delegation.gives(f"{self._root}{path}"):
            given = path
        return Cgroup(path, inode, self._kind(path) == THREADED, self._before_ns, given)

    def _given(self, path: str) -> str:
        """Of a cgroup that was met: what a user may fill as they like, and it lies in."""
        if login := LOGIN_SLICE.match(path):
            return login[0]
        group = self._known.get(path)
        return group.given if group is not None else ""

    def named(self, path: str) -> str:
        """What root named of a cgroup's path in this hierarchy."""
        return self.delegation.below(str(self._root), path).by_root

    def _kind(self, path: str) -> bytes:
        try:
            return read_file(f"{self._root}{path}/cgroup.type").strip()
        except OSError:
            return b""

    def _close(self, group: Cgroup) -> None:
        if group.file >= 0:
            os.close(group.file)
            group.file = -1
            self._files_left += 1

    def _value(self, group: Cgroup, raw: bytes | None) -> int | None:
        """The counter now, ns; None when it cannot be read."""
        for attempt in range(ATTEMPTS):
            if attempt:
                if self._retries <= 0:
                    break
                self._retries -= 1
                time.sleep(PAUSE_S)
            try:
                if raw is None or attempt:
                    raw = self._bytes(group)
            except OSError:
                self._close(group)
                group.used_ns = -1  # what it uses is its parent's until it answers again
                return None
            if raw == group.raw and group.used_ns >= 0:
                return group.used_ns
            if (value := self._used_ns(group, raw)) is not None:
                group.raw = raw
                group.torn = 0
                return value
        group.torn += 1
        if group.torn > TORN_FOR:  # nonsense, rather
            group.used_ns = -1
        elif group.used_ns >= 0:
            self._torn.append(group.path)
        return None

    def _used_ns(self, group: Cgroup, raw: bytes) -> int | None:
        if group.path == ROOT and self._counter == "cpu.stat":
            # Some kernels count stolen time in the root's usage_usec.
            user_ns, system_ns = _of_stat(raw, b"user_usec "), _of_stat(raw, b"system_usec ")
            return None if user_ns is None or system_ns is None else user_ns + system_ns
        return self._read(raw)

    def _bytes(self, group: Cgroup) -> bytes:
        if group.file >= 0:
            raw = os.pread(group.file, COUNTER_BYTES, 0)
            if raw != group.raw or self.kernels or os.fstat(group.file).st_nlink:
                return raw
            # It stands still because it was removed, and maybe made again in the same inode.
            # (The kernel's would not have answered.)
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


def _pids(raw: bytes) -> set[int]:
    return {int(pid) for pid in raw.split() if pid.isdigit()}


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _hierarchy(cgroupfs: Path) -> tuple[Path | None, str, Callable[[bytes], int | None]]:
    """(root, counter file, its reader) of the hierarchy that counts CPU time; root may be None."""
    # os.path answers no, and does not raise, for a folder that may not be entered.
    if not os.path.exists(cgroupfs / "cgroup.controllers"):  # noqa: PTH110
        for name in V1_CONTROLLERS:
            if os.path.isdir(cgroupfs / name):  # noqa: PTH112
                return cgroupfs / name, "cpuacct.usage", as_count
        if os.path.isdir(cgroupfs / "unified"):  # noqa: PTH112
            return cgroupfs / "unified", "cpu.stat", _usage_ns
    return (cgroupfs if os.path.isdir(cgroupfs) else None), "cpu.stat", _usage_ns  # noqa: PTH112


def _usage_ns(raw: bytes) -> int | None:
    return _of_stat(raw, b"usage_usec ")


def _of_stat(raw: bytes, name: bytes) -> int | None:
    """A line of cpu.stat, ns; None when it is not there, or torn."""
    if not raw.startswith(name):
        raw, name = b"\n" + raw, b"\n" + name
    digits, newline, _ = raw.partition(name)[2].partition(b"\n")
    return int(digits) * 1000 if newline and digits.isdigit() else None
