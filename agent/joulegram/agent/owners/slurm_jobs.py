"""Slurm's JSON of jobs, as its versions since 21.08 write it: pure.

Format https://slurm.schedmd.com/rest_api.html, job_info. Numbers are plain or
{"set": true, "infinite": false, "number": 4}; states are text or a list; what a job has on each
node is in job_resources.nodes.allocation, before 23.11 in job_resources.allocated_nodes.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from joulegram.agent.owners.answers import at, indices, items, number, text
from joulegram.agent.owners.known import Known, bounded

JOBS_MAX = 10_000
GPUS = re.compile(r"(?:^|[,\s])(?:gres[:/])?gpu(?::[^,()]*)?\(IDX:([0-9,\-]*)\)")
GPU_COUNT = re.compile(r"gres/gpu(?::[^=,]*)?=(\d{1,4})")
CPU_COUNT = re.compile(r"(?:^|,)cpu=(\d{1,7})")
HOSTS = re.compile(r"([^,\[\]]+)(?:\[([^\[\]]*)\])?([^,\[\]]*)")
ON_A_NODE = {"RUNNING", "SUSPENDED"}


@dataclass(frozen=True, slots=True)
class Job:
    """One job, as far as it concerns this node."""

    id: str
    sluid: str  # "": not said
    known: Known
    here: bool  # it holds its CPUs and GPUs on this node now
    gpus_unsaid: bool  # it has GPUs, and not which
    cluster: str = ""


def jobs_of(answer: object, node: Collection[str], *, ours: bool) -> list[Job]:
    """The jobs that the answer speaks of.

    Args:
        node: the names that this node may have there.
        ours: they are known to run on this node, whatever Slurm calls it.
    """
    found = []
    for entry in items(at(answer, "jobs")):
        if job := _job(entry, node, ours):
            found.append(job)
        if len(found) >= JOBS_MAX:
            break
    return found


def _job(entry: object, node: Collection[str], ours: bool) -> Job | None:
    job_id = number(at(entry, "job_id"))
    if not job_id:
        return None
    index, cpus, nodes = _here(entry, node)
    if index is None and ours and nodes == 1:
        index = 0
    gpus = _gpus(entry, index)
    allocated = text(at(entry, "tres_alloc_str"))[:4096]
    if not cpus and nodes <= 1:
        said = CPU_COUNT.search(allocated)
        cpus = number(at(entry, "cpus")) or (float(said[1]) if said else 0.0)
    array = number(at(entry, "array_job_id"))
    attributes = {"partition": text(at(entry, "partition")), "qos": text(at(entry, "qos"))}
    if array:
        attributes["array_job_id"] = str(int(array))
        attributes["array_task_id"] = str(int(number(at(entry, "array_task_id"))))
    known = Known(
        user=text(at(entry, "user_name")),
        project=text(at(entry, "account")),
        name=text(at(entry, "name")),
        attributes={label: value for label, value in attributes.items() if value},
        reserved_cpus=cpus if index is not None else 0.0,
        reserved_gpus=gpus,
    )
    return Job(
        id=str(int(job_id)),
        sluid=text(at(entry, "sluid")) or text(at(entry, "step_id", "sluid")),
        known=bounded(known),
        here=index is not None and bool(ON_A_NODE.intersection(_states(entry))),
        gpus_unsaid=not gpus and GPU_COUNT.search(allocated) is not None,
        cluster=text(at(entry, "cluster"))[:255],
    )


def _states(entry: object) -> set[str]:
    states = at(entry, "job_state")
    listed = [states] if isinstance(states, str) else items(states)
    return {text(state).upper() for state in listed}


def _here(entry: object, node: Collection[str]) -> tuple[int | None, float, int]:
    """(this node's place among the job's, its CPUs there, how many nodes); None: not on it."""
    resources = at(entry, "job_resources")
    allocation = at(resources, "nodes", "allocation") or at(resources, "allocated_nodes")
    listed = list(items(allocation))
    for index, part in enumerate(listed):
        if (text(at(part, "name")) or text(at(part, "nodename"))) in node:
            cpus = number(at(part, "cpus", "count")) or number(at(part, "cpus_used"))
            return index, cpus, len(listed)
    names = hosts(text(at(entry, "nodes")))
    for index, name in enumerate(names):
        if name in node:
            return index, 0.0, len(names)
    return None, 0.0, max(len(listed), len(names))


def _gpus(entry: object, index: int | None) -> tuple[str, ...]:
    details = list(items(at(entry, "gres_detail")))
    if index is None or index >= len(details):
        return ()
    found = GPUS.findall(text(details[index])[:4096])
    return tuple(str(n) for listed in found for n in indices(listed))


def hosts(expression: str) -> list[str]:
    """The names in a list such as n[01-03,7],login; one bracket per name."""
    found: list[str] = []
    for match in HOSTS.finditer(expression[:65536]):
        before, inside, after = match[1], match[2], match[3] or ""
        if inside is None:
            found.append(before + after)
            continue
        for part in inside.split(","):
            first, _, last = part.partition("-")
            numbers = indices(part)
            if not numbers:
                return found
            width = len(first) if last else len(part)
            found.extend(f"{before}{n:0{width}}{after}" for n in numbers)
        if len(found) > JOBS_MAX:
            break
    return found
