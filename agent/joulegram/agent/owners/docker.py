"""Whose a container is and what it holds, by Docker's socket, or Podman's that speaks the same.

Asks   GET /containers/json, and once per container GET /containers/<id>/json
Format https://docs.docker.com/reference/api/engine/version/v1.40/ (2019, the oldest with
       device requests)
"""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from joulegram.agent.errors import SourceFailed
from joulegram.agent.owners.answers import at, document, indices, items, number, strings, text
from joulegram.agent.owners.asking import Asking
from joulegram.agent.owners.http import TIMEOUT_S, get, over_unix
from joulegram.agent.owners.known import ALL_GPUS, UNKNOWN, Known, bounded
from joulegram.agent.textfile import is_there
from joulegram.agent.workloads import CONTAINER, Owner

EVERY_S = 60.0
LIST_MAX = 16 << 20
ONE_MAX = 1 << 20
REMEMBERED = 4096
TRIES = 3
AT_ONCE = 64  # containers looked into in one round
PROJECT = ("com.docker.compose.project", "io.podman.compose.project")
VISIBLE = "NVIDIA_VISIBLE_DEVICES="


class Docker:
    """Answers from memory; its thread asks the socket.

    Args:
        if_there: nobody named the socket; where there is none, nothing is amiss.
    """

    name = "docker"

    def __init__(
        self,
        path: Path,
        *,
        if_there: bool = False,
        every_s: float = EVERY_S,
        gap_s: float = 2.0,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._connect = over_unix(str(path))
        self._path = path
        self._if_there = if_there
        self._timeout_s = timeout_s
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._missing: OrderedDict[str, None] = OrderedDict()  # asked for since the last answer
        self._running: frozenset[str] = frozenset()
        self._failures: dict[str, int] = {}
        self.asking = Asking(self.name, self._ask, every_s, gap_s)

    def meet(self, owner: Owner, pid: int, start_ticks: int) -> None:
        """A process of a container was seen: its name is soon asked for."""
        self.about(owner)

    def about(self, owner: Owner) -> Known | None:
        if owner.kind != "container":
            return None
        known = self._known.get(owner.id)
        if known is None and owner.id not in self._missing:
            self._missing[owner.id] = None
            if len(self._missing) > REMEMBERED:
                self._missing.popitem(last=False)
            self.asking.wake()
        return known

    def held(self) -> list[Owner]:
        known = self._known
        return [
            Owner("container", container)
            for container in sorted(self._running)
            if (of := known.get(container)) is not None and of.reserved_gpus
        ]

    def close(self) -> None:
        self.asking.close()

    def _ask(self) -> None:
        if self._if_there and not is_there(self._path):
            return
        running = [
            container
            for entry in items(self._get("/containers/json", LIST_MAX))
            if CONTAINER.fullmatch(container := text(at(entry, "Id"))) and len(container) == 64
        ]
        self._running = frozenset(running[:REMEMBERED])
        new = [container for container in running if container not in self._known]
        failed: SourceFailed | None = None
        for container in new[:AT_ONCE]:
            try:
                known = known_of(self._get(f"/containers/{container}/json", ONE_MAX))
            except SourceFailed as exc:
                # One that can never be read shall not stand before the others.
                failed, known = exc, UNKNOWN
                self._failures[container] = self._failures.get(container, 0) + 1
                if self._failures[container] < TRIES:
                    continue
            self._keep(container, known)
        self._failures = {c: n for c, n in self._failures.items() if c in self._running}
        if failed is not None:
            raise failed
        if new[AT_ONCE:]:
            self.asking.wake()

    def _keep(self, container: str, known: Known) -> None:
        self._known[container] = known
        self._missing.pop(container, None)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _get(self, target: str, most: int) -> object:
        where = f"docker_socket = {self._path}: "
        try:
            status, body = get(
                self._connect, "docker", target, timeout_s=self._timeout_s, most=most
            )
        except SourceFailed as exc:
            raise SourceFailed(
                f'{where}{exc}; may this user open it? Else docker_socket = "" leaves it alone'
            ) from exc
        if status == 404 and target != "/containers/json":
            return None  # it ended meanwhile
        if status != 200:
            raise SourceFailed(f"{where}answered {status} to {target}")
        return document(body, where)


def known_of(answer: object) -> Known:
    """What `inspect` says of one container."""
    labels = strings(at(answer, "Config", "Labels"))
    host = at(answer, "HostConfig")
    return bounded(
        Known(
            project=next((labels[name] for name in PROJECT if labels.get(name)), ""),
            name=text(at(answer, "Name")).removeprefix("/"),
            attributes=labels,
            reserved_cpus=_cpus(host),
            reserved_gpus=tuple(_gpus(answer)),
        )
    )


def _cpus(host: object) -> float:
    """Its limit in CPUs; 0: none was set."""
    if nano := number(at(host, "NanoCpus")):
        return nano / 1e9
    quota, period = number(at(host, "CpuQuota")), number(at(host, "CpuPeriod")) or 100_000.0
    return quota / period if quota else float(len(indices(text(at(host, "CpusetCpus")))))


def _gpus(answer: object) -> Iterator[str]:
    host = at(answer, "HostConfig")
    for request in items(at(host, "DeviceRequests")):
        kinds = [text(kind) for row in items(at(request, "Capabilities")) for kind in items(row)]
        if "gpu" not in kinds and text(at(request, "Driver")) not in ("nvidia", "amd", "cdi"):
            continue
        named = [text(device) for device in items(at(request, "DeviceIDs"))]
        for device in named:
            vendor, equals, name = device.partition("=")
            if not equals or vendor.endswith("/gpu"):  # CDI: nvidia.com/gpu=0
                yield name if equals else device
        count = at(request, "Count")
        if not named and count == -1:
            yield ALL_GPUS
        elif not named:
            # The daemon gives out the first so many, whoever else has them.
            yield from (str(n) for n in range(int(min(number(count), 64))))
    if text(at(host, "Runtime")) == "nvidia":
        for variable in items(at(answer, "Config", "Env")):
            if text(variable).startswith(VISIBLE):
                names = text(variable).removeprefix(VISIBLE).split(",")
                yield from (name for name in names if name not in ("", "void", "none"))
