"""What a batch job's own environment says of it: account, name, CPUs and GPUs.

Reads  <procfs>/<pid>/{environ,status,cmdline} of the first processes of a job, once
Format sbatch(1) "OUTPUT ENVIRONMENT VARIABLES", qsub(1B), bsub(1) and oarsub(1)

What is believed. The job is what the cgroup's path says, always: an environment that names
another job is not read any further. Where the path has only a SLUID, the number is what root's
slurmstepd says, else the first that a process of that job says, unless another job has it. The
user is the processes' uid; a name in the environment counts where the host has none for that
uid. The cluster's name counts only when root says it, since it is a part of identities. Account,
name, CPUs and GPUs are a user's word here, and yield to the scheduler's wherever it answers.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from joulegram.agent.owners.answers import indices
from joulegram.agent.owners.environ import AT_ONCE, FewEach, Start
from joulegram.agent.owners.known import Known, bounded
from joulegram.agent.owners.lookup import Lookup
from joulegram.agent.workloads import SLURM_SLUID, Owner

TRIES = 8  # processes of one job that are looked into
REMEMBERED = 4096
STEPD = re.compile(rb"slurmstepd: \[(\d{1,18})[.\]+]")
DEVICE = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]+|\d{1,4}(?::\d{1,4})?")


@dataclass(frozen=True, slots=True)
class Variables:
    """What a scheduler calls things."""

    job: str
    user: str = ""
    project: str = ""
    name: str = ""
    cluster: str = ""
    cpus: str = ""
    gpus: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()  # (variable, attribute)


VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
SCHEDULERS = {
    "slurm": Variables(
        job="SLURM_JOB_ID",
        user="SLURM_JOB_USER",
        project="SLURM_JOB_ACCOUNT",
        name="SLURM_JOB_NAME",
        cluster="SLURM_CLUSTER_NAME",
        cpus="SLURM_CPUS_ON_NODE",
        # The node's own numbers; what is visible may be counted anew within the job's devices.
        gpus=("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", *VISIBLE),
        attributes=(
            ("SLURM_ARRAY_JOB_ID", "array_job_id"),
            ("SLURM_ARRAY_TASK_ID", "array_task_id"),
            ("SLURM_JOB_PARTITION", "partition"),
        ),
    ),
    "pbs": Variables(
        job="PBS_JOBID",
        user="PBS_O_LOGNAME",
        name="PBS_JOBNAME",
        cpus="NCPUS",
        gpus=VISIBLE,
        attributes=(("PBS_QUEUE", "queue"),),
    ),
    "lsf": Variables(
        job="LSB_JOBID",
        user="LSFUSER",
        project="LSB_PROJECT_NAME",
        name="LSB_JOBNAME",
        gpus=VISIBLE,
        attributes=(("LSB_QUEUE", "queue"), ("LSB_JOBINDEX", "array_task_id")),
    ),
    "oar": Variables(
        job="OAR_JOB_ID",
        user="OAR_USER",
        project="OAR_PROJECT_NAME",
        name="OAR_JOB_NAME",
        gpus=VISIBLE,
        attributes=(("OAR_ARRAY_ID", "array_job_id"), ("OAR_ARRAY_INDEX", "array_task_id")),
    ),
}
WANTED = frozenset(
    variable
    for s in SCHEDULERS.values()
    for variable in (
        *(s.job, s.user, s.project, s.name, s.cluster, s.cpus, *s.gpus),
        *(variable for variable, _ in s.attributes),
    )
    if variable
)


class Batch:
    """Knows the batch jobs whose processes it was shown."""

    def __init__(self, procfs: Path) -> None:
        each = FewEach(procfs, WANTED)
        self._starts: Lookup[tuple[int, int], Start] = Lookup(
            lambda process: each.start_of(process[0]), threads_max=AT_ONCE
        )
        self._known: OrderedDict[Owner, Known] = OrderedDict()
        self._shown: OrderedDict[Owner, list[tuple[int, int]]] = OrderedDict()
        self._jobs: OrderedDict[str, str] = OrderedDict()  # SLUID -> job id
        self.cluster = ""

    def meet(self, owner: Owner, pid: int, start_ticks: int) -> None:
        """A process of a batch job was seen. Cheap once the job is known."""
        if owner in self._known:
            return
        shown = self._shown.get(owner)
        if shown is None:
            shown = self._shown[owner] = []
            _drop_oldest(self._shown)
        if len(shown) < TRIES and (pid, start_ticks) not in shown:
            shown.append((pid, start_ticks))
            self._learn(owner, shown)

    def about(self, owner: Owner) -> Known | None:
        known = self._known.get(owner)
        if known is None and (shown := self._shown.get(owner)):
            self._learn(owner, shown)
            known = self._known.get(owner)
        return known

    def job_of(self, sluid: str) -> str | None:
        """The job whose folder a SLUID names."""
        if sluid not in self._jobs:
            self.about(Owner("slurm", sluid))
        return self._jobs.get(sluid)

    def holding(self, alive: Callable[[Owner], bool]) -> dict[Owner, tuple[str, ...]]:
        """Jobs with GPUs, and which.

        Args:
            alive: whether a workload's cgroup is still there, by what its path says.
        """
        numbered = set(self._jobs.values())
        found = {}
        for owner, known in self._known.items():
            job = self._jobs.get(owner.id)
            if not known.reserved_gpus or (job is None and owner.id in numbered):
                continue
            if alive(owner):
                found[owner if job is None else Owner(owner.kind, job)] = known.reserved_gpus
        return found

    def _learn(self, owner: Owner, shown: list[tuple[int, int]]) -> None:
        for process in shown:
            start = self._starts.get(process)
            if start is not None and (known := self._said(owner, start)) is not None:
                for name in (owner, Owner(owner.kind, self._jobs.get(owner.id, owner.id))):
                    self._known[name] = known
                    _drop_oldest(self._known)
                del self._shown[owner]
                for done in shown:
                    self._starts.forget(done)
                return

    def _said(self, owner: Owner, start: Start) -> Known | None:
        """What the process's start says of the job; None where it speaks of another, or of none."""
        words, said = SCHEDULERS[owner.kind], start.variables
        job = said.get(words.job, "")
        if owner.kind == "slurm" and SLURM_SLUID.fullmatch(owner.id):
            if not self._resolved(owner.id, job, start):
                return None
        elif not _same(owner, job):
            return None
        if words.cluster and start.uid == 0 and not self.cluster:
            self.cluster = said.get(words.cluster, "")[:255]
        cpus = said.get(words.cpus, "")
        return bounded(
            Known(
                user=said.get(words.user, ""),
                project=said.get(words.project, ""),
                name=said.get(words.name, ""),
                attributes={to: said[v] for v, to in words.attributes if said.get(v)},
                reserved_cpus=float(cpus) if cpus.isascii() and cpus.isdigit() else 0.0,
                reserved_gpus=_devices([said[v] for v in words.gpus if v in said]),
            )
        )

    def _resolved(self, sluid: str, job: str, start: Start) -> bool:
        """Note which job the SLUID is; whether this process is one that tells more of it."""
        titled = STEPD.match(start.title)
        if titled is not None:
            job = titled[1].decode()
        if not (job.isascii() and job.isdigit() and len(job) <= 18):
            return False
        if start.uid != 0 and self._jobs.get(sluid, job) != job:
            return False
        if start.uid != 0 and sluid not in self._jobs and job in self._jobs.values():
            return False
        self._jobs[sluid] = job
        _drop_oldest(self._jobs)
        return start.variables.get(SCHEDULERS["slurm"].job) == job


def _same(owner: Owner, job: str) -> bool:
    # PBS says 1234.server where the folder may lack the server, LSF 1234 where it has an index.
    mark = "[" if owner.kind == "lsf" else "."
    return bool(job) and job.partition(mark)[0] == owner.id.partition(mark)[0]


def _devices(lists: list[str]) -> tuple[str, ...]:
    """The first list that names devices.

    Parts of GPUs go first: where GPUs are cut into MIG devices, Slurm's numbers count those, and
    are not the numbers of GPUs.
    """
    for listed in sorted(lists, key=lambda listed: "MIG-" not in listed):
        names = [name.strip() for name in listed.split(",")]
        if "-" in listed and (ranged := indices(listed)):
            names = [str(n) for n in ranged]
        if all(DEVICE.fullmatch(name) for name in names):
            return tuple(names)
    return ()


def _drop_oldest(memory: OrderedDict) -> None:  # type: ignore[type-arg]
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
