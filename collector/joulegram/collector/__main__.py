"""The collector: agents' frames in, the ledger in the middle, page, API and /metrics out."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvicorn
from prometheus_client import CollectorRegistry

from joulegram.collector import counters, retention, sites
from joulegram.collector import live as live_state
from joulegram.collector.config import CollectorConfig, GridConfig, TeamsConfig
from joulegram.collector.errors import BadSetting, LedgerFailed
from joulegram.collector.grid.feeds import Feeds
from joulegram.collector.intake import SERVER_OPTIONS, STREAMS_MAX, Intake, add_intake
from joulegram.collector.ledger.config import ClickhouseConfig
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate, plan
from joulegram.collector.ledger.open import open_ledger
from joulegram.collector.metrics import CollectorMetrics
from joulegram.collector.nodes import check_retired, record_retired
from joulegram.collector.retry import Retry
from joulegram.collector.rollup import Rollup
from joulegram.collector.rules import check_rules
from joulegram.collector.security.config import SecurityConfig
from joulegram.collector.security.guard import Guard
from joulegram.collector.security.peers import GRPC_OPTIONS
from joulegram.collector.security.tls import Certificates
from joulegram.collector.standing import Standing
from joulegram.collector.teams import record_rules
from joulegram.collector.totals import EnergyTotals, TeamGrams
from joulegram.collector.web.access import Access
from joulegram.collector.web.api import create_app
from joulegram.collector.web.patience import web_config
from joulegram.collector.writer import Writer

log = logging.getLogger(__name__)

HELP = "receives from agents, keeps the ledger, asks the grid, serves page, API and /metrics"
TABLES = {
    "collector": CollectorConfig,
    "grid": GridConfig,
    "teams": TeamsConfig,
    "clickhouse": ClickhouseConfig,
    "security": SecurityConfig,
}

SERVERS_EVERY_S = 2.0
STREAMS_END_S = 2.0
LEDGER_END_S = 1.0


def run(
    collector: CollectorConfig,
    grid: GridConfig,
    teams: TeamsConfig,
    clickhouse: ClickhouseConfig,
    security: SecurityConfig,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit status.

    Raises: CollectorError for a setting that cannot hold, a ledger in use, a port taken.
    """
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    agents = Address.parse("listen", collector.listen, collector.insecure or security.tls)
    web = Address.parse("http", collector.http, collector.insecure or security.tls)
    guard = Guard(security)
    check_retired(collector.retired)
    data = collector.data.expanduser().absolute()
    # Before the ledger is opened: who cannot serve shall not write settings into it. gRPC
    # takes the port itself, later, and would complain in its own words.
    for key, address in (("listen", agents), ("http", web)):
        with address.bound(key):
            pass
    ledger = _opened(data, clickhouse)
    try:
        if ledger.exclusive:
            migrate(ledger)
        else:
            plan(ledger, cluster=clickhouse.cluster).check_current()
        where = f"on {', '.join(clickhouse.hosts)}" if clickhouse.hosts else str(data)
        with web.bound("http") as web_socket:
            asyncio.run(_serve(ledger, where, agents, web_socket, collector, grid, teams, guard))
    finally:
        if not ledger.close(LEDGER_END_S):
            # A query still runs, and nobody waits for it any more. Nothing is lost by this.
            sys.stderr.flush()
            os._exit(0)
    return 0


def _opened(data: Path, clickhouse: ClickhouseConfig) -> Ledger:
    """The ledger; servers that do not answer are waited for, and agents keep their frames."""
    waiting = False
    while True:
        try:
            return open_ledger(data, clickhouse)
        except LedgerFailed as failed:
            if not waiting:
                sys.stderr.write(f"joulegram collector: waiting for its ledger: {failed}\n")
                sys.stderr.flush()
            waiting = True
        time.sleep(SERVERS_EVERY_S)


