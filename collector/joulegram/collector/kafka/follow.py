"""Frames as they come into the topic, for the page and /metrics of a process that writes none.

Reads along from the end, outside the group of writers, and commits nothing: what it misses while
it is away is in the ledger all the same.
"""

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import RECORD_MOST_BYTES, KafkaConfig
from joulegram.collector.kafka.records import Unpackable, unpack
from joulegram.collector.packed import PackedFrame, Unreadable, read_frame
from joulegram.v1.telemetry_pb2 import Frame

log = logging.getLogger(__name__)

KNOWN_MAX_FRAMES = 100_000  # that are told apart from a repetition
RETRY_S = 2.0
POLL_MS = 500
FETCH_MAX_BYTES = 8 * 2**20


@dataclass(slots=True)
class Follower:
    """Shows frames to `on_frames`, in a thread of its own; each once, as far as it remembers."""

    config: KafkaConfig
    on_frames: Sequence[Callable[[Sequence[Frame]], None]]

    _stop: threading.Event = field(default_factory=threading.Event)
    _known: "OrderedDict[tuple[str, int, int], None]" = field(default_factory=OrderedDict)
    _next: dict[TopicPartition, int] = field(default_factory=dict)

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
                with contextlib.closing(self._connected()) as client:
                    failing = False
                    self._read(client)
            except Exception as failed:
                if not failing:
                    expected = isinstance(failed, KafkaError | OSError | BadSetting)
                    log.warning("live numbers stand still: %r", failed, exc_info=not expected)
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

    def _read(self, client: Any) -> None:
        while not self._stop.is_set():
            for partition, records in client.poll(timeout_ms=POLL_MS).items():
                frames = [frame for one in records for frame in self._fresh(one.value or b"")]
                if frames:
                    for hook in self.on_frames:
                        hook(frames)
                self._next[partition] = records[-1].offset + 1

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
