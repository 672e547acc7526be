"""Whose a process is, and what is known of its owner: on trees, by the shipped meter."""

import os
import pwd
import shutil
import threading
import time
from pathlib import Path

import pytest

from joulegram.agent.clock import SystemClock
from joulegram.agent.identity import REMEMBERED, Identity
from joulegram.agent.owners.asking import Asking
from joulegram.agent.owners.batch import Batch
from joulegram.agent.owners.known import Known
from joulegram.agent.owners.lookup import Lookup
from joulegram.agent.owners.owners import Owners
from joulegram.agent.owners.slurm import Slurm
from joulegram.agent.use.cgroups import Cgroups
from joulegram.agent.use.procfs import Process, Processes
from joulegram.agent.workloads import Owner
from tests.agent.owners.answered import SLURM_2305
from tests.agent.owners.local_servers import ok, serving_unix
from tests.agent.owners.test_batch import ALICE
from tests.agent.owners.test_slurm import Programs
from tests.agent.played import Machine, energy_j
from tests.servers import wait_until

CID = "0f" * 32
POD = "6b2f7f3e-9d44-4f6b-8a3e-0c7d6f2f1a11"
SLUID = "sBR1JB8J1YM400"
HOME = "/user.slice/user-1000.slice/user@1000.service"
OTHER_HOME = "/user.slice/user-1001.slice/user@1001.service"
KNOWN_UID = max(user.pw_uid for user in pwd.getpwall() if user.pw_uid < 60_000)
KNOWN_NAME = pwd.getpwuid(KNOWN_UID).pw_name
NAMELESS_UID = 3_999_999_999


class Said:
    """A source that says what it was given."""

    name = "said"

    def __init__(self, known: dict[Owner, Known]) -> None:
        self.known = known
        self.asking = Asking(self.name, lambda: None, 60.0)

    def about(self, owner: Owner) -> Known | None:
        return self.known.get(owner)

    def held(self) -> list[Owner]:
        return [owner for owner, known in self.known.items() if known.reserved_gpus]

    def close(self) -> None:
        pass


def identity(tmp_path: Path, scope: str = "", said: dict[Owner, Known] | None = None) -> Identity:
    owners = Owners(Batch(tmp_path))
    owners.sources.append(Said(said or {}))
    return Identity(
        tmp_path,
        Processes(tmp_path),
        Cgroups(tmp_path / "cgroup", SystemClock()),
        scope,
        "n1",
        owners,
    )


