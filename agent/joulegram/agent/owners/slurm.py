"""Whose a Slurm job is and what it holds, by Slurm's own programs where they are on PATH.

Runs   scontrol show job <id> --json    once for a job that is new on this node
       squeue --json --nodelist <node>  when several are new, and every ten minutes
       scontrol show config             for the cluster's name, where no slurm.conf says it
Format slurm_jobs.py

Slurm's controller serves the whole cluster, so every node asks it rarely.
"""

import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from joulegram.agent.errors import SourceFailed
from joulegram.agent.owners.answers import document
from joulegram.agent.owners.asking import Asking
from joulegram.agent.owners.known import Known
from joulegram.agent.owners.programs import output_of
from joulegram.agent.owners.slurm_jobs import Job, jobs_of
from joulegram.agent.workloads import Owner

EVERY_S = 600.0
TIMEOUT_S = 10.0
ANSWER_MAX = 8 << 20
AT_ONCE = 8  # jobs asked for one by one in a round; more are asked for together
WANTED_MAX = 1024
REMEMBERED = 4096
SETTLED_S = 5.0  # after a job's end its controller knows of it
JOB = re.compile(r"\d{1,18}|s[0-9A-Z]{13}")
CLUSTER = re.compile(
    rb"^[ \t]*ClusterName[ \t]*=[ \t]*([^\s#]{1,255})", re.MULTILINE | re.IGNORECASE
)
CONF_MAX = 4 << 20
# Where slurm.conf lies: by hand, sent by the controller (configless), by Debian of old.
CONF = (
    "/etc/slurm/slurm.conf",
    "/run/slurm/conf/slurm.conf",
    "/var/spool/slurmd/conf-cache/slurm.conf",
    "/etc/slurm-llnl/slurm.conf",
)

Run = Callable[[Sequence[str], float, int], bytes]
Which = Callable[[str], str | None]


