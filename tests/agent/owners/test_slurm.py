"""Slurm's jobs by its own programs: real programs on a PATH, that say what the test says."""

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from joulegram.agent.errors import SourceFailed
from joulegram.agent.owners.known import Known
from joulegram.agent.owners.programs import output_of
from joulegram.agent.owners.slurm import Slurm, cluster_of_this_host
from joulegram.agent.owners.slurm_jobs import hosts, jobs_of
from joulegram.agent.workloads import Owner
from tests.agent.owners.answered import SLURM_2305, SLURM_2405
from tests.servers import wait_until

TRAIN = Known(
    user="alice",
    project="physics",
    name="train",
    attributes={
        "partition": "long",
        "qos": "normal",
        "array_job_id": "70",
        "array_task_id": "3",
    },
    reserved_cpus=8.0,
    reserved_gpus=("2", "5"),
)
FOLD = Known(
    user="bob",
    project="bio",
    name="fold",
    attributes={"partition": "gpu"},
    reserved_cpus=6.0,
    reserved_gpus=("0", "2", "4"),
)


@dataclass
class Programs:
    """scontrol and squeue in a folder; every call is noted."""

    folder: Path

    def says(self, program: str, answer: object = None, *, script: str = "") -> None:
        said = self.folder / f"{program}.said"
        said.write_text(answer if isinstance(answer, str) else json.dumps(answer))
        path = self.folder / f"{program}.new"
        path.write_text(
            f'#!/bin/sh\necho {program} "$@" >> {shlex.quote(str(self.folder / "calls"))}\n'
            f'case "$2" in config) echo "ClusterName             = hpc1"; exit 0;; esac\n'
            f"{script or f'cat {shlex.quote(str(said))}'}\n"
        )
        path.chmod(0o755)
        path.rename(self.folder / program)

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def which(self, name: str) -> str | None:
        path = self.folder / name
        return str(path) if path.exists() else None


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def slurm(programs: Programs, node: str = "gpu2", every_s: float = 600.0) -> Slurm:
    return Slurm(
        node,
        programs.which("scontrol"),
        programs.which("squeue"),
        every_s=every_s,
        gap_s=0.02,
    )


def answered(source: Slurm, job: str) -> Known:
    wait_until(lambda: source.about(Owner("slurm", job)) is not None, f"job {job}")
    known = source.about(Owner("slurm", job))
    assert known is not None
    return known


@pytest.mark.parametrize(
    ("answer", "job", "known"), [(SLURM_2305, "77", TRAIN), (SLURM_2405, "78", FOLD)]
)
def test_a_job_is_known_once_scontrol_has_answered(programs, answer, job, known):
    programs.says("scontrol", answer)
    source = slurm(programs)
    assert source.about(Owner("slurm", job)) is None
    assert answered(source, job) == known
    assert source.held() == [Owner("slurm", job)]
    assert source.cluster == "hpc1"
    source.close()
    assert f"scontrol show job {job} --json" in programs.calls()


def test_other_kinds_are_not_asked_for(programs):
    programs.says("scontrol", SLURM_2305)
    source = slurm(programs)
    assert source.about(Owner("container", "0f" * 32)) is None
    assert source.about(Owner("slurm", "$(touch x)")) is None
    source.close()
    assert programs.calls() == []


def test_a_sluid_becomes_its_job(programs):
    programs.says("scontrol", SLURM_2405)
    source = slurm(programs)
    wait_until(lambda: source.job_of("sBR1JB8J1YM400") == "78", "the SLUID")
    assert source.about(Owner("slurm", "sBR1JB8J1YM400")) == FOLD
    source.close()


def test_the_only_node_of_a_job_is_this_one_whatever_slurm_calls_it(programs):
    programs.says("scontrol", SLURM_2405)
    source = slurm(programs, node="10.0.0.2")
    assert answered(source, "78") == FOLD
    source.close()


def test_of_many_nodes_one_with_another_name_says_nothing_of_devices(programs):
    programs.says("scontrol", SLURM_2305)
    source = slurm(programs, node="10.0.0.2")
    known = answered(source, "77")
    assert (known.user, known.reserved_cpus, known.reserved_gpus) == ("alice", 0.0, ())
    assert source.held() == []
    source.close()


