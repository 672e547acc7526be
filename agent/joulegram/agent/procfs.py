"""Processes and machine-wide CPU time from procfs.

Reads  <procfs>/stat, <procfs>/<pid>/{stat,cgroup}
Format https://docs.kernel.org/filesystems/proc.html

A pid alone is not an identity: a process is (pid, start ticks). `stat` is kept open, since
opening costs more than reading, and is parsed only when its bytes changed.
"""

import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.agent.textfile import ATTEMPTS, PAUSE_S, Torn, read_whole, visible

# The unit of times in stat files (USER_HZ), 10 ms wherever the kernel still runs.
TICK_NS = 10_000_000
KERNEL_THREAD = 0x0020_0000  # PF_KTHREAD, include/linux/sched.h
STAT_BYTES = 2048
DESCRIPTORS_LEFT_FREE = 256
RETRIES_PER_SCAN = 40  # bounds the waiting for files that stay torn


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Machine-wide CPU time since boot, and how many logical CPUs gave it."""

    use_ns: int  # user + nice + system + irq + softirq; guest lies in user, steal is nobody's
    interrupts_ns: int  # irq + softirq
    cpus: int  # 0: not said


def cpu_times(procfs: Path) -> CpuTimes:
    """Raises: OSError, Torn."""
    return read_whole(procfs / "stat", _cpu_times)


def _cpu_times(raw: bytes) -> CpuTimes | None:
    line, newline, rest = raw.partition(b"\n")
    fields = line.split()
    if not newline or len(fields) < 8 or fields[0] != b"cpu" or not b"".join(fields[1:8]).isdigit():
        return None
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[1:8])
    return CpuTimes(
        use_ns=(user + nice + system + irq + softirq) * TICK_NS,
        interrupts_ns=(irq + softirq) * TICK_NS,
        cpus=(b"\n" + rest).count(b"\ncpu"),
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
    groups: bytes = b""  # /proc/<pid>/cgroup when last read
    file: int = -1
    raw: bytes = b""
    # When it was last read well, if it could not be read since; else 0.
    stale_ns: int = 0

    @property
    def command(self) -> str:
        return visible(self.name)


@dataclass(frozen=True, slots=True)
class Change:
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


class Processes:
    """All processes of a procfs, read again at every tick.

    The first scan is the baseline and reports no use. Later, a process that was not there
    before is charged with everything it used so far.
    """

    def __init__(self, procfs: Path) -> None:
        self._root = procfs
        self._known: dict[int, Process] = {}
        self._unread: set[int] = set()  # were there from the start, and could not be read yet
        self._before_ns: int | None = None
        self._descriptors = max(0, raise_file_limit() * 3 // 4 - DESCRIPTORS_LEFT_FREE)
        self._retries = 0

    def get(self, pid: int) -> Process | None:
        return self._known.get(pid)

    def __len__(self) -> int:
        return len(self._known)

    def scan(self, now_ns: int, plausible_ns: int) -> Scan:
        """Read every process once.

        Args:
            now_ns: monotonic time the readings are stamped with.
            plausible_ns: CPU time a process can have used since the last scan. One that appears
                with more began elsewhere (a restored checkpoint): it is charged from here on.
        Raises: OSError when procfs cannot be listed.
        """
        scan = Scan(now_ns)
        known, pread = self._known, os.pread
        # Not Path.iterdir: it makes an object per process.
        listing = [int(name) for name in os.listdir(self._root) if name.isdecimal()]  # noqa: PTH208
        self._retries = RETRIES_PER_SCAN
        for pid in listing:
            process = known.get(pid)
            if process is None:
                self._meet(pid, scan, plausible_ns)
                continue
            try:
                raw = pread(process.file, STAT_BYTES, 0) if process.file >= 0 else self._stat(pid)
            except OSError:
                raw = b""
            if raw == process.raw:
                if process.stale_ns:
                    process.stale_ns = 0
                continue
            self._reread(process, raw, scan, plausible_ns)
        for pid in known.keys() - listing:
            self._forget(pid, scan)
        self._unread.intersection_update(listing)
        self._before_ns = now_ns
        return scan

    def groups(self, process: Process) -> bytes:
        """The process's cgroup file, read anew; what it held last when that fails."""
        try:
            path = self._root / str(process.pid) / "cgroup"
            process.groups = read_whole(path, lambda raw: raw if raw.endswith(b"\n") else None)
        except (OSError, Torn):
            pass
        return process.groups

    def _reread(self, process: Process, raw: bytes, scan: Scan, plausible_ns: int) -> None:
        """Its file changed, or cannot be read, or speaks of somebody else."""
        fields = _fields(raw)
        if fields is None or int(fields[19]) != process.start_ticks:
            raw = self._stat_again(process.pid)
            fields = _fields(raw)
            if fields is None:
                if not (self._root / str(process.pid)).exists():
                    self._forget(process.pid, scan)
                    return
                # Unreadable for now.
                process.stale_ns = process.stale_ns or self._before_ns or scan.at_ns
                return
            if int(fields[19]) != process.start_ticks:
                self._forget(process.pid, scan)
                self._meet(process.pid, scan, plausible_ns)
                return
            self._close(process)
            self._open(process)
        used_ns, reaped_ns = process.used_ns, process.reaped_ns
        self._note(process, raw, fields)
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

    def _meet(self, pid: int, scan: Scan, plausible_ns: int) -> None:
        raw = self._stat_again(pid)
        fields = _fields(raw)
        if fields is None:
            if self._before_ns is None:
                self._unread.add(pid)
            return
        process = Process(pid, int(fields[19]))
        self._open(process)
        self._note(process, raw, fields)
        self._known[pid] = process
        scan.met.append(process)
        is_new = self._before_ns is not None and pid not in self._unread
        self._unread.discard(pid)
        if is_new and 0 < process.used_ns + process.reaped_ns <= plausible_ns:
            since_ns = self._before_ns or scan.at_ns
            scan.changes.append(Change(process, since_ns, process.used_ns, process.reaped_ns))

    def _note(self, process: Process, raw: bytes, fields: list[bytes]) -> None:
        name = raw[raw.index(b"(") + 1 : raw.rindex(b")")]
        if name != process.name:  # new, or it called exec: credentials may have changed too
            process.name = name
            try:
                process.uid = (self._root / str(process.pid)).stat().st_uid
            except OSError:
                process.uid = 0
        process.raw = raw
        process.parent = int(fields[1])
        process.kernel = bool(int(fields[6]) & KERNEL_THREAD)
        process.used_ns = (int(fields[11]) + int(fields[12])) * TICK_NS
        process.reaped_ns = (int(fields[13]) + int(fields[14])) * TICK_NS

    def _forget(self, pid: int, scan: Scan) -> None:
        process = self._known.pop(pid)
        self._close(process)
        scan.ended.append(process)

    def _stat(self, pid: int) -> bytes:
        return (self._root / str(pid) / "stat").read_bytes()

    def _stat_again(self, pid: int) -> bytes:
        """Read by path, a few times while it is torn; b"" when it cannot be read."""
        raw = b""
        for attempt in range(ATTEMPTS):
            if attempt:
                if self._retries <= 0:
                    break
                self._retries -= 1
                time.sleep(PAUSE_S)
            try:
                raw = self._stat(pid)
            except OSError:
                return b""
            if _fields(raw) is not None:
                return raw
        return raw

    def _open(self, process: Process) -> None:
        if self._descriptors <= 0:
            return
        try:
            process.file = os.open(self._root / str(process.pid) / "stat", os.O_RDONLY)
            self._descriptors -= 1
        except OSError:
            process.file = -1

    def _close(self, process: Process) -> None:
        if process.file >= 0:
            os.close(process.file)
            process.file = -1
            self._descriptors += 1


def _fields(raw: bytes) -> list[bytes] | None:
    """The fields after the name, from `state` on; None for a torn line.

    The name may hold anything, `) R 1 (` too: the last parenthesis ends it.
    """
    end = raw.rfind(b")")
    if end < 0 or not raw.endswith(b"\n"):
        return None
    fields = raw[end + 1 :].split(None, 20)
    if (
        len(fields) < 20
        or not b"".join((fields[1], fields[6], *fields[11:15], fields[19])).isdigit()
    ):
        return None
    return fields


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
