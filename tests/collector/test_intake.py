"""Frames over real gRPC on loopback into a real ledger."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from joulegram.collector.checked import Checked
from joulegram.collector.intake import Intake, add_intake, seq_ranges
from joulegram.collector.retry import Retry
from joulegram.collector.stages import Busy, Refused, Stage
from joulegram.v1.telemetry_pb2 import Ack, Frame, ReservedDevice
from joulegram.v1.telemetry_pb2_grpc import TelemetryServiceStub
from tests.collector.made_frames import NOW_MS, frame
from tests.servers import PATIENCE_S


class Gate:
    """A stage that holds batches until it is opened, then keeps them."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.offered: list[Frame] = []
        self.kept: list[Frame] = []
        self.busy_times = 0

    async def send(self, frames: Sequence[Checked]) -> Sequence[Refused]:
        self.offered.extend(one.frame for one in frames)
        if self.busy_times:
            self.busy_times -= 1
            raise Busy("no")
        await self.open.wait()
        self.kept.extend(one.frame for one in frames)
        return [Refused(f, "conflict", "stored otherwise") for f in frames if f.frame.seq == 13]


@dataclass(slots=True)
class Served:
    """A collector's gRPC side, and a stub of an agent."""

    intake: Intake
    stub: Any
    channel: grpc.aio.Channel

    def stream(self) -> Any:
        return self.stub.Report()