def test_many_new_jobs_are_asked_for_together(programs):
    jobs = [{**SLURM_2405["jobs"][0], "job_id": n, "sluid": ""} for n in range(100, 130)]
    programs.says("squeue", {"jobs": jobs})
    programs.says("scontrol", {"jobs": []})
    source = slurm(programs, node="gpu2.site.org")
    for n in range(100, 130):
        source.about(Owner("slurm", str(n)))
    assert answered(source, "129").name == "fold"
    source.close()
    assert sum(call.startswith("squeue --json --nodelist gpu2") for call in programs.calls()) >= 1
    assert sum("show job" in call for call in programs.calls()) <= 16


def test_a_job_that_squeue_no_longer_lists_holds_nothing(programs):
    programs.says("squeue", SLURM_2405)
    source = slurm(programs, every_s=0.05)
    assert answered(source, "78") == FOLD
    assert source.held() == [Owner("slurm", "78")]
    programs.says("squeue", {"jobs": []})
    wait_until(lambda: source.held() == [], "the job's end")
    assert source.about(Owner("slurm", "78")) == FOLD  # its last window is still to be named
    source.close()


ENDED = {**SLURM_2405["jobs"][0], "job_state": ["COMPLETED"], "gres_detail": []}


@pytest.mark.parametrize(
    ("answer", "script"),
    [({"jobs": [ENDED]}, ""), (None, "echo Invalid job id specified >&2; exit 1")],
    ids=["ended", "purged"],
)
def test_a_job_whose_cgroup_left_holds_nothing_unless_slurm_says_so_later(programs, answer, script):
    job = Owner("slurm", "78")

    def held(gone: bool) -> list[Owner]:
        source.see(lambda owner: gone)
        return source.held()

    programs.says("scontrol", SLURM_2405)
    scontrol = programs.which("scontrol")
    source = Slurm("gpu2", scontrol, None, gap_s=0.02, settled_s=0.3)
    assert answered(source, "78") == FOLD
    assert held(gone=False) == [job]
    assert held(gone=True) == []
    # An allocation without a running step: Slurm still says so when all has settled.
    wait_until(lambda: held(gone=True) == [job], "Slurm's word")
    programs.says("scontrol", answer, script=script)
    assert held(gone=False) == [job]  # its next step
    answers = source.asking.answers
    assert held(gone=True) == []
    wait_until(lambda: held(gone=True) == [] and source.asking.answers > answers, "its end")
    assert held(gone=False) == []
    source.close()


def test_with_squeue_alone_a_failure_makes_no_job_unknown(programs):
    programs.says("squeue", script="exit 1")
    source = slurm(programs)
    source.about(Owner("slurm", "78"))
    wait_until(lambda: source.asking.trouble != "", "trouble")
    programs.says("squeue", SLURM_2405)
    assert answered(source, "78") == FOLD
    source.close()


def test_gpus_that_squeue_leaves_out_stay_as_scontrol_said(programs):
    bare = {**SLURM_2405["jobs"][0], "gres_detail": [], "name": "fold2"}
    programs.says("scontrol", SLURM_2405)
    programs.says("squeue", {"jobs": [bare]})
    source = slurm(programs, every_s=0.05)
    assert answered(source, "78") == FOLD
    wait_until(lambda: any("squeue" in call for call in programs.calls()), "squeue")
    assert answered(source, "78").reserved_gpus == ("0", "2", "4")
    source.close()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 3", "ended with 3"),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "contact"),
        ("sleep 60", "within"),
        ("sleep 60 & exec sleep 60", "within"),
        ("cat /dev/zero", "more than"),
        ("kill -9 $$", "ended with -9"),
    ],
)
def test_a_program_that_misbehaves_is_ended_and_named(programs, script, words):
    programs.says("scontrol", script=script)
    with pytest.raises(SourceFailed, match=words):
        output_of([str(programs.which("scontrol")), "show", "job"], 0.3, 1 << 20)


def test_a_program_hears_nothing_of_our_own_variables(programs, monkeypatch):
    monkeypatch.setitem(os.environ, "SQUEUE_FORMAT", "%all")
    programs.says("scontrol", script="env")
    assert b"SQUEUE_FORMAT" not in output_of([str(programs.which("scontrol"))], 10.0, 1 << 20)


