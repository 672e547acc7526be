"""Three brokers, each with a copy of every frame: what the death of one costs, and of two."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clickhouse import ClickhouseServer
from tests.e2e.kafka_site import Site, all_stored, frames_of, metric, stream_all
from tests.kafka import Broker, kafka_brokers


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[list[Broker]]:
    with kafka_brokers(tmp_path / "kafka", 3) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, brokers: list[Broker], clickhouse: ClickhouseServer) -> Iterator[Site]:
    with (
        clickhouse.database() as name,
        contextlib.closing(Site(tmp_path, brokers, clickhouse, name)) as made,
    ):
        yield made


async def test_one_may_die_and_two_are_waited_for(site: Site, brokers: list[Broker]) -> None:
    nodes = frames_of(6, 150)
    frames = [one for of_node in nodes for one in of_node]
    intake = site.start("intake", "intake")
    for writer in ("writer1", "writer2"):
        site.start("writer", writer)
    heard: list[str] = []
    sending = asyncio.create_task(stream_all(site.agents, nodes, 0.2, heard))
    await asyncio.sleep(3.0)
    _, second, third = brokers
    second.stop(signal.SIGKILL)
    before = metric(intake, "joulegram_kafka_produced_records_total")
    await asyncio.sleep(10.0)
    assert not heard  # two copies are enough, and the agents felt nothing
    assert metric(intake, "joulegram_kafka_produced_records_total") > before
    third.stop(signal.SIGKILL)
    async with asyncio.timeout(60.0):
        while not heard:
            await asyncio.sleep(0.2)
    assert set(heard) <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
    assert not sending.done()
    for broker in (second, third):
        broker.launch()
    for broker in (second, third):
        await asyncio.to_thread(broker.answers)
    await asyncio.wait_for(sending, 120.0)
    await all_stored(site, frames)
    assert "Traceback" not in intake.said()
