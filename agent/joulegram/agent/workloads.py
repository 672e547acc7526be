"""Who a cgroup belongs to: pure functions from cgroup paths to workloads.

Rules: docs/method.md, "Whose process is it". On one path a batch job wins over a pod, a pod
over a container, then virtual machines, systemd units and login users; what is left is `system`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

IDLE, SYSTEM, UNATTRIBUTED = "idle", "system", "unattributed"
RESERVED = (IDLE, SYSTEM, UNATTRIBUTED)
PRECEDENCE = ("slurm", "lsf", "pbs", "oar", "kubernetes", "container", "vm", "systemd", "user")
BATCH = ("slurm", "lsf", "pbs", "oar")
SITE_WIDE = (*BATCH, "kubernetes", "user")


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """(kind, id) of a workload, before its scope is known. `id` is empty for reserved kinds."""

    kind: str
    id: str = ""


NOBODY = Owner(SYSTEM)

_UID = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"
SLURM_ROOT = re.compile(r"(.+_)?slurmstepd\.scope|slurm(_.+)?")
SLURM_JOB = re.compile(r"job_(\d+)")
# Since Slurm 26.05 a job's folder is named by its SLUID: s and 13 base-32 digits.
SLURM_SLUID = re.compile(r"s[0-9A-Z]{13}")
SLURM_UID = re.compile(r"uid_\d+")
LSF_JOB = re.compile(r"job\.(\d+)(\..*)?")
PBS_JOB = re.compile(r"\d+(\[\d*\])?\..+")
OAR_JOB = re.compile(r"(?:oar-u\d+-j|[^_]+_)(\d+)(?:\.slice)?")
POD = re.compile(rf"(?:.*[-:])?pod(?P<uid>{_UID}|[0-9a-f]{{32}})(?:\.slice)?(?::.*)?")
CONTAINER = re.compile(r"(?:(?P<by>.*)[-:])?(?P<id>[0-9a-f]{64})(?:\.scope)?")
QEMU = re.compile(r"machine-(?P<name>qemu\\x2d.+)\.scope|(?P<old>.+)\.libvirt-qemu")
USER_SLICE = re.compile(r"user-(\d+)\.slice")


@lru_cache(maxsize=65536)
def owner(path: str) -> Owner:
    """The workload a cgroup path belongs to; Owner("system") for one outside any workload."""
    parts = [part for part in path.split("/") if part]
    for find in (_slurm, _lsf, _pbs, _oar, _kubernetes, _container, _vm, _systemd, _user):
        if found := find(parts):
            return found
    return NOBODY


def strongest(owners: Iterable[Owner]) -> Owner:
    """Of what a process's hierarchies say, the one that counts."""
    rank = {kind: n for n, kind in enumerate(PRECEDENCE)}
    return min(owners, key=lambda o: rank.get(o.kind, len(rank)), default=NOBODY)


def in_user_slice(path: str) -> int | None:
    """The uid whose login slice holds the path, or None."""
    parts = [part for part in path.split("/") if part]
    match = _user(parts)
    return int(match.id) if match else None


def _slurm(parts: list[str]) -> Owner | None:
    # Users own the folders below their login slice and could name them after a job.
    if "user.slice" in parts:
        return None
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
    if root not in parts or "user.slice" in parts:
        return None
    start = parts.index(root) + 1
    for part in parts[start : start + depth]:
        if match := job.fullmatch(part):
            return Owner(kind, match[1])
    return None


def _pbs(parts: list[str]) -> Owner | None:
    if "user.slice" in parts:
        return None
    for before, part in pairwise(parts):
        if before in ("jobid", "pbspro", "pbs_jobs.service") and PBS_JOB.fullmatch(part):
            return Owner("pbs", part)
    return None


def _kubernetes(parts: list[str]) -> Owner | None:
    seen = False
    for part in parts:
        seen = seen or "kubepods" in part
        if seen and (match := POD.fullmatch(part)):
            return Owner("kubernetes", match["uid"].replace("_", "-"))
    return None


def _container(parts: list[str]) -> Owner | None:
    for part in parts:
        match = CONTAINER.fullmatch(part)
        if match and not (match["by"] or "").endswith("conmon"):
            return Owner("container", match["id"])
    return None


def _vm(parts: list[str]) -> Owner | None:
    if "user.slice" in parts:
        return None
    for part in parts:
        if match := QEMU.fullmatch(part):
            return Owner("vm", match["old"] or match["name"].replace(r"\x2d", "-"))
    return None


def _systemd(parts: list[str]) -> Owner | None:
    if "user.slice" in parts:
        return None
    for part in parts:
        if part.endswith(".service"):
            return Owner("systemd", part)
    return None


def _user(parts: list[str]) -> Owner | None:
    for part in parts:
        if match := USER_SLICE.fullmatch(part):
            return Owner("user", match[1])
    return None
