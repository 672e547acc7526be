"""Streams that break, age, find no room or meet odd failures: what holds is durable, once."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest

from joulegram.agent.uplink.comeback import after_error
from joulegram.collector import counters
from joulegram.collector.checked import Checked
from joulegram.collector.intake import MESSAGE_MAX_BYTES
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.retry import Retry
from joulegram.collector.stages import Busy, Refused, Stage
from joulegram.collector.writer import Writer
from joulegram.v1.telemetry_pb2 import Ack, Frame
from tests.collector.ledgers import ledger
from tests.collector.made_frames import energy_uj, frame, identities
from tests.collector.test_intake import Gate, acks, seqs, served, until
from tests.servers import PATIENCE_S

__all__ = ["ledger"]


def in_flight() -> float:
    """Bytes; collectors of other tests may have ended in the midst of something."""
    (metric,) = counters.IN_FLIGHT.collect()
    return metric.samples[0].value


async def test_a_stream_that_is_old_ends_when_all_is_acknowledged_and_agents_come_at_once() -> None:
    gate = Gate()
    async with served(gate, age_s=0.4) as collector:
        stream = collector.stream()
        await stream.write(frame(1))
        await until(lambda: gate.offered)
        await asyncio.sleep(0.5)
        gate.open.set()
        assert seqs([await stream.read()]) == [1]
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await acks(stream)
        comeback = after_error(ended.value.code(), ended.value.details() or "", (), 30.0, 30.0)
        assert (comeback.reason, comeback.normal) == ("aged", True)
        assert comeback.most_s <= 1.0


async def test_an_agent_that_ends_its_stream_is_not_told_of_its_age() -> None:
    gate = Gate()
    async with served(gate, age_s=0.4) as collector:
        stream = collector.stream()
        await stream.write(frame(1))
        await stream.done_writing()
        await until(lambda: gate.offered)
        await asyncio.sleep(0.5)
        gate.open.set()
        assert seqs(await acks(stream)) == [1]
        assert await stream.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("budget", ["peer_max_bytes", "total_max_bytes"])
async def test_who_finds_no_room_is_sent_away_for_a_while_and_loses_nothing(budget: str) -> None:
    before = in_flight()
    gate = Gate()
    async with served(gate, **{budget: 1}, patience_s=0.05, retry_after_s=7.0) as collector:
        stream = collector.stream()
        await stream.write(frame(1))
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await stream.write(frame(2))  # it may have ended already
        assert await stream.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(await stream.trailing_metadata())["retry-after-ms"] == "7000"
        gate.open.set()
        await until(lambda: gate.kept)
        again = collector.stream()
        for seq in (1, 2):
            await again.write(frame(seq))
        await again.done_writing()
        assert sorted(seqs(await acks(again))) == [1, 2]
        assert {f.seq for f in gate.kept} == {1, 2}
        await until(lambda: in_flight() == before)


@pytest.mark.parametrize("nodes", [1, 30])
async def test_streams_that_were_idle_pass_no_bound_by_much(nodes: int) -> None:
    """Each has a read under way that nothing stops; beyond the bounds its frame is not kept."""
    before = in_flight()
    gate = Gate()
    large = [frame(seq, node=f"n{seq % nodes}", rows=40_000) for seq in range(21, 51)]
    size = large[0].ByteSize()
    bound = 2**20 + MESSAGE_MAX_BYTES if nodes == 1 else 16 * size
    options = {"peer_max_bytes": 2**20, "total_max_bytes": bound // 2 if nodes > 1 else 2**30}
    async with served(gate, **options, retry_after_s=7.0) as collector:
        streams = [collector.stream() for _ in large]
        await asyncio.gather(*(stream.wait_for_connection() for stream in streams))
        await asyncio.sleep(0.2)
        for stream, one in zip(streams, large, strict=True):
            await stream.write(one)
        codes = await asyncio.gather(*map(ended, streams))
        assert set(codes) == {None, grpc.StatusCode.RESOURCE_EXHAUSTED}
        sent_away = {stream for stream, code in zip(streams, codes, strict=True) if code}
        assert bound - 2 * size < in_flight() - before <= bound
        assert len(sent_away) >= len(large) - bound // size - 1
        for stream in sent_away:
            assert dict(await stream.trailing_metadata())["retry-after-ms"] == "7000"
        gate.open.set()
        for stream in streams:
            if stream not in sent_away:
                await stream.done_writing()
                assert len(seqs(await acks(stream))) == 1
        await until(lambda: in_flight() == before)
    assert len(gate.kept) == len(large) - len(sent_away)


async def ended(stream: Any) -> grpc.StatusCode | None:
    """How a stream ended; None: it goes on."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            code: grpc.StatusCode = await asyncio.shield(asyncio.ensure_future(stream.code()))
            return code
    return None


