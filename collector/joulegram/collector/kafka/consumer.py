"""Records from the topic to the writer: read, insert, park what can never be stored, commit.

An offset is committed once every frame before it is durable, or lies in the dead-letter topic.
So a crash anywhere repeats work and loses none, and what is repeated the ledger knows by its
identity. The client library belongs to one thread; frames are stored from the event loop.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import CommitFailedError, KafkaError
from kafka.structs import OffsetAndMetadata

from joulegram.collector.checked import Checked
from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka import counters
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import RECORD_MOST_BYTES, KafkaConfig
from joulegram.collector.kafka.letters import FRAME, RECORD, DeadLetters, Letter, now_ms
from joulegram.collector.kafka.records import Unpackable, unpack
from joulegram.collector.kafka.topics import check_topics
from joulegram.collector.packed import Unreadable, read_frame
from joulegram.collector.stages import Busy, Stage
from joulegram.collector.validate import Refusal, validate_all
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

POLL_S = 0.2
RETRY_S = (0.1, 0.5, 1.0, 2.0, 5.0)
HAND_OVER_S = 10.0
RECORDS_PER_POLL = 16


@dataclass(eq=False, slots=True)
class _Bite:
    """Records of one partition that are stored together."""

    partition: TopicPartition
    values: Sequence[tuple[int, bytes]]  # offset, value
    size: int
    abandoned: bool = False  # the partition is another's now
    kept: "concurrent.futures.Future[None] | None" = None

    @property
    def next_offset(self) -> int:
        return self.values[-1][0] + 1

    @property
    def done(self) -> bool:
        return self.kept is not None and self.kept.done() and not self.kept.exception()


@dataclass(slots=True)
class FromKafka:
    """A member of the group of writers; `run` until `close`.

    Args:
        stage: returns once frames are in the ledger.
        raw_days: how long rows are kept; an older frame is parked.
        hand_over_s: how long partitions that go to another wait for what was read of them.
    """

    config: KafkaConfig
    stage: Stage
    letters: DeadLetters
    raw_days: float
    now_ms: Callable[[], int] = now_ms
    hand_over_s: float = HAND_OVER_S

    _stop: threading.Event = field(default_factory=threading.Event)
    _bites: dict[TopicPartition, deque[_Bite]] = field(default_factory=dict)
    _in_flight: int = 0  # bytes
    _stored: dict[TopicPartition, OffsetAndMetadata] = field(default_factory=dict)  # uncommitted
    _stored_records: int = 0

    async def run(self) -> None:
        """Read, store and commit until `close`; then commit what was stored, and leave."""
        counters.IN_FLIGHT_LIMIT.set(self.config.fetch_max_bytes)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def work() -> None:
            failure: BaseException | None = None
            try:
                self._work(loop)
            except BaseException as failed:
                failure = failed
            loop.call_soon_threadsafe(settle, failure)

        def settle(failure: BaseException | None) -> None:
            if done.done():
                return
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

        threading.Thread(target=work, name="kafka", daemon=True).start()
        try:
            await done
        finally:
            self._stop.set()

    def close(self) -> None:
        """Read no more. The stage must go on until `run` has returned."""
        self._stop.set()

    # Everything below but _keep and what it calls runs in the thread.

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        attempt = 0
        while not self._stop.is_set():
            try:
                client = self._connect()
            except (KafkaError, OSError, BadSetting) as failed:
                if attempt % 60 == 0:
                    log.warning("no Kafka yet, trying again: %s: %s", type(failed).__name__, failed)
                self._stop.wait(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                attempt += 1
                continue
            attempt = 0
            try:
                self._read(client, loop)
            except KafkaError as failed:
                log.warning("reading from Kafka failed, connecting anew: %r", failed)
                self._stop.wait(1.0)
            except Exception:  # of the client library; a partition must not stop for it
                log.exception("reading from Kafka failed, connecting anew")
                self._stop.wait(1.0)
            finally:
                self._leave(client)

    def _connect(self) -> Any:
        check_topics(self.config)
        session_ms = round(self.config.session_timeout_s * 1000)
        client = KafkaConsumer(
            **connection(self.config),
            metrics_enabled=False,
            group_id=self.config.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=max(200, session_ms // 10),
            max_poll_interval_ms=max(60_000, session_ms),
            max_poll_records=RECORDS_PER_POLL,
            fetch_max_bytes=self.config.fetch_max_bytes,
            receive_message_max_bytes=self.config.fetch_max_bytes + 2 * RECORD_MOST_BYTES,
        )
        client.subscribe([self.config.topic], listener=_Rebalance(self, client))
        return client

    def _read(self, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            self._commit(client)
            assigned = client.assignment()
            if self._in_flight >= self.config.fetch_max_bytes:
                client.pause(*assigned)
            else:
                client.resume(*client.paused())
            busy = bool(self._in_flight)
            polled = client.poll(timeout_ms=round(POLL_S * 1000 / (4 if busy else 1)))
            for partition, records in polled.items():
                values = [(one.offset, one.value or b"") for one in records]
                bite = _Bite(partition, values, sum(len(value) for _, value in values))
                self._in_flight += bite.size
                counters.CONSUMED.inc(len(values))
                self._bites.setdefault(partition, deque()).append(bite)
                bite.kept = asyncio.run_coroutine_threadsafe(self._keep(bite), loop)
            counters.IN_FLIGHT.set(self._in_flight)

    def _commit(self, client: Any, partitions: Iterable[TopicPartition] | None = None) -> None:
        """Commit up to the first record that is not stored yet, in each partition."""
        for partition in list(self._bites if partitions is None else partitions):
            bites = self._bites.get(partition, deque())
            while bites and bites[0].done:
                bite = bites.popleft()
                self._in_flight -= bite.size
                self._stored_records += len(bite.values)
                self._stored[partition] = OffsetAndMetadata(bite.next_offset, "", -1)
        counters.IN_FLIGHT.set(self._in_flight)
        if not self._stored:
            return
        try:
            client.commit(dict(self._stored), timeout_ms=10_000)
        except CommitFailedError:
            log.warning(
                "the group went on without us; what we stored last is read again, and known by "
                "its identity"
            )
        except KafkaError as failed:
            log.warning("commit failed, trying again: %r", failed)
            return
        else:
            counters.COMMITTED.inc(self._stored_records)
        self._stored, self._stored_records = {}, 0

    def hand_over(self, client: Any, partitions: Iterable[TopicPartition]) -> None:
        """Others will read these partitions: finish what was read of them, within a bound."""
        gone = list(partitions)
        if not gone:
            return
        counters.REBALANCES.inc()
        unfinished = [
            bite.kept for partition in gone for bite in self._bites.get(partition, ()) if bite.kept
        ]
        concurrent.futures.wait(unfinished, self.hand_over_s)
        self._commit(client, gone)
        self.abandon(gone)

    def abandon(self, partitions: Iterable[TopicPartition]) -> None:
        """Commit nothing more of these partitions. What is being inserted may still land."""
        for partition in partitions:
            self._stored.pop(partition, None)
            for bite in self._bites.pop(partition, ()):
                bite.abandoned = True
                self._in_flight -= bite.size
        counters.IN_FLIGHT.set(self._in_flight)

    def _leave(self, client: Any) -> None:
        # With the last commits, and a goodbye that lets others go on at once.
        with contextlib.suppress(KafkaError, OSError):
            self.hand_over(client, list(self._bites))
        counters.ASSIGNED.set(0)
        with contextlib.suppress(KafkaError, OSError):
            client.close(autocommit=False, timeout_ms=5_000)

    # In the event loop.

    async def _keep(self, bite: _Bite) -> None:
        """Return once every frame of these records is durable or parked."""
        read: list[tuple[Frame, bytes, int]] = []
        letters: list[Letter] = []
        for offset, value in bite.values:
            try:
                packed = unpack(value)
            except Unpackable as broken:
                letters.append(self._letter(bite, offset, value, "bytes", str(broken), RECORD))
                continue
            for one in packed:
                arrived = read_frame(one)
                if isinstance(arrived, Unreadable):
                    letters.append(self._letter(bite, offset, one, "bytes", arrived.why))
                else:
                    read.append((*arrived, offset))
        frames: list[Checked] = []
        offset_of: dict[Checked, int] = {}
        answers = self._judge([(frame, one) for frame, one, _ in read])
        for (frame, one, offset), answer in zip(read, answers, strict=True):
            if isinstance(answer, Checked):
                frames.append(answer)
                offset_of[answer] = offset
            else:
                letters.append(self._letter(bite, offset, one, *answer, node=frame.node))
        attempt = 0
        while frames:
            try:
                refused = await self.stage.send(frames)
            except Exception as failed:
                if bite.abandoned:
                    return
                if not isinstance(failed, Busy):
                    log.exception("storing %d frames failed; trying again", len(frames))
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                attempt += 1
                continue
            for no in refused:
                offset, one, node = offset_of[no.frame], no.frame.packed, no.frame.frame.node
                letters.append(self._letter(bite, offset, one, no.reason, no.detail, node=node))
            break
        if letters and not bite.abandoned:
            await self.letters.park(letters)

    def _judge(self, frames: Sequence[tuple[Frame, bytes]]) -> list[Checked | Refusal]:
        # Intake judged the sender's clock when the frame was sent. A frame may wait here for
        # days, so of times only what the ledger needs is judged again: not too old, and not
        # in a future that has not come since.
        sent_at_ms = [frame.sent_at_ms for frame, _ in frames]
        for frame, _ in frames:
            frame.sent_at_ms = 0
        try:
            arrived = [(frame, packed, frame.node) for frame, packed in frames]
            return validate_all(arrived, self.now_ms(), self.raw_days)
        finally:
            for (frame, _), at_ms in zip(frames, sent_at_ms, strict=True):
                frame.sent_at_ms = at_ms

    def _letter(
        self,
        bite: _Bite,
        offset: int,
        value: bytes,
        reason: str,
        detail: str,
        what: str = FRAME,
        node: str = "",
    ) -> Letter:
        source = f"{bite.partition.topic}:{bite.partition.partition}:{offset}"
        return Letter(what, value, reason, detail, source, self.now_ms(), node)


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells the reader what its client library does with partitions, from within `poll`."""

    def __init__(self, reader: FromKafka, client: Any) -> None:
        self._reader, self._client = reader, client

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._reader.hand_over(self._client, revoked)
        counters.ASSIGNED.set(0)

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        counters.ASSIGNED.set(len(self._client.assignment()))

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        counters.REBALANCES.inc()
        counters.ASSIGNED.set(0)
        self._reader.abandon(lost)
