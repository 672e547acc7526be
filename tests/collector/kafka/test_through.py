"""Frames through a real broker: each once in the ledger, whatever ends on the way."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from joulegram.collector.checked import Checked
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.records import Unpackable, pack, partition_of, unpack
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.stages import Busy, Refused, Stage
from joulegram.v1.telemetry_pb2 import Frame, FrameBatch
from tests.collector.kafka.passing import (
    Stored,
    committed,
    eventually,
    letters,
    producing,
    put,
    raw_record,
    to_kafka,
    writing,
    written,
)
from tests.collector.made_frames import START_MS, energy_uj, frame

DAY_MS = 86_400_000


def made(nodes: int, each: int, **more) -> list[Frame]:
    return [frame(seq, node=f"n{n}", **more) for n in range(nodes) for seq in range(1, each + 1)]


def test_a_record_is_a_frame_batch_of_the_wire() -> None:
    """Any program with the .proto reads the topic; the agent's bytes stand in it as they came."""
    frames = [f.SerializeToString() for f in made(3, 2, rows=60)]
    packed = pack(frames)
    assert unpack(packed) == frames
    assert [f.SerializeToString() for f in FrameBatch.FromString(packed).frames] == frames
    with pytest.raises(Unpackable) as failed:
        unpack(packed + b"\xffgarbage")
    assert failed.value.frames == frames and failed.value.rest == b"\xffgarbage"
    with pytest.raises(Unpackable):
        unpack(b"")
    rng = random.Random(1)
    for _ in range(300):
        broken = bytearray(packed)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            again = unpack(bytes(broken[: rng.randrange(len(broken))]))
        except Unpackable:
            continue
        assert sum(map(len, again)) < len(packed)


def test_a_node_keeps_its_partition() -> None:
    """Fixed for good: another release or machine must not choose otherwise."""
    names = ("n1", "node-0042", "Köln")
    assert [partition_of(name, 12) for name in names] == [4, 7, 11]
    assert [partition_of(name, 64) for name in names] == [44, 35, 59]


@dataclass
class Gate:
    """A stage before the writer that is shut until a test opens it."""

    opened: asyncio.Event = field(default_factory=asyncio.Event)
    next: Stage | None = None
    offered: int = 0

    async def send(self, frames: Sequence[Checked]) -> Sequence[Refused]:
        self.offered += len(frames)
        await self.opened.wait()
        assert self.next is not None
        return await self.next.send(frames)


@dataclass
class Stubborn:
    """A stage that is busy a few times."""

    times: int
    next: Stage | None = None

    async def send(self, frames: Sequence[Checked]) -> Sequence[Refused]:
        if self.times:
            self.times -= 1
            raise Busy("not now")
        assert self.next is not None
        return await self.next.send(frames)


async def send_all(settings: KafkaConfig, frames: Sequence[Frame], each: int = 5) -> None:
    async with producing(settings) as producer:
        stage = to_kafka(settings, producer)
        batches = [frames[i : i + each] for i in range(0, len(frames), each)]
        await asyncio.gather(*(put(stage, batch) for batch in batches))


def all_committed(settings: KafkaConfig) -> bool:
    return committed(settings) == written(settings)


async def test_every_joule_once(settings: KafkaConfig, ledger: Ledger) -> None:
    frames = made(12, 25)
    await send_all(settings, frames)
    async with writing(settings, ledger):
        # An agent that missed its acknowledgement sends again.
        await send_all(settings, frames[:40], each=7)
        await eventually(lambda: all_committed(settings), "all committed")
    stored = Stored(ledger)
    assert stored.frames() == len(frames) == stored.inserted_headers()
    assert stored.energy_uj() == stored.rows_uj() == energy_uj(frames)
    assert letters(settings) == []


async def test_a_busy_ledger_is_waited_for(settings: KafkaConfig, ledger: Ledger) -> None:
    frames = made(6, 10)
    stubborn = Stubborn(times=5)
    await send_all(settings, frames)
    async with writing(settings, ledger, before=stubborn):
        await eventually(lambda: all_committed(settings), "all committed")
    assert Stored(ledger).frames() == len(frames)


