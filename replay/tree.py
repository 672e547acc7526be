"""A machine made of files: sysfs, procfs and cgroupfs under one folder, in the kernel's formats.

`pass_time` lets it draw power and burn CPU time; `write` rewrites the files that changed, in
place and in random order, as a reader meets them on a real machine. One of them may be torn: for
a moment it holds half of its value.

Format https://docs.kernel.org/filesystems/proc.html
       https://docs.kernel.org/admin-guide/cgroup-v2.html
       https://docs.kernel.org/power/powercap/powercap.html
       https://docs.kernel.org/hwmon/sysfs-interface.html
"""

import contextlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TORN_S = 0.0001
TEAR_SHARE = 0.1
RAPL_RANGE_UJ = 262_143_328_850
BOOT_ID = "5ab7f3a4-9f0e-4d58-8b1c-2f60c7a9d3e1"
USER, KERNEL = 0x0040_0000, 0x0020_8040  # flags of a process, of a kernel thread
HZ = 100


@dataclass
class Zone:
    """A powercap zone that draws so many watts."""

    folder: Path
    watts: float
    value_uj: float
    range_uj: int
    hidden: bool = False  # its counter cannot be read

    @property
    def text(self) -> bytes:
        return b"%d\n" % self.value_uj


@dataclass
class Meter:
    """An ACPI power meter: power alone, no energy."""

    folder: Path
    watts: float


@dataclass
class Task:
    """A process that burns so many CPUs."""

    pid: int
    comm: bytes
    group: str
    cores: float
    start: int
    parent: int
    flags: int
    used_s: float = 0.0
    reaped_s: float = 0.0  # by children it waited for


@dataclass
class Group:
    """A cgroup: use of its own, its descendants' not included."""

    own_s: float = 0.0
    unseen_cores: float = 0.0  # burnt by children that nobody sees


@dataclass
class Forks:
    """A parent that starts one child after the other, each living for a moment."""

    parent: Task
    cores: float
    live_s: float
    next_pid: int
    child: Task | None = None
    paused: Callable[[], bool] = lambda: False