def test_a_missing_program_is_named():
    with pytest.raises(SourceFailed, match="cannot run /nowhere/scontrol"):
        output_of(["/nowhere/scontrol"], 1.0, 1)


def test_failure_is_told_and_forgotten_after_an_answer(programs):
    programs.says("scontrol", script="echo down >&2; exit 1")
    source = slurm(programs)
    source.about(Owner("slurm", "77"))
    wait_until(lambda: "down" in source.asking.trouble, "trouble")
    programs.says("scontrol", SLURM_2305)
    assert answered(source, "77") == TRAIN
    wait_until(lambda: source.asking.trouble == "", "no trouble")
    source.close()


def test_a_job_unknown_to_slurm_is_asked_for_once(programs):
    programs.says("scontrol", script="echo 'slurm_load_jobs error: Invalid job id' >&2; exit 1")
    source = slurm(programs)
    for _ in range(3):
        source.about(Owner("slurm", "5"))
        wait_until(lambda: any("job 5" in call for call in programs.calls()), "the call")
    wait_until(lambda: not source._wanted, "the answer")
    source.about(Owner("slurm", "5"))
    source.close()
    assert sum("job 5" in call for call in programs.calls()) == 1


def test_none_without_programs():
    assert Slurm.find("n1", lambda name: None) is None


def test_pending_jobs_hold_nothing():
    waiting = {**SLURM_2405["jobs"][0], "job_state": ["PENDING"]}
    (job,) = jobs_of({"jobs": [waiting]}, {"gpu2"}, ours=False)
    assert not job.here


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("gpu2", ["gpu2"]),
        ("n[01-03,7],login", ["n01", "n02", "n03", "n7", "login"]),
        ("r1n[1-2]-ib,x", ["r1n1-ib", "r1n2-ib", "x"]),
        ("", []),
        ("(null)", ["(null)"]),
    ],
)
def test_lists_of_hosts(listed, names):
    assert hosts(listed) == names


def test_the_clusters_name_by_slurm_conf(tmp_path):
    conf = tmp_path / "slurm.conf"
    conf.write_text("#ClusterName=old\n  clustername=Perlmutter # ours\nNodeName=n1\n")
    assert cluster_of_this_host((str(tmp_path / "none"), str(conf))) == "Perlmutter"
    assert cluster_of_this_host((str(tmp_path / "none"),)) == ""


# Killed, it is a zombie that only who traces it may see, and who traces it does not look: to
# whoever waits for it, it hangs in the kernel.
STUCK = """
import ctypes, os, sys, time
from pathlib import Path
free, traced = Path(sys.argv[1]), os.pipe()
libc, me = ctypes.CDLL(None), os.getpid()
libc.prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: anybody may
if os.fork() == 0:
    os.setsid()
    os.closerange(0, 3)
    done = libc.ptrace(0x4206, me, None, None)  # PTRACE_SEIZE
    os.write(traced[1], b"n" if done else b"y")
    until = time.monotonic() + 60
    while not free.exists() and time.monotonic() < until:
        time.sleep(0.05)
    os._exit(0)
print(os.read(traced[0], 1).decode(), file=open(free.with_name("traced"), "w"))
time.sleep(60)
"""


def test_one_that_cannot_be_ended_is_left_behind_and_not_started_again(tmp_path):
    program, free = tmp_path / "scontrol", tmp_path / "free"
    program.write_text(f"#!{sys.executable}\n{STUCK}")
    program.chmod(0o755)
    command = [str(program), str(free)]
    began_s = time.monotonic()
    try:
        with pytest.raises(SourceFailed, match="no answer within 2 s"):
            output_of(command, 2.0, 1000)
        assert time.monotonic() - began_s < 30.0  # it is held for 60
        if (tmp_path / "traced").read_text() != "y\n":
            pytest.skip("this kernel lets no process trace its parent")
        with pytest.raises(SourceFailed, match=r"earlier .*scontrol .* hangs in the kernel"):
            output_of(command, 2.0, 1000)
    finally:
        free.touch()
    program.write_text("#!/bin/sh\necho well\n")

    def well() -> bool:
        try:
            return output_of(command, 5.0, 1000) == b"well\n"
        except SourceFailed:
            return False

    wait_until(well, "the next one")
