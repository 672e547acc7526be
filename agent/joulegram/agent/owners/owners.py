"""All who may know whose a workload is, asked as one."""

from collections.abc import Callable
from pathlib import Path

from joulegram.agent.config import DOCKER_SOCKET, AgentConfig
from joulegram.agent.owners.batch import Batch
from joulegram.agent.owners.docker import Docker
from joulegram.agent.owners.known import UNKNOWN, Known, Source, merged
from joulegram.agent.owners.kubelet import Kubelet
from joulegram.agent.owners.slurm import Slurm, cluster_of_this_host
from joulegram.agent.workloads import BATCH, Owner

Meet = Callable[[Owner, int, int], None]


class Owners:
    """Answers from memory.

    Args:
        batch: what jobs' own environments say; it yields to every source.
        cluster: Slurm's name of this cluster, where a file said it; "" asks on.
    """

    def __init__(
        self,
        batch: Batch,
        slurm: Slurm | None = None,
        kubelet: Kubelet | None = None,
        docker: Docker | None = None,
        cluster: str = "",
    ) -> None:
        self._batch, self._slurm = batch, slurm
        self._cluster = cluster
        self.sources: list[Source] = [s for s in (slurm, kubelet, docker) if s is not None]
        # Who wants to see the processes of which kind of workload.
        self.meets: dict[str, Meet] = dict.fromkeys(BATCH, batch.meet)
        if slurm is not None:
            self.meets["slurm"] = self._meet_job
        if kubelet is not None:
            self.meets["kubernetes"] = kubelet.meet
        if docker is not None:
            self.meets["container"] = docker.meet

    @classmethod
    def of(cls, config: AgentConfig) -> "Owners":
        """Those that the configuration names, and those that this host has."""
        docker, kubelet = None, None
        if config.docker_socket:
            docker = Docker(
                Path(config.docker_socket), if_there=config.docker_socket == DOCKER_SOCKET
            )
        if config.kubelet_url:
            kubelet = Kubelet(
                config.procfs,
                config.kubelet_url,
                config.kubelet_token_file,
                config.kubelet_ca,
                config.kubelet_insecure,
            )
        if config.slurm == "off":
            return cls(Batch(config.procfs), None, kubelet, docker)
        return cls(
            Batch(config.procfs), Slurm.find(config.node), kubelet, docker, cluster_of_this_host()
        )

    @property
    def cluster(self) -> str:
        """Slurm's name of this cluster; "" where none is known."""
        if not self._cluster:
            self._cluster = (self._slurm.cluster if self._slurm else "") or self._batch.cluster
        return self._cluster

    def job_of(self, sluid: str) -> str | None:
        """The number of the Slurm job that a SLUID names."""
        found = self._slurm.job_of(sluid) if self._slurm is not None else None
        return found or self._batch.job_of(sluid)

    def said(self, owner: Owner) -> Known:
        """What schedulers and supervisors say."""
        found = UNKNOWN
        for source in self.sources:
            if (known := source.about(owner)) is not None:
                found = merged(found, known)
        return found

    def _meet_job(self, owner: Owner, pid: int, start_ticks: int) -> None:
        # Asked at first sight, Slurm has mostly answered before the job's first window ends.
        if self._slurm is not None:
            self._slurm.about(owner)
        self._batch.meet(owner, pid, start_ticks)

    def started_with(self, owner: Owner) -> Known:
        """What its own processes were started with: a user's word."""
        if owner.kind not in BATCH:
            return UNKNOWN
        return self._batch.about(owner) or UNKNOWN

    def holding(
        self, alive: Callable[[Owner], bool], gone: Callable[[Owner], bool]
    ) -> list[tuple[Owner, tuple[str, ...]]]:
        """Workloads that hold GPUs now, and which, as their schedulers name them.

        Sources are asked rarely, and cgroups leave at once: whose is gone holds nothing, except
        jobs of which Slurm says so after that.

        Args:
            alive: whether a workload's cgroup is still there.
            gone: whether it was there, and is no more.
        """
        found = self._batch.holding(alive)
        if self._slurm is not None:
            self._slurm.see(gone)
        for source in self.sources:
            for owner in source.held():
                if source is not self._slurm and gone(owner):
                    continue
                if (known := source.about(owner)) is not None and known.reserved_gpus:
                    found[owner] = known.reserved_gpus
        return list(found.items())

    def close(self) -> None:
        for source in self.sources:
            source.close()