def process(tmp_path: Path, pid: int, group: str, uid: int = 0, environ: bytes = b"") -> Process:
    folder = tmp_path / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "cgroup").write_text(f"0::{group}\n")
    (folder / "environ").write_bytes(environ)
    (folder / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
    return Process(pid, 1, uid=uid)


def settled(who: Identity, owner: Owner, holds) -> Known:
    wait_until(lambda: holds(who.about(owner)), f"{owner}")
    return who.about(owner)


JOB = Owner("slurm", "77")
JOB5 = Owner("slurm", "5")
JOB_PATH = "/system.slice/slurmstepd.scope/job_77/step_0/user/task_0"
ENVIRON = b"".join(f"{name}={value}\0".encode() for name, value in ALICE.items())


@pytest.mark.parametrize(
    ("uid", "said", "user"),
    [
        (KNOWN_UID, {}, KNOWN_NAME),  # the environment may say what it likes
        (NAMELESS_UID, {}, "alice"),
        (KNOWN_UID, {JOB: Known(user="slurm-says")}, "slurm-says"),
        (0, {}, "alice"),  # the scheduler's own helper came first
    ],
)
def test_the_user_of_a_job(tmp_path, uid, said, user):
    who = identity(tmp_path, said=said)
    place = who.place(process(tmp_path, 5, JOB_PATH, uid, ENVIRON))
    assert place.owner == JOB
    known = settled(who, JOB, lambda known: known.user == user)
    assert (known.project, known.name, known.reserved_cpus) == ("physics", "train", 8.0)


def test_what_the_scheduler_says_counts_before_the_environment(tmp_path):
    said = Known(project="bio", name="fold", reserved_gpus=("7",), attributes={"qos": "high"})
    who = identity(tmp_path, said={JOB: said})
    who.place(process(tmp_path, 5, JOB_PATH, KNOWN_UID, ENVIRON))
    known = settled(who, JOB, lambda known: known.reserved_cpus == 8.0)
    assert (known.project, known.name) == ("bio", "fold")
    assert known.attributes == {"qos": "high", "array_job_id": "70", "array_task_id": "3"}
    assert who.holding() == [(JOB, ("7",))]


def test_an_environment_never_makes_another_job(tmp_path):
    who = identity(tmp_path)
    forged = ENVIRON.replace(b"SLURM_JOB_ID=77", b"SLURM_JOB_ID=1")
    assert who.place(process(tmp_path, 5, JOB_PATH, 1000, forged)).owner == JOB
    assert who.about(JOB).project == ""


def test_a_sluid_is_placed_as_its_job(tmp_path):
    who = identity(tmp_path)
    path = f"/system.slice/slurmstepd.scope/{SLUID}/step_0/user/task_0"
    task = process(tmp_path, 5, path, KNOWN_UID, ENVIRON)
    wait_until(lambda: who.place(task).owner == JOB, "the job's number")
    assert who.of_group(f"/system.slice/slurmstepd.scope/{SLUID}") == JOB
    assert who.about(JOB).project == "physics"


def test_slurm_is_asked_at_first_sight(tmp_path):
    programs = Programs(tmp_path)
    programs.says("scontrol", SLURM_2305)
    slurm = Slurm("gpu2", programs.which("scontrol"), None)
    who = identity(tmp_path)
    who._all = Owners(Batch(tmp_path), slurm)
    who.place(process(tmp_path, 5, JOB_PATH, KNOWN_UID, ENVIRON))
    wait_until(lambda: who.scope_of(JOB) == "hpc1", "the cluster's name")
    wait_until(lambda: slurm.about(JOB) is not None, "the job")
    assert who.about(JOB).reserved_gpus == ("2", "5")  # not as the environment has it
    who.close()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Owner("vm", "qemu-1-db"), "db"),
        (Owner("vm", "db"), "db"),
        (Owner("systemd", "nginx.service"), "nginx.service"),
        (Owner("systemd", "odd\n\udcff.service"), r"odd\x0a\xff.service"),
        (Owner("container", CID), CID),
        (Owner("system"), ""),
    ],
)
def test_what_nobody_named_is_called_by_its_id(tmp_path, owner, name):
    assert identity(tmp_path).about(owner) == Known(name=name)


def test_a_user_is_called_by_the_login_name(tmp_path):
    who = identity(tmp_path)
    assert who.about(Owner("user", str(KNOWN_UID))) == Known(user=KNOWN_NAME, name=KNOWN_NAME)
    number = str(NAMELESS_UID)
    assert who.about(Owner("user", number)) == Known(user=number, name=number)


def test_a_user_database_that_hangs_stops_nobody(tmp_path):
    who = identity(tmp_path)
    never = threading.Event()
    who._names = Lookup(lambda uid: f"late {never.wait(30.0)}")
    began = time.monotonic()
    for uid in range(1000, 1200):
        assert who.about(Owner("user", str(uid))).name == str(uid)
    assert time.monotonic() - began < 1.0
    never.set()


@pytest.mark.parametrize(
    "name",
    [f"docker-{CID}.scope", f"libpod-{CID}.scope", f"kubepods/burstable/pod{POD}/{CID}"],
)
def test_nobody_takes_the_name_of_what_runs_elsewhere(tmp_path, name):
    who = identity(tmp_path)
    outside, inside = f"/system.slice/{name}", f"{HOME}/{name}"
    victim = process(tmp_path, 5, outside, 0)
    thief = process(tmp_path, 6, inside, 1000)
    owner = who.place(victim).owner
    assert owner.kind in ("container", "kubernetes")
    assert who.place(thief).owner == Owner("user", "1000")
    assert who.of_group(inside) == Owner("user", "1000")
    assert who.of_group(outside) == owner


