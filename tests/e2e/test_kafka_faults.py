"""Intake and writers as shipped, with a real broker between and a ClickHouse server behind.

Writers are killed and paused, the broker is killed, all under load: joules in = joules stored.
"""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.clickhouse import ClickhouseServer
from tests.e2e.kafka_site import SESSION_S, Site, all_stored, frames_of, metric, stream_all
from tests.kafka import Broker, kafka_broker
from tests.servers import Program, wait_until


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that these tests end and start again."""
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, broker: Broker, clickhouse: ClickhouseServer) -> Iterator[Site]:
    with (
        clickhouse.database() as name,
        contextlib.closing(Site(tmp_path, [broker], clickhouse, name)) as made,
    ):
        yield made


def health(program: Program) -> tuple[int, str, list[str]]:
    """HTTP status, what it calls itself, and what it says is missing."""
    url = program.said().partition("metrics ")[2].split()[0]
    answer = httpx.get(f"{url}/api/v1/health", timeout=15.0)
    said = answer.json()
    return answer.status_code, said["status"], [one["what"] for one in said["missing"]]


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
