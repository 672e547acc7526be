"""Who processes and cgroups belong to, and what is known of those owners.

Reads  <procfs>/<pid>/cgroup; the host's user database and owners/ know the names
"""

import re
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from joulegram.agent.one_run.lineage import Lineage
from joulegram.agent.owners.batch import Batch
from joulegram.agent.owners.known import Known, merged
from joulegram.agent.owners.lookup import Lookup
from joulegram.agent.owners.owners import Owners
from joulegram.agent.owners.users import login_names
from joulegram.agent.textfile import printable
from joulegram.agent.use.cgroups import Cgroups, memberships
from joulegram.agent.use.procfs import Process, Processes
from joulegram.agent.workloads import (
    BATCH,
    SITE_WIDE,
    SLURM_SLUID,
    SYSTEM,
    Owner,
    claimant,
    owner,
    root_of,
    strongest,
)

REMEMBERED = 4096
SITE = "site"  # scope of a cluster that nobody named
CLAIMED = ("kubernetes", "container")  # what a user may make, and may give any name
DOMAIN = re.compile(r"(?:qemu|lxc|ch|xen)-\d+-(.+)")


class Place(NamedTuple):
    """Where a process counts."""

    owner: Owner
    group: str | None  # the cgroup whose counter holds its use; None: no counter does


@dataclass(frozen=True, slots=True)
class Found:
    """What the cgroups of a process say."""

    owner: Owner
    path: str  # where CPU time is counted
    claim: Owner | None  # who may have named the pod or container; None: root alone did


