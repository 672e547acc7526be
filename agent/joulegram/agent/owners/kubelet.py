"""Whose a pod is and what it holds, by the kubelet of this node.

Asks   GET <kubelet_url>/pods, with a service account's token
Format https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/

A pod's GPUs are counted there, not named. Which they are is in NVIDIA_VISIBLE_DEVICES of its
processes, written by the device plugin; it is believed where it names as many as were granted.
"""

import re
import ssl
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from joulegram.agent.errors import SourceFailed
from joulegram.agent.owners.answers import at, document, items, quantity, strings, text
from joulegram.agent.owners.asking import Asking
from joulegram.agent.owners.environ import AT_ONCE, FewEach, Start
from joulegram.agent.owners.http import ANSWER_MAX, TIMEOUT_S, get, over_tcp
from joulegram.agent.owners.known import Known, bounded
from joulegram.agent.owners.lookup import Lookup
from joulegram.agent.workloads import Owner

EVERY_S = 60.0
PORT = 10250
TOKEN_MAX = 65536
PODS_MAX = 4096
TRIES = 16  # processes of one pod that are looked into
# At a time: whoever makes one pod whose reads hang may make others in its namespace.
OF_POD, OF_NAMESPACE = 1, 4
GPU = re.compile(r"[a-z0-9.-]+/(?:gpu|mig-.+|gpu\.shared)")
DEVICE = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]+|\d{1,4}(?::\d{1,4})?")
VISIBLE = "NVIDIA_VISIBLE_DEVICES"
HASHES = ("kubernetes.io/config.hash", "kubernetes.io/config.mirror")
ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Pod:
    """What the kubelet says of one pod."""

    uids: tuple[str, ...]  # its own; a static pod's cgroup has the hash of its file
    known: Known
    gpus: int
    running: bool


@dataclass(slots=True)
class Shown:
    """Processes of a pod with GPUs, until one says which."""

    processes: list[tuple[int, int]] = field(default_factory=list)
    gpus: tuple[str, ...] = ()


class Kubelet:
    """Answers from memory; its thread asks the kubelet."""

    name = "kubelet"

    def __init__(
        self,
        procfs: Path,
        url: str,
        token_file: Path | None,
        ca: Path | None,
        insecure: bool,
        *,
        every_s: float = EVERY_S,
        gap_s: float = 5.0,
        timeout_s: float = TIMEOUT_S,
        most: int = ANSWER_MAX,
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "localhost"
        self._port = parts.port or PORT
        self._tls = parts.scheme == "https"
        self._target = parts.path.rstrip("/") + "/pods"
        self._token_file, self._ca, self._insecure = token_file, ca, insecure
        self._timeout_s, self._most = timeout_s, most
        self._pods: Mapping[str, Pod] = {}
        self._gone: OrderedDict[str, Pod] = OrderedDict()
        self._missing: OrderedDict[str, None] = OrderedDict()  # asked for since the last answer
        self._shown: OrderedDict[str, Shown] = OrderedDict()
        each = FewEach(procfs, (VISIBLE,))
        # (pid, start ticks), pod, namespace
        self._starts: Lookup[tuple[tuple[int, int], str, str], Start] = Lookup(
            lambda asked: each.start_of(
                asked[0][0], {f"pod {asked[1]}": OF_POD, f"namespace {asked[2]}": OF_NAMESPACE}
            ),
            threads_max=AT_ONCE,
        )
        self.asking = Asking(self.name, self._ask, every_s, gap_s)

    def meet(self, owner: Owner, pid: int, start_ticks: int) -> None:
        """A process of a pod was seen: its name is soon asked for."""
        if owner.id not in self._pods:
            self.about(owner)
        shown = self._shown.get(owner.id)
        if shown is None:
            shown = self._shown[owner.id] = Shown()
            if len(self._shown) > PODS_MAX:
                self._shown.popitem(last=False)
        process = pid, start_ticks
        if not shown.gpus and len(shown.processes) < TRIES and process not in shown.processes:
            shown.processes.append(process)

    def about(self, owner: Owner) -> Known | None:
        if owner.kind != "kubernetes":
            return None
        pod = self._pods.get(owner.id) or self._gone.get(owner.id)
        if pod is None:
            if owner.id not in self._missing:
                self._missing[owner.id] = None
                if len(self._missing) > PODS_MAX:
                    self._missing.popitem(last=False)
                self.asking.wake()
            return None
        return self._with_gpus(pod, owner.id)

    def held(self) -> list[Owner]:
        return [
            Owner("kubernetes", uid)
            for uid, pod in self._pods.items()
            if pod.gpus and pod.running and uid in self._shown
            if self._with_gpus(pod, uid).reserved_gpus
        ]

    def close(self) -> None:
        self.asking.close()

    def _with_gpus(self, pod: Pod, uid: str) -> Known:
        shown = self._shown.get(uid)
        if not pod.gpus or shown is None:
            return pod.known
        if not shown.gpus:
            shown.gpus = _named(pod.gpus, self._answers(shown, uid, pod.known.project))
        return replace(pod.known, reserved_gpus=shown.gpus)

    def _answers(self, shown: Shown, uid: str, namespace: str) -> Iterator[str]:
        for process in shown.processes:
            if start := self._starts.get((process, uid, namespace)):
                yield start.variables.get(VISIBLE, "")

    def _ask(self) -> None:
        headers = {}
        if self._token_file is not None:  # read anew: the kubelet of its pod renews it hourly
            headers["Authorization"] = f"Bearer {_token(self._token_file)}"
        status, body = get(
            over_tcp(self._host, self._port, self._context()),
            f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}",
            self._target,
            headers,
            timeout_s=self._timeout_s,
            most=self._most,
        )
        if status != 200:
            raise SourceFailed(f"the kubelet answered {status}{REMEDIES.get(status, '')}")
        pods = pods_of(document(body, "the kubelet"))
        for uid in self._pods.keys() - pods.keys():  # their last windows are still to be named
            self._gone[uid] = self._pods[uid]
            if len(self._gone) > PODS_MAX:
                self._gone.popitem(last=False)
        self._pods = pods
        # A pod that even now is not listed is asked for in the next round, not at once.
        for uid in [uid for uid in list(self._missing) if uid in pods]:
            self._missing.pop(uid, None)

    def _context(self) -> ssl.SSLContext | None:
        if not self._tls:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self._ca) if self._ca else None)
        except (OSError, ssl.SSLError) as exc:
            raise SourceFailed(
                f"kubelet_ca = {self._ca}: {exc}; name a file of PEM certificates"
            ) from exc
        if self._insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