async def _serve(
    ledger: Ledger,
    where: str,
    agents: "Address",
    web_socket: socket.socket,
    collector: CollectorConfig,
    grid: GridConfig,
    team_rules: TeamsConfig,
    guard: Guard,
) -> None:
    now_ms = time.time_ns() // 1_000_000
    sites.record_site(ledger, sites.site_of(grid), now_ms)
    record_rules(ledger, team_rules.rules, now_ms)
    record_retired(ledger, check_retired(collector.retired), now_ms)

    registry = CollectorRegistry()
    counters.register(registry)
    guard.register(registry)
    energy = EnergyTotals()
    energy.load(ledger)
    live = live_state.Live(team_of=live_state.by_rules(check_rules(team_rules.rules)))
    rollup = Rollup(ledger)
    standing = Standing(ledger, rollup, TeamGrams(ledger))
    registry.register(CollectorMetrics(live, energy, standing))
    feeds = Feeds(ledger, grid, registry)
    writer = Writer(ledger, on_durable=[rollup.touch, live.on_durable, energy.on_durable])
    intake = Intake(Retry(writer), raw_days=collector.raw_days, peers=guard.peers)

    app = create_app(
        ledger=ledger,
        rollup=rollup,
        live=live,
        standing=standing,
        feeds=feeds,
        registry=registry,
        # Only where this machine alone is served can it be said by which names.
        access=Access(guard.readers, guard.hosts if _is_local(web_socket) else None),
    )
    web = _Web(web_config(app, guard.certificates))
    grpc_server = grpc.aio.server(
        options=(*SERVER_OPTIONS, *GRPC_OPTIONS), maximum_concurrent_rpcs=STREAMS_MAX
    )
    add_intake(intake, grpc_server)
    port = agents.listen(grpc_server, guard.certificates)

    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    writing = asyncio.create_task(writer.run())
    serving = asyncio.create_task(web.serve(sockets=[web_socket]))
    background = [
        asyncio.create_task(feeds.run()),
        asyncio.create_task(guard.run()),
        asyncio.create_task(rollup.run()),
        asyncio.create_task(retention.run(ledger, rollup, collector.raw_days)),
    ]
    # What is loaded by now stays: the garbage collector need not look through it for every burst.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    await grpc_server.start()
    sys.stderr.write(
        f"joulegram collector: ledger {where}, agents on {agents.shown(port)}, "
        f"page {'http' if guard.certificates is None else 'https'}://{_shown(web_socket)}\n"
    )
    sys.stderr.flush()
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, writing, serving}, return_when=asyncio.FIRST_COMPLETED)

    # Whatever ended first, agents get their last acknowledgements before we leave.
    web.should_exit = True
    for task in (*background, stopped):
        task.cancel()
    intake.drain()
    await grpc_server.stop(STREAMS_END_S)
    writer.close()
    ended = await asyncio.gather(writing, serving, *background, return_exceptions=True)
    for failure in ended:
        if isinstance(failure, Exception):
            raise failure
    await asyncio.to_thread(ledger.close, LEDGER_END_S)


class _Web(uvicorn.Server):
    """uvicorn without its signal handlers: ours stop the streams too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int  # 0: any free one

    @classmethod
    def parse(cls, key: str, text: str, insecure: bool) -> "Address":
        """Read HOST:PORT. Raises BadSetting when it is none, or is open to others unasked."""
        host, _, port = text.rpartition(":")
        host = host.strip("[]")
        if not host or not port.isdigit() or int(port) > 65_535:
            raise BadSetting(
                f"collector.{key} = {text!r}: write HOST:PORT, such as "
                f"127.0.0.1:{7470 if key == 'http' else 7471}."
            )
        if not insecure and not _is_loopback(host):
            raise BadSetting(
                f"collector.{key} = {text!r} is open to other machines, and there is no TLS: "
                "anyone there could send or read energy. Listen on 127.0.0.1, set tls_cert and "
                "tls_key in [security], or say --insecure where the network is trusted."
            )
        return cls(host, int(port))

    def shown(self, port: int) -> str:
        """HOST:PORT with the port that was found."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def listen(self, server: grpc.aio.Server, certificates: Certificates | None) -> int:
        """Open the port for agents; returns it. Raises BadSetting when it is taken."""
        here = self.shown(self.port)
        try:
            port: int = (
                server.add_insecure_port(here)
                if certificates is None
                else server.add_secure_port(here, certificates.for_agents())
            )
        except RuntimeError as exc:
            raise BadSetting(self._taken("listen")) from exc
        return port

    @contextlib.contextmanager
    def bound(self, key: str) -> Iterator[socket.socket]:
        """A socket bound here. Raises BadSetting when the port is taken."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind((self.host, self.port))
            except OSError as exc:
                raise BadSetting(self._taken(key, f" ({exc.strerror})")) from exc
            yield bound

    def _taken(self, key: str, why: str = "") -> str:
        return (
            f"cannot listen on {self.shown(self.port)}{why}: another program may have the port, or "
            f"the address is not of this machine. Stop that program, or choose with --{key} "
            "HOST:PORT."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local(bound: socket.socket) -> bool:
    return _is_loopback(bound.getsockname()[0])


def _shown(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