def test_a_thief_that_came_first_has_to_give_back(tmp_path):
    who = identity(tmp_path)
    thief = process(tmp_path, 6, f"{HOME}/docker-{CID}.scope", 1000)
    own = Owner("container", CID)
    assert who.place(thief).owner == own
    assert who.place(process(tmp_path, 5, f"/system.slice/docker-{CID}.scope")).owner == own
    assert who.place(thief).owner == Owner("user", "1000")


def test_names_made_up_by_the_thousand_make_no_other_forgotten(tmp_path):
    who = identity(tmp_path)
    who.place(process(tmp_path, 5, f"/system.slice/docker-{CID}.scope"))
    for n in range(REMEMBERED + 10):
        who.of_group(f"{HOME}/docker-{n:064x}.scope")
    thief = process(tmp_path, 6, f"{HOME}/docker-{CID}.scope", 1000)
    assert who.place(thief).owner == Owner("user", "1000")
    assert len(who._claims) <= REMEMBERED


def test_a_process_whose_memory_cannot_be_read_holds_up_nobody(tmp_path):
    who = identity(tmp_path)
    task = process(tmp_path, 5, JOB_PATH)
    (tmp_path / "5/environ").unlink()
    os.mkfifo(tmp_path / "5/environ")  # who opens it waits for a writer
    began = time.monotonic()
    for _ in range(50):
        assert who.place(task).owner == JOB
        assert who.about(JOB).project == ""
    assert time.monotonic() - began < 1.0
    (tmp_path / "5/environ").write_bytes(ENVIRON)
    assert settled(who, JOB, lambda known: known.project == "physics").user == "alice"


def test_one_users_container_is_not_anothers(tmp_path):
    who = identity(tmp_path)
    own = process(tmp_path, 5, f"{HOME}/user.slice/libpod-{CID}.scope/container", 1000)
    other = process(tmp_path, 6, f"{OTHER_HOME}/user.slice/libpod-{CID}.scope", 1001)
    assert who.place(own).owner == Owner("container", CID)
    assert who.place(other).owner == Owner("user", "1001")
    assert who.place(own).owner == Owner("container", CID)


def given(tmp_path: Path, path: str, below: str = "") -> Path:
    """Make a cgroup that anybody may write to, and what somebody made in it."""
    folder = tmp_path / "cgroup" / path.strip("/")
    (folder / below).mkdir(parents=True)
    folder.chmod(0o777)
    return folder


UNIT = "/system.slice/own.service"


@pytest.mark.parametrize(
    "imitation", ["slurmstepd.scope/job_77/step_0", "lsf/c/job.77.1.1", "machine-x.scope"]
)
def test_what_was_given_to_a_user_names_no_job_and_no_machine(tmp_path, imitation):
    given(tmp_path, UNIT, imitation)
    who = identity(tmp_path)
    unit = Owner("systemd", "own.service")
    assert who.place(process(tmp_path, 5, f"{UNIT}/{imitation}", 1000)).owner == unit
    assert who.of_group(f"{UNIT}/{imitation}") == unit
    assert who.holding() == []


