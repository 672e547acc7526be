"""What runs beside batch jobs: Kubernetes pods, people logged in, system daemons."""

from collections.abc import Sequence

import numpy as np

from joulegram.collector.simulate.cluster import KUBERNETES, LOGIN, TEAMS, Node, Person
from joulegram.collector.simulate.programs import Stay, Who

DAY_S = 86_400
BATCH_PODS_PER_HOUR = 1.5
LONGEST_S = 6 * 3600  # of a batch pod and of a session
DAEMONS = {
    "slurm": ("slurmd.service", "munge.service", "sssd.service"),
    "kubernetes": ("kubelet.service", "containerd.service"),
    "login": ("sssd.service", "nfs-server.service"),
}
EVERYWHERE = (
    "sshd.service",
    "systemd-journald.service",
    "chronyd.service",
    "node_exporter.service",
    "joulegram-agent.service",
)
ONLINE = {  # namespaces with deployments, and what they run
    "ingress": ("envoy", "cert-manager"),
    "monitoring": ("prometheus", "grafana", "loki"),
    "checkout": ("cart", "payment", "orders"),
    "search": ("query", "indexer"),
    "llm-serve": ("gateway",),
}
NIGHTLY = ("ci", "search", "assembly", "weather")


def _team(project: str) -> str:
    return next(team for team, projects in TEAMS.items() if project in projects)


def always(node: Node, scope: str, length_s: int, seed: int) -> list[Stay]:
    """Daemons and deployments, which are there all the time, or until their next release."""
    rng = np.random.default_rng([seed, 4, node.index])
    stays = []
    for unit in (*EVERYWHERE, *DAEMONS[node.role]):
        who = Who(node.name, "systemd", unit, "", "", unit, "")
        cores = float(rng.uniform(0.002, 0.02))
        pid = int(rng.integers(400, 2_000))
        stays.append(Stay(who, -node.boot_s, length_s, "daemon", cores, 0.0, (), pid))
    if node.role == KUBERNETES:
        stays += _deployments(node, scope, length_s, rng)
    return stays


def of_day(node: Node, people: Sequence[Person], scope: str, day: int, seed: int) -> list[Stay]:
    """Batch pods or sessions that begin in a day (day 0 is the run's first 24 hours)."""
    rng = np.random.default_rng([seed, 5, node.index, day + 1])
    begin_s = day * DAY_S
    if node.role == KUBERNETES:
        return _batch_pods(node, scope, begin_s, rng)
    if node.role == LOGIN:
        return _sessions(node, people, begin_s, rng)
    return []


def _deployments(node: Node, scope: str, length_s: int, rng: np.random.Generator) -> list[Stay]:
    stays = []
    free = list(range(node.kind.gpus))
    names = [(space, app) for space, apps in ONLINE.items() for app in apps]
    chosen = rng.permutation(len(names))[: 4 if node.kind.modelled else 8]
    pods = [(*names[i], ()) for i in chosen]
    while len(free) > 1:  # one GPU stays free
        take = tuple(free[: int(rng.choice([1, 2]))])
        free = free[len(take) :]
        pods.append(("llm-serve", "inference", take))
    for space, app, gpus in pods:
        cores = round(float(rng.uniform(0.3, min(4.0, node.kind.cores / 8))), 2)
        at_s = -int(rng.integers(3600, 3 * DAY_S))
        while at_s < length_s:
            end_s = at_s + int(rng.integers(DAY_S, 6 * DAY_S))
            who = _pod(scope, space, app, rng)
            program = "serve" if gpus else "web"
            pid = int(rng.integers(2_000, 4_000_000))
            stays.append(Stay(who, at_s, end_s, program, cores, 2 * cores, gpus, pid))
            at_s = end_s
    return stays


def _batch_pods(node: Node, scope: str, begin_s: int, rng: np.random.Generator) -> list[Stay]:
    stays = []
    for _ in range(int(rng.poisson(24 * BATCH_PODS_PER_HOUR))):
        start_s = begin_s + int(rng.integers(0, DAY_S))
        run_s = min(LONGEST_S, 40 + int(400 * rng.lognormal(0, 1)))
        space = str(rng.choice(NIGHTLY))
        cores = float(rng.uniform(0.5, node.kind.cores / 8))
        who = _pod(scope, space, "batch", rng)
        pid = int(rng.integers(2_000, 4_000_000))
        stays.append(Stay(who, start_s, start_s + run_s, "batch", cores, cores, (), pid))
    return sorted(stays, key=lambda stay: (stay.start_s, stay.who.id))


def _sessions(
    node: Node, people: Sequence[Person], begin_s: int, rng: np.random.Generator
) -> list[Stay]:
    stays = []
    for person in people:
        if rng.random() < 0.6:
            start_s = begin_s + int(rng.integers(0, DAY_S - 3600))
            run_s = min(LONGEST_S, 600 + int(rng.exponential(7_200)))
            who = Who(
                node.name.partition("-")[0] + "-hpc", "user", str(person.uid), person.user,
                person.project, person.user, person.team,
            )  # fmt: skip
            cores = float(rng.uniform(0.2, 3.0))
            pid = int(rng.integers(2_000, 4_000_000))
            stays.append(Stay(who, start_s, start_s + run_s, "shell", cores, 0.0, (), pid))
    return sorted(stays, key=lambda stay: (stay.start_s, stay.who.id))


def _pod(scope: str, space: str, app: str, rng: np.random.Generator) -> Who:
    u = rng.bytes(16).hex()
    uid = f"{u[:8]}-{u[8:12]}-{u[12:16]}-{u[16:20]}-{u[20:]}"
    labels = (("app", app), ("tier", "batch" if app == "batch" else "online"))
    return Who(scope, "kubernetes", uid, "", space, f"{app}-{u[:5]}", _team(space), labels)
