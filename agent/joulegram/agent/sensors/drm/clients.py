"""Who has a GPU open and who used it for how long: every client of the DRM drivers.

Reads  <procfs>, and what fdinfo.py reads of each process

A client is one opening of a GPU, (PCI address, client id), however many descriptors and
processes share it; it is charged to the first process seen with it, and when that one lets go of
it to the next.

Looking at every descriptor of every process at every tick is too dear. One look costs at most
a list of pids, DESCRIPTORS_PER_LOOK links and READS_PER_LOOK files: half of the links for
processes that are new (looked at again at each of AGES_NS) or use a GPU already (every
REVISIT_NS), the rest for all others in turn. A process that opens a GPU later than that is found
within a round: processes x descriptors / DESCRIPTORS_PER_LOOK looks, half a minute with 1,000
processes of 15 files each at one look a second. What it used before that is not charged to it,
nor what it used between the last look and its end.

Drivers take locks to answer, which a process may hold: a look runs in a thread of its own.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from joulegram.agent.clock import Clock
from joulegram.agent.sensors.aside import Aside
from joulegram.agent.sensors.drm.fdinfo import (
    GONE,
    Account,
    Engine,
    Key,
    descriptors,
    read,
    used_ns,
)

DESCRIPTORS_PER_LOOK = 512
FIRST_LOOK = 32  # times as much: jobs that run when the agent starts
TURN = 128  # descriptors of one process before others have their turn
UNFINISHED_MAX = 16  # processes with more than that, whose turn is to come; the longest gives way
NEW_MAX = 4_096  # new processes that wait to be looked at; others wait for the round
AGES_NS = (2_000_000_000, 8_000_000_000, 30_000_000_000)  # programs load before they compute
REVISIT_NS = 5_000_000_000
READS_PER_LOOK = 1_024
CLIENTS_MAX = 4_096
CLIENTS_PER_PROCESS = 128
WITHIN_S = 0.2  # of a tick; a look that takes longer goes on without whoever asked


@dataclass(slots=True, eq=False)
class Client:
    """One opening of a GPU."""

    engines: Mapping[str, Engine]
    read_ns: int
    busy: bool = False  # ever
    render: bool = False  # opened as a render node: a card node alone may be a screen's
    holders: dict[int, str] = field(default_factory=dict)  # pid: its descriptor; first pays


@dataclass(slots=True, eq=False)
class Walk:
    """A way through a process's descriptors."""

    steps: Iterator[None]
    looked: int = 0  # descriptors so far


@dataclass(slots=True, eq=False)
class Gpu:
    """What is remembered for whoever asks for one GPU."""

    look: int = 0  # the last one that it was told of
    used_ns: dict[int, int] = field(default_factory=dict)  # by pid, since then


@dataclass(frozen=True, slots=True)
class Users:
    """Who used a GPU since it was asked for before, and who has it open."""

    used_ns: Mapping[int, int]  # by pid; a sum over engines
    opened: frozenset[int]


