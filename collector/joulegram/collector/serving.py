"""One process of a collector while it runs: the parts of its roles, wired and ended in order."""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import uvicorn
from prometheus_client import CollectorRegistry

from joulegram.collector import counters, retention, sites
from joulegram.collector import live as live_state
from joulegram.collector.addresses import Address, is_local, shown
from joulegram.collector.config import CollectorConfig, GridConfig, TeamsConfig
from joulegram.collector.grid.feeds import Feeds
from joulegram.collector.intake import SERVER_OPTIONS, STREAMS_MAX, Intake, add_intake
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import watch
from joulegram.collector.metrics import CollectorMetrics
from joulegram.collector.nodes import check_retired, record_retired
from joulegram.collector.retry import Retry
from joulegram.collector.roles import GRID, INTAKE, WEB, WRITER
from joulegram.collector.rollup import Rollup
from joulegram.collector.rules import check_rules
from joulegram.collector.security.guard import Guard
from joulegram.collector.security.peers import GRPC_OPTIONS
from joulegram.collector.stages import Stage
from joulegram.collector.standing import Standing
from joulegram.collector.stored_totals import StoredTotals
from joulegram.collector.teams import record_rules
from joulegram.collector.totals import EnergyTotals, TeamGrams
from joulegram.collector.web.access import Access
from joulegram.collector.web.api import create_app
from joulegram.collector.web.patience import web_config
from joulegram.collector.web.probe import Need, create_probe, need_of, until_draining
from joulegram.collector.writer import Writer
from joulegram.v1.telemetry_pb2 import Frame

OnDurable: TypeAlias = Callable[[Sequence[Frame]], None]

