"""Who used a GPU for how long: the DRM drivers' own accounting, by open file.

Reads  <procfs>/<pid>/fd/* (where they point to), <procfs>/<pid>/fdinfo/*
Format https://docs.kernel.org/gpu/drm-usage-stats.html

A client is one opening of a GPU, (PCI address, client id), however many descriptors and
processes share it; it is charged to the first process seen with it, and when that one lets go of
it to the next. An engine's time is divided by its capacity (how many alike the name stands for)
and cannot exceed the time that passed; a process's is the sum over its engines, so a copy engine
weighs as much as a shader engine. Values that go back are waited for, as the format asks.

Looking at every descriptor of every process at every tick is too dear. One look costs at most
a list of pids, DESCRIPTORS_PER_LOOK links and READS_PER_LOOK files: half of the links for
processes that are new (looked at again at each of AGES_NS) or use a GPU already (every
REVISIT_NS), the rest for all others in turn. A process that opens a GPU later than that is found
within a round: processes x descriptors / DESCRIPTORS_PER_LOOK looks, half a minute with 1,000
processes of 15 files each at one look a second. What it used before that is not charged to it,
nor what it used between the last look and its end.
"""

import errno
import os
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from joulegram.agent.clock import Clock

Key: TypeAlias = tuple[str, int]  # PCI address, client id

DESCRIPTORS_PER_LOOK = 512
FIRST_LOOK = 32  # times as much: jobs that run when the agent starts
TURN = 128  # descriptors of one process before others have their turn
UNFINISHED_MAX = 16  # processes with more descriptors than that whose turn is to come
NEW_MAX = 4_096  # new processes that wait to be looked at; others wait for the round
AGES_NS = (2_000_000_000, 8_000_000_000, 30_000_000_000)  # programs load before they compute
REVISIT_NS = 5_000_000_000
READS_PER_LOOK = 1_024
CLIENTS_MAX = 4_096
CLIENTS_PER_PROCESS = 128
FDINFO_BYTES = 16_384
ENGINES_MAX = 32

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
ENGINE = re.compile(rb"drm-(engine-capacity|engine|total-cycles|cycles)-([a-z0-9_.+-]{1,32})")
NUMBER = re.compile(rb"(\d{1,20})(?: ns)?")


@dataclass(frozen=True, slots=True)
class Engine:
    """What one client has used of one engine, or of several alike."""

    busy_ns: int = 0
    cycles: int = 0  # where the driver counts those: of `total_cycles` that passed
    total_cycles: int = 0
    capacity: int = 1


NEVER = Engine()


@dataclass(frozen=True, slots=True)
class Account:
    """What one descriptor's fdinfo says."""

    key: Key
    engines: Mapping[str, Engine]


GONE = Account(("", 0), {})


def parse(raw: bytes) -> Account | None:
    """None for a file that is torn, or of something else than a GPU."""
    if not raw.endswith(b"\n"):
        return None
    said: dict[bytes, bytes] = {}
    engines: dict[str, dict[bytes, int]] = defaultdict(dict)
    for text in raw.split(b"\n"):
        key, _, value = text.partition(b":")
        value = value.strip()
        if not (engine := ENGINE.fullmatch(key)):
            said.setdefault(key, value)
        elif (number := NUMBER.fullmatch(value)) and (
            (name := engine[2].decode()) in engines or len(engines) < ENGINES_MAX
        ):
            engines[name][engine[1]] = int(number[1])
    address = said.get(b"drm-pdev", b"").decode("ascii", "replace").lower()
    client = NUMBER.fullmatch(said.get(b"drm-client-id", b""))
    if b"drm-driver" not in said or not client or not ADDRESS.fullmatch(address):
        return None
    return Account(
        (address, int(client[1])),
        {
            name: Engine(
                values.get(b"engine", 0),
                # Some drivers have both; time needs no clock to be divided by.
                values.get(b"cycles", 0) if b"engine" not in values else 0,
                values.get(b"total-cycles", 0) if b"engine" not in values else 0,
                max(1, values.get(b"engine-capacity", 1)),
            )
            for name, values in engines.items()
        },
    )


