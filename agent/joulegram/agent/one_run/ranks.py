"""Which rank of which job this process is, as the launcher says. Pure.

Format srun(1) "OUTPUT ENVIRONMENT VARIABLES"; Open MPI, mpirun(1); MPICH's hydra and Intel MPI;
       torchrun, torch.distributed.run; PALS, mpiexec(1) of HPE Cray; Flux, flux-run(1)

One inside another: the innermost launcher counts, so they are asked in that order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SIZE_MAX = 10_000_000


@dataclass(frozen=True, slots=True)
class Rank:
    """One process of a job that has several."""

    launcher: str
    job: str  # the same for all ranks of a job, and no other job's
    rank: int
    size: int  # ranks of the job; 0: not said
    nodes: int  # nodes of the job; 0: not said


@dataclass(frozen=True, slots=True)
class Launcher:
    """Names of the variables; `job` are all that together name the job, at least one set."""

    name: str
    rank: str
    size: str
    job: tuple[str, ...]
    local_size: str = ""
    nodes: str = ""
    also: str = ""  # must be set, too


LAUNCHERS = (
    Launcher(
        "torchrun",
        "RANK",
        "WORLD_SIZE",
        ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"),
        local_size="LOCAL_WORLD_SIZE",
        also="TORCHELASTIC_RUN_ID",
    ),
    Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri"),
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    Launcher(
        "MPI",
        "PMI_RANK",
        "PMI_SIZE",
        ("PMI_PORT",),
        local_size="MPI_LOCALNRANKS",
        also="MPI_LOCALRANKID",  # Slurm sets PMI_RANK, too
    ),
    Launcher("PALS", "PALS_RANKID", "PALS_SIZE", ("PALS_APID",), also="PALS_LOCAL_RANKID"),
    Launcher("Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", ("FLUX_JOB_ID",), nodes="FLUX_JOB_NNODES"),
    Launcher(
        "Slurm",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        ("SLURM_JOB_ID", "SLURM_STEP_ID"),
        nodes="SLURM_STEP_NUM_NODES",
        also="SLURM_STEP_ID",  # a batch script is no rank of anything
    ),
)


def rank_of(environ: Mapping[str, str], parent: int) -> Rank | None:
    """None where no launcher says that this is one of several.

    Args:
        parent: pid of the parent, which stands for a job that its launcher gives no name.
    """
    for launcher in LAUNCHERS:
        rank = _count(environ.get(launcher.rank))
        if rank is None or (launcher.also and launcher.also not in environ):
            continue
        size = _count(environ.get(launcher.size)) or 0
        if size == 1:
            return None
        names = [f"{name}={environ[name]}" for name in launcher.job if environ.get(name)]
        job = " ".join(names) or f"parent={parent}"
        nodes = _count(environ.get(launcher.nodes)) or 0
        if local_size := _count(environ.get(launcher.local_size)):
            nodes = -(-size // local_size)
        return Rank(launcher.name, f"{launcher.name} {job}", rank, size, nodes)
    return None


def _count(text: str | None) -> int | None:
    if text and text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= SIZE_MAX:
        return int(text)
    return None
