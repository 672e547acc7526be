"""Frames as they come into the topic, for the page and /metrics of a process that writes none.

Reads along from the end, outside the group of writers, and commits nothing: what it misses while
it is away is in the ledger all the same. That the writers have stored a frame it knows by what
they have committed.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import RECORD_MOST_BYTES, KafkaConfig
from joulegram.collector.kafka.reasons import told
from joulegram.collector.kafka.records import Unpackable, unpack
from joulegram.collector.packed import PackedFrame, Unreadable, read_frame
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

KNOWN_MAX_FRAMES = 100_000  # that are told apart from a repetition
RETRY_S = 2.0
POLL_MS = 500
COMMITTED_EVERY_S = 1.0
WAITING_MAX_FRAMES = 100_000  # whose commit is waited for; of more the oldest are let go
FETCH_MAX_BYTES = 8 * 2**20


@dataclass(slots=True)
class Follower:
    """Shows frames, in a thread of its own; each once, as far as it remembers.

    Args:
        on_frames: called with frames as they come, which are not in the ledger yet.
        on_durable: called once they are, with frames that have a node and a window alone.
    """

    config: KafkaConfig
    on_frames: Sequence[Callable[[Sequence[Frame]], None]]
    on_durable: Callable[[Sequence[Frame]], None] = lambda frames: None

    _stop: threading.Event = field(default_factory=threading.Event)
    _known: "OrderedDict[tuple[str, int, int], None]" = field(default_factory=OrderedDict)
    _next: dict[TopicPartition, int] = field(default_factory=dict)
    # By partition (offset, frames): all that may be uncommitted.
    _waiting: dict[TopicPartition, deque[tuple[int, list[Frame]]]] = field(default_factory=dict)
    _waiting_frames: int = 0

    async def run(self) -> None:
        """Follow until cancelled."""
        thread = threading.Thread(target=self._work, name="follow", daemon=True)
        thread.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._stop.set()

    def _work(self) -> None:
        failing = False
        while not self._stop.is_set():
            try:
                with (
                    contextlib.closing(KafkaAdminClient(**connection(self.config))) as admin,
                    contextlib.closing(self._connected()) as client,
                ):
                    failing = False
                    self._read(client, admin)
            except Exception as failed:
                if not failing:
                    expected = isinstance(failed, KafkaError | OSError | BadSetting)
                    log.warning("live numbers stand still: %s", told(failed), exc_info=not expected)
                failing = True
                self._stop.wait(RETRY_S)

    def _connected(self) -> Any:
        client = KafkaConsumer(
            **connection(self.config),
            enable_auto_commit=False,
            auto_offset_reset="latest",
            allow_auto_create_topics=False,
            metrics_enabled=False,
            fetch_max_bytes=FETCH_MAX_BYTES,
            receive_message_max_bytes=FETCH_MAX_BYTES + 2 * RECORD_MOST_BYTES,
        )
        try:
            numbers = client.partitions_for_topic(self.config.topic)
            if not numbers:
                raise KafkaError(f"the brokers do not know the topic {self.config.topic} yet")
            partitions = [TopicPartition(self.config.topic, number) for number in sorted(numbers)]
            client.assign(partitions)
            # Where it was before the connection broke; else at the end as it is now.
            self._next = client.end_offsets(partitions) | self._next
            for partition in partitions:
                client.seek(partition, self._next[partition])
        except BaseException:
            client.close(autocommit=False)
            raise
        return client

    def _read(self, client: Any, admin: Any) -> None:
        asked_s = time.monotonic()
        while not self._stop.is_set():
            for partition, records in client.poll(timeout_ms=POLL_MS).items():
                frames = [frame for one in records for frame in self._fresh(one.value or b"")]
                if frames:
                    for hook in self.on_frames:
                        hook(frames)
                    self._await(partition, records[-1].offset, frames)
                self._next[partition] = records[-1].offset + 1
            if self._waiting_frames and time.monotonic() >= asked_s + COMMITTED_EVERY_S:
                self._look(admin)
                asked_s = time.monotonic()

    def _await(self, partition: TopicPartition, offset: int, frames: Sequence[Frame]) -> None:
        places = {(frame.node, frame.window_start_ms) for frame in frames}
        short = [Frame(node=node, window_start_ms=start_ms) for node, start_ms in places]
        waiting = self._waiting.setdefault(partition, deque())
        waiting.append((offset, short))
        self._waiting_frames += len(short)
        while self._waiting_frames > WAITING_MAX_FRAMES and len(waiting) > 1:
            self._waiting_frames -= len(waiting.popleft()[1])

    def _look(self, admin: Any) -> None:
        """Tell of what the writers have committed since."""
        group = self.config.group
        try:
            committed = admin.list_group_offsets({group: list(self._waiting)})[group]
        except KafkaError:
            return  # lag, which is asked likewise, says so
        durable: list[Frame] = []
        for partition, said in committed.items():
            waiting = self._waiting.get(partition)
            while waiting and waiting[0][0] < said.offset:
                durable += waiting.popleft()[1]
        self._waiting_frames -= len(durable)
        if durable:
            self.on_durable(durable)

    def _fresh(self, value: bytes) -> list[PackedFrame]:
        """Frames not seen before; what cannot be read the writers park."""
        found = []
        try:
            packed = unpack(value)
        except Unpackable as broken:
            packed = broken.frames
        for one in packed:
            arrived = read_frame(one)
            if isinstance(arrived, Unreadable):
                continue
            frame, _ = arrived
            key = frame.node, frame.epoch, frame.seq
            if key not in self._known:
                found.append(frame)
            self._known[key] = None
            self._known.move_to_end(key)
        while len(self._known) > KNOWN_MAX_FRAMES:
            self._known.popitem(last=False)
        return found
