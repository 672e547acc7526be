"""A site in one of its shapes: agents, links, servers, and a ledger to read at the end."""

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaos.client import Client
from chaos.disk import Disk
from chaos.network import Proxy
from chaos.parts import Agent, BehindProxy, Clickhouse, KafkaBroker, Ours, Part, alive, let_go
from chaos.schedule import AGENTS, KAFKA
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate
from tests.clickhouse import ClickhouseServer
from tests.kafka import jars
from tests.servers import free_port, joulegram

AGENT_DISK_MB, LEDGER_DISK_MB, BROKER_DISK_MB = 48, 320, 192
CLIENT = "client"
DATABASE = "joules"
SESSION_S = 4.0  # a writer that is held longer comes back to find its partitions gone


@dataclass
class Site:
    """What the faults act upon. Names are those of chaos/schedule.py."""

    folder: Path
    parts: dict[str, Part] = field(default_factory=dict)
    links: dict[str, Proxy] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    bad_pages: dict[str, set[tuple[str, int, int]]] = field(default_factory=dict)
    counts_gone: Counter[str] = field(default_factory=Counter)  # by node, uJ
    clickhouse: ClickhouseServer | None = None  # None: the ledger is embedded
    _all: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def link(self, name: str, port: int, listen: int = 0) -> Proxy:
        proxy = Proxy(("127.0.0.1", port), listen or free_port())
        proxy.start()
        self._all.callback(proxy.close)
        self.links[name] = proxy
        return proxy

    def disk(self, name: str, path: Path, megabytes: int) -> None:
        disk = Disk(path, megabytes)
        disk.mount()
        self._all.callback(disk.unmount)
        self.disks[name] = disk

    def begin(self, name: str, part: Part) -> None:
        self.parts[name] = part
        self._all.callback(self._end, part)
        part.start()

    def close(self) -> None:
        self._all.close()

    def ended_by_themselves(self) -> list[str]:
        """Parts that no fault ended; they are started again."""
        found = [name for name, part in self.parts.items() if not alive(part)]
        for name in found:
            part = self.parts[name]
            part.end(signal.SIGKILL)
            part.start()
        return found

    def ledger(self) -> Ledger:
        """To read it; the embedded one after its collector has ended."""
        if self.clickhouse is not None:
            return ClickhouseLedger(self.clickhouse.config(DATABASE))
        return ChdbLedger(self.folder / "ledger")

    @staticmethod
    def _end(part: Part) -> None:
        if alive(part):
            let_go(part)  # who is held hears no SIGTERM
        part.end(signal.SIGKILL)


@contextlib.contextmanager
def site(shape: str, folder: Path, *, disks: bool, pace_s: float) -> Iterator[Site]:
    """Start everything; end it, and unmount, when the block is left."""
    folder.mkdir(parents=True)
    made = Site(folder)
    try:
        address = _kafka(made, disks) if shape == KAFKA else _direct(made, disks)
        base_ms = time.time_ns() // 1_000_000
        for node in AGENTS:
            agent = Agent(node, folder / node, address, base_ms, pace_s)
            if node == AGENTS[-1]:  # its frames are large, and its spool must fold them
                agent = Agent(node, folder / node, address, base_ms, pace_s, 250, 2.0)
            if disks:
                made.disk(node, agent.state, AGENT_DISK_MB)
            made.agents[node] = agent
            made.begin(node, agent.part)
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def client(made: Site, seed: int, pace_s: float) -> Iterator[Client]:
    """An agent of our own making, streaming all the while."""
    link = next(iter(made.links.values()))
    one = Client(
        CLIENT, link.address, time.time_ns() // 1_000_000, pace_s, random.Random(f"{seed} client")
    )
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.enough.set()


def _direct(made: Site, disks: bool) -> str:
    port = free_port()
    if disks:
        made.disk("collector", made.folder / "ledger", LEDGER_DISK_MB)
    argv = joulegram(
        *("collector", "--data", made.folder / "ledger", "--listen", f"127.0.0.1:{port}"),
        *("--http", "127.0.0.1:0", "--neso-url", "", "--zone", "GB"),
    )
    made.begin("collector", Ours("collector", argv, made.folder, "page http://"))
    return made.link("link to collector", port).address


def _kafka(made: Site, disks: bool) -> str:
    server = ClickhouseServer(made.folder / "clickhouse")
    made.clickhouse = server
    if disks:
        made.disk("clickhouse", server.folder / "data", LEDGER_DISK_MB)
    made.begin("clickhouse", Clickhouse(server))
    ledger = ClickhouseLedger(server.config(DATABASE))
    migrate(ledger)
    ledger.close()
    broker = BehindProxy(made.folder / "kafka", jars())
    to_broker = made.link("link to broker", broker.port, int(broker.advertised.split(":")[1]))
    if disks:
        made.disk("broker", broker.folder / "log", BROKER_DISK_MB)
    made.begin("broker", KafkaBroker(broker))
    to_clickhouse = made.link("link to clickhouse", server.port)
    port = free_port()
    config = made.folder / "joulegram.toml"
    config.write_text(
        server.toml(
            DATABASE,
            hosts=f'["{to_clickhouse.address}"]',
            connect_timeout_s="2.0",
            timeout_s="10.0",
        )
        + f"""
[kafka]
brokers = ["{to_broker.address}"]
partitions = 6
replication_factor = 1
min_insync_replicas = 1
linger_s = 0.05
delivery_timeout_s = 5.0
session_timeout_s = {SESSION_S}
"""
    )
    for name in ("intake", "writer1", "writer2"):
        argv = joulegram(
            *("collector", "--config", config, "--role", name.rstrip("12")),
            *("--listen", f"127.0.0.1:{port}", "--http", "127.0.0.1:0", "--neso-url", ""),
        )
        made.begin(name, Ours(name, argv, made.folder, "metrics http://"))
    address = made.link("link to intake", port).address
    # The agents' way comes first.
    made.links = {"link to intake": made.links.pop("link to intake"), **made.links}
    return address