YEARLY_WITHIN_S = 5.0
# An insert may take its time, and whoever stops us (systemd, Kubernetes, Docker after 10 s) too.
DRAIN_S = 7.0
STREAMS_END_S = 1.0
LEDGER_END_S = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator said, one value per table."""

    collector: CollectorConfig
    grid: GridConfig
    teams: TeamsConfig
    kafka: KafkaConfig
    guard: Guard


@dataclass(slots=True)
class _Parts:
    """What runs in this process. `main` must not end before we are told to stop."""

    main: list["asyncio.Task[None]"] = field(default_factory=list)
    background: list["asyncio.Task[None]"] = field(default_factory=list)
    # Run one after the other when we stop: from where frames come in to where they are durable.
    endings: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self.main.append(task)
        return task

    def behind(self, *work: Coroutine[Any, Any, None]) -> None:
        self.background += map(asyncio.create_task, work)


async def serve(
    roles: frozenset[str],
    settings: Settings,
    ledger: Ledger | None,
    where: str,
    agents: Address,
    web_socket: socket.socket,
) -> None:
    """Serve until SIGTERM or SIGINT, or until a part ends.

    Args:
        ledger: None where no role of this process needs it.
        where: the ledger, in words.
    """
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    registry = CollectorRegistry()
    counters.register(registry)
    guard = settings.guard
    guard.register(registry)
    # Only where this machine alone is served can it be said by which names.
    access = Access(guard.readers, guard.hosts if is_local(web_socket) else None)
    parts = _Parts()
    parts.behind(guard.run())
    if ledger is not None and not ledger.exclusive:
        _watch(parts, ledger)
    rollup = None if ledger is None else Rollup(ledger)
    said = [] if ledger is None else [f"ledger {where}"]

    needs = [] if ledger is None else [need_of(ledger)]
    feeds = None
    if GRID in roles:
        assert ledger is not None
        _record(ledger, settings)
        feeds = Feeds(ledger, settings.grid, registry)
        parts.behind(feeds.run())
        # Grams need it, and who asks just after the start wants grams, too.
        await feeds.first_try(YEARLY_WITHIN_S)

    on_durable: list[OnDurable] = []
    if WEB in roles:
        assert ledger is not None and rollup is not None
        rules = check_rules(settings.teams.rules)
        live = live_state.Live(team_of=live_state.by_rules(rules))
        on_durable = [live.on_durable]
        energy: EnergyTotals | StoredTotals
        stored = None
        if ledger.exclusive:
            energy = EnergyTotals.of(ledger)
            on_durable.append(energy.on_durable)
        else:  # what others store, too, only the ledger knows
            energy = stored = StoredTotals(ledger, rollup)
        standing = Standing(ledger, rollup, TeamGrams(ledger), stored)
        registry.register(CollectorMetrics(live, energy, standing))
        app = create_app(
            ledger=ledger,
            rollup=rollup,
            live=live,
            standing=standing,
            feeds=feeds or _NoFeeds(),
            registry=registry,
            access=access,
        )
    else:
        app = create_probe(registry, access, needs)

    stage: Stage | None = None
    follows: tuple[Sequence[OnDurable], OnDurable] | None = None
    if WEB in roles and settings.kafka.on and not (ledger is not None and ledger.exclusive):
        # Beside other writers, or apart from them, the page sees all frames in the topic alone.
        assert rollup is not None
        follows, on_durable = (on_durable, rollup.touch), []
    if WRITER in roles:
        assert ledger is not None and rollup is not None
        stage = _writer(parts, settings, ledger, rollup, on_durable)
    elif rollup is not None and WEB in roles:
        parts.behind(rollup.run())
    if settings.kafka.on:
        stage = _kafka(parts, settings, registry, stage, follows, needs)
    if INTAKE in roles:
        assert stage is not None
        port = await _intake(parts, settings, stage, agents)
        said.append(f"agents on {agents.shown(port)}")

    begin_draining = until_draining(app)
    web = _Web(web_config(app, guard.certificates))
    web_socket.listen()  # who reads our line below and asks at once waits a moment
    serving = parts.run(web.serve(sockets=[web_socket]))
    # What is loaded by now stays: the garbage collector need not look through it for every burst.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    scheme = "http" if guard.certificates is None else "https"
    said.append(f"{'page' if WEB in roles else 'metrics'} {scheme}://{shown(web_socket)}")
    sys.stderr.write(f"joulegram collector: {', '.join(said)}\n")
    sys.stderr.flush()
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, *parts.main}, return_when=asyncio.FIRST_COMPLETED)

    # Whatever ended first, agents get their last acknowledgements before we leave.
    begin_draining()
    for task in (*parts.background, stopped):
        task.cancel()
    for end in reversed(parts.endings):
        await end()
    web.should_exit = True
    ended = await asyncio.gather(serving, *parts.main, *parts.background, return_exceptions=True)
    for failure in ended:
        if isinstance(failure, Exception):
            raise failure
    if ledger is not None:
        await asyncio.to_thread(ledger.close, LEDGER_END_S)


def _watch(parts: _Parts, ledger: Ledger) -> None:
    """End, as a start would be refused, when the ledger gets a schema that we do not know."""
    watching = parts.run(watch(ledger))

    async def end() -> None:
        watching.cancel()

    parts.endings.append(end)


def _record(ledger: Ledger, settings: Settings) -> None:
    now_ms = time.time_ns() // 1_000_000
    sites.record_site(ledger, sites.site_of(settings.grid), now_ms)
    record_rules(ledger, settings.teams.rules, now_ms)
    record_retired(ledger, check_retired(settings.collector.retired), now_ms)


def _writer(
    parts: _Parts,
    settings: Settings,
    ledger: Ledger,
    rollup: Rollup,
    on_durable: Sequence[OnDurable],
) -> Writer:
    writer = Writer(ledger, on_durable=[rollup.touch, *on_durable])
    parts.run(writer.run())
    raw_days, slot_months = settings.collector.raw_days, settings.collector.slot_months
    retention.warn_of_spools(raw_days)
    parts.behind(rollup.run(), retention.run(ledger, rollup, raw_days, slot_months))

    async def end() -> None:
        writer.close()

    parts.endings.append(end)
    return writer


def _kafka(
    parts: _Parts,
    settings: Settings,
    registry: CollectorRegistry,
    writer: Stage | None,
    follows: tuple[Sequence[OnDurable], OnDurable] | None,
    needs: list[Need],
) -> Stage:
    """Put Kafka before the writer, where one is here; the stage for an intake.

    Args:
        follows: who want to see every frame that is in the topic, as it comes, and who once it is
            durable.
    """
    # Imported here: who has no Kafka does not pay for its client.
    from joulegram.collector.kafka import counters as kafka_counters
    from joulegram.collector.kafka import lag
    from joulegram.collector.kafka.consumer import FromKafka
    from joulegram.collector.kafka.follow import Follower
    from joulegram.collector.kafka.letters import DeadLetters
    from joulegram.collector.kafka.producer import Producer
    from joulegram.collector.kafka.stage import ToKafka

    kafka_counters.register(registry)
    producer = Producer(settings.kafka)
    producer.start()
    parts.endings.append(producer.close)
    parts.behind(lag.run(settings.kafka, producer.heard))
    needs.append(Need("kafka", producer.trouble, "look at its brokers, and at kafka.brokers"))
    if follows is not None:
        parts.behind(Follower(settings.kafka, *follows).run())
    if writer is not None:
        reader = FromKafka(
            settings.kafka,
            writer,
            DeadLetters(settings.kafka, producer),
            settings.collector.raw_days,
        )
        reading = parts.run(reader.run())

        async def end() -> None:
            reader.close()
            await asyncio.wait({reading})

        parts.endings.append(end)
    return ToKafka(settings.kafka, producer)


async def _intake(parts: _Parts, settings: Settings, stage: Stage, agents: Address) -> int:
    guard = settings.guard
    intake = Intake(Retry(stage), raw_days=settings.collector.raw_days, peers=guard.peers)
    server = grpc.aio.server(
        options=(*SERVER_OPTIONS, *GRPC_OPTIONS), maximum_concurrent_rpcs=STREAMS_MAX
    )
    add_intake(intake, server)
    port = agents.listen(server, guard.certificates)
    await server.start()

    async def end() -> None:
        intake.drain()
        # From here on it takes no stream, and returns as soon as the last one has ended.
        stopping = asyncio.create_task(server.stop(DRAIN_S + STREAMS_END_S))
        await asyncio.wait({stopping}, timeout=DRAIN_S)
        intake.send_away()
        await stopping

    parts.endings.append(end)
    return port


class _NoFeeds:
    """The grid is asked by another process."""

    def states(self) -> list[Any]:
        return []


class _Web(uvicorn.Server):
    """uvicorn without its signal handlers: ours stop the streams too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
