"""Kill -9 of the collector at any moment: no joule lost that a frame had carried, none twice."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx

from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.rollup import Rollup
from joulegram.v1.telemetry_pb2 import Frame
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceStub
from tests.collector.made_frames import WINDOW_MS, energy_uj, frame
from tests.servers import Program, free_port, joulegram, running, wait_until

KILLS = 8
NODES = ("n1", "n2", "n3")
FRAMES_PER_ROUND = 60
SEED = 20_260_921
# gRPC's own pause after a failed connect would grow beyond the life of a collector here.
RECONNECT = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Agent:
    """Sends what was released and not acknowledged, again after every broken stream."""

    def __init__(self, node: str, frames: Sequence[Frame], address: str) -> None:
        self.node = node
        self.frames = {f.seq: f for f in frames}
        self.released = 0
        self.acknowledged: set[int] = set()
        self._address = address
        self._more = asyncio.Event()

    def release(self, count: int) -> None:
        self.released += count
        self._more.set()

    @property
    def done(self) -> bool:
        return len(self.acknowledged) == len(self.frames)

    async def run(self) -> None:
        while not self.done:
            # A collector killed while it starts answers nobody for a while: come again.
            with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
                async with grpc.aio.insecure_channel(self._address, RECONNECT) as channel:
                    await asyncio.wait_for(channel.channel_ready(), 5)
                    stream = TelemetryServiceStub(channel).Report()
                    writing = asyncio.create_task(self._write(stream))
                    try:
                        await self._read(stream)
                    finally:
                        writing.cancel()
            await asyncio.sleep(0.02)

    async def _write(self, stream: Any) -> None:
        sent = set(self.acknowledged)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                self._more.clear()  # before looking: what is released meanwhile sets it again
                for seq in range(1, self.released + 1):
                    if seq not in sent:
                        sent.add(seq)
                        await stream.write(self.frames[seq])
                if len(sent) == len(self.frames):
                    await stream.done_writing()
                    return
                await self._more.wait()

    async def _read(self, stream: Any) -> None:
        while (ack := await stream.read()) is not grpc.aio.EOF:
            assert not ack.refused, ack.refused
            for r in ack.durable:
                self.acknowledged.update(range(r.first_seq, r.last_seq + 1))


@contextlib.asynccontextmanager
async def sending(agents: Sequence[Agent]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(agent.run()) for agent in agents]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()


async def test_no_joule_is_lost_or_doubled_by_kill_9(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    grpc_port, http_port = free_port(), free_port()
    argv = joulegram(
        *("collector", "--data", tmp_path / "data", "--neso-url", "", "--zone", "GB"),
        *("--listen", f"127.0.0.1:{grpc_port}", "--http", f"127.0.0.1:{http_port}"),
    )
    total = FRAMES_PER_ROUND * (KILLS + 1)
    start_ms = int(time.time() * 1000) // 300_000 * 300_000 - total * WINDOW_MS - 300_000
    sent = {
        node: [
            frame(seq, node=node, start_ms=start_ms, rows=rng.randrange(1, 120), gpu=seq % 3 == 0)
            for seq in range(1, total + 1)
        ]
        for node in NODES
    }
    agents = [Agent(node, sent[node], f"127.0.0.1:{grpc_port}") for node in NODES]
    async with sending(agents) as tasks:
        for number in range(KILLS):
            with running(argv, tmp_path, name=f"collector{number}") as collector:
                await asyncio.to_thread(ready, collector)
                for agent in agents:
                    agent.release(FRAMES_PER_ROUND)
                await asyncio.sleep(rng.uniform(0.0, 1.6))
                collector.stop(signal.SIGKILL)
        with running(argv, tmp_path, name="collector-last") as collector:
            await asyncio.to_thread(ready, collector)
            for agent in agents:
                agent.release(FRAMES_PER_ROUND)
            await asyncio.wait_for(asyncio.gather(*tasks), 100)
            # All of it once more, as after a restore: acknowledged, and nothing counts twice.
            again = [Agent(node, sent[node], f"127.0.0.1:{grpc_port}") for node in NODES]
            for agent in again:
                agent.release(total)
            await asyncio.wait_for(asyncio.gather(*(agent.run() for agent in again)), 100)
            report = await asyncio.to_thread(
                httpx.get,
                f"http://127.0.0.1:{http_port}/api/v1/report",
                params={"since": "1d", "by": "node"},
                timeout=30,
            )
            assert report.status_code == 200, report.text
            assert collector.stop(signal.SIGTERM, timeout_s=5.0) == 0, collector.said()

    joules = {node: energy_uj(sent[node]) for node in NODES}
    answer = report.json()
    assert answer["metered_uj"] == answer["total"]["energy_uj"] == sum(joules.values())
    assert {row["key"]: row["energy_uj"] for row in answer["rows"]} == joules
    rows = {node: sum(len(f.rows.workload) // 4 + 1 for f in sent[node]) for node in NODES}
    assert stored(tmp_path / "data") == (rows, joules, joules, joules)


def ready(collector: Program) -> None:
    """Wait for the line that a person would wait for."""

    def said() -> bool:
        assert collector.process.poll() is None, collector.said()
        return "page http://" in collector.stderr.read_text()

    wait_until(said, "the collector's line")


def stored(data: Path) -> tuple[dict[str, int], ...]:
    ledger = ChdbLedger(data)
    try:
        migrate(ledger)
        return stored_in(ledger)
    finally:
        ledger.close()


def stored_in(ledger: Ledger) -> tuple[dict[str, int], ...]:
    """By node: count of rows as they lie there, uJ of rows, of devices, and of slots."""
    energy = "sum(cpu_uj + dram_uj + gpu_uj + other_uj)"
    Rollup(ledger).refresh(datetime.fromtimestamp(0, UTC), datetime.now(UTC))
    return tuple(
        {row["node"]: row["n"] for row in ledger.query(sql).to_pylist()}
        for sql in (
            "SELECT node, count() AS n FROM rows GROUP BY node",
            f"SELECT node, {energy} AS n FROM rows GROUP BY node",
            "SELECT node, sum(energy_uj) AS n FROM devices FINAL WHERE (node, epoch, seq) IN "
            "(SELECT node, epoch, seq FROM rows WHERE row = 0) GROUP BY node",
            f"SELECT node, {energy} AS n FROM slots WHERE (node, slot, generation) IN "
            "(SELECT node, slot, max(generation) FROM slots GROUP BY node, slot) GROUP BY node",
        )
    )