async def test_streams_of_a_node_share_its_budget_and_others_have_theirs() -> None:
    gate = Gate()
    size = frame(1, rows=50).ByteSize()
    async with served(gate, peer_max_bytes=2 * size) as collector:
        streams = [collector.stream() for _ in range(4)]
        for seq in range(21, 33):
            await streams[seq % 4].write(frame(seq, rows=50))
        await until(lambda: len(gate.offered) >= 2)
        await asyncio.sleep(0.2)
        # Each stream had a read under way before the budget was used up.
        assert len(gate.offered) <= 2 + len(streams)
        other = collector.stream()
        await other.write(frame(1, node="n2", rows=50))
        await until(lambda: any(f.node == "n2" for f in gate.offered))
        gate.open.set()
        for stream in streams:
            await stream.done_writing()
        said = [await acks(stream) for stream in streams]
        assert sorted(seq for one in said for seq in seqs(one)) == [*range(21, 33)]


async def test_a_drain_that_waits_in_vain_tells_each_agent_when_to_come_back() -> None:
    gate = Gate()
    async with served(gate) as collector:
        streams = [collector.stream() for _ in range(20)]
        for number, stream in enumerate(streams):
            await stream.write(frame(1, node=f"n{number}"))
        await until(lambda: len(gate.offered) == len(streams))
        collector.intake.drain()
        await asyncio.sleep(0.1)
        assert not any(stream.done() for stream in streams)
        collector.intake.send_away()
        after_ms = []
        for stream in streams:
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE
            after_ms.append(int(dict(await stream.trailing_metadata())["retry-after-ms"]))
        assert 0 <= min(after_ms) < 15_000 < max(after_ms) <= 30_000
        gate.open.set()


class Odd:
    """A stage that answers once as no stage should."""

    def __init__(self, next_stage: Stage, odd: Callable[[], Any]) -> None:
        self.next, self.odd = next_stage, odd
        self.times = 1

    async def send(self, frames: Sequence[Checked]) -> Sequence[Refused]:
        if self.times:
            self.times -= 1
            return self.odd()  # type: ignore[no-any-return]
        return await self.next.send(frames)


def cancelled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("odd", [cancelled, lambda: None, lambda: 1 / 0, lambda: [object()]])
async def test_an_odd_stage_leaves_no_agent_waiting(odd: Callable[[], Any]) -> None:
    before = in_flight()
    gate = Gate()
    gate.open.set()
    async with served(Odd(gate, odd)) as collector, asyncio.timeout(PATIENCE_S):
        stream = collector.stream()
        await stream.write(frame(1))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await acks(stream)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "retry-after-ms" in dict(ended.value.trailing_metadata() or ())
        again = collector.stream()
        await again.write(frame(1))
        assert seqs([await again.read()]) == [1]
        again.cancel()
        await until(lambda: in_flight() == before)


async def test_frames_of_streams_that_break_give_back_their_room() -> None:
    before = in_flight()
    gate = Gate()
    async with served(gate, total_max_bytes=20_000) as collector:
        for seq in range(1, 6):
            stream = collector.stream()
            await stream.write(frame(seq))
            await until(lambda seq=seq: len(gate.offered) == seq)
            stream.cancel()
        assert in_flight() > before
        await until(lambda: not collector.intake._open)
        gate.open.set()
        await until(lambda: in_flight() == before)
        assert collector.intake._in_flight_bytes == 0
        await until(lambda: not collector.intake._sends)
        assert sorted(f.seq for f in gate.kept) == [1, 2, 3, 4, 5]


class Moody:
    """Fails at random, before or after the next stage kept what it was given."""

    def __init__(self, next_stage: Stage, rng: random.Random) -> None:
        self.next, self.rng = next_stage, rng
        self.calm = False

    async def send(self, frames: Sequence[Checked]) -> Sequence[Refused]:
        mood = 1.0 if self.calm else self.rng.random()
        if mood < 0.1:
            raise self.rng.choice((Busy("no"), RuntimeError("odd"), asyncio.CancelledError()))
        if mood < 0.15:
            return None  # type: ignore[return-value]
        kept = await self.next.send(frames)
        if mood < 0.3:
            raise self.rng.choice((Busy("no"), TimeoutError("no answer")))
        return kept


