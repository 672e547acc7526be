"""Records to the brokers: idempotent, acknowledged by every replica in sync, bounded.

The client library buffers without a bound and, once a record was given up, may refuse all later
ones. So the bound is here, and after a failure the client is made anew.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from joulegram.collector.kafka import counters
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import RECORD_MOST_BYTES, KafkaConfig
from joulegram.collector.kafka.reasons import told
from joulegram.collector.kafka.topics import check_topics
from joulegram.collector.stages import Busy

log = logging.getLogger(__name__)

RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
METADATA_MS = 10_000
LET_GO_S = 5.0
WAITS_S = 5.0  # an acknowledgement takes milliseconds
SILENT_S = 60.0  # lag is asked for four times meanwhile
OVERHEAD_BYTES = 64 * 2**10  # headers of a dead letter, and what a batch adds


class GivenUp(Exception):
    """Nobody knows whether the brokers have the record."""


class TooLarge(Exception):
    """A record that the topic will never take, however often it is offered."""


@dataclass(frozen=True, slots=True)
class Record:
    """What goes to one partition of one topic."""

    topic: str
    partition: int
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()


class Producer:
    """Sends records, or says Busy. Used from one event loop.

    Args:
        prepare: what must hold before the first record goes, after each new connection;
            blocking. The topics are checked by default.
    """

    def __init__(
        self, config: KafkaConfig, prepare: Callable[[KafkaConfig], None] = check_topics
    ) -> None:
        self._config = config
        self._prepare = prepare
        self._client: Any = None
        self._connecting: asyncio.Task[None] | None = None
        self._buffered = 0
        # Sent, not yet acknowledged, oldest first: since when, monotonic s.
        self._pending: dict[asyncio.Future[None], float] = {}
        self._waits_since_s: float | None = None  # the oldest of them; other threads read it
        self._heard_s = time.monotonic()  # when the brokers last answered
        self._closed = False
        self._why = ""  # the last attempt to connect failed
        counters.BUFFER_LIMIT.set(config.buffer_max_bytes)
        counters.CONNECTED.set(0)

    def start(self) -> None:
        """Begin to connect; until that has succeeded `put` says Busy."""
        if self._connecting is None and self._client is None and not self._closed:
            self._connecting = asyncio.create_task(self._connect())

    @property
    def ready(self) -> bool:
        """Whether the brokers were reached and nothing failed since."""
        return self._client is not None

    def heard(self) -> None:
        """Note that the brokers have answered, whomever; from any thread."""
        self._heard_s = time.monotonic()

    def trouble(self) -> str:
        """Why nothing goes to the brokers now, as far as that is known; "" while it does.

        From any thread.
        """
        if self._client is None:
            return f"the brokers do not answer{self._why and ': '}{self._why}"
        since_s, now_s = self._waits_since_s, time.monotonic()
        waits_s = 0.0 if since_s is None else now_s - since_s
        silent_s = now_s - self._heard_s
        if waits_s > WAITS_S:
            return f"a record has not been acknowledged for {waits_s:.0f} s"
        if silent_s > SILENT_S:
            return f"the brokers have not answered for {silent_s:.0f} s"
        return ""

    def has_room(self, size: int) -> bool:
        """Whether that many bytes more are within the bound; into an empty buffer any go."""
        return not self._buffered or self._buffered + size <= self._config.buffer_max_bytes

    async def put(self, records: Sequence[Record]) -> None:
        """Return once every replica in sync has them.

        Raises: Busy, TooLarge: some may be there all the same.

        A record that is offered again after that is there twice; readers tell frames apart by
        their identity.
        """
        size = sum(len(record.value) for record in records)
        if self._client is None or self._closed:
            self.start()
            raise Busy("the Kafka brokers do not answer")
        if not self.has_room(size):
            raise Busy(f"{self._buffered} bytes are on their way to the Kafka brokers")
        self._buffered += size
        counters.BUFFERED.inc(size)
        client = self._client
        try:
            outcomes = await asyncio.gather(
                *(self._put(client, record) for record in records), return_exceptions=True
            )
        finally:
            self._buffered -= size
            counters.BUFFERED.dec(size)
        failed = [one for one in outcomes if isinstance(one, BaseException)]
        counters.PRODUCED.inc(len(records) - len(failed))
        counters.UNDELIVERED.inc(len(failed))
        if failed:
            self._drop(client, failed[0])
            for one in failed:
                if isinstance(one, MessageSizeTooLargeError | RecordListTooLargeError):
                    raise TooLarge(f"{one!r:.300}")
            raise Busy(f"the Kafka brokers did not take {len(failed)} records: {failed[0]!r:.300}")

    async def close(self, timeout_s: float = 5.0) -> None:
        """Wait for what is on its way, then let the connections go."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(_let_go, client, timeout_s)

    async def _put(self, client: Any, record: Record) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(failure: BaseException | None) -> None:
            if done.done():
                return
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

        sent = client.send(
            record.topic,
            record.value,
            partition=record.partition,
            headers=list(record.headers),
        )
        # From the client's own thread.
        sent.add_callback(lambda _: loop.call_soon_threadsafe(settle, None))
        sent.add_errback(lambda failure: loop.call_soon_threadsafe(settle, failure))
        self._pending[done] = time.monotonic()
        self._see_oldest()
        try:
            # The library keeps its own time-out, but not always.
            await asyncio.wait_for(done, 1.5 * self._config.delivery_timeout_s)
            self.heard()
        finally:
            del self._pending[done]
            self._see_oldest()

    def _see_oldest(self) -> None:
        self._waits_since_s = next(iter(self._pending.values()), None)

    def _drop(self, client: Any, failure: BaseException) -> None:
        """Use a client no more that has given a record up."""
        if client is self._client:
            log.warning("Kafka did not take a record, connecting anew: %r", failure)
            self._client = None
            counters.CONNECTED.set(0)
            for one in self._pending:
                if not one.done():
                    one.set_exception(GivenUp("its client was given up"))
            asyncio.get_running_loop().run_in_executor(None, _let_go, client, 0.0)
            self.start()

    async def _connect(self) -> None:
        attempt = 0
        while True:
            try:
                self._client = await asyncio.to_thread(self._made)
                self._why = ""
                counters.CONNECTED.set(1)
                self.heard()
                self._connecting = None
                return
            except Exception as failed:
                self._why = told(failed)
                if attempt in (0, len(RETRY_S)) or attempt % 60 == 0:
                    log.warning("no Kafka yet, trying again: %s", self._why)
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1

    def _made(self) -> Any:
        self._prepare(self._config)
        timeout_ms = round(self._config.delivery_timeout_s * 1000)
        client = KafkaProducer(
            **connection(self._config),
            metrics_enabled=False,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_block_ms=METADATA_MS,
            batch_size=self._config.record_max_bytes,
            max_request_size=RECORD_MOST_BYTES + OVERHEAD_BYTES,
            delivery_timeout_ms=timeout_ms,
            request_timeout_ms=max(1_000, timeout_ms // 2),
            allow_auto_create_topics=False,
        )
        try:
            for topic in (self._config.topic, self._config.dead_letter_topic):
                client.partitions_for(topic)
        except BaseException:
            _let_go(client, 0.0)
            raise
        # It knows them now, and keeps what it knows; should it ever look again, the event loop
        # would wait for it.
        client.config["max_block_ms"] = 200
        return client


def _let_go(client: Any, timeout_s: float) -> None:
    """Close a client, whether or not its brokers take what it still holds."""
    try:
        client.close(timeout=timeout_s)
    except (KafkaError, OSError):
        # It waits for what it holds before it closes; there is no public way to say that all of
        # it has been given up.
        client._sender.force_close()
        with contextlib.suppress(KafkaError, OSError):
            client.close(timeout=LET_GO_S)
