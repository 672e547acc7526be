"""Cgroup paths of schedulers and supervisors, and whom they belong to."""

import pytest

from joulegram.agent.workloads import NOBODY, Owner, owner, strongest

CID = "0f" * 32
POD = "6b2f7f3e-9d44-4f6b-8a3e-0c7d6f2f1a11"
DASHED = POD.replace("-", "_")

PATHS = [
    ("/system.slice/slurmstepd.scope/job_123/step_0/user/task_0", "slurm", "123"),
    ("/system.slice/node7_slurmstepd.scope/job_9/step_extern", "slurm", "9"),
    ("/slurm/uid_1000/job_77/step_batch", "slurm", "77"),
    ("/slurm_node3/uid_1000/job_78/step_4294967291", "slurm", "78"),
    ("/system.slice/slurmstepd.scope/sD7K9B0X1CZ00A/step_0", "slurm", "sD7K9B0X1CZ00A"),
    ("/lsf/cluster1/job.4242.17.1690000000", "lsf", "4242"),
    ("/pbs_jobs.service/jobid/1234.head", "pbs", "1234.head"),
    ("/oar/alice_555", "oar", "555"),
    ("/oar.slice/oar-u1000.slice/oar-u1000-j556.slice", "oar", "556"),
    (f"/kubepods/burstable/pod{POD}/{CID}", "kubernetes", POD),
    (f"/kubepods/pod{POD}/{CID}", "kubernetes", POD),
    (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{DASHED}.slice"
        f"/cri-containerd-{CID}.scope",
        "kubernetes",
        POD,
    ),
    (f"/kubepods.slice/kubepods-pod{DASHED}.slice/crio-{CID}.scope/container", "kubernetes", POD),
    (
        "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
        f"kubelet-kubepods-burstable-pod{DASHED}.slice/cri-containerd-{CID}.scope",
        "kubernetes",
        POD,
    ),
    (f"/kubepods.slice/kubepods-pod{'ab' * 16}.slice/x", "kubernetes", "ab" * 16),
    (f"/docker/{CID}", "container", CID),
    (f"/system.slice/docker-{CID}.scope", "container", CID),
    (
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{CID}.scope/container",
        "container",
        CID,
    ),
    (f"/machine.slice/libpod-conmon-{CID}.scope", "system", ""),
    (r"/machine.slice/machine-qemu\x2d1\x2ddb.scope/libvirt/vcpu0", "vm", "qemu-1-db"),
    ("/machine/db.libvirt-qemu", "vm", "db"),
    ("/system.slice/nginx.service", "systemd", "nginx.service"),
    (r"/system.slice/dev-a\x2db.service/sub", "systemd", r"dev-a\x2db.service"),
    ("/system.slice/system-getty.slice/getty@tty1.service", "systemd", "getty@tty1.service"),
    ("/user.slice/user-1000.slice/session-3.scope", "user", "1000"),
    ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", "user", "1000"),
    ("/init.scope", "system", ""),
    ("/system.slice", "system", ""),
    ("/system.slice/run-r1234.scope", "system", ""),
    ("/", "system", ""),
    ("/user.slice", "system", ""),
]


@pytest.mark.parametrize(("path", "kind", "identity"), PATHS)
def test_a_path_belongs_to(path, kind, identity):
    assert owner(path) == Owner(kind, identity)


@pytest.mark.parametrize(
    "path",
    [
        "/user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_1",
        "/user.slice/user-1000.slice/user@1000.service/slurm/uid_0/job_1/step_0",
        "/user.slice/user-1000.slice/user@1000.service/lsf/c/job.1.2.3",
        r"/user.slice/user-1000.slice/user@1000.service/machine-qemu\x2d1\x2dx.scope",
    ],
)
def test_a_user_cannot_pass_for_somebody_elses_job(path):
    assert owner(path) == Owner("user", "1000")


def test_a_job_in_any_hierarchy_wins_over_a_service_in_another():
    found = strongest([owner("/system.slice/slurmd.service"), owner("/slurm/uid_1/job_5/step_0")])
    assert found == Owner("slurm", "5")


def test_no_hierarchy_is_the_system():
    assert strongest([]) == NOBODY
