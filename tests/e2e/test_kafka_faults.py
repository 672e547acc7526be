"""Intake and writers as shipped, with a real broker between and a ClickHouse server behind.

Writers are killed and paused, the broker is killed, all under load: joules in = joules stored.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.migrate import migrate
from joulegram.v1.telemetry_pb2 import Ack, Frame
from tests.clickhouse import ClickhouseServer
from tests.collector.kafka.passing import Stored
from tests.collector.made_frames import WINDOW_MS, energy_uj, frame
from tests.kafka import Broker, Names, kafka_broker
from tests.servers import Program, free_port, joulegram, running, wait_until

REPORT = "/joulegram.v1.TelemetryService/Report"
SESSION_S = 4


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that these tests end and start again."""
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as made:
        yield made


class Site:
    """An intake and writers over one broker and one database."""

    def __init__(self, folder: Path, broker: Broker, clickhouse: ClickhouseServer, name: str):
        self.folder, self.broker = folder, broker
        self.names: Names = broker.names()
        self.ledger = ClickhouseLedger(clickhouse.config(name))
        migrate(self.ledger)
        self.stored = Stored(self.ledger)
        self.agents = f"127.0.0.1:{free_port()}"
        self.config = folder / "joulegram.toml"
        self.config.write_text(
            clickhouse.toml(name)
            + f"""
[kafka]
brokers = ["{broker.address}"]
topic = "{self.names.topic}"
dead_letter_topic = "{self.names.dead_letters}"
group = "{self.names.group}"
partitions = 6
replication_factor = 1
min_insync_replicas = 1
linger_s = 0.05
delivery_timeout_s = 5.0
session_timeout_s = {SESSION_S}.0
buffer_max_bytes = 1048576
"""
        )
        self._all = contextlib.ExitStack()

    def start(self, role: str, name: str) -> Program:
        argv = joulegram(
            "collector", "--config", self.config, "--role", role, "--listen", self.agents,
            "--http", "127.0.0.1:0", "--neso-url", "",
        )  # fmt: skip
        program = self._all.enter_context(running(argv, self.folder, name=name))
        wait_until(lambda: "metrics http://" in program.said(), name, 60.0)
        return program

    def close(self) -> None:
        self._all.close()
        self.ledger.close()


@pytest.fixture
def site(tmp_path: Path, broker: Broker, clickhouse: ClickhouseServer) -> Iterator[Site]:
    with clickhouse.database() as name:
        made = Site(tmp_path, broker, clickhouse, name)
        try:
            yield made
        finally:
            made.close()


def metric(program: Program, name: str) -> float:
    """The sum of a metric's series."""
    url = program.said().partition("metrics ")[2].split()[0]
    lines = httpx.get(f"{url}/metrics", timeout=10.0).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


def health(program: Program) -> tuple[int, str, list[str]]:
    """HTTP status, what it calls itself, and what it says is missing."""
    url = program.said().partition("metrics ")[2].split()[0]
    answer = httpx.get(f"{url}/api/v1/health", timeout=15.0)
    said = answer.json()
    return answer.status_code, said["status"], [one["what"] for one in said["missing"]]


def frames_of(nodes: int, each: int) -> list[list[Frame]]:
    """One list per node; the last window ended a moment ago."""
    start_ms = (time.time_ns() // 1_000_000 // 300_000 - 1) * 300_000 - each * WINDOW_MS
    return [
        [
            frame(seq, node=f"n{node}", epoch=node + 1, start_ms=start_ms)
            for seq in range(1, each + 1)
        ]
        for node in range(nodes)
    ]


async def stream_all(
    address: str, nodes: Sequence[Sequence[Frame]], pace_s: float, busy: list[str]
) -> None:
    """Agents that offer every frame until it is acknowledged; what they hear goes to `busy`."""

    async def agent(frames: Sequence[Frame]) -> None:
        waiting = {one.seq: one for one in frames}
        while waiting:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await once(waiting)
            await asyncio.sleep(0.2)

    async def once(waiting: dict[int, Frame]) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            call: Any = channel.stream_stream(REPORT, Frame.SerializeToString, Ack.FromString)()

            async def write() -> None:
                for one in list(waiting.values()):
                    one.sent_at_ms = time.time_ns() // 1_000_000
                    await call.write(one)
                    await asyncio.sleep(pace_s)
                await call.done_writing()

            writing = asyncio.create_task(write())
            try:
                while (ack := await call.read()) is not grpc.aio.EOF:
                    assert not ack.refused, ack
                    for span in ack.durable:
                        for seq in range(span.first_seq, span.last_seq + 1):
                            waiting.pop(seq, None)
            except grpc.aio.AioRpcError as refused:
                busy.append(refused.code().name)
                raise
            finally:
                writing.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, Exception):
                    await writing

    await asyncio.gather(*map(agent, nodes))