@dataclass
class Machine:
    """What it has, what that does, and the files that tell."""

    root: Path
    cpus: int = 64
    seed: int = 1
    zones: dict[str, Zone] = field(default_factory=dict)
    meters: list[Meter] = field(default_factory=list)
    tasks: dict[int, Task] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    forks: list[Forks] = field(default_factory=list)
    irq_cores: float = 0.0
    steal_cores: float = 0.0
    guest_cores: float = 0.0
    _spent: dict[str, float] = field(default_factory=dict)  # whole machine, by column of stat
    _forked: int = 4000
    _written: dict[Path, bytes] = field(default_factory=dict)
    _due_s: dict[Path, float] = field(default_factory=dict)  # when it may be rewritten, monotonic
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        for folder in (self.powercap, self.sys / "class/hwmon", self.proc, self.cgroup):
            folder.mkdir(parents=True)
        (self.proc / "sys/kernel/random").mkdir(parents=True)
        (self.proc / "sys/kernel/random/boot_id").write_text(BOOT_ID + "\n")
        (self.cgroup / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")

    @property
    def sys(self) -> Path:
        return self.root / "sys"

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    @property
    def cgroup(self) -> Path:
        return self.root / "cgroup"

    @property
    def powercap(self) -> Path:
        return self.sys / "class/powercap"

    # What it has

    def zone(
        self,
        entry: str,
        name: str,
        watts: float = 0.0,
        value_uj: int = 1_000_000,
        range_uj: int = RAPL_RANGE_UJ,
    ) -> Zone:
        folder = self.powercap / entry
        folder.mkdir()
        (folder / "name").write_text(name + "\n")
        (folder / "enabled").write_text("1\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        zone = self.zones[entry] = Zone(folder, watts, value_uj, range_uj)
        return zone

    def power_meter(self, watts: float) -> Meter:
        folder = self.sys / f"class/hwmon/hwmon{len(self.meters)}"
        folder.mkdir()
        (folder / "name").write_text("power_meter\n")
        meter = Meter(folder, watts)
        self.meters.append(meter)
        return meter

    def task(
        self,
        pid: int,
        group: str = "/",
        cores: float = 0.0,
        comm: bytes = b"work",
        start: int = 1000,
        parent: int = 1,
        flags: int = USER,
        used_s: float = 0.0,
    ) -> Task:
        """Start a process: a folder of its own, there at once, a start time of its own."""
        self.add_group(group)
        task = Task(pid, comm, group, cores, start, parent, flags, used_s)
        self._forked += 1
        unborn = self.root / "unborn"
        unborn.mkdir()
        for name, content in _files_of(task).items():
            (unborn / name).write_bytes(content)
        unborn.rename(self.proc / str(pid))
        self.tasks[pid] = task
        return task

    def details(self, pid: int, **files: bytes) -> None:
        """More files of a process, such as environ."""
        for name, content in files.items():
            (self.proc / str(pid) / name).write_bytes(content)

    def end(self, pid: int) -> None:
        """Its stat is emptied, its folder removed."""
        task = self.tasks.pop(pid)
        folder = self.proc / str(task.pid)
        stat = folder / "stat"
        if stat.exists():
            os.truncate(stat, 0)
        _remove(folder)
        self._forget(folder)

    def move(self, pid: int, group: str) -> None:
        self.add_group(group)
        self.tasks[pid].group = group

    def add_group(self, path: str, unseen_cores: float = 0.0) -> Group | None:
        """A cgroup and those above it; None for the root."""
        parts = [part for part in path.split("/") if part]
        for n in range(1, len(parts) + 1):
            above = "/" + "/".join(parts[:n])
            if above not in self.groups:
                self.groups[above] = Group()
                self._folder(above).mkdir()
        if not parts:
            return None
        self.groups[path].unseen_cores = unseen_cores or self.groups[path].unseen_cores
        return self.groups[path]

    def remove_group(self, path: str) -> None:
        """What it used stays counted in its parent."""
        gone = self.groups.pop(path)
        if (above := path.rpartition("/")[0]) in self.groups:
            self.groups[above].own_s += gone.own_s
        folder = self._folder(path)
        _remove(folder)
        self._forget(folder)

    def used_s(self, path: str = "/") -> float:
        """CPU time of a cgroup and all below it so far; of the whole machine for the root."""
        if path == "/":
            return self._spent.get("user", 0.0) + self._spent.get("irq", 0.0)
        return sum(
            group.own_s
            for other, group in self.groups.items()
            if other == path or other.startswith(path + "/")
        )

    # What happens

    def pass_time(self, seconds: float) -> None:
        for zone in self.zones.values():
            zone.value_uj += zone.watts * seconds * 1e6
            if zone.range_uj:
                zone.value_uj %= zone.range_uj
        for fork in self.forks:
            self._fork(fork, seconds)
        for task in self.tasks.values():
            self._burn(task, task.cores * seconds)
        for path, group in self.groups.items():
            self.burn(path, group.unseen_cores * seconds)
        for column in ("irq", "steal", "guest"):
            self._spend(column, getattr(self, f"{column}_cores") * seconds)

    def burn(self, path: str, seconds: float) -> None:
        """CPU time of children that nobody saw."""
        self.groups[path].own_s += seconds
        self._spend("user", seconds)

    def _burn(self, task: Task, seconds: float) -> None:
        task.used_s += seconds
        self._spend("user", seconds)
        if task.group in self.groups:
            self.groups[task.group].own_s += seconds

    def _fork(self, fork: Forks, seconds: float) -> None:
        """The child lives on, or ends and makes room for the next."""
        if fork.child is not None and (
            fork.child.used_s >= fork.cores * fork.live_s or fork.paused()
        ):
            fork.parent.reaped_s += fork.child.used_s
            self.end(fork.child.pid)
            fork.child = None
        if fork.child is None and not fork.paused():
            fork.next_pid += 1
            fork.child = self.task(
                fork.next_pid,
                fork.parent.group,
                comm=b"cc1",
                start=2000 + fork.next_pid,
                parent=fork.parent.pid,
            )
        if fork.child is not None:
            self._burn(fork.child, fork.cores * seconds)

    def _spend(self, column: str, seconds: float) -> None:
        self._spent[column] = self._spent.get(column, 0.0) + seconds

    # What the files say

    def write(self, *, age_s: float = 0.0, tear: bool = False) -> float:
        """Rewrite what changed, in place, in random order.

        Args:
            age_s: files are left as they are for up to so long, each at its own times.
            tear: let a file hold half of its value for a moment, one in ten times.
        Returns: how long that was, s.
        """
        files = [(path, content) for path, content in self._files() if self._differs(path, content)]
        if age_s:
            now_s = time.monotonic()
            files = [
                (path, content) for path, content in files if self._due_s.get(path, 0) <= now_s
            ]
            for path, _ in files:
                self._due_s[path] = now_s + age_s * self._random.uniform(0.5, 1.0)
        self._random.shuffle(files)
        torn = -1
        if files and tear and self._random.random() < TEAR_SHARE:
            torn = self._random.randrange(len(files))
        torn_s = 0.0
        for n, (path, content) in enumerate(files):
            with contextlib.suppress(FileNotFoundError):  # of a folder that is gone by now
                torn_s += _rewrite(path, content, torn=n == torn)
                self._written[path] = content
        return torn_s

    def _files(self) -> list[tuple[Path, bytes]]:
        files = [
            (zone.folder / "energy_uj", zone.text)
            for zone in self.zones.values()
            if not zone.hidden
        ]
        files += [(m.folder / "power1_input", b"%d\n" % (m.watts * 1e6)) for m in self.meters]
        members: dict[str, list[int]] = {path: [] for path in ["/", *self.groups]}
        for task in self.tasks.values():
            folder = self.proc / str(task.pid)
            files += [(folder / name, text) for name, text in _files_of(task).items()]
            members.setdefault(task.group, []).append(task.pid)
        for path, pids in members.items():
            folder = self._folder(path)
            files.append((folder / "cpu.stat", _cpu_stat(self.used_s(path))))
            files.append((folder / "cgroup.procs", b"".join(b"%d\n" % p for p in sorted(pids))))
            below = sum(other.startswith(path.rstrip("/") + "/") for other in self.groups)
            text = b"nr_descendants %d\nnr_dying_descendants 0\n" % below
            files.append((folder / "cgroup.stat", text))
            if path != "/":
                files.append((folder / "cgroup.type", b"domain\n"))
        files.append((self.proc / "stat", self._machine_stat()))
        return files

    def _machine_stat(self) -> bytes:
        spent = {name: int(seconds * HZ) for name, seconds in self._spent.items()}
        user, irq, steal, guest = (spent.get(c, 0) for c in ("user", "irq", "steal", "guest"))
        # Guest time is inside user time as well.
        lines = [f"cpu  {user + guest} 0 0 90000 200 {irq} 0 {steal} {guest} 0"]
        lines += [f"cpu{n} 0 0 0 1400 3 0 0 0 0 0" for n in range(self.cpus)]
        lines += ["intr 0", "ctxt 0", "btime 1790000000", f"processes {self._forked}"]
        lines += ["procs_running 1", "procs_blocked 0"]
        return "\n".join(lines).encode() + b"\n"

    def _folder(self, path: str) -> Path:
        return self.cgroup / path.lstrip("/")

    def _differs(self, path: Path, content: bytes) -> bool:
        return self._written.get(path) != content

    def _forget(self, folder: Path) -> None:
        for path in [path for path in self._written if path.parent == folder]:
            del self._written[path]
            self._due_s.pop(path, None)


def _files_of(task: Task) -> dict[str, bytes]:
    return {
        "stat": _stat(task),
        "comm": task.comm + b"\n",
        "cgroup": b"0::" + os.fsencode(task.group) + b"\n",
        "cmdline": task.comm.partition(b"\0")[0] + b"\0",
        "status": _status(task),
    }


def _status(task: Task) -> bytes:
    name = task.comm.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    uid = b"\t".join([b"%d" % os.getuid()] * 4)
    ids = b"Tgid:\t%d\nPid:\t%d\nPPid:\t%d\nUid:\t%s\n" % (task.pid, task.pid, task.parent, uid)
    return b"Name:\t%s\nUmask:\t0022\nState:\tS (sleeping)\n%sThreads:\t1\n" % (name, ids)


def _stat(task: Task) -> bytes:
    used, reaped = int(task.used_s * HZ), int(task.reaped_s * HZ)
    fields = f"S {task.parent} 1 1 0 -1 {task.flags} 90 0 0 0 {used} 0 {reaped} 0 20 0 1 0"
    tail = f" {task.start} 8000000 900" + " 0" * 28
    return b"%d (%s) %s%s\n" % (task.pid, task.comm, fields.encode(), tail.encode())


def _cpu_stat(used_s: float) -> bytes:
    used_us = int(used_s * 1e6)
    return b"usage_usec %d\nuser_usec %d\nsystem_usec 0\n" % (used_us, used_us)


def _rewrite(path: Path, content: bytes, *, torn: bool) -> float:
    """In place. A shorter value leaves the end of the longer one for a moment."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        began_s = time.perf_counter()
        if torn:
            os.ftruncate(file, 0)
            os.pwrite(file, content[: len(content) // 2], 0)
            # Not asleep: on a busy machine it would be torn for as long as others like.
            while time.perf_counter() - began_s < TORN_S:
                pass
        os.pwrite(file, content, 0)
        os.ftruncate(file, len(content))
        return time.perf_counter() - began_s if torn else 0.0
    finally:
        os.close(file)


def _remove(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _remove(entry)
        else:
            entry.unlink()
    folder.rmdir()
