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
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from joulegram.collector.checked import Checked
from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka import counters
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import RECORD_MOST_BYTES, KafkaConfig
from joulegram.collector.kafka.letters import FRAME, RECORD, DeadLetters, Letter, now_ms
from joulegram.collector.kafka.reasons import told
from joulegram.collector.kafka.records import Unpackable, unpack
from joulegram.collector.kafka.topics import check_topics
from joulegram.collector.packed import PackedFrame, Unreadable, read_frame
from joulegram.collector.stages import Busy, Stage
from joulegram.collector.validate import Refusal, validate_all

log = logging.getLogger(__name__)

POLL_S = 0.2
RETRY_S = (0.1, 0.5, 1.0, 2.0, 5.0)
HAND_OVER_S = 10.0
COMMIT_MS = 5_000
METADATA_TRIES = 50
FAILED_COMMITS = 3  # in a row; then the library may have lost its way, and is begun anew
RECORDS_PER_POLL = 16
# A partition whose dead letters are not taken for so long is read no further, and what was read of
# it holds up no other.
PARKING_S = 1.0
# So much of that, in fetch_max_bytes; beyond it a writer reads nothing until letters are taken.
STUCK_MOST = 3


@dataclass(eq=False, slots=True)
class _Bite:
    """Records of one partition that are stored together."""

    partition: TopicPartition
    values: Sequence[tuple[int, bytes | None]]  # offset, value
    size: int
    abandoned: bool = False  # the partition is another's now
    parking_s: float | None = None  # since when only its dead letters are waited for, monotonic
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
        hand_over_s: how long `run` waits for what was read before it leaves the group.
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
    _failed_commits: int = 0  # since the last that succeeded

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
                    log.warning("no Kafka yet, trying again: %s", told(failed))
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
            metadata_max_age_ms=30_000,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=max(200, session_ms // 10),
            max_poll_interval_ms=max(60_000, session_ms),
            max_poll_records=RECORDS_PER_POLL,
            fetch_max_bytes=self.config.fetch_max_bytes,
            receive_message_max_bytes=self.config.fetch_max_bytes + 2 * RECORD_MOST_BYTES,
        )
        client.subscribe([self.config.topic])
        # Whoever leads the group shares out the partitions that it knows: of a topic made a moment
        # ago none, and then nobody reads.
        for _ in range(METADATA_TRIES):
            if client.partitions_for_topic(self.config.topic):
                return client
            self._stop.wait(0.1)
        client.close(autocommit=False, timeout_ms=COMMIT_MS)
        raise KafkaError(f"the brokers do not know the partitions of {self.config.topic} yet")

    def _read(self, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            self._commit(client)
            stuck = self._stuck()
            limit = self._limit(stuck)
            counters.IN_FLIGHT_LIMIT.set(limit)
            if self._in_flight >= limit:
                stuck = client.assignment()
            client.resume(*(client.paused() - stuck))
            client.pause(*(client.assignment() & stuck))
            busy = bool(self._in_flight)
            polled = client.poll(timeout_ms=round(POLL_S * 1000 / (4 if busy else 1)))
            # The group moves partitions at any moment, from the library's own thread. Those that
            # stay keep their place, so what was read of them must be stored, not read again.
            assigned = client.assignment()
            self._abandon(self._bites.keys() - assigned)
            counters.ASSIGNED.set(len(assigned))
            for partition, records in polled.items():
                if partition in assigned:
                    self._take(partition, records, loop)
            counters.IN_FLIGHT.set(self._in_flight)

    def _stuck(self) -> set[TopicPartition]:
        """Partitions of which dead letters have been waiting for their topic."""
        since_s = time.monotonic() - PARKING_S
        return {
            partition
            for partition, bites in self._bites.items()
            if any(b.parking_s is not None and b.parking_s < since_s for b in bites if not b.done)
        }

    def _limit(self, stuck: Iterable[TopicPartition]) -> int:
        """How many bytes to read ahead: as ever, and beside it what is held of `stuck`."""
        held = sum(bite.size for one in stuck for bite in self._bites[one])
        most = self.config.fetch_max_bytes
        return most + min(held, STUCK_MOST * most)

    def _take(
        self, partition: TopicPartition, records: Sequence[Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        values = [(one.offset, one.value) for one in records]
        bite = _Bite(partition, values, sum(len(value or b"") for _, value in values))
        self._in_flight += bite.size
        counters.CONSUMED.inc(len(values))
        self._bites.setdefault(partition, deque()).append(bite)
        bite.kept = asyncio.run_coroutine_threadsafe(self._keep(bite), loop)

    def _commit(self, client: Any) -> None:
        """Commit up to the first record that is not stored yet, in each partition.

        That is true whoever owns the partition by now, so a late commit costs others at most
        that they read again. Raises: KafkaError when no commit succeeds any more.
        """
        for partition, bites in self._bites.items():
            while bites and bites[0].done:
                bite = bites.popleft()
                self._in_flight -= bite.size
                self._stored_records += len(bite.values)
                self._stored[partition] = OffsetAndMetadata(bite.next_offset, "", -1)
        counters.IN_FLIGHT.set(self._in_flight)
        if not self._stored:
            return
        try:
            client.commit(dict(self._stored), timeout_ms=COMMIT_MS)
        except KafkaError as failed:
            self._failed_commits += 1
            if self._failed_commits >= FAILED_COMMITS:
                raise
            log.warning("commit failed, trying again: %r", failed)
            return
        counters.COMMITTED.inc(self._stored_records)
        self._stored, self._stored_records, self._failed_commits = {}, 0, 0

    def _abandon(self, partitions: Iterable[TopicPartition]) -> None:
        """Others read these partitions now, from what was committed last.

        What is being inserted of them may still land; the ledger knows frames by identity.
        """
        gone = list(partitions)
        if gone:
            counters.REBALANCES.inc()
        for partition in gone:
            self._stored.pop(partition, None)
            for bite in self._bites.pop(partition, ()):
                bite.abandoned = True
                self._in_flight -= bite.size
        counters.IN_FLIGHT.set(self._in_flight)

    def _leave(self, client: Any) -> None:
        # With the last commits, and a goodbye that lets others go on at once.
        unfinished = [bite.kept for bites in self._bites.values() for bite in bites if bite.kept]
        concurrent.futures.wait(unfinished, self.hand_over_s)
        with contextlib.suppress(KafkaError, OSError):
            self._commit(client)
        self._abandon(self._bites)
        self._stored, self._stored_records, self._failed_commits = {}, 0, 0
        counters.ASSIGNED.set(0)
        with contextlib.suppress(KafkaError, OSError):
            client.close(autocommit=False, timeout_ms=5_000)

    # In the event loop.

    async def _keep(self, bite: _Bite) -> None:
        """Return once every frame of these records is durable or parked."""
        read: list[tuple[PackedFrame, bytes, int]] = []
        letters: list[Letter] = []
        for offset, value in bite.values:
            try:
                packed = unpack(value or b"")
            except Unpackable as broken:
                packed = broken.frames
                why = "a record without a value" if value is None else str(broken)
                letters.append(self._letter(bite, offset, broken.rest, "bytes", why, RECORD))
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
            bite.parking_s = time.monotonic()
            await self.letters.park(letters)

    def _judge(self, frames: Sequence[tuple[PackedFrame, bytes]]) -> list[Checked | Refusal]:
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