def test_what_another_user_owns_was_given_to_them(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = given(tmp_path, UNIT, "slurmstepd.scope/job_77")
    folder.chmod(0o755)
    imitation = process(tmp_path, 5, f"{UNIT}/slurmstepd.scope/job_77", 1000)
    assert identity(tmp_path).place(imitation).owner == Owner("slurm", "77")
    os.chown(folder, 1000, 1000)
    assert identity(tmp_path).place(imitation).owner == Owner("systemd", "own.service")


def test_what_was_given_away_is_remembered_when_it_is_gone(tmp_path):
    folder = given(tmp_path, UNIT, "slurmstepd.scope/job_77")
    who = identity(tmp_path)
    who.cgroups.scan(0)
    imitation = f"{UNIT}/slurmstepd.scope/job_77"
    task = process(tmp_path, 5, imitation, 1000)
    shutil.rmtree(folder)
    unit = Owner("systemd", "own.service")
    assert who.place(task).owner == unit
    assert who.of_group(imitation) == unit
    (tmp_path / "cgroup" / imitation.strip("/")).mkdir(parents=True)  # by root, this time
    assert who.of_group(imitation) == Owner("slurm", "77")


def test_each_hierarchy_is_believed_by_its_own_folders(tmp_path):
    """systemd gives away its own hierarchy alone, where there are several."""
    tree = tmp_path / "cgroup"
    for hierarchy in ("cpu,cpuacct", "systemd", "freezer"):
        (tree / hierarchy / "system.slice/own.service").mkdir(parents=True)
    (tree / "systemd/system.slice/own.service").chmod(0o777)
    lines = f"1:name=systemd:{UNIT}/slurm/uid_0/job_77\n2:cpuacct,cpu:{UNIT}\n"
    task = process(tmp_path, 5, UNIT, 1000)
    (tmp_path / "5/cgroup").write_text(lines)
    assert identity(tmp_path).place(task).owner == Owner("systemd", "own.service")
    (tmp_path / "5/cgroup").write_text(f"{lines}3:freezer:/slurm/uid_1000/job_5/step_0\n")
    assert identity(tmp_path).place(task).owner == JOB5


def test_a_unit_cannot_take_the_name_of_a_pod_elsewhere(tmp_path):
    given(tmp_path, UNIT, f"kubepods/pod{POD}")
    who = identity(tmp_path)
    thief = process(tmp_path, 6, f"{UNIT}/kubepods/pod{POD}", 1000)
    pod = Owner("kubernetes", POD)
    assert who.place(thief).owner == pod  # as long as nobody else is
    assert who.place(process(tmp_path, 5, f"/kubepods/burstable/pod{POD}/{CID}")).owner == pod
    assert who.place(thief).owner == Owner("systemd", "own.service")


def test_claims_made_up_by_the_thousand_cost_their_maker_alone(tmp_path):
    who = identity(tmp_path)
    own = f"{HOME}/user.slice/libpod-{CID}.scope"
    assert who.of_group(own) == Owner("container", CID)
    for n in range(REMEMBERED + 10):
        who.of_group(f"{OTHER_HOME}/docker-{n:064x}.scope")
    assert who.of_group(f"{OTHER_HOME}/docker-{CID}.scope") == Owner("user", "1001")
    assert who.of_group(own) == Owner("container", CID)
    assert len(who._claims) <= REMEMBERED


@pytest.mark.parametrize(
    ("scope", "cluster", "said"), [("", "", "site"), ("", "hpc1", "hpc1"), ("mine", "hpc1", "mine")]
)
def test_scope(tmp_path, scope, cluster, said):
    who = identity(tmp_path, scope)
    who._all = Owners(Batch(tmp_path), cluster=cluster)
    assert who.scope_of(JOB) == said
    assert who.scope_of(Owner("user", "1000")) == said
    assert who.scope_of(Owner("container", CID)) == "n1"
    assert who.scope_of(Owner("idle")) == "n1"


def test_a_job_without_a_cgroup_or_a_process_holds_nothing(tmp_path):
    machine = Machine(tmp_path)
    machine.zone("intel-rapl:0", "package-0", 100.0)
    task = machine.task(5, group=JOB_PATH.encode(), cores=1.0)
    (tmp_path / "proc/5/environ").write_bytes(ENVIRON)
    frames = machine.play(3)
    workload = next(w for w in frames[-1].workloads if w.kind == "slurm")
    assert (workload.id, workload.user, workload.project, workload.name) == (
        "77",
        "alice",
        "physics",
        "train",
    )
    assert dict(workload.attributes) == {"array_job_id": "70", "array_task_id": "3"}
    assert workload.reserved_cpus == 8.0
    assert energy_j(frames, "slurm", "77") == pytest.approx(300.0, rel=0.1)
    assert task.pid == 5


def test_held_until_the_jobs_cgroup_is_gone(tmp_path):
    machine = Machine(tmp_path)
    machine.task(5, group=JOB_PATH.encode())
    (tmp_path / "proc/5/environ").write_bytes(ENVIRON)
    processes = Processes(tmp_path / "proc")
    cgroups = Cgroups(tmp_path / "cgroup", SystemClock())
    who = Identity(tmp_path / "proc", processes, cgroups, "", "n1")
    cgroups.scan(0)
    (met,) = processes.scan(1, 0).met
    who.place(met)
    wait_until(lambda: who.holding() == [(JOB, ("0", "2"))], "the GPUs")
    machine.end(5)
    processes.scan(2, 0)
    machine.remove_group(JOB_PATH)
    cgroups.scan(0)
    assert who.holding() == [(JOB, ("0", "2"))]  # the job is still there, its step is not
    for path in ("step_0/user", "step_0", ""):
        machine.remove_group(f"/system.slice/slurmstepd.scope/job_77/{path}".rstrip("/"))
    cgroups.scan(0)
    assert who.holding() == []


@pytest.mark.parametrize(
    ("owner", "path"),
    [
        (Owner("container", CID), f"/docker/{CID}"),
        (Owner("kubernetes", POD), f"/kubepods/pod{POD}/{CID}"),
        (Owner("slurm", "77"), "/system.slice/slurmstepd.scope/job_77"),
    ],
)
def test_whose_cgroup_is_gone_holds_nothing_whatever_was_said_before(tmp_path, owner, path):
    machine = Machine(tmp_path)
    machine.task(5, group=path.encode())
    processes = Processes(tmp_path / "proc")
    cgroups = Cgroups(tmp_path / "cgroup", SystemClock())
    owners = Owners(Batch(tmp_path / "proc"))
    owners.sources.append(Said({owner: Known(reserved_gpus=("0",))}))
    who = Identity(tmp_path / "proc", processes, cgroups, "", "n1", owners)
    assert who.holding() == [(owner, ("0",))]  # given, and nothing runs yet
    cgroups.scan(0)
    (met,) = processes.scan(1, 0).met
    assert who.place(met).owner == owner
    assert who.holding() == [(owner, ("0",))]
    machine.end(5)
    processes.scan(2, 0)
    for left in (path, path.rpartition("/")[0])[: 1 + (owner.kind == "kubernetes")]:
        machine.remove_group(left)
    cgroups.scan(0)
    assert who.holding() == []


def test_a_container_by_its_socket_through_the_shipped_meter(tmp_path):
    machine = Machine(tmp_path)
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(5, group=f"/system.slice/docker-{CID}.scope".encode(), cores=1.0)

    def respond(target: str, headers: dict[str, str]) -> bytes:
        if target == "/containers/json":
            return ok(b'[{"Id": "%s"}]' % CID.encode())
        return ok(b'{"Name": "/web", "Config": {"Labels": {"tier": "front\\n"}}}')

    with serving_unix(respond, tmp_path / "s") as heard:
        owners = Owners.of(machine.config(docker_socket=heard.where, slurm="off"))
        docker = owners.sources[0]
        wait_until(lambda: docker.about(Owner("container", CID)) is not None, "the daemon")
        frames = machine.play(2, owners=owners)
        owners.close()
    workload = next(w for w in frames[-1].workloads if w.kind == "container")
    assert (workload.name, workload.scope) == ("web", "n1")
    assert dict(workload.attributes) == {"tier": r"front\x0a"}
