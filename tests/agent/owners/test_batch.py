"""What jobs' own environments say, and what of it is believed."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.owners.batch import WANTED, Batch
from joulegram.agent.owners.environ import Start, start_of
from joulegram.agent.owners.known import Known
from joulegram.agent.owners.lookup import THREADS_MAX
from joulegram.agent.workloads import Owner
from tests.servers import wait_until

SLUID = "sBR1JB8J1YM400"
ALICE = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_USER": "alice",
    "SLURM_JOB_ACCOUNT": "physics",
    "SLURM_JOB_NAME": "train",
    "SLURM_CLUSTER_NAME": "hpc1",
    "SLURM_CPUS_ON_NODE": "8",
    "SLURM_JOB_GPUS": "0,2",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "SLURM_ARRAY_JOB_ID": "70",
    "SLURM_ARRAY_TASK_ID": "3",
    "AWS_SECRET_ACCESS_KEY": "secret",
}
TRAIN = Known(
    user="alice",
    project="physics",
    name="train",
    attributes={"array_job_id": "70", "array_task_id": "3"},
    reserved_cpus=8.0,
    reserved_gpus=("0", "2"),
)
JOB = Owner("slurm", "77")


def starts(
    procfs: Path, pid: int, variables: dict[str, str] | bytes, uid: int = 1000, **more: bytes
):
    """A process of a user, started with these variables."""
    folder = procfs / str(pid)
    folder.mkdir(parents=True)
    raw = (
        variables
        if isinstance(variables, bytes)
        else b"".join(f"{name}={value}\0".encode() for name, value in variables.items())
    )
    (folder / "environ").write_bytes(raw)
    (folder / "status").write_text(f"Name:\twork\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t1\n")
    for name, content in more.items():
        (folder / name).write_bytes(content)


def shown(batch: Batch, owner: Owner, *pids: int) -> Known | None:
    """What is known after the processes were shown; every look into them is waited for."""
    for pid in pids:
        batch.meet(owner, pid, 1)
    wait_until(lambda: not batch._starts._pending, "the looks")
    return batch.about(owner)


def test_a_job_says_who_it_is(tmp_path):
    starts(tmp_path, 5, ALICE)
    batch = Batch(tmp_path)
    assert shown(batch, JOB, 5) == TRAIN
    assert batch.holding(lambda owner: True) == {JOB: ("0", "2")}
    assert batch.holding(lambda owner: False) == {}


def test_nothing_but_what_is_asked_for_is_kept(tmp_path):
    starts(tmp_path, 5, ALICE)
    assert "AWS_SECRET_ACCESS_KEY" not in start_of(tmp_path, 5, WANTED).variables


def test_a_job_that_names_another_is_not_believed(tmp_path):
    starts(tmp_path, 5, ALICE | {"SLURM_JOB_ID": "1"})
    starts(tmp_path, 6, ALICE)
    batch = Batch(tmp_path)
    assert shown(batch, JOB, 5) is None
    assert shown(batch, JOB, 6) == TRAIN


def test_the_first_word_stands(tmp_path):
    starts(tmp_path, 5, ALICE)
    starts(tmp_path, 6, ALICE | {"SLURM_JOB_ACCOUNT": "somebody-elses"})
    assert shown(Batch(tmp_path), JOB, 5, 6) == TRAIN


def test_only_so_many_processes_of_a_job_are_looked_into(tmp_path):
    for pid in range(20):
        starts(tmp_path, 100 + pid, {})
    starts(tmp_path, 5, ALICE)
    assert shown(Batch(tmp_path), JOB, *range(100, 120), 5) is None


@pytest.mark.parametrize(
    ("kind", "job", "variables", "known"),
    [
        (
            "pbs",
            "1009249[1].head",
            {
                "PBS_JOBID": "1009249[1].head",
                "PBS_JOBNAME": "sim",
                "PBS_O_LOGNAME": "bob",
                "PBS_QUEUE": "workq",
                "NCPUS": "4",
                "CUDA_VISIBLE_DEVICES": "GPU-aaaa-1,GPU-bbbb-2",
            },
            Known(
                user="bob",
                name="sim",
                attributes={"queue": "workq"},
                reserved_cpus=4.0,
                reserved_gpus=("GPU-aaaa-1", "GPU-bbbb-2"),
            ),
        ),
        ("pbs", "12", {"PBS_JOBID": "12.head", "PBS_JOBNAME": "x"}, Known(name="x")),
        (
            "lsf",
            "4242",
            {
                "LSB_JOBID": "4242",
                "LSB_JOBNAME": "j",
                "LSB_PROJECT_NAME": "p",
                "LSFUSER": "eve",
                "LSB_QUEUE": "normal",
            },
            Known(user="eve", project="p", name="j", attributes={"queue": "normal"}),
        ),
        (
            "lsf",
            "55[3]",
            {"LSB_JOBID": "55", "LSB_JOBINDEX": "3"},
            Known(attributes={"array_task_id": "3"}),
        ),
        (
            "oar",
            "555",
            {"OAR_JOB_ID": "555", "OAR_JOB_NAME": "n", "OAR_PROJECT_NAME": "p", "OAR_USER": "kim"},
            Known(user="kim", project="p", name="n"),
        ),
        (
            "slurm",
            "9",
            {"SLURM_JOB_ID": "9", "SLURM_JOB_GPUS": "0-2,7"},
            Known(reserved_gpus=("0", "1", "2", "7")),
        ),
        (
            "slurm",
            "9",
            {"SLURM_JOB_ID": "9", "SLURM_JOB_GPUS": "no", "ROCR_VISIBLE_DEVICES": "3"},
            Known(reserved_gpus=("3",)),
        ),
        ("slurm", "9", {"SLURM_JOB_ID": "9", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, Known()),
        (
            "slurm",
            "9",
            {"SLURM_JOB_ID": "9", "CUDA_VISIBLE_DEVICES": "MIG-GPU-8a/1/0"},
            Known(reserved_gpus=("MIG-GPU-8a/1/0",)),
        ),
        (  # the number is that of a MIG device among all of the node's
            "slurm",
            "9",
            {"SLURM_JOB_ID": "9", "SLURM_JOB_GPUS": "1", "CUDA_VISIBLE_DEVICES": "MIG-aaaa-2"},
            Known(reserved_gpus=("MIG-aaaa-2",)),
        ),
    ],
)
def test_schedulers_and_their_words(tmp_path, kind, job, variables, known):
    starts(tmp_path, 5, variables)
    assert shown(Batch(tmp_path), Owner(kind, job), 5) == known


def test_the_clusters_name_is_roots_to_say(tmp_path):
    starts(tmp_path, 5, ALICE | {"SLURM_CLUSTER_NAME": "forged"})
    starts(tmp_path, 6, {"SLURM_JOB_ID": "78", "SLURM_CLUSTER_NAME": "hpc1"}, uid=0)
    batch = Batch(tmp_path)
    assert shown(batch, JOB, 5) == TRAIN
    assert batch.cluster == ""
    shown(batch, Owner("slurm", "78"), 6)
    assert batch.cluster == "hpc1"


def test_a_setuid_program_is_whose_who_started_it(tmp_path):
    """Its folder is root's, and its environment the user's."""
    starts(tmp_path, 5, ALICE, uid=1000)
    assert start_of(tmp_path, 5, WANTED).uid == 1000
    (tmp_path / "5/status").write_text("Name:\tUid:\t0\t0\nUid:\t1000\t0\t0\t0\n")
    assert start_of(tmp_path, 5, WANTED).uid == 1000


def test_a_sluid_is_the_job_that_its_processes_say(tmp_path):
    starts(tmp_path, 5, ALICE)
    batch = Batch(tmp_path)
    assert shown(batch, Owner("slurm", SLUID), 5) == TRAIN
    assert batch.job_of(SLUID) == "77"
    assert batch.about(JOB) == TRAIN
    assert batch.holding(lambda owner: owner.id == SLUID) == {JOB: ("0", "2")}


def test_a_sluid_is_the_job_that_slurmstepd_says_before_any_user(tmp_path):
    title = b"slurmstepd: [77.batch]\0"
    starts(tmp_path, 4, {}, uid=0, cmdline=title)
    starts(tmp_path, 5, ALICE | {"SLURM_JOB_ID": "1", "SLURM_JOB_ACCOUNT": "forged"})
    starts(tmp_path, 6, ALICE)
    batch = Batch(tmp_path)
    assert shown(batch, Owner("slurm", SLUID), 4, 5, 6) == TRAIN
    assert batch.job_of(SLUID) == "77"


def test_a_title_is_believed_of_root_alone(tmp_path):
    starts(tmp_path, 4, {}, uid=1000, cmdline=b"slurmstepd: [1.batch]\0")
    batch = Batch(tmp_path)
    shown(batch, Owner("slurm", SLUID), 4)
    assert batch.job_of(SLUID) is None


def test_two_sluids_are_never_one_job_by_a_users_word(tmp_path):
    starts(tmp_path, 5, ALICE)
    starts(tmp_path, 6, ALICE)
    batch = Batch(tmp_path)
    shown(batch, Owner("slurm", SLUID), 5)
    shown(batch, Owner("slurm", "sBR1JB8J1YM401"), 6)
    assert batch.job_of(SLUID) == "77"
    assert batch.job_of("sBR1JB8J1YM401") is None


@given(st.binary(max_size=300) | st.just(b"SLURM_JOB_ID=77\0") | st.just(b"SLURM_JOB_ID=\xff\0=\0"))
def test_any_environment_and_any_title(raw):
    variables = {}
    for variable in raw.split(b"\0"):
        name, _, value = variable.partition(b"=")
        variables[os.fsdecode(name)] = value.decode("utf-8", "backslashreplace")
    batch = Batch(Path("/nowhere"))
    for owner in (JOB, Owner("slurm", SLUID), Owner("pbs", "1.x"), Owner("lsf", "5[1]")):
        batch._said(owner, Start(0, variables, raw))


def test_what_cannot_be_read_says_nothing(tmp_path):
    assert start_of(tmp_path, 5, WANTED) == Start(-1)
    (tmp_path / "6").mkdir()
    (tmp_path / "6/environ").mkdir()
    assert start_of(tmp_path, 6, WANTED).variables == {}


def test_an_endless_environment_is_cut(tmp_path):
    starts(tmp_path, 5, b"A=" + b"x" * (1 << 21) + b"\0SLURM_JOB_ID=77\0")
    assert start_of(tmp_path, 5, WANTED).variables == {}


def test_a_user_whose_processes_hang_costs_nobody_else_their_names(tmp_path):
    """An environment is its process's memory, which may lie on a file system that never answers."""
    batch = Batch(tmp_path)
    pipes = []
    for pid in range(10, 10 + 2 * THREADS_MAX):
        starts(tmp_path, pid, b"", uid=1001)
        pipes.append(tmp_path / f"{pid}/environ")
        pipes[-1].unlink()
        os.mkfifo(pipes[-1])  # to open it hangs
        batch.meet(Owner("slurm", str(pid)), pid, 1)
    try:
        starts(tmp_path, 5, ALICE)
        batch.meet(JOB, 5, 1)
        wait_until(lambda: batch.about(JOB) == TRAIN, "the other user's job")
    finally:
        let_go(pipes)


def let_go(pipes):
    for pipe in pipes:
        with contextlib.suppress(OSError):  # nobody waits there
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