async def all_stored(site: Site, frames: Sequence[Frame], timeout_s: float = 90.0) -> None:
    async with asyncio.timeout(timeout_s):
        while await asyncio.to_thread(site.stored.frames) < len(frames):
            await asyncio.sleep(0.5)
    assert site.stored.frames() == len(frames)
    assert site.stored.energy_uj() == site.stored.rows_uj() == energy_uj(frames)


async def test_writers_killed_and_paused_and_a_broker_killed(site: Site) -> None:
    nodes = frames_of(12, 60)
    frames = [one for of_node in nodes for one in of_node]
    site.start("intake", "intake")
    first, second = (site.start("writer", f"writer{n}") for n in (1, 2))
    heard: list[str] = []
    sending = asyncio.create_task(stream_all(site.agents, nodes, 0.2, heard))
    await asyncio.sleep(3.0)
    first.process.kill()
    third = await asyncio.to_thread(site.start, "writer", "writer3")
    await asyncio.sleep(2.0)
    # Paused past its session, it comes back as a zombie with what it had read.
    second.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(SESSION_S + 3.0)
    second.process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(site.broker.restart, signal.SIGKILL)
    await asyncio.wait_for(sending, 120.0)
    await all_stored(site, frames)
    assert metric(third, "joulegram_kafka_committed_records_total") > 0
    assert first.process.wait(5.0) == -signal.SIGKILL
    for writer in (second, third):
        assert writer.stop(timeout_s=30.0) == 0, writer.said()
    assert site.stored.frames() == len(frames)


async def test_a_broker_that_stops_is_felt_by_the_agents(site: Site) -> None:
    """Intake says busy, holds no more than its bound, and goes on when the broker is back."""
    nodes = frames_of(6, 40)
    frames = [one for of_node in nodes for one in of_node]
    intake = site.start("intake", "intake")
    site.start("writer", "writer")
    heard: list[str] = []
    sending = asyncio.create_task(stream_all(site.agents, nodes, 0.15, heard))
    await asyncio.sleep(2.0)
    site.broker.pause()
    try:
        async with asyncio.timeout(60.0):
            while not heard:
                await asyncio.sleep(0.2)
        assert set(heard) <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
        limit = metric(intake, "joulegram_kafka_buffer_limit_bytes")
        assert metric(intake, "joulegram_kafka_buffered_bytes") <= limit == 2**20
        assert not sending.done()
    finally:
        site.broker.resume()
    await asyncio.wait_for(sending, 120.0)
    await all_stored(site, frames)
    assert "Traceback" not in intake.said()


READY: tuple[int, str, list[str]] = (200, "ready", [])


async def test_health_tells_when_the_servers_behind_do_not_answer(
    site: Site, clickhouse: ClickhouseServer
) -> None:
    intake, writer = (site.start(role, role) for role in ("intake", "writer"))
    wait_until(lambda: health(intake) == health(writer) == READY, "both to be ready")
    assert clickhouse.program is not None
    clickhouse.program.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(20.0):
            while await asyncio.to_thread(health, writer) != (503, "failed", ["ledger"]):
                await asyncio.sleep(0.5)
        assert health(intake) == READY
    finally:
        clickhouse.program.process.send_signal(signal.SIGCONT)
    site.broker.pause()
    sending = asyncio.create_task(stream_all(site.agents, frames_of(1, 1), 0.0, []))
    try:
        async with asyncio.timeout(20.0):
            while await asyncio.to_thread(health, intake) != (503, "failed", ["kafka"]):
                await asyncio.sleep(0.5)
    finally:
        site.broker.resume()
    await asyncio.wait_for(sending, 60.0)
    async with asyncio.timeout(60.0):
        while [await asyncio.to_thread(health, one) for one in (intake, writer)] != [READY] * 2:
            await asyncio.sleep(0.5)


async def test_who_drains_is_not_ready_and_still_answers(site: Site) -> None:
    intake = site.start("intake", "intake")
    wait_until(lambda: health(intake) == READY, "it to be ready")
    site.broker.pause()  # so that the last acknowledgement takes as long as it may
    sending = asyncio.create_task(stream_all(site.agents, frames_of(1, 1), 0.0, []))
    heard = []
    try:
        await asyncio.sleep(1.0)
        intake.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20.0):
            while intake.process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    heard.append(await asyncio.to_thread(health, intake))
                await asyncio.sleep(0.1)
    finally:
        site.broker.resume()
        sending.cancel()
    assert (503, "draining", []) in heard
    assert intake.process.returncode == 0, intake.said()
