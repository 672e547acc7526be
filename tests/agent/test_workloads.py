"""Cgroup paths of schedulers and supervisors, and whom they belong to."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.workloads import (
    NOBODY,
    PRECEDENCE,
    SYSTEM,
    Owner,
    claimant,
    owner,
    root_of,
    strongest,
)

CID = "0f" * 32
CID2 = "e1" * 32
POD = "6b2f7f3e-9d44-4f6b-8a3e-0c7d6f2f1a11"
DASHED = POD.replace("-", "_")
HASH = "bd495b7643dfc9d3194bd002e968bc3d"
KUBE = "/kubepods.slice/kubepods-burstable.slice"
HOME = "/user.slice/user-1000.slice/user@1000.service"
SCOPE = "/system.slice/slurmstepd.scope"
QEMU = r"/machine.slice/machine-qemu\x2d1\x2ddb.scope"

SLURM = [
    (f"{SCOPE}/job_123/step_0/user/task_0", "123"),
    (f"{SCOPE}/job_123/step_0/slurm", "123"),
    (f"{SCOPE}/job_123/step_batch/user/task_special", "123"),
    (f"{SCOPE}/job_123/step_extern/user/task_0", "123"),
    (f"{SCOPE}/job_123/step_interactive/user/task_0", "123"),
    (f"{SCOPE}/job_123", "123"),
    ("/system.slice/node7_slurmstepd.scope/job_9/step_extern", "9"),
    ("/system.slice/gpu-1.rack_2_slurmstepd.scope/job_10/step_0", "10"),
    ("/slurm/uid_1000/job_77/step_batch", "77"),
    ("/slurm/uid_1000/job_77/step_0/task_3", "77"),
    ("/slurm_node3/uid_1000/job_78/step_4294967291", "78"),
    (f"{SCOPE}/sD7K9B0X1CZ00A/step_0", "sD7K9B0X1CZ00A"),
    (f"{SCOPE}/sBR1JB8J1YM400/step_0/user/task_0", "sBR1JB8J1YM400"),
    ("/system.slice/n1_slurmstepd.scope/sBR1JB8J1YM400/step_batch", "sBR1JB8J1YM400"),
    ("/slurm/uid_1000/sBR1JB8J1YM400/step_0/task_0", "sBR1JB8J1YM400"),
    # slurmd itself in a pod, and a container with a systemd of its own inside a job
    (f"{KUBE}/kubepods-burstable-pod{DASHED}.slice/cri-containerd-{CID}.scope{SCOPE}/job_5", "5"),
    (f"{SCOPE}/job_6/step_0/user/task_0/docker/{CID}", "6"),
    (f"{SCOPE}/job_6/step_0/user/task_0/user.slice/user-0.slice/session-1.scope", "6"),
]
OTHER_BATCH = [
    ("/lsf/cluster1/job.4242.17.1690000000", "lsf", "4242"),
    ("/lsf/cluster1/job.1009249.27179.1775318460/sub", "lsf", "1009249"),
    ("/lsf/cluster1/job.55[3].27179.1775318460", "lsf", "55[3]"),
    ("/pbs_jobs.service/jobid/1234.head", "pbs", "1234.head"),
    ("/pbs_jobs.service/jobid/1009249[1].testhost-1/child", "pbs", "1009249[1].testhost-1"),
    ("/pbs_jobs.service/jobs/12345.pbs", "pbs", "12345.pbs"),
    ("/pbs_jobs.service/jobs/12345", "pbs", "12345"),
    ("/pbspro.service/jobid/77.pbs-1", "pbs", "77.pbs-1"),
    ("/pbspro.service/jobs/77.pbs-1", "pbs", "77.pbs-1"),
    ("/pbspro/1201.head.site.org", "pbs", "1201.head.site.org"),
    (r"/pbspro.slice/pbspro-1201.head\x2d1.slice", "pbs", "1201.head-1"),
    (r"/pbspro.slice/pbspro-7\x5b2\x5d.head.slice/x", "pbs", "7[2].head"),
    ("/torque/8845236.nyx.engin.umich.edu", "pbs", "8845236.nyx.engin.umich.edu"),
    ("/torque/12[3].napali/R0.t1", "pbs", "12[3].napali"),
    ("/torque/8", "pbs", "8"),
    ("/oar/alice_555", "oar", "555"),
    ("/oar/alice_van_b_555", "oar", "555"),
    ("/oar.slice/oar-u1000.slice/oar-u1000-j556.slice", "oar", "556"),
    ("/oar.slice/oar-u1000.slice/oar-u1000-j556.slice/oar-u1000-j556-s1.scope", "oar", "556"),
]
PODS = [
    # driver cgroupfs: Guaranteed, Burstable, BestEffort, a static pod, a kubelet with a root
    f"/kubepods/pod{POD}/{CID}",
    f"/kubepods/burstable/pod{POD}/{CID}",
    f"/kubepods/besteffort/pod{POD}/{CID}/init",
    f"/kubelet/kubepods/burstable/pod{POD}/{CID}",
    f"/kubepods/burstable/pod{POD}/crio-{CID}",
    f"/kubepods/burstable/pod{POD}/crio-conmon-{CID}",
    f"/kubepods/burstable/pod{POD}",
    # driver systemd
    f"/kubepods.slice/kubepods-pod{DASHED}.slice/crio-{CID}.scope/container",
    f"{KUBE}/kubepods-burstable-pod{DASHED}.slice/docker-{CID}.scope",
    f"{KUBE}/kubepods-burstable-pod{DASHED}.slice",
    "/kubepods.slice/kubepods-besteffort.slice"
    f"/kubepods-besteffort-pod{DASHED}.slice/cri-containerd-{CID}.scope",
    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
    f"kubelet-kubepods-burstable-pod{DASHED}.slice/cri-containerd-{CID}.scope",
    # containerd without SystemdCgroup under a kubelet with it
    f"/kubepods-burstable-pod{DASHED}.slice:cri-containerd:{CID}",
    f"/system.slice/containerd.service/kubepods-besteffort-pod{DASHED}.slice:cri-containerd:{CID}",
    # kind and k3s in a container, and rootless under a login user
    f"/docker/{CID2}/kubelet.slice/kubelet-kubepods.slice"
    f"/kubelet-kubepods-pod{DASHED}.slice/cri-containerd-{CID}.scope",
    f"/system.slice/docker-{CID2}.scope/kubepods/besteffort/pod{POD}/{CID}",
    f"/system.slice/k3s.service/kubepods/burstable/pod{POD}/{CID}",
    f"{HOME}/k3s-rootless.service/kubepods/pod{POD}/{CID}",
    # a pod's own containers and cgroups are the pod's
    f"/kubepods/pod{POD}/{CID}/docker/{CID2}",
    f"/kubepods/pod{POD}/{CID}/system.slice/nginx.service",
]
CONTAINERS = [
    f"/docker/{CID}",
    f"/docker/{CID}/system.slice/nginx.service",
    f"/docker/{CID}/docker/{CID2}",
    f"/system.slice/docker-{CID}.scope",
    f"/my.slice/docker-{CID}.scope",
    f"/system.slice/docker.service/docker/{CID}",
    f"/default/{CID}",
    f"/k8s.io/{CID}",
    f"/system.slice/nerdctl-{CID}.scope",
    f"/system.slice:docker:{CID}",
    f"/machine.slice/libpod-{CID}.scope",
    f"/machine.slice/libpod-{CID}.scope/container",
    f"/machine.slice/machine-libpod_pod_{CID2}.slice/libpod-{CID}.scope",
    f"/libpod_parent/libpod-{CID}",
    f"/libpod_parent/{CID2}/libpod-{CID}",
    f"/system.slice/web.service/libpod-payload-{CID}",
    f"{HOME}/user.slice/libpod-{CID}.scope/container",
    f"{HOME}/user.slice/docker-{CID}.scope",
    f"/user.slice/user-1000.slice/session-3.scope/libpod-payload-{CID}",
    f"/crio-{CID}.scope",
    f"/ecs/8fd4ab34d2d24a3ba1e0b8b0c5b6d7f8/{CID}",
]
MACHINES = [
    (f"{QEMU}/libvirt/vcpu0", "qemu-1-db"),
    (f"{QEMU}/libvirt/emulator", "qemu-1-db"),
    (f"{QEMU}/emulator", "qemu-1-db"),
    (QEMU, "qemu-1-db"),
    (
        r"/machine.slice/machine-qemu\x2d12\x2dinstance\x2d00000002.scope/libvirt",
        "qemu-12-instance-00000002",
    ),
    (r"/machine.slice/machine-qemu\x2d2\x2da\x2eb\xc3\xa9.scope", "qemu-2-a.bé"),
    ("/machine/db.libvirt-qemu", "db"),
    ("/machine/qemu-5-test.libvirt-qemu/emulator", "qemu-5-test"),
    ("/machine/prod.partition/web.libvirt-lxc/vcpu1", "web"),
    ("/system.slice/libvirtd.service/libvirt/qemu/db/vcpu0", "db"),
    ("/libvirt/qemu/db/emulator", "db"),
    ("/qemu.slice/104.scope", "104"),
    ("/lxc.payload.web/system.slice/nginx.service", "web"),
    ("/lxc/104/ns/system.slice/nginx.service", "104"),
    ("/machine.slice/machine-fedora.scope/payload/system.slice/nginx.service", "fedora"),
]
UNITS = [
    ("/system.slice/nginx.service", "nginx.service"),
    (r"/system.slice/dev-a\x2db.service/sub", r"dev-a\x2db.service"),
    ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
    ("/system.slice/slurmd.service", "slurmd.service"),
    ("/system.slice/_memory.service", "memory.service"),
    ("/machine.slice/systemd-nspawn@f.service/payload/init.scope", "systemd-nspawn@f.service"),
    ("/pbs_jobs.service/jobid", "pbs_jobs.service"),
    ("/my.slice/my-batch.slice/night.service", "night.service"),
]
USERS = [
    "/user.slice/user-1000.slice/session-3.scope",
    "/user.slice/user-1000.slice",
    f"{HOME}/init.scope",
    f"{HOME}/app.slice/x.service",
    f"{HOME}/app.slice/app-gnome-firefox-42.scope",
    f"{HOME}/user.slice/libpod-conmon-{CID}.scope",
]
SYSTEMS = [
    "/",
    "",
    "/init.scope",
    "/system.slice",
    "/user.slice",
    "/system.slice/run-r1234.scope",
    f"{SCOPE}/system",
    SCOPE,
    "/slurm/uid_1000",
    "/slurm",
    "/lsf/cluster1",
    "/torque",
    "/oar.slice/oar-u1000.slice",
    "/kubepods.slice/kubepods-burstable.slice",
    f"/machine.slice/libpod-conmon-{CID}.scope",
    f"/system.slice/crio-conmon-{CID}.scope",
    f"/system.slice/var-lib-docker-containers-{CID}-mounts-shm.mount",
    f"/libpod_parent/{CID}",
    "/docker/0f0f0f0f0f0f",
    f"/docker/{CID.upper()}",
    "/machine.slice",
    "/system.slice/user-1000.slice",
    f"/docker/{CID}0",
]
IMITATIONS = [
    f"{HOME}/slurmstepd.scope/job_1",
    f"{HOME}/system.slice/slurmstepd.scope/job_1/step_0",
    f"{HOME}/slurm/uid_0/job_1/step_0",
    f"{HOME}/lsf/c/job.1.2.3",
    f"{HOME}/pbs_jobs.service/jobid/1.head",
    f"{HOME}/torque/1.head",
    f"{HOME}/oar/root_1",
    f"{HOME}/oar.slice/oar-u0.slice/oar-u0-j1.slice",
    rf"{HOME}/machine-qemu\x2d1\x2dx.scope",
    f"{HOME}/libvirt/qemu/db",
    f"{HOME}/system.slice/sshd.service",
    f"{HOME}/user.slice/user-1001.slice/session-1.scope",
]
EXPECTED = [
    *((path, "slurm", job) for path, job in SLURM),
    *OTHER_BATCH,
    *((path, "kubernetes", POD) for path in PODS),
    (f"/kubepods/burstable/pod{HASH}/{CID}", "kubernetes", HASH),
    (f"{KUBE}/kubepods-burstable-pod{HASH}.slice/crio-{CID}.scope", "kubernetes", HASH),
    *((path, "container", CID) for path in CONTAINERS),
    *((path, "vm", name) for path, name in MACHINES),
    *((path, "systemd", unit) for path, unit in UNITS),
    *((path, "user", "1000") for path in USERS),
    *((path, "system", "") for path in SYSTEMS),
]


@pytest.mark.parametrize(("path", "kind", "identity"), EXPECTED)
def test_a_path_belongs_to(path, kind, identity):
    assert owner(path) == Owner(kind, identity)


@pytest.mark.parametrize("path", IMITATIONS)
def test_a_user_cannot_pass_for_what_is_not_theirs(path):
    assert owner(path) == Owner("user", "1000")
    assert claimant(path) is None


OWN = "/system.slice/own.service"  # Delegate=yes and User=: what lies below is its user's
GIVEN = [
    *((f"{OWN}{path}", "systemd", "own.service", None) for path, _ in SLURM[:10]),
    *((f"{OWN}{path}", "systemd", "own.service", None) for path, _, _ in OTHER_BATCH),
    *((f"{OWN}{path}", "systemd", "own.service", None) for path, _ in MACHINES),
    (f"{OWN}/user.slice/user-0.slice/session-1.scope", "systemd", "own.service", None),
    (f"{OWN}/kubepods/pod{POD}/{CID}", "kubernetes", POD, Owner("systemd", "own.service")),
    (f"{OWN}/libpod-{CID}.scope", "container", CID, Owner("systemd", "own.service")),
    # A container with a user namespace of its own, and what runs in it.
    (f"/docker/{CID}/slurm/uid_0/job_1", "container", CID, None),
    (f"/docker/{CID}/kubepods/pod{POD}", "kubernetes", POD, Owner("container", CID)),
    (f"/docker/{CID}/docker/{CID2}", "container", CID, None),
    ("/lxc.payload.web/slurmstepd.scope/job_1", "vm", "web", None),
    ("/given/user.slice/user-0.slice/session-1.scope", "system", "", None),
    ("/given/sshd.service", "system", "", None),
    (f"{SCOPE}/job_5/step_0/slurmstepd.scope/job_6", "slurm", "5", None),
]


@pytest.mark.parametrize(("path", "kind", "identity", "claim"), GIVEN)
def test_what_a_user_named_is_not_believed(path, kind, identity, claim):
    depth = 4 if "job_5" in path else 3 if path.startswith((OWN, "/docker")) else 2
    by_root = "/".join(path.split("/")[:depth])
    assert owner(path, by_root) == Owner(kind, identity)
    assert claimant(path, by_root) == claim


def test_whoever_named_it_a_container_of_a_users_own_is_the_users_word():
    path = f"{HOME}/user.slice/libpod-{CID}.scope"
    assert claimant(path) == claimant(path, HOME) == Owner("user", "1000")
    assert claimant(f"/docker/{CID}/user.slice/user-1000.slice/session-1.scope") is None


@pytest.mark.parametrize(
    ("path", "root"),
    [
        (f"{SCOPE}/job_123/step_0/user/task_0", f"{SCOPE}/job_123"),
        (f"/kubepods/burstable/pod{POD}/{CID}/x", f"/kubepods/burstable/pod{POD}"),
        (f"/system.slice/docker-{CID}.scope", f"/system.slice/docker-{CID}.scope"),
        (f"{HOME}/app.slice", "/user.slice/user-1000.slice"),
        ("/system.slice/nginx.service", "/system.slice/nginx.service"),
    ],
)
def test_a_workload_lies_below_one_cgroup(path, root):
    assert root_of(path) == root


def test_a_job_in_any_hierarchy_wins_over_a_service_in_another():
    found = strongest([owner("/system.slice/slurmd.service"), owner("/slurm/uid_1/job_5/step_0")])
    assert found == Owner("slurm", "5")


def test_no_hierarchy_is_the_system():
    assert strongest([]) == NOBODY


PARTS = ["user.slice", "slurm", "job_1", "uid_1", "kubepods", f"pod{POD}", CID, "x.service"]


@given(st.lists(st.sampled_from(PARTS) | st.binary(max_size=8).map(os.fsdecode), max_size=8))
def test_any_path_has_one_owner_of_a_known_kind(parts):
    found = owner("/" + "/".join(parts))
    assert found == NOBODY if found.kind == SYSTEM else (found.kind in PRECEDENCE and found.id)