@dataclass(slots=True)
class Identity:
    """Who processes and cgroups belong to.

    Args:
        scope: the cluster's name for jobs, pods and users; "": Slurm's, else "site".
        node: scope of everything that exists on this node alone.
        run: tells the processes of one run, which are nobody else's.
    """

    procfs: Path
    processes: Processes
    cgroups: Cgroups
    scope: str
    node: str
    owners: Owners | None = None  # None: jobs' own environments alone
    run: Lineage | None = None
    _all: Owners = field(init=False)
    _found: OrderedDict[bytes, Found] = field(default_factory=OrderedDict)
    _users: OrderedDict[Owner, int] = field(default_factory=OrderedDict)  # -> uid
    # Pods and containers that root named, and those that a user did: -> who claimed the name.
    # Apart, so that who makes up names by the thousand makes nobody else's forgotten.
    _outside: OrderedDict[Owner, None] = field(default_factory=OrderedDict)
    _claims: dict[Owner, Owner] = field(default_factory=dict)
    _claimed: dict[Owner, OrderedDict[Owner, None]] = field(default_factory=dict)  # by whom
    _roots: OrderedDict[Owner, tuple[str, Process]] = field(default_factory=OrderedDict)
    _stood: OrderedDict[Owner, str] = field(default_factory=OrderedDict)  # of them, those seen
    _names: Lookup[int, str] = field(default_factory=login_names)

    def __post_init__(self) -> None:
        self._all = self.owners or Owners(Batch(self.procfs))

    def place(self, process: Process) -> Place:
        """Where the process is now: its cgroup is read anew, since processes move."""
        groups = self.processes.groups(process)
        known = self._found.get(groups)
        if known is None:
            known = self._find(groups, process)
        if self.run is not None and self.run.holds(process, self.processes.get):
            _remember(self._users, self.run.owner, process.uid)
            return Place(self.run.owner, self._counted_by(known))
        found = known.owner
        if known.claim is not None:
            found = self._unless_anothers(found, known.claim)
        elif (meet := self._all.meets.get(found.kind)) is not None:
            meet(found, process.pid, process.start_ticks)
            found = self._numbered(found)
            if found is not known.owner and (root := self._roots.get(known.owner)):
                _remember(self._roots, found, root)
        uid = self._users.get(found)
        # A batch system's own helpers run as root inside the job, and come first.
        helper = uid == 0 != process.uid and found.kind in BATCH
        if helper or (uid is None and found.kind != SYSTEM):
            _remember(self._users, found, process.uid)
        return Place(found, self._counted_by(known))

    def of_group(self, path: str) -> Owner:
        """Whose a cgroup is."""
        named = self.cgroups.named(path)
        found = owner(path, named)
        if found.kind in CLAIMED and (claim := claimant(path, named)) is not None:
            return self._unless_anothers(found, claim)
        return self._numbered(found)

    def scope_of(self, found: Owner) -> str:
        if found.kind not in SITE_WIDE:
            return self.node
        return self.scope or printable(self._all.cluster) or SITE

    def about(self, found: Owner) -> Known:
        """What is known of an owner by now. Its name is never empty, except for reserved kinds."""
        if found.kind == "user":
            login = self._login(int(found.id))
            return Known(user=login, name=login)
        said, started = self._all.said(found), self._all.started_with(found)
        uid = self._users.get(found)
        # Root may be the scheduler's own helper, and the first to be seen.
        user = said.user or (self._names.get(uid) if uid else "") or started.user
        if not user and uid is not None:
            user = self._login(uid)
        known = merged(said, started)
        domain = DOMAIN.fullmatch(found.id) if found.kind == "vm" else None
        name = known.name or printable(domain[1] if domain else found.id)
        return replace(known, user=printable(user), name=name)

    def holding(self) -> list[tuple[Owner, tuple[str, ...]]]:
        """Workloads that hold GPUs now, and which, as their schedulers name them."""
        return self._all.holding(self._alive, self._gone)

    def close(self) -> None:
        """End the threads that ask for names."""
        self._all.close()

    def _counted_by(self, known: Found) -> str | None:
        return self.cgroups.owner("" if known.path == "/" else known.path)

    def _find(self, groups: bytes, process: Process) -> Found:
        said: list[tuple[Owner, str, str]] = []  # with the path, and what root named of it
        whole = True
        for controllers, path in memberships(groups):
            named = self.cgroups.delegation.named(path, controllers)
            said.append((owner(path, named.by_root), path, named.by_root))
            whole = whole and named.seen
        found = strongest([one for one, _, _ in said])
        counted = self.cgroups.path_of(groups)
        claim = None
        if found.kind in CLAIMED:
            claims = [claimant(path, named) for one, path, named in said if one == found]
            claim = None if None in claims else claims[0]
            if claim is None:
                _remember(self._outside, found, None)
        if claim is None and found.kind in (*BATCH, *CLAIMED):
            roots = [named for one, path, named in said if path == counted and one == found]
            _remember(self._roots, found, (root_of(roots[0]) if roots else "", process))
        known = Found(found, counted, claim)
        # What was gone before it could be looked at may be named by somebody else the next time.
        if whole:
            _remember(self._found, groups, known)
        return known

    def _unless_anothers(self, found: Owner, claim: Owner) -> Owner:
        """The pod or container that a user named, unless its name is known from elsewhere.

        Users name the folders that are theirs: one could take the name of a container that is not,
        and charge it.
        """
        first = self._claims.get(found)
        if first is None:
            self._claims[found] = claim
            self._claimed.setdefault(claim, OrderedDict())[found] = None
            if len(self._claims) > REMEMBERED:  # at the cost of who claims the most
                most = max(self._claimed, key=lambda who: len(self._claimed[who]))
                del self._claims[self._claimed[most].popitem(last=False)[0]]
                if not self._claimed[most]:
                    del self._claimed[most]
        elif first == claim:
            self._claimed[claim].move_to_end(found)
        own = found not in self._outside and first in (None, claim)
        return found if own else claim

    def _numbered(self, found: Owner) -> Owner:
        if found.kind == "slurm" and SLURM_SLUID.fullmatch(found.id):
            job = self._all.job_of(found.id)
            return found if job is None else Owner("slurm", job)
        return found

    def _alive(self, found: Owner) -> bool:
        if found not in self._roots:
            return False
        root, process = self._roots[found]
        if root and self.cgroups.owner(root) == root:
            return True
        return self.processes.get(process.pid) is process

    def _gone(self, found: Owner) -> bool:
        """Whether its cgroup stood here, and does no more."""
        root = self._roots[found][0] if found in self._roots else ""
        if root and self.cgroups.owner(root) == root:
            _remember(self._stood, found, root)
            return False
        return root != "" and self._stood.get(found) == root and not self._alive(found)

    def _login(self, uid: int) -> str:
        """The host's name of a uid, or the number where it has none, or none yet."""
        return printable(self._names.get(uid) or str(uid))


def _remember(memory: OrderedDict, key: object, value: object) -> None:  # type: ignore[type-arg]
    memory[key] = value
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
