"""The stage that hands frames to Kafka: `send` returns once the brokers have acknowledged."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from joulegram.collector import counters as intake_counters
from joulegram.collector.checked import Checked
from joulegram.collector.kafka import counters
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.producer import Producer, Record
from joulegram.collector.kafka.records import pack, partition_of
from joulegram.collector.stages import Busy, Refused


@dataclass(slots=True)
class _Waiting:
    """The frames of one `send` that go to one partition, and where their outcome goes."""

    frames: list[bytes]
    size: int
    done: asyncio.Future[None]


class ToKafka:
    """Packs frames of one partition into records and has the brokers acknowledge them.

    Frames wait `linger_s` for others of their partition, from whatever stream.
    """

    def __init__(self, config: KafkaConfig, producer: Producer) -> None:
        self._config = config
        self._producer = producer
        self._waiting: dict[int, list[_Waiting]] = {}
        self._waiting_bytes = 0
        self._puts: set[asyncio.Task[None]] = set()

    async def send(self, frames: Sequence[Checked]) -> Sequence[Refused]:
        """Return once every replica in sync has the frames. Raises Busy."""
        parts: dict[int, _Waiting] = {}
        loop = asyncio.get_running_loop()
        for one in frames:
            partition = partition_of(one.frame.node, self._config.partitions)
            part = parts.get(partition)
            if part is None:
                part = parts[partition] = _Waiting([], 0, loop.create_future())
            part.frames.append(one.packed)
            part.size += len(one.packed)
        size = sum(part.size for part in parts.values())
        if not self._producer.ready or not self._producer.has_room(self._waiting_bytes + size):
            self._producer.start()
            intake_counters.FRAMES.labels("busy").inc(len(frames))
            raise Busy("Kafka takes nothing now")
        if not self._waiting:
            loop.call_later(self._config.linger_s, self._flush)
        for partition, part in parts.items():
            self._waiting.setdefault(partition, []).append(part)
        self._waiting_bytes += size
        outcomes = await asyncio.gather(
            *(part.done for part in parts.values()), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                intake_counters.FRAMES.labels("busy").inc(len(frames))
                raise outcome
        counters.PRODUCED_FRAMES.inc(len(frames))
        intake_counters.FRAMES.labels("queued").inc(len(frames))
        return ()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._waiting_bytes = 0
        for partition, parts in waiting.items():
            for group in self._groups(parts):
                put = asyncio.create_task(self._put(partition, group))
                self._puts.add(put)
                put.add_done_callback(self._puts.discard)

    def _groups(self, parts: Sequence[_Waiting]) -> list[list[_Waiting]]:
        """Parts that share a record: one send's frames stay together."""
        groups: list[list[_Waiting]] = []
        size = 0
        for part in parts:
            if not groups or size + part.size > self._config.record_max_bytes:
                groups.append([])
                size = 0
            groups[-1].append(part)
            size += part.size
        return groups

    async def _put(self, partition: int, group: Sequence[_Waiting]) -> None:
        records = [
            Record(self._config.topic, partition, value)
            for value in self._values([frame for part in group for frame in part.frames])
        ]
        failure: BaseException | None = None
        try:
            await self._producer.put(records)
        except Busy as busy:
            failure = busy
        except BaseException as failed:
            failure = Busy(f"Kafka: {failed!r}")
        for part in group:
            if part.done.done():
                continue
            if failure is None:
                part.done.set_result(None)
            else:
                part.done.set_exception(failure)

    def _values(self, frames: Sequence[bytes]) -> list[bytes]:
        """As few records as hold them; one where they fit, which is the rule."""
        values: list[bytes] = []
        some: list[bytes] = []
        size = 0
        for frame in frames:
            if some and size + len(frame) > self._config.record_max_bytes:
                values.append(pack(some))
                some, size = [], 0
            some.append(frame)
            size += len(frame)
        values.append(pack(some))
        return values