REMEDIES = {
    401: ": it takes no such token; let kubelet_token_file name a service account's",
    403: ": its ClusterRole needs `get` on nodes/proxy (nodes/pods since Kubernetes 1.32)",
    404: ": is kubelet_url right? It ends before /pods",
}


def pods_of(answer: object) -> dict[str, Pod]:
    """Every pod that the answer speaks of, under each of its uids."""
    found: dict[str, Pod] = {}
    for entry in items(at(answer, "items")):
        pod = _pod(entry)
        for uid in pod.uids:
            # A static pod may come twice, as itself and as its mirror: with the same words.
            found.setdefault(uid, pod)
        if len(found) >= PODS_MAX:
            break
    return found


def _pod(entry: object) -> Pod:
    metadata = at(entry, "metadata")
    annotations = strings(at(metadata, "annotations"))
    uids = [text(at(metadata, "uid")), *(annotations.get(name, "") for name in HASHES)]
    cpus, gpus = 0.0, 0.0
    for container in _containers(entry):
        cpus += quantity(at(container, "resources", "requests", "cpu"))
        limits = at(container, "resources", "limits")
        if isinstance(limits, dict):
            gpus += sum(
                quantity(n) for k, n in limits.items() if isinstance(k, str) and GPU.fullmatch(k)
            )
    known = Known(
        project=text(at(metadata, "namespace")),
        name=text(at(metadata, "name")),
        attributes=strings(at(metadata, "labels")),
        reserved_cpus=cpus,
    )
    return Pod(
        tuple(dict.fromkeys(uid for uid in uids if uid and len(uid) <= 64)),
        bounded(known),
        int(min(gpus, 1024)),
        text(at(entry, "status", "phase")) not in ENDED,
    )


def _containers(entry: object) -> Iterator[object]:
    yield from items(at(entry, "spec", "containers"))
    for container in items(at(entry, "spec", "initContainers")):
        if text(at(container, "restartPolicy")) == "Always":  # a sidecar stays; others are done
            yield container


def _named(gpus: int, answers: Iterator[str]) -> tuple[str, ...]:
    """The devices, once the processes together name as many as were granted."""
    found: dict[str, None] = {}
    for answer in answers:
        names = [name.strip() for name in answer.split(",")]
        if len(names) <= gpus and all(DEVICE.fullmatch(name) for name in names):
            found.update(dict.fromkeys(names))
    return tuple(found) if len(found) == gpus else ()


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(TOKEN_MAX)
    except OSError as exc:
        raise SourceFailed(
            f"kubelet_token_file = {path}: {exc.strerror}; mount a service account's token there"
        ) from exc
    token = raw.strip().decode("ascii", "replace")
    if not token.isascii() or not token.isprintable() or not token:
        raise SourceFailed(f"kubelet_token_file = {path} does not hold one token on one line")
    return token