def used_ns(
    before: Mapping[str, Engine], after: Mapping[str, Engine], elapsed_ns: int
) -> tuple[int, dict[str, Engine]]:
    """(use between two looks, what to compare the next look with).

    Each engine's use is its share of the time that passed; their sum may exceed that time.
    """
    total_ns = 0
    kept = dict(before)
    for name, now in after.items():
        was = before.get(name, NEVER)
        ran_ns = now.busy_ns - was.busy_ns
        if now.total_cycles:
            passed = now.total_cycles - was.total_cycles
            known = was.total_cycles and passed > 0
            ran_ns = (now.cycles - was.cycles) * elapsed_ns // passed if known else 0
        total_ns += min(max(0, ran_ns) // now.capacity, elapsed_ns)
        kept[name] = Engine(
            max(now.busy_ns, was.busy_ns),
            max(now.cycles, was.cycles),
            now.total_cycles,
            now.capacity,
        )
    return total_ns, dict(islice(kept.items(), ENGINES_MAX))


@dataclass(slots=True, eq=False)
class Client:
    """One opening of a GPU."""

    engines: Mapping[str, Engine]
    read_ns: int
    busy: bool = False  # ever
    render: bool = False  # opened as a render node: a card node alone may be a screen's
    holders: dict[int, str] = field(default_factory=dict)  # pid: its descriptor; first pays


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
        self._unfinished: deque[tuple[int, Iterator[None]]] = deque()
        self._round: deque[int] = deque()
        self._rounds = 0
        self._visited_ns = 0
        self.left_out = 0  # clients beyond the bounds, and descriptors never reached

    def __len__(self) -> int:
        return len(self._clients)

    def want(self, address: str) -> None:
        """Keep account of one more GPU."""
        self._gpus.setdefault(address, Gpu())

    def users(self, address: str) -> Users:
        """Looks, unless another GPU's question was answered by a look since this one's last.

        Raises: OSError when procfs cannot be listed.
        """
        self.want(address)
        gpu = self._gpus[address]
        if gpu.look == self._looks:
            self._look()
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
                budget = self._turn(pid, self._walk(pid), budget)
        return budget

    def _walk_others(self, budget: int) -> None:
        """Go on with the round; a new one begins with the next look."""
        if not self._round:
            self._round.extend(sorted(self._pids))
            self._rounds += 1
        for _ in range(len(self._unfinished)):
            if budget <= 0:
                return
            pid, walk = self._unfinished.popleft()
            budget = self._turn(pid, walk, budget)
        while self._round and budget > 0:
            pid = self._round.popleft()
            if pid in self._pids and pid not in self._fresh:
                budget = self._turn(pid, self._walk(pid), budget)

    def _turn(self, pid: int, walk: Iterator[None], budget: int) -> int:
        """Let a walk go on for a while. Returns: what is left of the budget."""
        limit = min(TURN, budget)
        looked = sum(1 for _ in islice(walk, limit))
        if looked == limit:
            if len(self._unfinished) < UNFINISHED_MAX:
                self._unfinished.append((pid, walk))
            else:
                self.left_out += 1
        return budget - looked - 1

    def _walk(self, pid: int) -> Iterator[None]:
        """Meet every client among a process's descriptors; stops after each descriptor."""
        seen: set[Key] = set()
        for name, target in _descriptors(f"{self._root}/{pid}"):
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
        account = self._account(pid, name)
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
        account = self._account(pid, name)
        return account if account is None or account.key == key else GONE

    def _account(self, pid: int, name: str) -> Account | None:
        """None: torn, or of something else; GONE: closed, or not ours to read."""
        try:
            descriptor = os.open(f"{self._root}/{pid}/fdinfo/{name}", os.O_RDONLY)
        except OSError:
            return GONE
        try:
            return parse(os.read(descriptor, FDINFO_BYTES))
        except OSError:
            return GONE
        finally:
            os.close(descriptor)

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


def _descriptors(process: str) -> Iterator[tuple[str, str | None]]:
    """(name, where it points to) of each; None where only its fdinfo can tell.

    The folder is listed piece by piece: nobody waits for a process with a million files.
    """
    try:
        with os.scandir(f"{process}/fd") as entries:
            for entry in entries:
                try:
                    yield entry.name, os.readlink(entry.path)  # noqa: PTH115
                except OSError as exc:
                    # No link: a tree that was captured without them.
                    yield entry.name, None if exc.errno == errno.EINVAL else ""
    except FileNotFoundError:
        try:
            with os.scandir(f"{process}/fdinfo") as entries:
                for entry in entries:
                    yield entry.name, None
        except OSError:
            return
    except OSError:  # not ours to look at: it costs its own
        return
