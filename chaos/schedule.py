"""Which fault comes when, on whom and for how long. Pure: the seed alone decides."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

AGENTS = ("agent1", "agent2", "agent3")
DIRECT, KAFKA = "direct", "kafka"
SHAPES = (DIRECT, KAFKA)

# By role who has it.
SERVERS: Mapping[str, Mapping[str, Sequence[str]]] = {
    DIRECT: {"collector": ("collector",)},
    KAFKA: {
        "intake": ("intake",),
        "writer": ("writer1", "writer2"),
        "broker": ("broker",),
        "clickhouse": ("clickhouse",),
    },
}
# What stands between two parts, named by who is asked.
LINKS: Mapping[str, Sequence[str]] = {
    DIRECT: ("link to collector",),
    KAFKA: ("link to intake", "link to broker", "link to clickhouse"),
}

AT_ONCE = 2  # faults that may overlap, on different parts
LONG_S = 240.0  # runs in which a connection may stay silent until keepalive ends it
RECOVERY_S = 4.0  # of a part, before its next fault
NETWORK = ("delay", "refuse", "reset", "half-open", "slow")
# Kinds whose victims need a disk that can be filled and made read-only.
DISK = ("full disk", "read-only disk")
DISK_OWNERS = ("collector", "broker", "clickhouse")  # beside agents


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: it begins `at_s` after the start, and ends by itself `for_s` later."""

    at_s: float
    kind: str
    target: str
    for_s: float

    @property
    def name(self) -> str:
        """Its row in the table: agents are all alike, and so are writers."""
        return f"{self.kind}, {self.target.rstrip('0123456789')}"

    @property
    def touches(self) -> set[str]:
        """Parts that no other fault may have at the same time."""
        if self.kind == "corrupt page":  # pending frames take a collector that is away
            return {self.target, *(link for links in LINKS.values() for link in links)}
        return {self.target}


@dataclass(frozen=True, slots=True)
class _Way:
    kind: str
    targets: Sequence[str]
    least_s: float
    most_s: float
    weight: float = 1.0


def ways(shape: str, seconds: float) -> list[_Way]:
    """All that may happen in a shape, in a run of so many seconds: each kind to each role."""
    links = [(link,) for link in LINKS[shape]]
    found = [
        _Way("kill -9", AGENTS, 0.0, 2.0, 2.0),
        _Way("stop and continue", AGENTS, 1.0, 8.0),
        _Way("clock jump", AGENTS, 2.0, 8.0),
        _Way("corrupt page", AGENTS, 2.0, 4.0),
        _Way("full disk", AGENTS, 2.0, 7.0),
        _Way("read-only disk", AGENTS, 2.0, 7.0),
        *(_Way(kind, link, 1.0, 8.0) for kind in NETWORK for link in links),
    ]
    for role, members in SERVERS[shape].items():
        found += [
            _Way("kill -9", members, 0.0, 3.0, 3.0),
            _Way("stop and continue", members, 1.0, 8.0, 2.0),
            _Way("restart", members, 0.0, 2.0),
        ]
        if role in DISK_OWNERS:
            found += [
                _Way("full disk", members, 2.0, 7.0, 2.0),
                _Way("read-only disk", members, 2.0, 7.0),
            ]
    if seconds >= LONG_S:
        found += [_Way("half-open for good", link, 1.0, 4.0) for link in links]
    return found


def plan(seed: int, seconds: float, shape: str, *, disks: bool = True) -> list[Fault]:
    """The faults of a run of so many seconds, by their time.

    Every kind comes once to every role before any comes a second time, as far as the time allows.

    Args:
        disks: whether disks can be filled and made read-only here.
    """
    rng = random.Random(f"{seed} {shape} faults")
    # The same draws where disks cannot be had: those faults are left out, the others stay.
    known = ways(shape, seconds)
    hat: list[_Way] = []
    faults: list[Fault] = []
    at_s = rng.uniform(1.0, 2.0)
    while True:
        if not hat:
            hat = sorted(known, key=lambda way: rng.random() ** (1.0 / way.weight))
        way = hat.pop()
        fault = Fault(
            round(at_s, 1),
            way.kind,
            rng.choice(list(way.targets)),
            round(rng.uniform(way.least_s, way.most_s), 1),
        )
        begin_s = max(at_s, _free_at(faults, fault))
        fault = Fault(round(begin_s, 1), fault.kind, fault.target, fault.for_s)
        if fault.at_s + fault.for_s > seconds:
            break
        faults.append(fault)
        at_s = begin_s + rng.uniform(0.5, 5.0)
    kept = [fault for fault in faults if disks or fault.kind not in DISK]
    return sorted(kept, key=lambda fault: fault.at_s)


def _free_at(faults: Sequence[Fault], new: Fault) -> float:
    """From when on nothing stands in the way of a fault."""
    at_s = max(
        (one.at_s + one.for_s + RECOVERY_S for one in faults if one.touches & new.touches),
        default=0.0,
    )
    ends = sorted((one.at_s + one.for_s for one in faults), reverse=True)
    return max(at_s, ends[AT_ONCE - 1] if len(ends) >= AT_ONCE else 0.0)
