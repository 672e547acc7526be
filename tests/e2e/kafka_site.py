"""Intake and writers as shipped over real brokers, and agents that stream to them."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx

from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.migrate import migrate
from joulegram.v1.telemetry_pb2 import Ack, Frame
from tests.clickhouse import ClickhouseServer
from tests.collector.kafka.passing import Stored
from tests.collector.made_frames import WINDOW_MS, energy_uj, frame
from tests.kafka import Broker, Names
from tests.servers import Program, free_port, joulegram, running, wait_until

REPORT = "/joulegram.v1.TelemetryService/Report"
SESSION_S = 4
DELIVERY_S = 5


class Site:
    """An intake and writers over these brokers, each with a copy of all, and one database."""

    def __init__(
        self, folder: Path, brokers: Sequence[Broker], clickhouse: ClickhouseServer, name: str
    ) -> None:
        self.folder = folder
        self.broker, *_ = brokers
        self.names: Names = self.broker.names()
        self.ledger = ClickhouseLedger(clickhouse.config(name))
        migrate(self.ledger)
        self.stored = Stored(self.ledger)
        self.agents = f"127.0.0.1:{free_port()}"
        self.config = folder / "joulegram.toml"
        self.config.write_text(
            clickhouse.toml(name)
            + f"""
[kafka]
brokers = {[broker.address for broker in brokers]}
topic = "{self.names.topic}"
dead_letter_topic = "{self.names.dead_letters}"
group = "{self.names.group}"
partitions = 6
replication_factor = {len(brokers)}
min_insync_replicas = {len(brokers) // 2 + 1}
linger_s = 0.05
delivery_timeout_s = {DELIVERY_S}.0
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


def metric(program: Program, name: str) -> float:
    """The sum of a metric's series."""
    url = program.said().partition("metrics ")[2].split()[0]
    lines = httpx.get(f"{url}/metrics", timeout=10.0).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


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
