"""What a workload's processes on a node look like: commands, how busy, on which GPU."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulegram.collector.simulate.cluster import Node


@dataclass(frozen=True, slots=True)
class Who:
    """A workload and who answers for it."""

    scope: str
    kind: str
    id: str
    user: str
    project: str
    name: str
    team: str
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Stay:
    """A workload on one node for a while. Times are s since the start of the run."""

    who: Who
    start_s: int
    end_s: int
    program: str  # a key of PROGRAMS
    cores: float  # what it uses when busy
    reserved_cpus: float
    gpus: tuple[int, ...]
    pid: int  # of its first process


@dataclass(frozen=True, slots=True)
class Program:
    """How the cores of a stay spread over processes, and how busy they are in time."""

    commands: tuple[str, ...]
    per_core: bool  # a process per core; else one that has them all
    helpers: tuple[str, ...]  # smaller processes beside it
    shape: str  # a key of load.SHAPES
    gpu_shape: str


PROGRAMS = {
    "mpi": Program(("lmp", "gmx_mpi", "pw.x", "nemo.exe", "wrf.exe"), True, (), "steady", "steady"),
    "threads": Program(("spades", "python3", "julia", "R"), False, (), "steady", "steady"),
    "train": Program(("python",), False, ("pt_data_worker",) * 4, "epochs", "epochs"),
    "serve": Program(("vllm",), False, ("python3",), "daily", "daily"),
    "notebook": Program(("jupyter-lab",), False, ("python3",), "held", "held"),
    "web": Program(
        ("nginx", "gunicorn", "java", "node", "postgres", "redis-server", "envoy"),
        False, (), "daily", "daily",
    ),
    "batch": Program(("spark", "dbt", "python3", "go"), False, ("sh",), "steady", "steady"),
    "shell": Program(
        ("python3", "cc1plus", "code-server", "R"), False, ("bash",), "office", "held"
    ),
    "daemon": Program((), False, (), "daily", "steady"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Processes:
    """The rows of a stay on its node; the last is its remainder. One number per row."""

    pid: tuple[int, ...]
    start_ticks: tuple[int, ...]
    command: tuple[str, ...]
    cores: NDArray[np.float64]  # mean when busy
    gpu: tuple[int, ...]  # index of the node's GPU, -1: none


def processes_of(stay: Stay, node: Node) -> Processes:
    """A stay's processes. A process on two GPUs has two rows."""
    program = PROGRAMS[stay.program]
    rows: list[tuple[int, str, float, int]] = []  # pid, command, cores, gpu
    pid = stay.pid
    if program.commands:
        command = program.commands[stay.pid % len(program.commands)]
        if stay.program == "serve" and len(stay.gpus) > 1:
            rows.append((pid, command, stay.cores, stay.gpus[0]))
            rows += [(pid, command, 0.0, gpu) for gpu in stay.gpus[1:]]
        else:
            count = max(1, round(stay.cores)) if program.per_core else max(1, len(stay.gpus))
            for i in range(count):
                gpu = stay.gpus[i] if i < len(stay.gpus) else -1
                rows.append((pid + i, command, stay.cores / count, gpu))
        pid += len(rows)
        for i, helper in enumerate(program.helpers):
            rows.append((pid + i, helper, min(0.3, stay.cores / 8), -1))
    rows.append((0, "", min(0.05, stay.cores / 50), -1))  # children that came and went
    started = (stay.start_s + node.boot_s) * 100
    return Processes(
        tuple(row[0] for row in rows),
        tuple(started + 7 * (row[0] - stay.pid) if row[0] else 0 for row in rows),
        tuple(row[1] for row in rows),
        np.array([row[2] for row in rows]),
        tuple(row[3] for row in rows),
    )
