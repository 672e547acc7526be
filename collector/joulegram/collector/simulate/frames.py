"""A node's frames: energies of its devices, split over whoever is on it, as the wire has them.

Made for many windows at once: between two arrivals or departures the rows of a node are the
same, and only numbers change.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from joulegram.collector.simulate.cluster import Node
from joulegram.collector.simulate.fleet import Fleet
from joulegram.collector.simulate.load import activity
from joulegram.collector.simulate.programs import (
    PROGRAMS,
    Processes,
    Stay,
    Who,
    processes_of,
)
from joulegram.collector.simulate.split import split_uj
from joulegram.v1.telemetry_pb2 import Device, Frame, ReservedDevice, Rows, Workload

Ints = NDArray[np.int64]

CHUNK = 32  # windows made together
VERSION = "simulated"
NOBODY = "(nobody)"  # idle, system, unattributed

TICK = 100  # a clock tick (10 ms), in which the kernel counts a process's CPU time...
UNIT_NS = 100_000  # ...in units of 0.1 ms, in which we weigh: 300 s of 112 cores fit MAX_WEIGHT
FOLD_CORES = 0.01  # smaller processes share their workload's remainder row
BELOW_UNIT_UJ = 1_000  # `other` goes by what is below it, weighed in mJ

GAP = 0.004  # of the windows miss some of their ticks
LOSSES = 0.09  # of what flows through the power supply; and fans:
FANS_W = (25.0, 12.0)  # a node has, and per GPU


@dataclass(frozen=True, slots=True)
class Made:
    """A frame ready for the wire, but for `sent_at_ms`, and what it adds to the totals."""

    node: Node
    window: int  # since the start of the run
    seq: int
    packed: bytes
    rows: int
    component_uj: tuple[int, int, int, int]  # cpu, dram, gpu, other
    team_uj: Ints  # by Maker.teams


@dataclass(frozen=True, slots=True)
class _Segment:
    """Rows that stay the same for a while."""

    stays: Sequence[Stay]
    processes: Sequence[Processes]
    workloads: Sequence[Who]
    template: bytes  # a Frame without its numbers
    workload: Ints  # of each row
    gpu: Ints  # of each row, -1: none
    cores: NDArray[np.float64]  # of each row, when busy; 0 in idle and unattributed rows
    stay: Ints  # of each row, index into `stays`; -1: none
    ticks: NDArray[np.bool_]  # rows whose CPU time the kernel counts in ticks
    teams: Ints  # of each row
    idle: int  # the first idle row: CPUs and memory; then one per GPU
    nobody: int  # the first unattributed row: one per GPU that no process uses


class Maker:
    """Frames of one node of a fleet, in order."""

    def __init__(self, fleet: Fleet, node: Node, teams: Sequence[str]) -> None:
        self._fleet = fleet
        self._plan = fleet.plan
        self._node = node
        self._teams = {team: i for i, team in enumerate(teams)}
        self._silent = fleet.silent(node)
        self._seq = 0
        self._last: tuple[tuple[Stay, ...], _Segment] | None = None

    def frames(self) -> Iterator[Made]:
        """All of the plan."""
        for first in range(0, self._plan.windows, CHUNK):
            yield from self.chunk(first)

    def chunk(self, first: int) -> list[Made]:
        """The frames of CHUNK windows from `first` on; ask in order."""
        plan = self._plan
        last = min(first + CHUNK, plan.windows)
        stays = self._fleet.stays(self._node, first * plan.window_s, last * plan.window_s)
        # A stay is there in every window that it touches.
        spans = [(s.start_s // plan.window_s, -(-s.end_s // plan.window_s)) for s in stays]
        cuts = sorted({first, last, *(t for span in spans for t in span if first < t < last)})
        made: list[Made] = []
        rng = np.random.default_rng([plan.seed, 7, self._node.index, first])
        for begin, end in pairwise(cuts):
            here = tuple(s for s, (a, b) in zip(stays, spans, strict=True) if a <= begin < b)
            if self._last is None or self._last[0] != here:
                self._last = here, self._segment(here)
            made += self._windows(self._last[1], begin, end, rng)
        return made

    def _segment(self, stays: Sequence[Stay]) -> _Segment:
        node = self._node
        workloads = [
            Who(node.name, "idle", "", "", "", "", ""),
            Who(node.name, "system", "", "", "", "", ""),
        ]
        of_workload: list[list[Stay]] = [[], []]  # a person may have several sessions
        index: dict[Who, int] = {}
        processes = [_folded(processes_of(stay, node)) for stay in stays]
        pid, ticks, command, cores, of_stay = [0], [0], [""], [0.03], [-1]
        workload, gpu, holder = [1], [-1], [-1]
        for i, (stay, of) in enumerate(zip(stays, processes, strict=True)):
            if stay.who not in index:
                index[stay.who] = len(workloads)
                workloads.append(stay.who)
                of_workload.append([])
            of_workload[index[stay.who]].append(stay)
            n = len(of.pid)
            pid += of.pid
            ticks += of.start_ticks
            command += of.command
            cores += of.cores.tolist()
            gpu += of.gpu
            of_stay += [i] * n
            workload += [index[stay.who]] * n
            holder += [-1] * n
        idle = len(pid)
        holds = {g: index[stay.who] for stay in stays for g in stay.gpus}
        free = [g for g in range(node.kind.gpus) if g not in set(gpu)]
        if free:
            workloads.append(Who(node.name, "unattributed", "", "", "", "", ""))
            of_workload.append([])
        for one_gpu in (-1, *range(node.kind.gpus)):
            workload.append(0)
            gpu.append(one_gpu)
            holder.append(holds.get(one_gpu, -1))
        for one_gpu in free:
            workload.append(len(workloads) - 1)
            gpu.append(one_gpu)
            holder.append(-1)
        tail = len(workload) - idle
        pid, ticks, of_stay = pid + [0] * tail, ticks + [0] * tail, of_stay + [-1] * tail
        command, cores = command + [""] * tail, cores + [0.0] * tail
        first_gpu = 2 * node.kind.sockets
        if node.kind.modelled:
            first_gpu = node.kind.sockets
        wire_gpu = np.array([g + first_gpu if g >= 0 else -1 for g in gpu], "<i4")
        template = Frame(
            node=node.name,
            workloads=[
                _wire(who, of, first_gpu) for who, of in zip(workloads, of_workload, strict=True)
            ],
            rows=Rows(
                workload=np.array(workload, "<u4").tobytes(),
                pid=np.array(pid, "<u4").tobytes(),
                start_ticks=np.array(ticks, "<u8").tobytes(),
                command=command,
                gpu_device=wire_gpu.tobytes() if node.kind.gpus else b"",
                holder=np.array(holder, "<i4").tobytes() if node.kind.gpus else b"",
            ),
            boot_id=f"{self._plan.epoch(node):016x}",
            agent_version=VERSION,
            simulated=True,
        )
        return _Segment(
            stays,
            processes,
            workloads,
            template.SerializeToString(deterministic=True),
            np.array(workload),
            np.array(gpu),
            np.array(cores),
            np.array(of_stay),
            np.array(pid) > 0,
            np.array([self._teams[workloads[w].team or NOBODY] for w in workload]),
            idle,
            idle + 1 + node.kind.gpus,
        )

    def _windows(
        self, segment: _Segment, begin: int, end: int, rng: np.random.Generator
    ) -> Iterator[Made]:
        """Frames of windows [begin, end), all with the segment's rows."""
        plan, node, kind = self._plan, self._node, self._node.kind
        count, rows = end - begin, len(segment.workload)
        at_s = np.arange(begin, end) * plan.window_s + plan.window_s // 2
        window_us = plan.window_s * 1_000_000
        coverage = np.where(rng.random(count) < GAP, rng.integers(5, 10, count) / 10, 1.0)
        covered_us = np.round(coverage * window_us).astype(np.int64)

        use, sm = self._use(segment, at_s, rng)
        cpu_time: Ints = (use * coverage[:, None]).astype(np.int64)
        cpu_time[:, segment.ticks] -= cpu_time[:, segment.ticks] % TICK
        cpu_time[:, 0] = np.maximum(cpu_time[:, 0], 1)  # somebody did something
        load = cpu_time.sum(axis=1) / (covered_us / 1e6 * 10_000 * kind.cores)

        def energy(idle_w: float, max_w: float, share: NDArray[np.float64]) -> tuple[Ints, Ints]:
            """(all, idle) of a device whose power goes from idle to max as its share does."""
            watts = (idle_w + (max_w - idle_w) * share**0.9) * rng.uniform(0.995, 1.005, count)
            uj = (watts * covered_us).astype(np.int64)
            return uj, np.minimum(uj, round(idle_w * 1_000_000) * covered_us // 1_000_000)

        cpu = [energy(node.cpu_idle_w, kind.cpu_max_w, load) for _ in range(kind.sockets)]
        dram = [
            energy(kind.dram_idle_w, kind.dram_max_w, 0.1 + 0.6 * load)
            for _ in range(0 if kind.modelled else kind.sockets)
        ]
        gpus = [energy(node.gpu_idle_w, kind.gpu_max_w, sm[:, g]) for g in range(kind.gpus)]

        cpu_uj = _shared(cpu, cpu_time, segment.idle)
        dram_uj = _shared(dram, cpu_time, segment.idle) if dram else np.zeros_like(cpu_uj)
        gpu_uj = np.zeros((count, rows), np.int64)
        gpu_ns = np.zeros((count, rows), np.int64)
        for g, (uj, idle_uj) in enumerate(gpus):
            users = np.nonzero(segment.gpu == g)[0]
            at_work = users[(users < segment.idle) | (users >= segment.nobody)]
            gpu_uj[:, at_work] = split_uj(uj - idle_uj, np.ones((count, len(at_work)), np.int64))
            gpu_uj[:, segment.idle + 1 + g] = idle_uj
            if at_work[0] < segment.idle:
                busy_ns = (sm[:, g] * covered_us * 1000).astype(np.int64)
                gpu_ns[:, at_work] = (busy_ns // len(at_work))[:, None]
        other_uj = np.zeros((count, rows), np.int64)
        platform: Ints | None = None
        below = cpu_uj + dram_uj + gpu_uj
        if kind.platform:
            fans_w = FANS_W[0] + FANS_W[1] * kind.gpus
            platform = (below.sum(axis=1) * LOSSES).astype(np.int64)
            platform += (fans_w * rng.uniform(0.97, 1.03, count) * covered_us).astype(np.int64)
            other_uj = split_uj(platform, below // BELOW_UNIT_UJ)

        names: list[tuple[str, str, str, Ints, Ints, Ints]] = []
        quality = "modelled" if kind.modelled else "measured"
        for i, (uj, idle_uj) in enumerate(cpu):
            names.append((f"cpu{i}", "cpu", quality, uj, idle_uj, uj))
        for i, (uj, idle_uj) in enumerate(dram):
            names.append((f"dram{i}", "dram", "derived", uj, idle_uj, uj))
        for name, (uj, idle_uj) in zip(node.gpu_names, gpus, strict=True):
            names.append((name, "gpu", "measured", uj, idle_uj, uj))
        if platform is not None:
            idle_other = other_uj[:, segment.idle : segment.nobody].sum(axis=1)
            raw = platform + below.sum(axis=1)
            names.append(("platform", "other", "derived", platform, idle_other, raw))

        team_uj = _by_team(below + other_uj, segment.teams, len(self._teams))
        sums = [block.sum(axis=1).tolist() for block in (cpu_uj, dram_uj, gpu_uj, other_uj)]
        blocks = [b.astype("<u8") for b in (cpu_uj, dram_uj, gpu_uj, other_uj)]
        cpu_ns = (cpu_time * UNIT_NS).astype("<u8")
        busy = gpu_ns.astype("<u8")
        numbers = [(n, c, q, u.tolist(), i.tolist(), r.tolist()) for n, c, q, u, i, r in names]
        covered = coverage.tolist()
        epoch = plan.epoch(node)
        for w in range(count):
            start_s = (begin + w) * plan.window_s
            if any(a < start_s + plan.window_s and start_s < b for a, b in self._silent):
                continue
            self._seq += 1
            own = Frame(
                epoch=epoch,
                seq=self._seq,
                window_start_ms=(plan.since_s + start_s) * 1000,
                window_ms=plan.window_s * 1000,
                devices=[
                    Device(
                        name=name,
                        component=component,
                        energy_uj=uj[w],
                        idle_uj=idle_uj[w],
                        raw_uj=raw_uj[w],
                        quality=how,
                        coverage=covered[w],
                    )
                    for name, component, how, uj, idle_uj, raw_uj in numbers
                ],
                rows=Rows(
                    cpu_uj=blocks[0][w].tobytes(),
                    dram_uj=blocks[1][w].tobytes() if dram else b"",
                    gpu_uj=blocks[2][w].tobytes() if gpus else b"",
                    other_uj=blocks[3][w].tobytes() if platform is not None else b"",
                    cpu_ns=cpu_ns[w].tobytes(),
                    gpu_ns=busy[w].tobytes() if gpus else b"",
                ),
            )
            # On the wire, two halves of a message one after the other are the whole of it.
            packed = segment.template + own.SerializeToString()
            of_component = (sums[0][w], sums[1][w], sums[2][w], sums[3][w])
            yield Made(node, begin + w, self._seq, packed, rows, of_component, team_uj[w])

    def _use(
        self, segment: _Segment, at_s: Ints, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(CPU time of each row in 0.1 ms, share of time that each GPU is busy), per window."""
        plan, kind = self._plan, self._node.kind
        count = len(at_s)
        busy = np.ones((count, len(segment.stays) + 1))  # the last: rows of no stay
        sm = np.zeros((count, kind.gpus))
        for i, stay in enumerate(segment.stays):
            program = PROGRAMS[stay.program]
            busy[:, i] = activity(program.shape, stay, at_s, plan.since_s)
            if stay.gpus:
                level = activity(program.gpu_shape, stay, at_s, plan.since_s)
                jitter = rng.uniform(0.94, 1.0, (count, len(stay.gpus)))
                sm[:, list(stay.gpus)] = level[:, None] * jitter
        noise = rng.uniform(0.93, 1.0, (count, len(segment.cores)))
        cores = segment.cores * busy[:, segment.stay] * noise
        # More than there are cores cannot be had.
        cores *= np.minimum(1.0, kind.cores / np.maximum(cores.sum(axis=1), 1e-9))[:, None]
        return cores * plan.window_s * 10_000, np.round(sm, 4)


def _folded(processes: Processes) -> Processes:
    """Processes below the threshold become part of the remainder, which is the last row."""
    keep = [
        i
        for i in range(len(processes.pid))
        if not processes.pid[i] or processes.cores[i] >= FOLD_CORES or processes.gpu[i] >= 0
    ]
    cores = processes.cores[keep].copy()
    cores[-1] += processes.cores.sum() - cores.sum()
    return Processes(
        tuple(processes.pid[i] for i in keep),
        tuple(processes.start_ticks[i] for i in keep),
        tuple(processes.command[i] for i in keep),
        cores,
        tuple(processes.gpu[i] for i in keep),
    )


def _wire(who: Who, stays: Sequence[Stay], first_gpu: int) -> Workload:
    gpus = sorted({gpu for stay in stays for gpu in stay.gpus})
    return Workload(
        scope=who.scope,
        kind=who.kind,
        id=who.id,
        user=who.user,
        project=who.project,
        name=who.name,
        attributes=dict(who.attributes),
        reserved_cpus=sum(stay.reserved_cpus for stay in stays),
        reserved_devices=[ReservedDevice(device=first_gpu + g, fraction=1.0) for g in gpus],
    )


def _shared(devices: Sequence[tuple[Ints, Ints]], weights: Ints, idle: int) -> Ints:
    """Energy of a component by row: the active part by weight, the idle part to the idle row."""
    active: Ints = sum((uj - idle_uj for uj, idle_uj in devices), np.zeros(len(weights), np.int64))
    shares = split_uj(active, weights)
    shares[:, idle] += sum((idle_uj for _, idle_uj in devices), np.zeros(len(weights), np.int64))
    return shares


def _by_team(energy_uj: Ints, of_row: Ints, teams: int) -> Ints:
    member = np.zeros((len(of_row), teams), np.int64)
    member[np.arange(len(of_row)), of_row] = 1
    product: Ints = energy_uj @ member
    return product