class Clients:
    """All clients of the GPUs that somebody asks for. Make one, and share it between GPUs."""

    def __init__(self, procfs: Path, clock: Clock) -> None:
        self._root = str(procfs)
        self._clock = clock
        self._gpus: dict[str, Gpu] = {}
        self._clients: dict[Key, Client] = {}
        self._of: dict[int, set[Key]] = {}  # clients by process
        self._looks = 0
        self._look_ns = 0
        self._since_ns = 0  # the look before
        self._pids: set[int] = set()
        self._new: dict[int, None] = {}  # in this order
        self._fresh: set[int] = set()  # pids that were not there at the look before
        # When to look again at processes that were new, by age.
        self._young: dict[int, deque[tuple[int, int]]] = {
            age_ns: deque(maxlen=NEW_MAX) for age_ns in AGES_NS
        }
        self._unfinished: deque[Walk] = deque()
        self._round: deque[int] = deque()
        self._rounds = 0
        self._visited_ns = 0
        self._aside = Aside("/proc/*/fdinfo of who uses GPUs")
        self.left_out = 0  # clients beyond the bounds, and descriptors never reached

    def __len__(self) -> int:
        return len(self._clients)

    def want(self, address: str) -> None:
        """Keep account of one more GPU."""
        self._gpus.setdefault(address, Gpu())

    def users(self, address: str) -> Users:
        """Looks, unless another GPU's question was answered by a look since this one's last.

        Raises: OSError when procfs cannot be listed, SensorFailed while a driver does not answer.
        """
        self._aside.settled()
        self.want(address)
        gpu = self._gpus[address]
        if gpu.look == self._looks:
            self._aside.ask(self._look, WITHIN_S)
        gpu.look = self._looks
        used, gpu.used_ns = gpu.used_ns, {}
        opened = frozenset(
            pid
            for (where, _), client in self._clients.items()
            if where == address and (client.render or client.busy)
            for pid in client.holders
        )
        return Users(used, opened)

    def _look(self) -> None:
        pids = {int(name) for name in os.listdir(self._root) if name.isdecimal()}  # noqa: PTH208
        first = not self._looks
        self._looks += 1
        self._since_ns, self._look_ns = self._look_ns, self._clock.mono_ns()
        self._fresh = set() if first else pids - self._pids
        for pid in self._pids - pids:
            self._forget(pid)
        self._pids = pids
        self._soon(sorted(self._fresh))
        for age_ns, young in self._young.items():
            young.extend((self._look_ns + age_ns, pid) for pid in self._fresh)
            while young and young[0][0] <= self._look_ns:
                self._soon((young.popleft()[1],))
        if self._look_ns - self._visited_ns >= REVISIT_NS:
            self._visited_ns = self._look_ns
            self._soon(self._of)
        # Clients that are met now are read by that; the others first.
        self._read_known()
        budget = DESCRIPTORS_PER_LOOK * (FIRST_LOOK if first else 1)
        budget = budget // 2 + self._walk_new(budget // 2)
        self._walk_others(budget)

    def _soon(self, pids: Iterable[int]) -> None:
        self._new.update(dict.fromkeys(islice(pids, max(0, NEW_MAX - len(self._new)))))

    def _walk_new(self, budget: int) -> int:
        """Look at new processes and at those that use a GPU. Returns: what is left."""
        while self._new and budget > 0:
            pid = next(iter(self._new))
            del self._new[pid]
            if pid in self._pids:
                budget = self._turn(Walk(self._walk(pid)), budget)
        return budget

    def _walk_others(self, budget: int) -> None:
        """Go on with the round; a new one begins with the next look."""
        if not self._round:
            self._round.extend(sorted(self._pids))
            self._rounds += 1
        # Whoever opens files by the hundred thousand leaves half to the others.
        for_long = budget // 2
        budget -= for_long
        for _ in range(len(self._unfinished)):
            if for_long <= 0:
                break
            for_long = self._turn(self._unfinished.popleft(), for_long)
        budget += for_long
        while self._round and budget > 0:
            pid = self._round.popleft()
            if pid in self._pids and pid not in self._fresh:
                budget = self._turn(Walk(self._walk(pid)), budget)

    def _turn(self, walk: Walk, budget: int) -> int:
        """Let a walk go on for a while. Returns: what is left of the budget."""
        limit = min(TURN, budget)
        looked = sum(1 for _ in islice(walk.steps, limit))
        walk.looked += looked
        if looked == limit:
            self._unfinished.append(walk)
            if len(self._unfinished) > UNFINISHED_MAX:
                self._unfinished.remove(max(self._unfinished, key=lambda one: one.looked))
                self.left_out += 1
        return budget - looked - 1

    def _walk(self, pid: int) -> Iterator[None]:
        """Meet every client among a process's descriptors; stops after each descriptor."""
        seen: set[Key] = set()
        for name, target in descriptors(f"{self._root}/{pid}"):
            if target is None or "/dri/" in target:
                key = self._meet(pid, name, target is None or "/render" in target)
                if key:
                    seen.add(key)
            yield
        for key in self._of.get(pid, set()) - seen:
            client = self._clients.get(key)
            if client is None or self._account_of(key, pid, client.holders[pid]) is GONE:
                self._let_go(pid, key)

    def _meet(self, pid: int, name: str, render: bool) -> Key | None:
        account = read(f"{self._root}/{pid}", name)
        if account is None or account.key[0] not in self._gpus:
            return None
        key, keys = account.key, self._of.setdefault(pid, set())
        client = self._clients.get(key)
        if key not in keys and len(keys) >= CLIENTS_PER_PROCESS:
            self.left_out += 1
            return None
        if client is None:
            if len(self._clients) >= CLIENTS_MAX:
                self.left_out += 1
                return None
            client = self._clients[key] = Client({}, self._since_ns)
            # Of an older process nobody knows when it used what; nor, before all have been
            # looked at once, whether it inherited the client.
            ours = pid in self._fresh and self._rounds > 1
            self._charge(key, client, pid, account, whole=ours)
        client.render |= render
        client.holders[pid] = name
        keys.add(key)
        return key

    def _read_known(self) -> None:
        """Read the clients that were not read for longest; where nobody is left, forget one."""
        for key in list(islice(self._clients, READS_PER_LOOK)):
            client = self._clients.pop(key)
            for pid, name in list(client.holders.items()):
                account = self._account_of(key, pid, name)
                if account is not GONE:
                    if account:
                        self._charge(key, client, pid, account)
                    break
                del client.holders[pid]
                self._of.get(pid, set()).discard(key)
                self._soon((pid,))  # it may have it under another number
            if client.holders:
                self._clients[key] = client

    def _charge(
        self, key: Key, client: Client, pid: int, account: Account, whole: bool = True
    ) -> None:
        elapsed_ns = self._look_ns - client.read_ns
        if elapsed_ns <= 0 and client.engines:
            return
        used, client.engines = used_ns(client.engines, account.engines, elapsed_ns)
        client.read_ns = self._look_ns
        if used and whole:
            client.busy = True
            uses = self._gpus[key[0]].used_ns
            uses[pid] = uses.get(pid, 0) + used

    def _account_of(self, key: Key, pid: int, name: str) -> Account | None:
        """What a client's descriptor says now; None: torn; GONE: it is another's, or closed."""
        account = read(f"{self._root}/{pid}", name)
        return account if account is None or account.key == key else GONE

    def _let_go(self, pid: int, key: Key) -> None:
        self._of.get(pid, set()).discard(key)
        if client := self._clients.get(key):
            client.holders.pop(pid, None)
            if not client.holders:
                del self._clients[key]

    def _forget(self, pid: int) -> None:
        for key in list(self._of.get(pid, ())):
            self._let_go(pid, key)
        self._of.pop(pid, None)