@contextlib.asynccontextmanager
async def served(stage: Stage, **options: Any) -> AsyncIterator[Served]:
    server = grpc.aio.server()
    intake = Intake(stage, raw_days=90, now_ms=lambda: NOW_MS, **options)
    add_intake(intake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(intake, TelemetryServiceStub(channel), channel)
    await server.stop(0)


async def acks(stream: Any) -> list[Ack]:
    """Everything the collector still says, until it closes the stream."""
    said = []
    while (ack := await stream.read()) is not grpc.aio.EOF:
        said.append(ack)
    return said


def seqs(said: Sequence[Ack]) -> list[int]:
    return [s for a in said for r in a.durable for s in range(r.first_seq, r.last_seq + 1)]


async def until(holds: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.005)


async def test_one_ack_for_all_that_became_durable_together() -> None:
    gate = Gate()
    async with served(gate) as collector:
        stream = collector.stream()
        for seq in range(1, 8):
            await stream.write(frame(seq))
        await stream.done_writing()
        await until(lambda: len(gate.offered) == 7)
        gate.open.set()
        said = await acks(stream)
        assert len(said) == 1
        (one,) = said[0].durable
        assert (one.first_seq, one.last_seq) == (1, 7)
        assert await stream.code() == grpc.StatusCode.OK


async def test_nothing_is_acknowledged_before_it_is_durable() -> None:
    gate = Gate()
    async with served(gate) as collector:
        stream = collector.stream()
        await stream.write(frame(1))
        await until(lambda: gate.offered)
        reading = asyncio.create_task(stream.read())
        done, _ = await asyncio.wait({reading}, timeout=0.1)
        assert not done
        gate.open.set()
        assert seqs([await reading]) == [1]
        stream.cancel()


async def test_bad_frames_are_refused_by_name_and_the_stream_goes_on() -> None:
    gate = Gate()
    gate.open.set()
    async with served(gate) as collector:
        stream = collector.stream()
        unequal = frame(2)
        unequal.devices[0].energy_uj += 1
        skewed = frame(4)
        skewed.sent_at_ms = NOW_MS - 86_400_000
        for one in (frame(1), unequal, frame(3, node="n2"), skewed, frame(13), frame(5)):
            await stream.write(one)
        await stream.done_writing()
        said = await acks(stream)
        assert sorted(seqs(said)) == [1, 5]
        refused = {r.seq: r for ack in said for r in ack.refused}
        assert {seq: r.reason for seq, r in refused.items()} == {
            2: "sums",
            3: "node",
            4: "clock",
            13: "conflict",
        }
        assert "NTP" in refused[4].detail and "n2" in refused[3].detail
        assert sorted(f.seq for f in gate.kept) == [1, 5, 13]


async def test_reading_stops_while_too_much_waits() -> None:
    """Back-pressure: what the ledger did not take stays with the agent."""
    gate = Gate()
    size = frame(1, rows=50).ByteSize()
    async with served(gate, peer_max_bytes=4 * size) as collector:
        stream = collector.stream()

        async def feed() -> None:
            for seq in range(21, 61):
                await stream.write(frame(seq, rows=50))
            await stream.done_writing()

        feeding = asyncio.create_task(feed())
        await until(lambda: len(gate.offered) >= 4)
        await asyncio.sleep(0.1)
        assert len(gate.offered) <= 6
        gate.open.set()
        said = await acks(stream)
        await feeding
        assert sorted(seqs(said)) == list(range(21, 61))


async def test_a_frame_that_cannot_be_read_costs_only_itself() -> None:
    gate = Gate()
    gate.open.set()
    async with served(gate) as collector:
        stream: Any = collector.channel.stream_stream(
            "/joulegram.v1.TelemetryService/Report", response_deserializer=Ack.FromString
        )()
        packed = frame(1).SerializeToString()
        await stream.write(packed.replace(b"n1", b"\xff\xfe", 1))
        await stream.write(b"\xff\xff\xff\xff")
        await stream.write(frame(2).SerializeToString())
        await stream.done_writing()
        said = await acks(stream)
    refused = [r for ack in said for r in ack.refused]
    assert [(r.epoch, r.seq, r.reason) for r in refused] == [
        (frame(1).epoch, 1, "shape"),
        (0, 0, "shape"),
    ]
    assert all("UTF-8" in r.detail for r in refused)
    assert seqs(said) == [2]


async def test_an_agent_that_reads_no_answers_is_not_read_either() -> None:
    bad = frame(1)
    bad.workloads[2].id = "\u2028" * 1_000  # a long answer, so that few fill what gRPC buffers
    bad.workloads[2].reserved_devices.append(ReservedDevice(device=9))
    written = 0
    async with served(Gate(), unsaid_max=20) as collector:
        stream = collector.stream()

        async def feed() -> None:
            nonlocal written
            while True:
                await stream.write(bad)
                written += 1

        feeding = asyncio.create_task(feed())
        before = -1
        async with asyncio.timeout(PATIENCE_S):
            while before != written:
                before = written
                await asyncio.sleep(0.3)
        # Once it reads, nothing of what it wrote stays without an answer.
        answered = 0
        async with asyncio.timeout(PATIENCE_S):
            while answered < before:
                answered += len((await stream.read()).refused)
        feeding.cancel()
        stream.cancel()


async def test_busy_is_tried_again_then_ends_the_stream_as_unavailable() -> None:
    gate = Gate()
    gate.open.set()
    gate.busy_times = 2

    async def no_sleep(_: float) -> None: ...

    async with served(Retry(gate, (0.0, 0.0), no_sleep)) as collector:
        stream = collector.stream()
        await stream.write(frame(1))
        assert seqs([await stream.read()]) == [1]
        gate.busy_times = 3
        await stream.write(frame(2))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await acks(stream)
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        assert [f.seq for f in gate.kept] == [1]


async def test_draining_acknowledges_what_it_read_and_closes_well() -> None:
    gate = Gate()
    async with served(gate) as collector:
        stream = collector.stream()
        await stream.write(frame(1))
        await until(lambda: gate.offered)
        collector.intake.drain()
        gate.open.set()
        assert seqs(await acks(stream)) == [1]
        assert await stream.code() == grpc.StatusCode.OK
        late = collector.stream()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await acks(late)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_ranges_are_few_and_exact() -> None:
    ranges = seq_ranges([(7, 3), (7, 1), (9, 1), (7, 2), (7, 5), (7, 5)])
    assert [(r.epoch, r.first_seq, r.last_seq) for r in ranges] == [(7, 1, 3), (7, 5, 5), (9, 1, 1)]
