"""Frames through a real broker into a ledger, within a test's event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.consumer import FromKafka
from joulegram.collector.kafka.letters import DeadLetters, Letter
from joulegram.collector.kafka.producer import Producer, Record
from joulegram.collector.kafka.stage import ToKafka
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.stages import Busy, Stage
from joulegram.collector.writer import Writer
from joulegram.v1.telemetry_pb2 import Frame
from tests.collector.made_frames import NOW_MS, checked


async def eventually(holds: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.05)
    assert holds(), what


@contextlib.asynccontextmanager
async def producing(settings: KafkaConfig) -> AsyncIterator[Producer]:
    producer = Producer(settings)
    producer.start()
    await eventually(lambda: producer.ready, "a producer")
    try:
        yield producer
    finally:
        await producer.close()


async def put(stage: Stage, frames: Sequence[Frame]) -> None:
    """As an agent does: offer again what was refused as busy."""
    async with asyncio.timeout(120):
        while True:
            try:
                assert not await stage.send(checked(*frames))
                return
            except Busy:
                await asyncio.sleep(0.2)


@dataclass
class Writing:
    """A writer of the group with a stage of its own."""

    reader: FromKafka
    task: "asyncio.Task[None]"
    writer: Writer


class Before(Stage, Protocol):
    """A stage of a test that stands before the writer."""

    next: Stage | None


class NeverParks:
    """A dead-letter topic that takes nothing."""

    async def park(self, letters: Sequence[Letter]) -> None:
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def writing(
    settings: KafkaConfig,
    ledger: Ledger,
    *,
    before: Before | None = None,
    forget: bool = False,
    parks: bool = True,
    raw_days: float = 90.0,
) -> AsyncIterator[Writing]:
    """A member of the group that stores into `ledger`; its clock stands at NOW_MS.

    Args:
        forget: it believes that nothing is stored, as one that looked up long ago.
        parks: whether its dead letters ever arrive.
    """
    seen: Any = Blind(ledger) if forget else ledger
    writer = Writer(seen, group_s=0.02, now_ms=lambda: NOW_MS)
    committing = asyncio.create_task(writer.run())
    stage: Stage = writer
    if before is not None:
        before.next, stage = writer, before
    producer = Producer(settings)
    producer.start()
    parking: Any = DeadLetters(settings, producer) if parks else NeverParks()
    reader = FromKafka(settings, stage, parking, raw_days, now_ms=lambda: NOW_MS, hand_over_s=2.0)
    made = Writing(reader, asyncio.create_task(reader.run()), writer)
    try:
        yield made
    finally:
        reader.close()
        await made.task
        await asyncio.sleep(0)
        writer.close()
        await committing
        await producer.close()


@dataclass(frozen=True)
class Blind:
    """A ledger whose headers cannot be seen."""

    ledger: Ledger
    exclusive: bool = False

    def query(self, sql: str, params: Any = None) -> Any:
        found = self.ledger.query(sql, params)
        return found.slice(0, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)


def to_kafka(settings: KafkaConfig, producer: Producer) -> ToKafka:
    return ToKafka(settings, producer)


async def raw_record(
    producer: Producer, settings: KafkaConfig, value: bytes | None, partition: int = 0
) -> None:
    """A record that no intake would make."""
    if value is None:
        with contextlib.closing(KafkaProducer(bootstrap_servers=list(settings.brokers))) as client:
            sent = client.send(settings.topic, key=b"key", partition=partition)
            await asyncio.to_thread(sent.get, 10)
        return
    await producer.put([Record(settings.topic, partition, value)])


def letters(settings: KafkaConfig) -> list[Letter]:
    """All dead letters."""
    consumer = KafkaConsumer(bootstrap_servers=list(settings.brokers), enable_auto_commit=False)
    partition = TopicPartition(settings.dead_letter_topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    end = consumer.end_offsets([partition])[partition]
    found: list[Letter] = []
    while consumer.position(partition) < end:
        for records in consumer.poll(timeout_ms=1000).values():
            found += [Letter.read(one.value, one.headers) for one in records]
    consumer.close()
    return found


def committed(settings: KafkaConfig) -> int:
    """Records that the group has committed, all partitions."""
    consumer = KafkaConsumer(bootstrap_servers=list(settings.brokers), group_id=settings.group)
    found = [
        consumer.committed(TopicPartition(settings.topic, number)) or 0
        for number in range(settings.partitions)
    ]
    consumer.close()
    return sum(found)


def written(settings: KafkaConfig) -> int:
    """Records in the topic, all partitions."""
    consumer = KafkaConsumer(bootstrap_servers=list(settings.brokers))
    partitions = [TopicPartition(settings.topic, n) for n in range(settings.partitions)]
    end = sum(consumer.end_offsets(partitions).values())
    consumer.close()
    return int(end)


@dataclass
class Stored:
    """What the ledger says, as its readers see it."""

    ledger: Ledger
    nodes: Sequence[str] = field(default=())

    def frames(self) -> int:
        return self._one("SELECT count() AS n FROM rows FINAL WHERE row = 0")

    def energy_uj(self) -> int:
        return self._one(
            "SELECT sum(energy_uj) AS n FROM devices FINAL WHERE (node, window, epoch, seq) IN "
            "(SELECT node, window, epoch, seq FROM rows WHERE row = 0)"
        )

    def rows_uj(self) -> int:
        return self._one(
            "SELECT sum(cpu_uj + dram_uj + gpu_uj + other_uj) AS n FROM rows FINAL WHERE row > 0"
        )

    def inserted_headers(self) -> int:
        """Headers as they lie there, those inserted twice included."""
        return self._one("SELECT count() AS n FROM rows WHERE row = 0")

    def _one(self, sql: str) -> int:
        return int(self.ledger.query(sql).to_pylist()[0]["n"])
