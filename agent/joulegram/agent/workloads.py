"""Who a cgroup belongs to: pure functions from cgroup paths to workloads.

Rules: docs/method.md, "Whose process is it". On one path a batch job wins over a pod, a pod
over a container, then virtual machines, systemd units and login users; what is left is `system`.

Formats
    Slurm       https://slurm.schedmd.com/cgroup_v2.html; 26.05 names a job's folder by its SLUID
    PBS         hook pbs_cgroups (<prefix>.service/jobid, /jobs since v2, pbspro.slice); TORQUE
    LSF         /lsf/<cluster>/job.<id>.<pid>.<time>, both versions of cgroups
    OAR         /oar/<user>_<id>; with systemd /oar.slice/oar-u<uid>.slice/oar-u<uid>-j<id>.slice
    Kubernetes  kubelet's pod container manager; drivers cgroupfs and systemd
    containers  https://github.com/opencontainers/runc/blob/main/docs/systemd.md
    libvirt     https://libvirt.org/cgroups.html
    LXC         lxc.container.conf(5), lxc.cgroup.dir.container; Proxmox and LXC 3 say /lxc/<name>
"""

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from joulegram.agent.textfile import visible

IDLE, SYSTEM, UNATTRIBUTED = "idle", "system", "unattributed"
RESERVED = (IDLE, SYSTEM, UNATTRIBUTED)
PRECEDENCE = ("slurm", "lsf", "pbs", "oar", "kubernetes", "container", "vm", "systemd", "user")
BATCH = ("slurm", "lsf", "pbs", "oar")
SITE_WIDE = (*BATCH, "kubernetes", "user")

REMEMBERED = 4096  # paths; a node has fewer cgroups at a time


class Owner(NamedTuple):
    """(kind, id) of a workload, before its scope is known. `id` is empty for reserved kinds."""

    kind: str
    id: str = ""


NOBODY = Owner(SYSTEM)

_RANK = {kind: n for n, kind in enumerate(PRECEDENCE)}
_UID = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"
# Several slurmd on a host: slurm_<node> and <node>_slurmstepd.scope.
SLURM_ROOT = re.compile(r"(.+_)?slurmstepd\.scope|slurm(_.+)?")
SLURM_JOB = re.compile(r"job_(\d+)")
# s and 13 digits of Crockford's base 32; its other neighbours (step_0, system) have small letters.
SLURM_SLUID = re.compile(r"s[0-9A-Z]+")
SLURM_UID = re.compile(r"uid_\d+")
LSF_JOB = re.compile(r"job\.(\d+(?:\[\d+\])?)(\..*)?")
PBS_JOB = re.compile(r"\d+(\[\d*\])?(\..+)?")
PBS_ROOT = re.compile(r"jobid|torque|pbspro|pbs_jobs\.service|pbspro\.service")
PBS_JOBS = re.compile(r"pbs.*\.service")  # what `jobs` lies in
PBS_SLICE = re.compile(r"pbspro-(\d.*)\.slice")
OAR_JOB = re.compile(r"(?:oar-u\d+-j|.+_)(\d+)(?:\.slice)?")
POD = re.compile(rf"(?:.*[-:])?pod(?P<uid>{_UID}|[0-9a-f]{{32}})(?:\.slice)?(?::.*)?")
CONTAINER = re.compile(r"(?:(?P<by>.*)[-:])?(?P<id>[0-9a-f]{64})(?:\.scope)?")
PODMAN_ROOT = "libpod_parent"  # cgroupfs driver: the pod's own id lies between it and containers
MACHINE = re.compile(r"machine-(?P<name>.+)\.scope")  # of systemd-machined: qemu-1-<domain>
LIBVIRT = re.compile(r"(?P<name>.+)\.libvirt-(?:qemu|lxc|ch|xen)")
LXC = re.compile(r"lxc\.payload\.(?P<name>.+)")
PROXMOX = re.compile(r"(\d+)\.scope")
USER_SLICE = re.compile(r"user-(\d+)\.slice")
ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


@lru_cache(maxsize=REMEMBERED)
def owner(path: str, by_root: str | None = None) -> Owner:
    """The workload a cgroup path belongs to; Owner("system") for one outside any workload.

    Args:
        by_root: the beginning of the path that root alone can have named; None: all of it.
    """
    parts = _parts(path)
    # Users own the folders below their login slice, and those that they were given otherwise. They
    # could name them after what is not theirs.
    named = parts if by_root is None else parts[: len(_parts(by_root))]
    others = named[: named.index("user.slice")] if "user.slice" in named else named
    return (
        _slurm(others)
        or _lsf(others)
        or _pbs(others)
        or _oar(others)
        or _kubernetes(parts)
        or _container(parts)
        or _vm(others)
        or _systemd(others)
        or _user(named)
        or NOBODY
    )


