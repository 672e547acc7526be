"""Frames through a real broker: each once in the ledger, whatever ends on the way."""

import asyncio
import random

from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.records import Unpackable, pack, partition_of, unpack
from joulegram.collector.ledger.ledger import Ledger
from joulegram.v1.telemetry_pb2 import Frame, FrameBatch
from tests.collector.kafka.passing import (
    Stored,
    committed,
    eventually,
    letters,
    producing,
    put,
    to_kafka,
    writing,
    written,
)
from tests.collector.made_frames import energy_uj, frame


def made(nodes: int, each: int, **more) -> list[Frame]:
    return [frame(seq, node=f"n{n}", **more) for n in range(nodes) for seq in range(1, each + 1)]


def test_a_record_is_a_frame_batch_of_the_wire() -> None:
    """Any program with the .proto reads the topic; the agent's bytes stand in it as they came."""
    frames = [f.SerializeToString() for f in made(3, 2, rows=60)]
    packed = pack(frames)
    assert unpack(packed) == frames
    assert [f.SerializeToString() for f in FrameBatch.FromString(packed).frames] == frames
    assert unpack(b"") == []
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


async def test_every_joule_once(settings: KafkaConfig, ledger: Ledger) -> None:
    frames = made(12, 25)
    async with producing(settings) as producer, writing(settings, ledger):
        stage = to_kafka(settings, producer)
        batches = [frames[i : i + 5] for i in range(0, len(frames), 5)]
        await asyncio.gather(*(put(stage, batch) for batch in batches))
        # An agent that missed its acknowledgement sends again.
        await asyncio.gather(*(put(stage, batch) for batch in batches[:7]))
        stored = Stored(ledger)
        await eventually(lambda: committed(settings) == written(settings), "all committed")
        assert stored.frames() == len(frames) == stored.inserted_headers()
        assert stored.energy_uj() == stored.rows_uj() == energy_uj(frames)
    assert letters(settings) == []
