"""The collector: agents' frames in, the ledger in the middle, page, API and /metrics out."""

import asyncio
import logging
import os
import sys
import time
from pathlib import Path

import uvloop

from joulegram.collector.addresses import Address
from joulegram.collector.arenas import few_arenas
from joulegram.collector.config import CollectorConfig, GridConfig, TeamsConfig
from joulegram.collector.errors import LedgerFailed
from joulegram.collector.kafka.config import KafkaConfig, check_retention
from joulegram.collector.ledger.config import ClickhouseConfig
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate, plan
from joulegram.collector.ledger.open import open_ledger
from joulegram.collector.nodes import check_retired
from joulegram.collector.roles import INTAKE, check_roles, roles_of
from joulegram.collector.security.config import SecurityConfig
from joulegram.collector.security.guard import Guard
from joulegram.collector.serving import LEDGER_END_S, Settings, serve

HELP = "receives from agents, keeps the ledger, asks the grid, serves page, API and /metrics"
TABLES = {
    "collector": CollectorConfig,
    "grid": GridConfig,
    "teams": TeamsConfig,
    "clickhouse": ClickhouseConfig,
    "security": SecurityConfig,
    "kafka": KafkaConfig,
}

SERVERS_EVERY_S = 2.0


def run(
    collector: CollectorConfig,
    grid: GridConfig,
    teams: TeamsConfig,
    clickhouse: ClickhouseConfig,
    security: SecurityConfig,
    kafka: KafkaConfig,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit status.

    Raises: CollectorError for a setting that cannot hold, a ledger in use, a port taken.
    """
    few_arenas()
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # The client library tells each attempt to reach a broker; we tell the first.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    roles = roles_of(collector.role)
    check_roles(roles, kafka=kafka.on, embedded=not clickhouse.hosts)
    check_retention(kafka, collector.raw_days)
    agents = Address.parse("listen", collector.listen, collector.insecure or security.tls)
    web = Address.parse("http", collector.http, collector.insecure or security.tls)
    settings = Settings(collector, grid, teams, kafka.at_home(), Guard(security))
    settings.guard.warn_of_strangers(agents=not agents.local, web=not web.local)
    check_retired(collector.retired)
    data = collector.data.expanduser().absolute()
    # Before the ledger is opened: who cannot serve shall not write settings into it. gRPC
    # takes the port itself, later, and would complain in its own words.
    with web.bound("http"):
        pass
    if INTAKE in roles:
        agents.check_apart(web)
        with agents.bound("listen"):
            pass
    if kafka.on:
        _check_topics(settings.kafka)
    ledger = None if roles == {INTAKE} else _opened(data, clickhouse)
    try:
        if ledger is not None and ledger.exclusive:
            migrate(ledger)
        elif ledger is not None:
            plan(ledger).check_current()
        where = f"on {', '.join(clickhouse.hosts)}" if clickhouse.hosts else str(data)
        with (
            web.bound("http") as web_socket,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(serve(roles, settings, ledger, where, agents, web_socket))
    finally:
        if ledger is not None and not ledger.close(LEDGER_END_S):
            # A query still runs, and nobody waits for it any more. Nothing is lost by this.
            sys.stderr.flush()
            os._exit(0)
    return 0


def _check_topics(kafka: KafkaConfig) -> None:
    """Brokers that answer and are not as configured end us; those that do not are waited for."""
    from kafka.errors import KafkaError

    from joulegram.collector.kafka.reasons import told
    from joulegram.collector.kafka.topics import check_topics

    try:
        check_topics(kafka)
    except (KafkaError, OSError) as failed:
        sys.stderr.write(
            f"joulegram collector: Kafka at {', '.join(kafka.brokers)} does not answer yet: "
            f"{told(failed)}. Agents keep their frames meanwhile.\n"
        )
        sys.stderr.flush()


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