class Agent:
    """Offers packed frames until each has its answer; breaks its streams at random."""

    def __init__(self, frames: dict[int, bytes], rng: random.Random) -> None:
        self.left = dict(frames)
        self.refused: dict[int, str] = {}
        self.ends: set[grpc.StatusCode] = set()
        self.rng = rng

    async def run(self, channel: Callable[[], grpc.aio.Channel]) -> None:
        while self.left:
            try:
                await self._stream(channel())
            except (grpc.RpcError, asyncio.CancelledError, asyncio.InvalidStateError) as failed:
                if isinstance(failed, grpc.aio.AioRpcError):
                    self.ends.add(failed.code())
                await asyncio.sleep(0.01)

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        stream: Any = channel.stream_stream(
            "/joulegram.v1.TelemetryService/Report", response_deserializer=Ack.FromString
        )()
        try:
            waiting: set[int] = set()
            for seq, packed in list(self.left.items())[: self.rng.randrange(1, 9)]:
                await stream.write(packed)
                waiting.add(seq)
            fate = self.rng.random()
            if fate < 0.2:
                return
            if fate < 0.6:
                await stream.done_writing()
            while waiting:
                ack = await stream.read()
                if ack is grpc.aio.EOF:
                    await stream.code()
                    return
                for one in ack.refused:
                    self.refused[one.seq] = one.reason
                for seq in [*seqs([ack]), *(one.seq for one in ack.refused)]:
                    self.left.pop(seq, None)
                    waiting.discard(seq)
        finally:
            stream.cancel()


def spoilt(one: Frame, how: int) -> bytes:
    if how == 0:
        one.devices[0].energy_uj += 1
    packed = one.SerializeToString()
    return packed.replace(b"web.service", b"\xff\xfe\xfd.service") if how == 1 else packed


@pytest.mark.parametrize("seed", [1, 2])
async def test_through_all_of_it_each_sound_frame_is_durable_once(
    ledger: Ledger, seed: int
) -> None:
    before = in_flight()
    rng = random.Random(seed)
    heard: list[Frame] = []
    writer = Writer(ledger, group_s=0.01, on_durable=[heard.extend])
    writing = asyncio.create_task(writer.run())
    moody = Moody(writer, rng)
    sound: list[Frame] = []
    broken: dict[str, dict[int, str]] = {}
    agents = {}
    for node in (f"n{i}" for i in range(6)):
        made = {}
        broken[node] = {}
        for seq in range(1, 31):
            one, how = frame(seq, node=node, gpu=seq % 5 == 0), rng.randrange(10)
            made[seq] = spoilt(one, how)
            if how < 2:
                broken[node][seq] = ("sums", "shape")[how]
            else:
                sound.append(one)
        agents[node] = Agent(made, rng)
    size = max(one.ByteSize() for one in sound)
    options: dict[str, Any] = {
        "peer_max_bytes": 3 * size,
        "total_max_bytes": 8 * size,
        "patience_s": 0.02,
        "age_s": 0.1,
        "linger_s": 0.002,
    }

    async def no_sleep(_: float) -> None: ...

    stage = Retry(moody, (0.0,), no_sleep)
    async with asyncio.timeout(240), served(stage, **options) as old:
        now = [old]
        running = [asyncio.create_task(a.run(lambda: now[0].channel)) for a in agents.values()]
        await until(lambda: len(heard) > len(sound) // 3)
        async with served(stage, **options) as new:
            old.intake.drain()
            now[0] = new
            await until(lambda: not old.intake._open)
            await until(lambda: len(heard) > len(sound) * 2 // 3)
            moody.calm = True
            await asyncio.gather(*running)
            await until(lambda: in_flight() == before)
    writer.close()
    await writing
    assert {node: agent.refused for node, agent in agents.items()} == broken
    assert identities(heard) == identities(sound)
    headers = ledger.query("SELECT node, epoch, seq FROM rows WHERE row = 0").to_pylist()
    assert sorted(tuple(h.values()) for h in headers) == identities(sound)
    (rows,) = ledger.query(
        "SELECT sum(cpu_uj + dram_uj + gpu_uj + other_uj) AS uj FROM rows"
    ).to_pylist()
    assert rows["uj"] == energy_uj(sound)
