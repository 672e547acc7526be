"""GPUs: slices, time-slicing, held and idle ones, and NVML that finds no samples."""

import math
from collections.abc import Sequence

from replay.agent import Played, play
from replay.case import Case, Part, Stage
from replay.cases.names import SLURM
from replay.gpus import gpu, playing
from replay.tree import Machine

WATTS, FLOOR_W = 400.0, 70.0
NEAR = 0.01
UUID = "GPU-5b1d7c3a-0001-4000-8000-00000000000a"
OTHER = "GPU-5b1d7c3a-0002-4000-8000-00000000000b"
SMALL, LARGE = (
    "MIG-1a2b3c4d-0001-5000-8000-0000000000a1",
    "MIG-1a2b3c4d-0002-5000-8000-0000000000a2",
)


def two_jobs(stage: Stage) -> Machine:
    """A host that draws nothing worth a look, with a process in each of two jobs."""
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 10.0)
    machine.task(10, f"{SLURM}/job_1/step_0", cores=0.1, comm=b"train")
    machine.task(11, f"{SLURM}/job_2/step_0", cores=0.1, comm=b"infer")
    return machine


def with_gpus(stage: Stage, machine: Machine, trace: str, *flags: str) -> Played:
    return play(stage, machine, env=playing(stage.folder, trace), flags=flags)


def floor(uuid: str) -> str:
    return f"--idle-w=gpu:{uuid}={FLOOR_W:g}"


def slices(stage: Stage) -> Sequence[Part]:
    trace = gpu(
        UUID, WATTS, "slices 7", "gpm", "process compute 10 1 0", "process compute 11 2 0",
        f"mig {SMALL} 1 0 1", "sm 100", f"mig {LARGE} 2 0 4", "sm 100",
    )  # fmt: skip
    played = with_gpus(stage, two_jobs(stage), trace, floor(UUID))
    active_j = (WATTS - FLOOR_W) * played.seconds
    small, large = played.gpu_j("slurm", "1"), played.gpu_j("slurm", "2")
    return [
        Part("active energy", active_j, small + large, within=played.within(WATTS)),
        Part("4g : 1g", 4, large / small if small else math.nan, "", within=4 * NEAR),
        Part("idle", FLOOR_W * 5, played.gpu_j("idle"), within=NEAR * FLOOR_W * 5),
    ]


def one_slice(stage: Stage) -> Sequence[Part]:
    trace = gpu(
        UUID, WATTS, "slices 7", "gpm", "process compute 10 1 0", f"mig {SMALL} 1 0 1", "sm 100"
    )
    played = with_gpus(stage, two_jobs(stage), trace, floor(UUID))
    seconds = played.seconds
    return [
        Part("its own", 330, played.gpu_j("slurm", "1") / seconds, "W",
             within=played.within(WATTS) / seconds),
        Part("floor it holds", 10, played.held_j("1") / seconds, "W", within=NEAR * 10),
        Part("floor nobody holds", 60, played.held_j("") / seconds, "W", within=NEAR * 60),
        Part("job_2", 0, played.gpu_j("slurm", "2")),
    ]  # fmt: skip


def time_slices(stage: Stage) -> Sequence[Part]:
    trace = gpu(UUID, WATTS, "process compute 10", "process compute 11", "busy 10 50", "busy 11 50")
    played = with_gpus(stage, two_jobs(stage), trace)
    seconds, room = played.seconds, played.within(WATTS) / played.seconds
    return [
        Part("job_1", 200, played.gpu_j("slurm", "1") / seconds, "W", within=room),
        Part("job_2", 200, played.gpu_j("slurm", "2") / seconds, "W", within=room),
        Part("all", 400, played.device_j(f"gpu:{UUID}") / seconds, "W", within=room),
    ]


def held(stage: Stage) -> Sequence[Part]:
    """One GPU by the scheduler's word, one because a process has it open."""
    machine = two_jobs(stage)
    machine.details(10, environ=b"SLURM_JOB_ID=1\0SLURM_JOB_GPUS=0\0")
    trace = gpu(UUID, FLOOR_W) + gpu(OTHER, FLOOR_W, "process compute 11")
    played = with_gpus(stage, machine, trace)
    seconds, room = played.seconds, played.within(FLOOR_W) / played.seconds
    holders = {
        workload["id"]
        for frame in played.frames
        for workload in frame["workloads"]
        if workload["reserved_devices"]
    }
    return [
        Part("held by job 1", 70, played.held_j("1") / seconds, "W", within=room),
        Part("held by job 2", 70, played.held_j("2") / seconds, "W", within=room),
        Part("idle", 140, played.gpu_j("idle") / seconds, "W", within=2 * room),
        Part("holders", "1 2", " ".join(sorted(holders))),
        Part("frames", 5, len(played.of_device(f"gpu:{UUID}")), ""),
    ]


def not_found(stage: Stage) -> Sequence[Part]:
    trace = gpu(
        UUID, WATTS, "process compute 10",
        "error nvmlDeviceGetProcessUtilization 6", "error nvmlDeviceGetProcessesUtilizationInfo 6",
        "error nvmlDeviceGetUtilizationRates 6",
    )  # fmt: skip
    played = with_gpus(stage, two_jobs(stage), trace)
    seconds, room = played.seconds, played.within(WATTS) / played.seconds
    return [
        Part("metered", 400, played.device_j(f"gpu:{UUID}") / seconds, "W", within=room),
        Part("coverage", 1.0, min(played.of_device(f"gpu:{UUID}", "coverage")), ""),
        Part("used by somebody", 0, played.gpu_j("slurm"), "J"),
        Part("idle of who has it open", 400, played.held_j("1") / seconds, "W", within=room),
    ]


CASES = (
    Case(7, "MIG 1g and 4g, each 100 % active", slices),
    Case(8, "one busy 1g of 7 slices, the rest unallocated", one_slice),
    Case(9, "two equal jobs time-slice one 400 W GPU", time_slices),
    Case(10, "a GPU is held by a job, 70 W, no kernel ran", held),
    Case(11, "NVML utilisation answers not found", not_found),
)
