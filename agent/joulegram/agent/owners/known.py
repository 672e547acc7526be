"""What schedulers and supervisors say of a workload, beyond the name in its cgroup's path."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from joulegram.agent.workloads import Owner


@dataclass(frozen=True, slots=True)
class Known:
    """Who is behind a workload and what it holds. "" and 0: not said."""

    user: str = ""
    project: str = ""  # account, namespace
    name: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)  # container labels and the like
    reserved_cpus: float = 0.0
    reserved_gpus: tuple[str, ...] = ()  # as the scheduler names them: "0", "GPU-...", "MIG-..."


class Source(Protocol):
    """One place that knows names. It answers from memory; a thread of its own asks outside."""

    @property
    def name(self) -> str: ...  # slurm, kubelet, docker

    def about(self, owner: Owner) -> Known | None:
        """What is known by now; None where it knows nothing of it. Never blocks, never raises."""

    def held(self) -> list[Owner]:
        """Workloads of this node that hold a GPU now, whether or not a process of theirs runs."""

    def close(self) -> None:
        """End its thread."""
