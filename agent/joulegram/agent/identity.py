"""Names for owners: from a process to its workload, from a uid to a user.

Reads  <procfs>/<pid>/cgroup, <procfs>/<pid>/environ (only SLURM_JOB_ID, only for Slurm jobs
       whose folder is named by a SLUID), the host's user database
"""

import pwd
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.agent.cgroups import Cgroups, memberships
from joulegram.agent.procfs import Process, Processes
from joulegram.agent.textfile import visible
from joulegram.agent.workloads import BATCH, SITE_WIDE, SLURM_SLUID, SYSTEM, Owner, owner, strongest

REMEMBERED = 65536


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process counts."""

    owner: Owner
    group: str | None  # the cgroup whose counter holds its use; None: no counter does


@dataclass(slots=True)
class Identity:
    """Who processes and cgroups belong to.

    Args:
        scope: the cluster's name for jobs, pods and users.
        node: scope of everything that exists on this node alone.
    """

    procfs: Path
    processes: Processes
    cgroups: Cgroups
    scope: str
    node: str
    _owners: OrderedDict[bytes, tuple[Owner, str]] = field(default_factory=OrderedDict)
    _jobs: OrderedDict[str, str] = field(default_factory=OrderedDict)  # SLUID -> job id
    _users: OrderedDict[Owner, int] = field(default_factory=OrderedDict)  # -> uid

    def place(self, process: Process) -> Place:
        """Where the process is now: its cgroup is read anew, since processes move."""
        groups = self.processes.groups(process)
        known = self._owners.get(groups)
        if known is None:
            paths = [path for _, path in memberships(groups)]
            known = strongest(map(owner, paths)), self.cgroups.path_of(groups)
            _remember(self._owners, groups, known)
        found, path = known
        if found.kind == "slurm" and SLURM_SLUID.fullmatch(found.id):
            found = self._job(found, process)
        uid = self._users.get(found)
        # A batch system's own helpers run as root inside the job, and come first.
        helper = uid == 0 != process.uid and found.kind in BATCH
        if helper or (uid is None and found.kind != SYSTEM):
            _remember(self._users, found, process.uid)
        return Place(found, self.cgroups.owner("" if path == "/" else path))

    def of_group(self, path: str) -> Owner:
        """Whose a cgroup is."""
        found = owner(path)
        if found.id in self._jobs:
            return Owner(found.kind, self._jobs[found.id])
        return found

    def scope_of(self, found: Owner) -> str:
        return self.scope if found.kind in SITE_WIDE else self.node

    def user_of(self, found: Owner) -> str:
        """The login name behind a workload; "" where none is known."""
        if found.kind == "user":
            return user_name(int(found.id))
        uid = self._users.get(found)
        return "" if uid is None else user_name(uid)

    def _job(self, found: Owner, process: Process) -> Owner:
        if found.id not in self._jobs:
            job = _slurm_job(self.procfs / str(process.pid) / "environ")
            if job is None:
                return found
            _remember(self._jobs, found.id, job)
        return Owner(found.kind, self._jobs[found.id])


def user_name(uid: int) -> str:
    """The host's name of a uid, or the number where it has none."""
    try:
        return visible(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return str(uid)


def _slurm_job(environ: Path) -> str | None:
    try:
        variables = environ.read_bytes().split(b"\0")
    except OSError:
        return None
    for variable in variables:
        name, _, value = variable.partition(b"=")
        if name == b"SLURM_JOB_ID" and value.isdigit():
            return value.decode()
    return None


def _remember(memory: OrderedDict, key: object, value: object) -> None:  # type: ignore[type-arg]
    memory[key] = value
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