def strongest(owners: Iterable[Owner]) -> Owner:
    """Of what a process's hierarchies say, the one that counts."""
    return min(owners, key=lambda o: _RANK.get(o.kind, len(_RANK)), default=NOBODY)


def claimant(path: str, by_root: str | None = None) -> Owner | None:
    """Who may have given the workload of this path its name without being root; None: nobody.

    Users run pods and containers in folders of their own; to be believed, such a name must not be
    another's.
    """
    parts = _parts(path)
    named = len(parts if by_root is None else _parts(by_root))
    if "user.slice" in parts and USER_SLICE.fullmatch(
        "".join(parts[(start := parts.index("user.slice")) + 1 : start + 2])
    ):
        named = min(named, start + 2)
    of_root = owner("/" + "/".join(parts[:named]))
    return None if of_root == owner(path, by_root) else of_root


def root_of(path: str) -> str:
    """The topmost cgroup of the workload that the path belongs to: the job's, not its step's."""
    found = owner(path)
    while (above := path.rpartition("/")[0]) and owner(above) == found:
        path = above
    return path


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def unescaped(name: str) -> str:
    r"""A unit's name without systemd's escapes: \x2d is a dash."""
    if "\\x" not in name:
        return name
    return visible(ESCAPED.sub(lambda m: bytes.fromhex(m[1].decode()), os.fsencode(name)))


def _slurm(parts: list[str]) -> Owner | None:
    below = False
    for part in parts:
        if below:
            if match := SLURM_JOB.fullmatch(part):
                return Owner("slurm", match[1])
            if SLURM_SLUID.fullmatch(part):
                return Owner("slurm", part)
            below = bool(SLURM_UID.fullmatch(part) or SLURM_ROOT.fullmatch(part))
        else:
            below = bool(SLURM_ROOT.fullmatch(part))
    return None


def _lsf(parts: list[str]) -> Owner | None:
    return _below(parts, "lsf", LSF_JOB, "lsf", depth=2)


def _oar(parts: list[str]) -> Owner | None:
    return _below(parts, "oar", OAR_JOB, "oar") or _below(parts, "oar.slice", OAR_JOB, "oar", 2)


def _below(
    parts: list[str], root: str, job: re.Pattern[str], kind: str, depth: int = 1
) -> Owner | None:
    if root not in parts:
        return None
    start = parts.index(root) + 1
    for part in parts[start : start + depth]:
        if match := job.fullmatch(part):
            return Owner(kind, match[1])
    return None


def _pbs(parts: list[str]) -> Owner | None:
    above = ""
    for before, part in pairwise(parts):
        if PBS_JOB.fullmatch(part) and (
            PBS_ROOT.fullmatch(before) or (before == "jobs" and PBS_JOBS.fullmatch(above))
        ):
            return Owner("pbs", part)
        if before == "pbspro.slice" and (match := PBS_SLICE.fullmatch(part)):
            return Owner("pbs", unescaped(match[1]))
        above = before
    return None


def _kubernetes(parts: list[str]) -> Owner | None:
    seen = False
    for part in parts:
        seen = seen or "kubepods" in part
        if seen and (match := POD.fullmatch(part)):
            return Owner("kubernetes", match["uid"].replace("_", "-"))
    return None


def _container(parts: list[str]) -> Owner | None:
    for before, part in pairwise(["", *parts]):
        match = CONTAINER.fullmatch(part)
        if match is None or (before == PODMAN_ROOT and match["by"] is None):
            continue
        if not (match["by"] or "").endswith("conmon"):  # conmon watches, from outside
            return Owner("container", match["id"])
    return None


def _vm(parts: list[str]) -> Owner | None:
    for before, part in pairwise(["", *parts]):
        if match := MACHINE.fullmatch(part) or LIBVIRT.fullmatch(part) or LXC.fullmatch(part):
            return Owner("vm", unescaped(match["name"]))
        if before == "lxc":
            return Owner("vm", part)
        if before == "qemu.slice" and (match := PROXMOX.fullmatch(part)):
            return Owner("vm", match[1])
    for i in range(len(parts) - 2):  # libvirt before 1.0.5
        if parts[i] == "libvirt" and parts[i + 1] in ("qemu", "lxc"):
            return Owner("vm", parts[i + 2])
    return None


def _systemd(parts: list[str]) -> Owner | None:
    for part in parts:
        if part.endswith(".service"):
            # systemd puts _ before a name that a file of the kernel could have (memory.service).
            return Owner("systemd", part.removeprefix("_"))
    return None


def _user(parts: list[str]) -> Owner | None:
    for before, part in pairwise(parts):
        if before == "user.slice" and (match := USER_SLICE.fullmatch(part)):
            return Owner("user", match[1])
    return None
