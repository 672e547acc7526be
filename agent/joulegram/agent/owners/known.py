"""What schedulers and supervisors say of a workload, beyond the name in its cgroup's path."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from joulegram.agent.owners.asking import Asking
from joulegram.agent.textfile import printable
from joulegram.agent.workloads import Owner

# Well within what a collector takes of one workload.
TEXT_MAX = 255
LABEL_MAX = 317  # Kubernetes: 253 of a prefix, a slash, 63
LABELS_MAX = 32
GPUS_MAX = 64
CPUS_MAX = 100_000.0

ALL_GPUS = "all"


@dataclass(frozen=True, slots=True)
class Known:
    """Who is behind a workload and what it holds. "" and 0: not said."""

    user: str = ""
    project: str = ""  # account, namespace
    name: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)  # container labels and the like
    reserved_cpus: float = 0.0
    # As the scheduler names them: "0", "GPU-...", "MIG-..."; ALL_GPUS alone: every one of the node.
    reserved_gpus: tuple[str, ...] = ()


UNKNOWN = Known()


class Source(Protocol):
    """One place that knows names. It answers from memory; a thread of its own asks outside."""

    @property
    def name(self) -> str: ...  # slurm, kubelet, docker
    @property
    def asking(self) -> Asking: ...  # its thread

    def about(self, owner: Owner) -> Known | None:
        """What is known by now; None where it knows nothing of it. Never blocks, never raises."""

    def held(self) -> list[Owner]:
        """Workloads of this node that hold a GPU now, whether or not a process of theirs runs."""

    def close(self) -> None:
        """End its thread."""


def merged(first: Known, second: Known) -> Known:
    """What either says; where both do, the first counts."""
    if first is UNKNOWN or second is UNKNOWN:
        return second if first is UNKNOWN else first
    return Known(
        user=first.user or second.user,
        project=first.project or second.project,
        name=first.name or second.name,
        attributes={**second.attributes, **first.attributes},
        reserved_cpus=first.reserved_cpus or second.reserved_cpus,
        reserved_gpus=first.reserved_gpus or second.reserved_gpus,
    )


def bounded(known: Known) -> Known:
    """The same in printable text of bounded length and number: it came from outside."""
    labels = sorted(known.attributes)[:LABELS_MAX]
    cpus = known.reserved_cpus
    return replace(
        known,
        user=_short(known.user),
        project=_short(known.project),
        name=_short(known.name),
        attributes={
            _short(label, LABEL_MAX): _short(known.attributes[label]) for label in labels if label
        },
        reserved_cpus=min(cpus, CPUS_MAX) if math.isfinite(cpus) and cpus > 0 else 0.0,
        reserved_gpus=tuple(dict.fromkeys(_short(g) for g in known.reserved_gpus[:GPUS_MAX] if g)),
    )


def _short(text: str, most: int = TEXT_MAX) -> str:
    return printable(text[:most])[:most]
