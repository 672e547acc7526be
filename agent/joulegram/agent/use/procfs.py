"""Processes and machine-wide CPU time from procfs.

Reads  <procfs>/{stat,loadavg}, <procfs>/<pid>/{stat,cgroup}
Format https://docs.kernel.org/filesystems/proc.html

A pid alone is not an identity: a process is (pid, start ticks). `stat` is kept open, since
opening costs more than reading, and is parsed only when its bytes changed. Where the kernel
says how much was forked and which pid it gave last, those pids are looked at, if any, and
nothing is listed.
"""

import errno
import os
import re
import resource
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from joulegram.agent.textfile import (
    ATTEMPTS,
    PAUSE_S,
    PIECE_BYTES,
    read_file,
    read_whole,
    visible,
    whole,
)
from joulegram.agent.use.mounts import is_kernels_procfs

# The unit of times in stat files (USER_HZ), 10 ms wherever the kernel still runs.
TICK_NS = 10_000_000
KERNEL_THREAD = 0x0020_0000  # PF_KTHREAD, include/linux/sched.h
STAT_BYTES = 2048
DESCRIPTORS_LEFT_FREE = 256
RETRIES_PER_SCAN = 40  # bounds the waiting for files that stay torn
MET_PER_SCAN = 1000  # a fork storm's processes are met over several ticks, in their order
READ_PER_SCAN = 20_000  # more take turns
LIST_EVERY = 60  # ticks, even where nothing was forked: what may be seen changes, too
HALF_MADE_LOOKS = 3
KEEP_OPEN_AFTER = 5  # times that a process was asked for its cgroup
# Looking at a pid costs a few times what listing one does, and nobody may be there any more.
LOOKS_SHARE, LOOKS_MIN = 4, 16
NOT_A_PROCESS = (errno.EINVAL, errno.ENOENT)  # but a thread of one: pidfd_open(2), by kernel
UNREADABLE = b"?"  # never what a file holds: read it anew
ZOMBIES = (b"Z", b"X")
# After the name: state, parent, flags, CPU time of its own (user, system) and of children it
# waited for (the same), threads, start. Numbers are those that 64 bits hold.
_ANY, _WORD, _NUMBER = rb" ++[^ ]++", rb" ++([^ ]++)", rb" ++([0-9]{1,18}+)"
STAT = re.compile(
    _WORD + _NUMBER + 4 * _ANY + _NUMBER + 4 * _ANY + 4 * _NUMBER + 2 * _ANY
    + _WORD + _ANY + _NUMBER + rb"[ \n]"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Machine-wide CPU time since boot, and how many logical CPUs gave it."""

    use_ns: int  # user + nice + system + irq + softirq; guest lies in user, steal is nobody's
    interrupts_ns: int  # irq + softirq
    cpus: int  # 0: not said
    forks: int = -1  # processes and threads since boot; -1: not said


def cpu_times(procfs: Path) -> CpuTimes:
    """Raises: OSError, Torn."""
    return read_whole(f"{procfs}/stat", _cpu_times)


def _cpu_times(raw: bytes) -> CpuTimes | None:
    line, newline, rest = raw.partition(b"\n")
    fields = line.split()
    if not newline or len(fields) < 8 or fields[0] != b"cpu" or not b"".join(fields[1:8]).isdigit():
        return None
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[1:8])
    forks, newline, _ = rest.partition(b"\nprocesses ")[2].partition(b"\n")
    return CpuTimes(
        use_ns=(user + nice + system + irq + softirq) * TICK_NS,
        interrupts_ns=(irq + softirq) * TICK_NS,
        cpus=(b"\n" + rest).count(b"\ncpu"),
        forks=int(forks) if newline and forks.isdigit() else -1,
    )


@dataclass(slots=True, eq=False)
class Process:
    """One process while it lives."""

    pid: int
    start_ticks: int
    name: bytes = b""  # comm
    parent: int = 0
    kernel: bool = False
    uid: int = 0
    used_ns: int = 0  # by its own threads since it began
    reaped_ns: int = 0  # by children it has waited for
    groups: bytes = b""  # /proc/<pid>/cgroup when last read; the same object while it holds
    groups_file: int = -1  # open for those that are often asked where they are
    placed: int = 0  # times asked
    path: str | None = None  # members.py's: of its cgroup, by...
    path_of: bytes | None = None  # ...these `groups`
    ran_at: int = 0  # members.py's: its tick in which this ran, moved or came
    zombie: bool = False  # it ended, all its threads too, and will not run again
    gone: bool = False  # it is not there any more
    file: int = -1
    raw: bytes = b""
    # When it was last read well, if it could not be read since; else 0.
    stale_ns: int = 0

    @property
    def command(self) -> str:
        return visible(self.name)


class Change(NamedTuple):
    """What a process used since it was read before."""

    process: Process
    since_ns: int  # monotonic
    used_ns: int
    reaped_ns: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at all processes found."""

    at_ns: int  # monotonic
    changes: list[Change] = field(default_factory=list)
    met: list[Process] = field(default_factory=list)
    ended: list[Process] = field(default_factory=list)
    zombies: list[Process] = field(default_factory=list)  # ended, and not gone yet


class Processes:
    """All processes of a procfs, read again at every tick.

    The first scan is the baseline and reports no use. Later, a process that was not there
    before is charged with everything it used so far.

    Args:
        counts_forks: whether an unchanged `processes` in <procfs>/stat means that no process
            came. The kernel's does (None: look), a played tree's may stand still.
    """

    def __init__(self, procfs: Path, *, counts_forks: bool | None = None) -> None:
        self._root = procfs
        self.counts_forks = is_kernels_procfs(procfs) if counts_forks is None else counts_forks
        self._known: dict[int, Process] = {}
        self.ended: list[Process] = []  # those whose end the last scan found
        self._names: set[str] = set()  # in the last listing, and settled: met, or no process
        self._waiting: list[str] = []  # in the last listing, and more than could be met
        self._unread: set[int] = set()  # were there from the start, and could not be read yet
        self._now_ns: int | None = None  # the last scan
        self._before_ns: int | None = None  # the one before
        self._half_made: dict[int, int] = {}  # pids whose `cgroup` is not there yet: looks
        self._descriptors = max(0, raise_file_limit() * 3 // 4 - DESCRIPTORS_LEFT_FREE)
        self._spare = self._descriptors // 2  # for one file of each process
        self._retries = 0
        self._forks = -1  # just before the last look for processes
        self._newest = -1  # the pid that was given last before it
        self._absent: list[int] = []  # pids given by then to nobody who was there
        self._list_at = 0  # the scan that lists whatever happened
        self._scans = 0
        self._turn = 0

    def get(self, pid: int) -> Process | None:
        return self._known.get(pid)

    def all(self) -> Collection[Process]:
        return self._known.values()

    def close(self) -> None:
        """Let go of every file."""
        for process in self._known.values():
            self._let_go(process.file)
            self._let_go(process.groups_file)
            process.file = process.groups_file = -1

    def scan(
        self,
        now_ns: int,
        plausible_ns: int,
        forks: int = -1,
        due: Collection[Process] | None = None,
    ) -> Scan:
        """Read the processes that may have run, and find those that came.

        Args:
            now_ns: monotonic time the readings are stamped with.
            plausible_ns: CPU time a process can have used since the last scan. One that appears
                with more began elsewhere (a restored checkpoint): it is charged from here on.
            forks: `processes` in <procfs>/stat, read before this; -1: unknown.
            due: who may have run; None: anybody.
        Raises: OSError when procfs cannot be listed.
        """
        scan = Scan(now_ns)
        self.ended = scan.ended
        self._before_ns = self._now_ns
        self._retries = RETRIES_PER_SCAN
        self.read(self._known.values() if due is None else due, scan, plausible_ns)
        self._scans += 1
        if forks != self._forks or not self.counts_forks or self._scans > self._list_at:
            self._look(forks, scan, plausible_ns)
        self._now_ns = now_ns
        return scan

    def list_again(self) -> None:
        """Let the next scan look for processes, whether or not anything was forked."""
        self._list_at = self._scans

    def read(self, due: Collection[Process], scan: Scan, plausible_ns: int) -> None:
        """Read these processes now, into the scan of this tick."""
        if len(due) > READ_PER_SCAN:
            due = self._in_turn(due)
        pread = os.pread
        changed = []
        for process in due:
            try:
                raw = pread(process.file, STAT_BYTES, 0)
            except OSError:  # it ended, or too many files are open
                raw = b""
            if raw != process.raw:
                changed.append((process, raw))
        for process, raw in changed:
            if self._known.get(process.pid) is process:
                self._reread(process, raw, scan, plausible_ns)

    def _in_turn(self, due: Collection[Process]) -> list[Process]:
        begin = self._turn if self._turn < len(due) else 0
        self._turn = begin + READ_PER_SCAN
        chosen = list(islice(due, begin, self._turn))
        for process in due:
            process.stale_ns = process.stale_ns or self._before_ns or 0
        return chosen

    def _look(self, forks: int, scan: Scan, plausible_ns: int) -> None:
        """Find those that came."""
        newest = self._newest_pid() if self.counts_forks else -1
        came = range(self._newest + 1, newest + 1)
        # Pids are given in turn, one to a fork at least, until they begin anew from the lowest.
        # (The two numbers are not of the same moment. A restored process may choose its pid.)
        sure = 0 <= self._newest <= newest and len(came) + LOOKS_MIN >= forks - self._forks >= 0
        few = len(came) <= len(self._known) // LOOKS_SHARE + LOOKS_MIN
        self._forks, self._newest = forks, newest
        if self._scans > self._list_at or not (
            sure and few and self._look_at(came, scan, plausible_ns)
        ):
            self._absent = []
            self._list(scan, plausible_ns)

    def _look_at(self, came: range, scan: Scan, plausible_ns: int) -> bool:
        """Meet those of these pids that are processes; False: it cannot be told."""
        again, self._absent = self._absent, []
        for pid in (*again, *came):
            if (process := self._known.get(pid)) is not None:  # a zombie's pid, before
                self.read((process,), scan, plausible_ns)
                continue
            try:
                os.close(os.pidfd_open(pid))
                absent = not self._meet(pid, scan, plausible_ns)
            except ProcessLookupError:
                absent = True
            except OSError as exc:
                if exc.errno not in NOT_A_PROCESS:
                    return False
                absent = False
            # A pid is given before its process can be seen.
            if absent and pid in came:
                self._absent.append(pid)
        return True

    def _newest_pid(self) -> int:
        """The pid that the kernel gave last, to a process or a thread; -1: unknown."""
        try:
            last = read_file(f"{self._root}/loadavg").split()[-1:]
        except OSError:
            return -1
        return int(last[0]) if last and last[0].isdigit() else -1

    def _list(self, scan: Scan, plausible_ns: int) -> None:
        """Meet who came, forget who went."""
        self._list_at = self._scans + LIST_EVERY
        # Not Path.iterdir: it makes an object per process.
        present = set(os.listdir(self._root))  # noqa: PTH208
        for process in [p for p in self._known.values() if p.zombie]:
            # Nobody reads it any more, and its pid may be another's by now.
            self.read((process,), scan, plausible_ns)
        for name in self._names - present:
            if (pid := _pid(name)) in self._known:
                self._forget(pid, scan)
        fresh = present - self._names
        queue = [name for name in self._waiting if name in fresh]
        queue += sorted(fresh.difference(queue), key=lambda name: (len(name), name))
        now = len(queue) if self._before_ns is None else MET_PER_SCAN
        self._waiting = queue[now:]
        if self._waiting:
            self.list_again()
        unread = {
            name
            for name in queue[:now]
            if (pid := _pid(name)) >= 0
            and pid not in self._known
            and not self._meet(pid, scan, plausible_ns)
        }
        self._names = present.difference(unread, self._waiting)
        if self._unread:
            self._unread.intersection_update(map(_pid, present))

    def groups(self, process: Process) -> bytes:
        """The process's cgroup file, read anew; what it held last when that fails."""
        if process.gone:  # and its pid may be another's
            return process.groups
        for attempt in range(ATTEMPTS):
            if attempt:
                if self._retries <= 0:
                    break
                self._retries -= 1
                time.sleep(PAUSE_S)
            try:
                raw = self._groups(process)
            except OSError:
                break
            if raw.endswith(b"\n"):
                if raw != process.groups:
                    process.groups = raw
                break
        return process.groups

    def _groups(self, process: Process) -> bytes:
        process.placed += 1
        if process.groups_file < 0:
            path = f"{self._root}/{process.pid}/cgroup"
            if process.placed < KEEP_OPEN_AFTER or self._descriptors <= self._spare:
                return read_file(path)
            process.groups_file = os.open(path, os.O_RDONLY)
            self._descriptors -= 1
        raw = os.pread(process.groups_file, PIECE_BYTES, 0)
        return raw if len(raw) < PIECE_BYTES else whole(process.groups_file)

    def _reread(self, process: Process, raw: bytes, scan: Scan, plausible_ns: int) -> None:
        """Its file changed, or cannot be read, or speaks of somebody else."""
        fields = _fields(raw)
        if fields is None or int(fields[-1]) != process.start_ticks:
            raw, file = self._open(process.pid)
            fields = _fields(raw)
            if fields is None:
                self._let_go(file)
                if not os.path.exists(f"{self._root}/{process.pid}"):  # noqa: PTH110
                    self._forget(process.pid, scan)
                    return
                process.raw = UNREADABLE
                process.stale_ns = process.stale_ns or self._before_ns or scan.at_ns
                return
            if int(fields[-1]) != process.start_ticks:
                self._let_go(file)
                self._forget(process.pid, scan)
                self._meet(process.pid, scan, plausible_ns)
                return
            self._let_go(process.file)
            process.file = file
        used_ns, reaped_ns = process.used_ns, process.reaped_ns
        self._note(process, raw, fields)
        if process.zombie:
            scan.zombies.append(process)
        since_ns = process.stale_ns or self._before_ns or scan.at_ns
        process.stale_ns = 0
        if process.used_ns > used_ns or process.reaped_ns > reaped_ns:
            scan.changes.append(
                Change(
                    process,
                    since_ns,
                    max(0, process.used_ns - used_ns),
                    max(0, process.reaped_ns - reaped_ns),
                )
            )

    def _meet(self, pid: int, scan: Scan, plausible_ns: int) -> bool:
        """Whether it could be read."""
        raw, file = self._open(pid)
        fields = _fields(raw)
        if fields is None:
            self._let_go(file)
            if raw:  # half written
                self.list_again()
            if self._before_ns is None:
                self._unread.add(pid)
            return False
        if not self._settled(pid):
            self._let_go(file)
            self.list_again()
            if self._before_ns is None:
                self._unread.add(pid)
            return False
        process = Process(pid, int(fields[-1]), file=file)
        self._note(process, raw, fields)
        self._known[pid] = process
        scan.met.append(process)
        is_new = self._before_ns is not None and pid not in self._unread
        self._unread.discard(pid)
        if is_new and 0 < process.used_ns + process.reaped_ns <= plausible_ns:
            since_ns = self._before_ns or scan.at_ns
            scan.changes.append(Change(process, since_ns, process.used_ns, process.reaped_ns))
        return True

    def _settled(self, pid: int) -> bool:
        """Whether it can be told whose it is: a played tree's folder may be half made."""
        looks = self._half_made.pop(pid, 0)
        if self.counts_forks or looks >= HALF_MADE_LOOKS or len(self._half_made) >= MET_PER_SCAN:
            return True
        try:
            made = read_file(f"{self._root}/{pid}/cgroup") != b""
        except OSError:
            made = False
        if not made:
            self._half_made[pid] = looks + 1
        return made

    def _note(self, process: Process, raw: bytes, fields: tuple[bytes, ...]) -> None:
        state, parent, flags, user, system, reaped_user, reaped_system, threads, _start = fields
        name = raw[raw.index(b"(") + 1 : raw.rindex(b")")]
        if name != process.name:  # new, or it called exec: credentials may have changed too
            process.name = name
            try:
                process.uid = os.stat(f"{self._root}/{process.pid}").st_uid  # noqa: PTH116
            except OSError:
                process.uid = 0
        process.raw = raw
        process.parent = int(parent)
        process.kernel = bool(int(flags) & KERNEL_THREAD)
        # The first thread may end before the others: then they run on under a zombie's name.
        process.zombie = state in ZOMBIES and threads in (b"0", b"1")
        process.used_ns = (int(user) + int(system)) * TICK_NS
        process.reaped_ns = (int(reaped_user) + int(reaped_system)) * TICK_NS

    def _forget(self, pid: int, scan: Scan) -> None:
        process = self._known.pop(pid)
        self._names.discard(str(pid))  # whoever has the pid next is somebody new
        self._let_go(process.file)
        self._let_go(process.groups_file)
        process.file = process.groups_file = -1
        process.gone = True
        scan.ended.append(process)

    def _open(self, pid: int) -> tuple[bytes, int]:
        """Its `stat`, a few times while it is torn, and the open file.

        Returns: (b"", -1) when it cannot be read; (bytes, -1) when enough files are open.
        """
        try:
            file = os.open(f"{self._root}/{pid}/stat", os.O_RDONLY)
        except OSError:
            return b"", -1
        self._descriptors -= 1
        raw = b""
        for attempt in range(ATTEMPTS):
            if attempt:
                if self._retries <= 0:
                    break
                self._retries -= 1
                time.sleep(PAUSE_S)
            try:
                raw = os.pread(file, STAT_BYTES, 0)
            except OSError:
                break
            if _fields(raw) is not None:
                break
        if self._descriptors < 0:
            self._let_go(file)
            file = -1
        return raw, file

    def _let_go(self, file: int) -> None:
        if file >= 0:
            os.close(file)
            self._descriptors += 1


def _pid(name: str) -> int:
    """-1 for what is no process."""
    return int(name) if name.isascii() and name.isdecimal() else -1


def _fields(raw: bytes) -> tuple[bytes, ...] | None:
    """What STAT finds after the name; None for a torn line.

    The name may hold anything, `) R 1 (` too: the last parenthesis ends it.
    """
    end = raw.rfind(b")")
    if end < 0 or not raw.endswith(b"\n"):
        return None
    found = STAT.match(raw, end + 1)
    return found.groups() if found else None


def raise_file_limit() -> int:
    """Let this process open as many files as it may; returns how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 17) if hard != resource.RLIM_INFINITY else 1 << 17
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return soft
        return wanted
    return soft
