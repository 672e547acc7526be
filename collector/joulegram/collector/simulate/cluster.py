"""Who there is in a made-up site: nodes of several kinds, and people in projects and teams.

All of it follows from the seed. Powers are round numbers of today's servers, no model of any.
"""

from dataclasses import dataclass

import numpy as np

CPU_ONLY, FOUR_GPUS, EIGHT_GPUS, VIRTUAL = "cpu", "g4", "g8", "vm"
SLURM, KUBERNETES, LOGIN = "slurm", "kubernetes", "login"


@dataclass(frozen=True, slots=True)
class Kind:
    """What nodes of a kind have in common. Powers are W of one socket or GPU."""

    name: str
    share: float  # of all nodes
    sockets: int
    cores: int
    cpu_idle_w: tuple[float, float]  # nodes differ: from, to
    cpu_max_w: float
    dram_idle_w: float
    dram_max_w: float
    gpus: int
    gpu_idle_w: float
    gpu_max_w: float
    platform: bool  # has a meter of the whole machine
    modelled: bool  # has no sensor; its energy is a model's


KINDS = (
    Kind(CPU_ONLY, 0.62, 2, 64, (38.0, 74.0), 240.0, 7.0, 26.0, 0, 0.0, 0.0, True, False),
    Kind(FOUR_GPUS, 0.16, 2, 64, (45.0, 80.0), 225.0, 9.0, 30.0, 4, 52.0, 400.0, True, False),
    Kind(EIGHT_GPUS, 0.10, 2, 112, (70.0, 105.0), 350.0, 14.0, 48.0, 8, 71.0, 700.0, True, False),
    Kind(VIRTUAL, 0.12, 1, 16, (12.0, 18.0), 72.0, 0.0, 0.0, 0, 0.0, 0.0, False, True),
)

# team -> its projects (Slurm accounts and Kubernetes namespaces)
TEAMS = {
    "vision": ("vision", "vision-eval"),
    "language": ("llm-pretrain", "llm-serve"),
    "climate": ("ocean", "weather"),
    "chemistry": ("moldyn", "catalysis"),
    "genomics": ("assembly",),
    "platform": ("ingress", "monitoring", "ci"),
    "shop": ("checkout", "search"),
}
NAMES = (
    "ada", "amira", "ben", "carla", "chen", "dmitri", "elif", "fatou", "grace", "hana",
    "ines", "jonas", "kofi", "lena", "mei", "nadia", "omar", "priya", "rosa", "tomas",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who runs things."""

    user: str
    uid: int
    project: str
    team: str


@dataclass(frozen=True, slots=True)
class Node:
    """One machine."""

    index: int
    name: str
    kind: Kind
    role: str
    cpu_idle_w: float  # of one socket
    gpu_idle_w: float  # of one GPU
    boot_s: int  # before the run's start
    gpu_names: tuple[str, ...]


def nodes_of(count: int, prefix: str, seed: int) -> list[Node]:
    """`count` nodes; the same seed makes the same ones."""
    rng = np.random.default_rng([seed, 1])
    made: list[Node] = []
    for index in range(count):
        kind = _kind(index)
        role = SLURM
        if kind.modelled or (kind.gpus == 4 and index % 3 == 0) or index % 5 == 4:
            role = KUBERNETES
        if index == 0:
            role = LOGIN  # the first is where people log in
        uuids = (rng.bytes(16).hex() for _ in range(kind.gpus))
        made.append(
            Node(
                index,
                f"{prefix}-{kind.name}-{index:04d}",
                kind,
                role,
                round(float(rng.uniform(*kind.cpu_idle_w)), 1),
                round(float(kind.gpu_idle_w * rng.uniform(0.9, 1.15)), 1),
                int(rng.integers(4 * 86_400, 90 * 86_400)),  # before all that runs on it
                tuple(f"gpu:GPU-{u[:8]}-{u[8:12]}-{u[12:16]}-{u[16:20]}-{u[20:]}" for u in uuids),
            )
        )
    return made


def people_of(seed: int) -> list[Person]:
    """The site's people: each in one project."""
    rng = np.random.default_rng([seed, 2])
    projects = [(team, project) for team, of in TEAMS.items() for project in of]
    people = []
    for i, user in enumerate(NAMES):
        # Every project has somebody; the rest is chance.
        team, project = projects[i if i < len(projects) else int(rng.integers(len(projects)))]
        people.append(Person(user, 10_000 + i, project, team))
    return people


def rules() -> str:
    """The team rules, as a collector's configuration has them."""
    return "\n".join(
        f'[[teams.rules]]\nteam = "{team}"\nproject = "{project}"\n'
        for team, projects in TEAMS.items()
        for project in projects
    )


def _kind(index: int) -> Kind:
    """Kinds in their shares, mixed so that few nodes have all of them too."""
    at = (index * 0.381966) % 1.0  # the golden section never repeats and fills evenly
    for kind in KINDS:
        if at < kind.share:
            return kind
        at -= kind.share
    return KINDS[0]