async def test_writers_come_and_go(settings: KafkaConfig, ledger: Ledger) -> None:
    """Partitions move with every writer that joins or leaves, under load."""
    frames = made(16, 40)
    async with writing(settings, ledger):
        sending = asyncio.create_task(send_all(settings, frames, each=4))
        for _ in range(2):
            async with writing(settings, ledger):
                await asyncio.sleep(1.0)
        await sending
        await eventually(lambda: all_committed(settings), "all committed")
    stored = Stored(ledger)
    assert stored.frames() == len(frames)
    assert stored.energy_uj() == stored.rows_uj() == energy_uj(frames)


async def test_a_zombie_that_inserts_late_doubles_nothing(
    settings: KafkaConfig, ledger: Ledger
) -> None:
    """It looked up before it was paused, so it inserts what another has stored meanwhile."""
    frames = made(8, 10)
    await send_all(settings, frames)
    gate = Gate()
    async with writing(settings, ledger, before=gate, forget=True) as zombie:
        await eventually(lambda: gate.offered >= len(frames), "the first writer to read all")
        # The group forgets it: another reads the same records and stores them.
        zombie.reader._stop.set()
        async with writing(settings, ledger):
            await eventually(lambda: all_committed(settings), "the second writer to commit")
            assert Stored(ledger).frames() == len(frames)
            gate.opened.set()
            stored = Stored(ledger)
            await eventually(
                lambda: stored.inserted_headers() == 2 * len(frames), "the late insert to land"
            )
    assert stored.frames() == len(frames)
    assert stored.energy_uj() == stored.rows_uj() == energy_uj(frames)


async def test_poison_is_parked_with_its_reason_and_the_rest_goes_on(
    settings: KafkaConfig, ledger: Ledger
) -> None:
    good = made(1, 6)
    wrong_sum, old, foreign = frame(7), frame(8), frame(9)
    wrong_sum.devices[0].energy_uj += 1
    old.window_start_ms = START_MS - 100 * DAY_MS
    foreign.rows.workload = b"\x63" + foreign.rows.workload[1:]
    changed = frame(1, node="n0", seed=5)
    async with producing(settings) as producer:
        stage = to_kafka(settings, producer)
        await put(stage, good)
        await raw_record(producer, settings, b"\x00 not a record of ours")
        await raw_record(producer, settings, b"")
        # A tombstone, which is no value at all.
        await raw_record(producer, settings, None)
        whole = frame(3, node="n1").SerializeToString()
        await raw_record(producer, settings, pack([whole]) + b"\xffgarbage")
        packed = [one.SerializeToString() for one in (wrong_sum, old, foreign)]
        await raw_record(producer, settings, pack([packed[0], b"\xff\xff", packed[1], packed[2]]))
        async with writing(settings, ledger):
            await eventually(lambda: all_committed(settings), "the poison to be passed")
            await put(stage, [changed, frame(2, node="n1")])
            await eventually(lambda: all_committed(settings), "the conflict to be passed")
    parked = letters(settings)
    assert sorted((one.what, one.reason) for one in parked) == [
        ("frame", "bytes"),
        ("frame", "conflict"),
        ("frame", "shape"),
        ("frame", "sums"),
        ("frame", "too_old"),
        *[("record", "bytes")] * 4,
    ]
    records = {one.value: one.detail for one in parked if one.what == "record"}
    assert records[b"\xffgarbage"].startswith(f"byte {len(pack([whole]))} of")
    empty = sorted(one.detail for one in parked if one.what == "record" and not one.value)
    assert empty == ["a record without a value", "an empty record"]
    by_reason = {one.reason: one for one in parked}
    assert by_reason["sums"].value == packed[0]
    assert by_reason["sums"].node == "n1" and "+1" not in by_reason["sums"].source
    assert by_reason["too_old"].source.startswith(f"{settings.topic}:0:")
    assert Frame.FromString(by_reason["conflict"].value).node == "n0"
    stored = Stored(ledger)
    kept = [*good, frame(2, node="n1"), frame(3, node="n1")]
    assert stored.frames() == len(kept)
    assert stored.energy_uj() == stored.rows_uj() == energy_uj(kept)


async def test_a_letter_is_acknowledged_before_its_offset_is_committed(
    settings: KafkaConfig, ledger: Ledger
) -> None:
    """A writer that ends in between leaves both: the record is read and parked again."""
    async with producing(settings) as producer:
        await raw_record(producer, settings, b"poison")
        async with writing(settings, ledger, parks=False):
            await asyncio.sleep(2.0)
            assert committed(settings) == 0
        async with writing(settings, ledger):
            await eventually(lambda: all_committed(settings), "the letter and its offset")
    assert [one.reason for one in letters(settings)] == ["bytes"]
