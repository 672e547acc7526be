"""Which rank of which job, as launchers say it."""

import pytest

from joulegram.agent.one_run import ranks

SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "3"}
STEP = {**SLURM, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "prterun-n1@1",
}
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "16",
    "LOCAL_WORLD_SIZE": "8",
    "TORCHELASTIC_RUN_ID": "none",
    "MASTER_PORT": "29500",
}
HYDRA = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}


def rank_of(environ, parent=1):
    found = ranks.rank_of(environ, parent)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (STEP, ("Slurm", 3, 8, 2)),
        (OPEN_MPI, ("Open MPI", 1, 4, 1)),
        (TORCHRUN, ("torchrun", 5, 16, 2)),
        (HYDRA, ("MPI", 0, 2, 1)),
        # mpirun inside a step, torchrun inside that: the innermost counts.
        ({**STEP, **OPEN_MPI}, ("Open MPI", 1, 4, 1)),
        ({**STEP, **OPEN_MPI, **TORCHRUN}, ("torchrun", 5, 16, 2)),
        ({"PALS_RANKID": "2", "PALS_LOCAL_RANKID": "0", "PALS_APID": "a"}, ("PALS", 2, 0, 0)),
        ({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2", "FLUX_JOB_ID": "f"}, ("Flux", 1, 2, 0)),
    ],
)
def test_launchers(environ, said):
    found = rank_of(environ)
    assert (found.launcher, found.rank, found.size, found.nodes) == said


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SLURM,  # a batch script: two runs in it are two runs
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {"RANK": "0", "WORLD_SIZE": "2"},  # anybody may set such names
        {"PMI_RANK": "0", "PMI_SIZE": "2"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "-1"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "٣"},
    ],
)
def test_no_rank(environ):
    assert ranks.rank_of(environ, parent=1) is None


def test_jobs_are_told_apart_and_ranks_of_one_are_not():
    def job(environ, **more):
        return rank_of({**environ, **more}, parent=77).job

    assert job(STEP) == job(STEP, SLURM_PROCID="4") != job(STEP, SLURM_STEP_ID="1")
    assert job(OPEN_MPI) != job(OPEN_MPI, PMIX_NAMESPACE="prterun-n1@2")
    # Hydra may give a job no name: its ranks have one parent.
    assert job(HYDRA) != rank_of(HYDRA, parent=78).job
