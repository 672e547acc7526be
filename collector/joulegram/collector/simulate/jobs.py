"""A batch system: jobs arrive, wait for room, run on one node or many, end or fail."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from joulegram.collector.simulate.cluster import SLURM, Node, Person
from joulegram.collector.simulate.programs import Stay, Who

WARM_UP_S = 12 * 3600  # the site does not begin empty
BACKFILL = 8  # jobs behind the first that may go before it
MEDIAN_RUN_S = 2_400
MAX_RUN_S = 48 * 3600
FAILED = 0.08  # of all jobs end early
DAY_S = 86_400
# Of 24 hours UTC, how many jobs are handed in: people work by day, scripts at night too.
HOURLY = np.array(
    [3, 2, 2, 2, 2, 3, 4, 6, 9, 11, 12, 11, 9, 11, 12, 11, 10, 8, 6, 5, 5, 4, 4, 3], float
)


@dataclass(slots=True)
class _Job:
    number: int
    at_s: int
    nodes: int
    cores: int  # per node
    gpus: int  # per node
    run_s: int
    program: str
    person: Person


def jobs_on(
    nodes: Sequence[Node],
    people: Sequence[Person],
    scope: str,
    count: int,
    since_s: int,
    length_s: int,
    seed: int,
) -> dict[int, list[Stay]]:
    """Stays of batch jobs, by the node's index, in the order of their start.

    Args:
        count: jobs that arrive during the run; the ones before it come in addition.
        since_s: the run's start, s since 1970 UTC: what hour of the day it is.
    """
    batch = [node for node in nodes if node.role == SLURM]
    stays: dict[int, list[Stay]] = {node.index: [] for node in batch}
    if not batch or not count:
        return stays
    rng = np.random.default_rng([seed, 3])
    jobs = _arrivals(batch, people, count, since_s, length_s, rng)
    cores = np.array([node.kind.cores for node in batch])
    gpus = [list(range(node.kind.gpus)) for node in batch]
    gpus_free = np.array([node.kind.gpus for node in batch])
    has_gpus = gpus_free > 0
    running: list[tuple[int, int, list[tuple[int, tuple[int, ...]]], int]] = []
    queue: deque[_Job] = deque()

    def start(job: _Job, now_s: int) -> bool:
        fits = (cores >= job.cores) & (gpus_free >= job.gpus)
        if not job.gpus:
            fits &= ~has_gpus
        found = np.nonzero(fits)[0][: job.nodes]
        if len(found) < job.nodes:
            return False
        who = Who(
            scope, "slurm", str(job.number), job.person.user, job.person.project,
            f"{job.program}-{job.number % 97:02d}", job.person.team,
        )  # fmt: skip
        taken = []
        for at in found.tolist():
            mine = tuple(gpus[at][: job.gpus])
            del gpus[at][: job.gpus]
            gpus_free[at] -= job.gpus
            cores[at] -= job.cores
            taken.append((at, mine))
            node = batch[at]
            used = job.cores * float(rng.uniform(0.85, 1.0))
            if job.program == "notebook":
                used = 1.0
            stays[node.index].append(
                Stay(
                    who,
                    now_s,
                    now_s + job.run_s,
                    job.program,
                    used,
                    float(job.cores),
                    mine,
                    int(rng.integers(2_000, 4_000_000)),
                )
            )
        heapq.heappush(running, (now_s + job.run_s, job.number, taken, job.cores))
        return True

    def from_queue(now_s: int) -> None:
        # Round and round while something fits: many jobs may start where a large one ended.
        tried = 0
        while queue and tried < min(len(queue), BACKFILL):
            job = queue[tried]
            if start(job, now_s):
                del queue[tried]
                tried = 0
            else:
                tried += 1

    def end_until(now_s: int) -> None:
        while running and running[0][0] <= now_s:
            ended_s, _, taken, used = heapq.heappop(running)
            for at, mine in taken:
                cores[at] += used
                gpus[at] = sorted([*gpus[at], *mine])
                gpus_free[at] += len(mine)
            from_queue(ended_s)

    for job in jobs:
        end_until(job.at_s)
        queue.append(job)
        from_queue(job.at_s)
    end_until(length_s)
    for of_node in stays.values():
        of_node.sort(key=lambda stay: (stay.start_s, stay.who.id))
    return stays


def _arrivals(
    batch: Sequence[Node],
    people: Sequence[Person],
    count: int,
    since_s: int,
    length_s: int,
    rng: np.random.Generator,
) -> list[_Job]:
    earlier = max(1, round(count * WARM_UP_S / length_s)) if count else 0
    earlier = min(earlier, 20 * len(batch))
    times = np.sort(
        np.concatenate(
            [
                _times(count, 0, length_s, since_s, rng),
                _times(earlier, -WARM_UP_S, 0, since_s, rng),
            ]
        )
    )
    cpu_nodes = [node for node in batch if not node.kind.gpus]
    gpu_nodes = [node for node in batch if node.kind.gpus]
    first = 100_000 + int(rng.integers(0, 900_000))
    made = []
    for i, at_s in enumerate(times.tolist()):
        on_gpus = bool(gpu_nodes) and (not cpu_nodes or rng.random() < 0.45)
        pool = gpu_nodes if on_gpus else cpu_nodes
        most = max(1, len(pool) // 2)
        nodes = min(most, int(rng.choice([1, 1, 1, 1, 1, 2, 2, 4, 8])))
        kind = pool[int(rng.integers(len(pool)))].kind
        gpus = 0
        if on_gpus:
            gpus = kind.gpus if nodes > 1 else min(kind.gpus, int(rng.choice([1, 1, 2, 4, 8])))
            cores = kind.cores * gpus // kind.gpus
            program = "train" if nodes > 1 else str(rng.choice(["train", "train", "notebook"]))
        else:
            cores = min(kind.cores, int(rng.choice([1, 4, 8, 16, 32, kind.cores])))
            if nodes > 1:
                cores = kind.cores
            program = "mpi" if nodes > 1 else str(rng.choice(["mpi", "threads"]))
        run_s = min(MAX_RUN_S, 60 + int(MEDIAN_RUN_S * rng.lognormal(0, 1.2)))
        if rng.random() < FAILED:
            run_s = 30 + int(run_s * rng.uniform(0, 0.8))
        person = people[int(rng.integers(len(people)))]
        made.append(_Job(first + i, at_s, nodes, cores, gpus, run_s, program, person))
    return made


def _times(
    count: int, begin_s: int, end_s: int, since_s: int, rng: np.random.Generator
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """`count` times in [begin_s, end_s), more of them in working hours."""
    found: list[int] = []
    while len(found) < count:
        tries = rng.integers(begin_s, end_s, max(64, count))
        weight = HOURLY[(tries + since_s) % DAY_S // 3600] / HOURLY.max()
        weekend = (tries + since_s) // DAY_S % 7
        # 1970-01-01 was a Thursday: days 2 and 3 of such a week are Saturday and Sunday.
        weight = np.where((weekend == 2) | (weekend == 3), weight * 0.4, weight)
        found += tries[rng.random(len(tries)) < weight].tolist()
    return np.array(found[:count], np.int64)
