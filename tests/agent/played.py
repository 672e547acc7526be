"""A machine made of files, played in virtual time: sysfs, procfs and cgroupfs under one folder."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joulegram.agent import machine
from joulegram.agent.config import AgentConfig
from joulegram.agent.energy import AnySensor
from joulegram.agent.floors import Floors
from joulegram.agent.frames import COLUMNS, unpack
from joulegram.agent.meter import Meter
from joulegram.agent.owners.owners import Owners
from joulegram.v1.telemetry_pb2 import Frame

START_NS = 1_790_000_000_000_000_000  # a multiple of 10 s
MS = 1_000_000


@dataclass
class Clock:
    """Time that passes only when somebody waits; `late_ms` is how late a sleeper wakes."""

    on_wait: Callable[[float], None] = lambda seconds: None
    late_ms: int = 2
    wall: int = START_NS
    mono: int = 77_000_000_000
    suspended: int = 0

    def wall_ns(self) -> int:
        return self.wall

    def mono_ns(self) -> int:
        return self.mono

    def asleep_ns(self) -> int:
        return self.suspended

    def suspend(self, for_s: float) -> None:
        """The wall clock goes on, the monotonic one does not."""
        self.wall += round(for_s * 1e9)
        self.suspended += round(for_s * 1e9)

    def wait(self, stop: threading.Event, for_s: float) -> bool:
        elapsed_ns = round(for_s * 1e9) + self.late_ms * MS
        self.on_wait(elapsed_ns / 1e9)
        self.wall += elapsed_ns
        self.mono += elapsed_ns
        return stop.is_set()


@dataclass
class Zone:
    folder: Path
    value_uj: float
    range_uj: int
    watts: float = 0.0

    def advance(self, seconds: float) -> None:
        self.value_uj += self.watts * seconds * 1e6
        if self.range_uj:
            self.value_uj %= self.range_uj
        self.write()

    def write(self) -> None:
        (self.folder / "energy_uj").write_text(f"{int(self.value_uj)}\n")


@dataclass
class Task:
    pid: int
    start: int
    comm: bytes
    group: bytes
    cores: float = 0.0
    used_s: float = 0.0
    reaped_s: float = 0.0
    parent: int = 1
    flags: int = 0x400000


@dataclass
class Machine:
    """Zones with watts, tasks with cores; `advance` lets time pass and rewrites the files.

    Args:
        kernels: let the agent believe that the tree is the kernel's, and take its short cuts.
        root_counts: whether the root cgroup has a counter, of the whole machine.
    """

    root: Path
    cpus: int = 64
    version: int = 2
    kernels: bool | None = None
    root_counts: bool = False
    forks: int = 1
    zones: dict[str, Zone] = field(default_factory=dict)
    tasks: dict[int, Task] = field(default_factory=dict)
    groups: dict[str, float] = field(default_factory=dict)  # own use, s; children not included
    extra_cores: dict[str, float] = field(default_factory=dict)  # children nobody sees
    irq_cores: float = 0.0
    steal_cores: float = 0.0
    guest_cores: float = 0.0
    _stat: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("user", "irq", "steal", "guest"), 0.0)
    )

    def __post_init__(self) -> None:
        for name in ("sys/class/powercap", "proc", "cgroup"):
            (self.root / name).mkdir(parents=True)
        if self.version == 2:
            (self.root / "cgroup/cgroup.controllers").write_text("cpu\n")
        self._write_stat()

    def zone(
        self,
        entry: str,
        name: str,
        watts: float = 0.0,
        value_uj: int = 1_000_000,
        range_uj: int = 262_143_328_850,
        max_power_uw: int | None = None,
    ) -> Zone:
        folder = self.root / "sys/class/powercap" / entry
        folder.mkdir()
        (folder / "name").write_text(name + "\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        if max_power_uw is not None:
            (folder / "constraint_0_max_power_uw").write_text(f"{max_power_uw}\n")
        zone = self.zones[entry] = Zone(folder, value_uj, range_uj, watts)
        zone.write()
        return zone

    def task(
        self,
        pid: int,
        comm: bytes = b"work",
        group: bytes = b"/",
        cores: float = 0.0,
        start: int = 1000,
        **more: float,
    ) -> Task:
        self.forks += 1
        self._write_stat()
        task = self.tasks[pid] = Task(pid, start, comm, group, cores, **more)  # type: ignore[arg-type]
        (self.root / f"proc/{pid}").mkdir()
        self.cgroup(group.decode("utf-8", "surrogateescape"))
        self._write_task(task)
        return task

    def cgroup(self, path: str, used_s: float = 0.0, extra_cores: float = 0.0) -> None:
        parts = path.strip("/").split("/") if path != "/" else []
        for n in range(1, len(parts) + 1):
            self.groups.setdefault("/" + "/".join(parts[:n]), 0.0)
        if parts:
            self._stat["user"] += used_s
            self.groups[path] += used_s
            self.extra_cores[path] = extra_cores
        self._write_groups()

    def burn_in_root(self, seconds: float) -> None:
        """Children in the root that came and went."""
        self._stat["user"] += seconds

    def remove_group(self, path: str) -> None:
        """Its use stays in its parent, as in the kernel."""
        parent = path.rpartition("/")[0]
        if parent:
            self.groups[parent] += self.groups[path]
        del self.groups[path]
        self.extra_cores.pop(path, None)
        folder = self._group_folder(path)
        if folder.exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        self._write_groups()

    def end(self, pid: int) -> None:
        del self.tasks[pid]
        folder = self.root / f"proc/{pid}"
        (folder / "stat").write_bytes(b"")
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    def move(self, pid: int, group: bytes) -> None:
        self.tasks[pid].group = group
        self.cgroup(group.decode())
        self._write_task(self.tasks[pid])

    def advance(self, seconds: float) -> None:
        for zone in self.zones.values():
            zone.advance(seconds)
        for task in self.tasks.values():
            task.used_s += task.cores * seconds
            self._stat["user"] += task.cores * seconds
            name = task.group.decode("utf-8", "surrogateescape")
            if name in self.groups:
                self.groups[name] += task.cores * seconds
            self._write_task(task)
        for path, cores in self.extra_cores.items():
            self.groups[path] += cores * seconds
            self._stat["user"] += cores * seconds
        self._stat["irq"] += self.irq_cores * seconds
        self._stat["steal"] += self.steal_cores * seconds
        self._stat["guest"] += self.guest_cores * seconds
        self._write_groups()
        self._write_stat()

    def _write_task(self, task: Task) -> None:
        folder = self.root / f"proc/{task.pid}"
        ticks, reaped = int(task.used_s * 100), int(task.reaped_s * 100)
        head = f"{task.pid} (".encode() + task.comm + b") S "
        times = f"{ticks} 0 {reaped} 0 20 0 1 0 {task.start}"
        tail = f"{task.parent} 1 1 0 -1 {task.flags} 0 0 0 0 {times}"
        (folder / "stat").write_bytes(head + tail.encode() + b" 0" * 30 + b"\n")
        line = b"0::" if self.version == 2 else b"4:cpu,cpuacct:"
        (folder / "cgroup").write_bytes(line + task.group + b"\n")

    def _group_folder(self, path: str) -> Path:
        base = self.root / "cgroup" / ("" if self.version == 2 else "cpu,cpuacct")
        return base / path.lstrip("/")

    def _write_groups(self) -> None:
        if self.version == 2:
            self._write_members()
        for path in self.groups:
            folder = self._group_folder(path)
            folder.mkdir(parents=True, exist_ok=True)
            inside = sum(s for p, s in self.groups.items() if p == path or p.startswith(path + "/"))
            if self.version == 2:
                us = int(inside * 1e6)
                text = f"usage_usec {us}\nuser_usec {us}\nsystem_usec 0\n"
                (folder / "cpu.stat").write_text(text)
            else:
                (folder / "cpuacct.usage").write_text(f"{int(inside * 1e9)}\n")

    def _write_members(self) -> None:
        count = f"nr_descendants {len(self.groups)}\nnr_dying_descendants 0\n"
        (self.root / "cgroup/cgroup.stat").write_text(count)
        for path in ["/", *self.groups]:
            name = path.encode("utf-8", "surrogateescape")
            pids = "".join(f"{t.pid}\n" for t in self.tasks.values() if t.group == name)
            folder = self._group_folder(path)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cgroup.procs").write_text(pids)

    def _write_stat(self) -> None:
        user, irq, steal, guest = (
            int(self._stat[key] * 100) for key in ("user", "irq", "steal", "guest")
        )
        lines = [f"cpu  {user + guest} 0 0 5 5 {irq} 0 {steal} {guest} 0"]
        lines += [f"cpu{n} 0 0 0 0 0 0 0 0 0 0" for n in range(self.cpus)]
        lines += ["btime 0", f"processes {self.forks}"]
        (self.root / "proc/stat").write_text("\n".join(lines) + "\n")
        if self.root_counts:
            self._write_root()

    def _write_root(self) -> None:
        folder = self._group_folder("/")
        folder.mkdir(parents=True, exist_ok=True)
        user_s = self._stat["user"] + self._stat["guest"]
        if self.version == 1:
            (folder / "cpuacct.usage").write_text(f"{int(user_s * 1e9)}\n")
            return
        user, system, steal = (
            int(s * 1e6) for s in (user_s, self._stat["irq"], self._stat["steal"])
        )
        # As kernels do that hold stolen time in it.
        text = f"usage_usec {user + system + steal}\nuser_usec {user}\nsystem_usec {system}\n"
        (folder / "cpu.stat").write_text(text)

    def config(self, **more: object) -> AgentConfig:
        settings: dict[str, object] = {
            "node": "n1",
            "sysfs": self.root / "sys",
            "procfs": self.root / "proc",
            "cgroupfs": self.root / "cgroup",
            "tick_s": 0.5,
            "window_s": 1.0,
            **more,
        }
        return AgentConfig(**settings)  # type: ignore[arg-type]

    def play(
        self,
        frames: int,
        events: dict[float, Callable[[], object]] | None = None,
        clock: Clock | None = None,
        **more: Any,
    ) -> list[Frame]:
        """So many frames of the shipped meter on this machine, as `frames` yields them."""
        with contextlib.closing(self.frames(events, clock, **more)) as coming:
            return list(itertools.islice(coming, frames))

    def frames(
        self,
        events: dict[float, Callable[[], object]] | None = None,
        clock: Clock | None = None,
        sensors: Sequence[AnySensor] = (),
        more_sensors: bool = False,
        floors: Floors | None = None,
        owners: Owners | None = None,
        **config: object,
    ) -> Generator[Frame, None, None]:
        """Frames of the shipped meter on this machine, each when it is ready.

        Args:
            events: what happens at which second after the first window began.
            sensors: what the meter has in place of what it finds; with `more_sensors` too.
        """
        clock = clock or Clock()
        due = sorted((events or {}).items())
        # The first window begins one window after the start.
        settings = self.config(**config)
        born_ns = START_NS + round(settings.window_s * 1e9)

        def pass_time(seconds: float) -> None:
            now_s = (clock.wall - born_ns) / 1e9
            until_s = now_s + seconds
            while due and due[0][0] < until_s:
                at_s, event = due.pop(0)
                self.advance(max(0.0, at_s - now_s))
                now_s = max(now_s, at_s)
                event()
            self.advance(until_s - now_s)

        clock.on_wait = pass_time
        find = None
        if sensors:
            others = machine.Machine(settings, clock).sensors() if more_sensors else []
            find = lambda: [*sensors, *others]  # noqa: E731
        meter = Meter(
            settings, clock, find=find, floors=floors, owners=owners, kernels=self.kernels
        )
        with contextlib.closing(meter):
            yield from meter.frames(threading.Event())


def rows(frame: Frame) -> list[dict[str, int | str]]:
    """The frame's rows, each with the kind and id of its workload."""
    count = len(frame.rows.workload) // 4
    columns = {name: unpack(frame, name, count) for name in COLUMNS}
    return [
        {
            **{name: values[i] for name, values in columns.items()},
            "command": frame.rows.command[i],
            "kind": frame.workloads[columns["workload"][i]].kind,
            "id": frame.workloads[columns["workload"][i]].id,
        }
        for i in range(count)
    ]


def energy_j(frames: list[Frame], kind: str, identity: str | None = None, **row: object) -> float:
    """Joules over all components of the rows that match."""
    total_uj = sum(
        int(r["cpu_uj"]) + int(r["dram_uj"]) + int(r["other_uj"])
        for frame in frames
        for r in rows(frame)
        if r["kind"] == kind
        and identity in (None, r["id"])
        and all(r[key] == value for key, value in row.items())
    )
    return total_uj / 1e6


def device_j(frames: list[Frame], name: str, what: str = "energy_uj") -> float:
    joules = sum(getattr(d, what) for f in frames for d in f.devices if d.name == name) / 1e6
    return float(joules)
