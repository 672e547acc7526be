"""Whose a cgroup is: jobs and containers by their paths."""

from collections.abc import Sequence

from replay.agent import play
from replay.case import Case, Part, Stage
from replay.tree import Machine

SLURM = "/system.slice/slurmstepd.scope"
ID = "c0ffee" + "1f" * 29


def slurm_paths(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(10, f"{SLURM}/job_123/step_0/user/task_0", cores=1.0)
    machine.task(11, f"{SLURM}/sD7K9B0X1CZ00A/step_0/user/task_0", cores=2.0)
    machine.details(11, environ=b"HOME=/\0SLURM_JOB_ID=4711\0SLURM_STEP_ID=0\0")
    machine.add_group(f"{SLURM}/sD7K9B0X1CZ00A/step_0", unseen_cores=1.0)
    played = play(stage, machine)
    quarter = 25 * played.seconds
    room = played.within(100)
    return [
        Part("job 123", quarter, played.joules("slurm", "123"), within=room),
        Part("job 4711", 3 * quarter, played.joules("slurm", "4711"), within=room),
    ]


def nested(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    step = f"{SLURM}/job_123/step_0/user/task_0"
    machine.task(10, f"{step}/docker-{ID}.scope", cores=1.0)
    machine.task(11, f"{SLURM}/job_123", cores=1.0)  # inner: it has cgroups below
    machine.task(12, "/system.slice", cores=1.0)
    machine.task(13, f"/system.slice/docker-{ID[::-1]}.scope", cores=1.0)
    played = play(stage, machine)
    quarter = 25 * played.seconds
    room = played.within(100)
    return [
        Part("job 123", 2 * quarter, played.joules("slurm", "123"), within=room),
        Part("system", quarter, played.joules("system"), within=room),
        Part("a container of its own", quarter, played.joules("container", ID[::-1]), within=room),
    ]


CASES = (
    Case(12, "Slurm paths of cgroup v2: job_123, and a SLUID directory", slurm_paths),
    Case(33, "a container inside a Slurm job; processes in inner cgroups", nested),
)
