"""A site and all that runs on it over a span of time; asked node by node, in order of time."""

from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from joulegram.collector.simulate import services
from joulegram.collector.simulate.cluster import Node, Person, nodes_of, people_of
from joulegram.collector.simulate.jobs import jobs_on
from joulegram.collector.simulate.programs import Stay

DAY_S = 86_400
JOBS_PER_NODE_HOUR = 0.55  # keeps a batch node busy most of the time
OUTAGES_PER_DAY = 0.1  # of a node's agent
OUTAGE_S = (120, 2_400)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made; equal plans make equal frames."""

    nodes: int
    jobs: int  # Slurm jobs that arrive; 0: as many as keep the site busy
    since_s: int  # s since 1970 UTC, the start of a slot
    windows: int
    window_s: int
    seed: int
    prefix: str

    @property
    def length_s(self) -> int:
        return self.windows * self.window_s

    def epoch(self, node: Node) -> int:
        """Another plan is another start of the agent, so its frames never conflict with ours."""
        text = f"{self} {node.name}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") | 1


@dataclass(slots=True)
class Fleet:
    """The nodes of a plan and who is on them when. Memory grows with nodes and jobs alone."""

    plan: Plan
    nodes: list[Node] = field(init=False)
    people: list[Person] = field(init=False)
    _jobs: dict[int, list[Stay]] = field(init=False)
    _always: dict[int, list[Stay]] = field(init=False)
    _days: dict[int, dict[int, list[Stay]]] = field(default_factory=dict)  # by node, then day

    def __post_init__(self) -> None:
        plan = self.plan
        self.nodes = nodes_of(plan.nodes, plan.prefix, plan.seed)
        self.people = people_of(plan.seed)
        count = plan.jobs or round(JOBS_PER_NODE_HOUR * plan.nodes * plan.length_s / 3600) + 1
        self._jobs = jobs_on(
            self.nodes, self.people, f"{plan.prefix}-hpc", count,
            plan.since_s, plan.length_s, plan.seed,
        )  # fmt: skip
        self._always = {
            node.index: services.always(node, f"{plan.prefix}-k8s", plan.length_s, plan.seed)
            for node in self.nodes
        }

    def stays(self, node: Node, begin_s: int, end_s: int) -> list[Stay]:
        """Who is on a node during [begin_s, end_s), s since the start of the run; in fixed order.

        Fastest in the order of time, a day or less at once.
        """
        found = [*self._always[node.index], *self._jobs.get(node.index, ())]
        days = range((begin_s - services.LONGEST_S) // DAY_S, (end_s - 1) // DAY_S + 1)
        known = self._days.get(node.index, {})
        # Made anew when they are asked for again: no more than the days of one question stay.
        self._days[node.index] = known = {
            day: known.get(day)
            or services.of_day(node, self.people, f"{self.plan.prefix}-k8s", day, self.plan.seed)
            for day in days
        }
        for stays in known.values():
            found += stays
        return [stay for stay in found if stay.start_s < end_s and begin_s < stay.end_s]

    def silent(self, node: Node) -> list[tuple[int, int]]:
        """When the node's agent was away: (from, to) in s since the start of the run."""
        rng = np.random.default_rng([self.plan.seed, 6, node.index])
        count = int(rng.poisson(OUTAGES_PER_DAY * self.plan.length_s / DAY_S))
        starts = rng.integers(0, max(1, self.plan.length_s), count)
        lengths = rng.integers(*OUTAGE_S, count)
        return [(int(s), int(s + n)) for s, n in zip(starts, lengths, strict=True)]