class Slurm:
    """Answers from memory; its thread runs the programs."""

    name = "slurm"

    def __init__(
        self,
        node: str,
        scontrol: str | None,
        squeue: str | None,
        run: Run = output_of,
        every_s: float = EVERY_S,
        gap_s: float = 5.0,
        settled_s: float = SETTLED_S,
    ) -> None:
        self.cluster = ""
        self._node = {node, node.partition(".")[0]}
        self._scontrol, self._squeue, self._run = scontrol, squeue, run
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._sluids: OrderedDict[str, str] = OrderedDict()
        self._wanted: OrderedDict[str, None] = OrderedDict()
        self._unknown: OrderedDict[str, None] = OrderedDict()  # Slurm knows no such job
        self._settled_s = settled_s
        # Jobs with GPUs whose cgroup left, and when; None: Slurm said since that they hold on.
        self._left: dict[str, float | None] = {}
        self.asking = Asking(self.name, self._ask, every_s, gap_s)

    @classmethod
    def find(cls, node: str, which: Which = shutil.which) -> "Slurm | None":
        """None where Slurm's programs are not on PATH."""
        scontrol, squeue = which("scontrol"), which("squeue")
        if scontrol is None and squeue is None:
            return None
        return cls(node, scontrol, squeue)

    def about(self, owner: Owner) -> Known | None:
        if owner.kind != "slurm":
            return None
        job = self._jobs.get(owner.id) or self._jobs.get(self._sluids.get(owner.id, ""))
        if job is not None:
            return job.known
        self._want(owner.id)
        return None

    def job_of(self, sluid: str) -> str | None:
        """The job whose folder a SLUID names."""
        job = self._sluids.get(sluid)
        if job is None:
            self._want(sluid)
        return job

    def held(self) -> list[Owner]:
        with self._lock:
            return [Owner("slurm", id_) for id_ in self._here() if self._left.get(id_) is None]

    def see(self, gone: Callable[[Owner], bool]) -> None:
        """Ask of jobs with GPUs whose cgroup is gone whether they ended.

        An allocation without a running step has no cgroup everywhere.
        """
        with self._lock:
            here = self._here()
            self._left = {id_: left for id_, left in self._left.items() if id_ in here}
        for id_ in here:
            if not gone(Owner("slurm", id_)):
                self._left.pop(id_, None)
                continue
            left = self._left.setdefault(id_, time.monotonic())
            # Later, since whoever comes next is to be asked for at once.
            if left is not None and time.monotonic() - left >= self._settled_s:
                self._want(id_)

    def _here(self) -> list[str]:
        """Jobs that hold GPUs of this node, as far as Slurm said."""
        return [id_ for id_, job in self._jobs.items() if job.here and job.known.reserved_gpus]

    def close(self) -> None:
        self.asking.close()

    def _want(self, job: str) -> None:
        if job in self._wanted or job in self._unknown or not JOB.fullmatch(job):
            return
        with self._lock:
            self._wanted[job] = None
            if len(self._wanted) > WANTED_MAX:
                self._wanted.popitem(last=False)
        self.asking.wake()

    def _ask(self) -> None:
        if not self.cluster and self._scontrol is not None:
            config = self._run([self._scontrol, "show", "config"], TIMEOUT_S, ANSWER_MAX)
            if match := CLUSTER.search(config):
                self.cluster = match[1].decode("utf-8", "backslashreplace")
        with self._lock:
            wanted = list(self._wanted)
        left = wanted
        if self._scontrol is not None:
            for job in wanted[:AT_ONCE]:
                self._ask_for(self._scontrol, job)
                self._settle(job)
            left = wanted[AT_ONCE:]
        if self._squeue is not None and (left or not wanted):
            self._ask_for_all(self._squeue)
            for job in left:
                if self._knows(job) or self._scontrol is None:
                    self._settle(job)
        if not wanted:
            self._unknown.clear()  # they may be asked for once more
        if any(job in self._wanted for job in left):
            self.asking.wake()

    def _settle(self, job: str) -> None:
        """There was an answer, with the job or without it."""
        with self._lock:
            self._wanted.pop(job, None)
            if not self._knows(job):
                self._unknown[job] = None
                if len(self._unknown) > REMEMBERED:
                    self._unknown.popitem(last=False)

    def _knows(self, job: str) -> bool:
        return job in self._jobs or job in self._sluids

    def _ask_for_all(self, squeue: str) -> None:
        node = min(self._node, key=len)
        command = [squeue, "--json", "--nodelist", node]
        answer = document(self._run(command, TIMEOUT_S, ANSWER_MAX), squeue)
        jobs = jobs_of(answer, self._node, ours=False)  # some versions do not heed --nodelist
        here = {job.id for job in jobs}
        with self._lock:
            for gone in [n for n, job in self._jobs.items() if job.here and n not in here]:
                self._jobs[gone] = replace(self._jobs[gone], here=False)
        for job in jobs:
            if job.here:
                self._keep(job)

    def _ask_for(self, scontrol: str, job: str) -> None:
        command = [scontrol, "show", "job", job, "--json"]
        try:
            answer = document(self._run(command, TIMEOUT_S, ANSWER_MAX), scontrol)
        except SourceFailed as exc:
            if "invalid job id" not in str(exc).lower():
                raise
            answer = None
        # An array's own number brings all of its tasks.
        named = [j for j in jobs_of(answer, self._node, ours=True) if job in (j.id, j.sluid)]
        for found in named:
            self._keep(found)
        with self._lock:
            if not named and job in self._jobs:  # it ended long ago
                self._jobs[job] = replace(self._jobs[job], here=False)

    def _keep(self, job: Job) -> None:
        with self._lock:
            old = self._jobs.get(job.id)
            if job.gpus_unsaid and old is not None and not old.gpus_unsaid:
                job = replace(old, here=job.here)  # squeue may leave out what scontrol said
            self._jobs[job.id] = job
            self._jobs.move_to_end(job.id)
            self._unknown.pop(job.id, None)
            left = self._left.get(job.id)
            if left is not None and time.monotonic() - left >= self._settled_s:
                self._left[job.id] = None
            if JOB.fullmatch(job.sluid):
                self._sluids[job.sluid] = job.id
            for memory in (self._jobs, self._sluids):
                if len(memory) > REMEMBERED:
                    memory.popitem(last=False)
        if job.cluster and not self.cluster:
            self.cluster = job.cluster


def cluster_of_this_host(conf: Sequence[str] = CONF) -> str:
    """The cluster's name by the first slurm.conf that can be read; "" where there is none."""
    for path in (os.environ.get("SLURM_CONF", ""), *conf):
        try:
            with Path(path).open("rb") as file:
                raw = file.read(CONF_MAX)
        except OSError:
            continue
        if match := CLUSTER.search(raw):
            return match[1].decode("utf-8", "backslashreplace")
    return ""
