"""Dead letters: frames and records that can never be stored, kept with the reason.

A broker judges a record by its compressed size and clients read it unpacked, so what was read
may be too large to be written again. Then it is parked compressed; and where that does not help,
its beginning, with where all of it lies.
"""

import asyncio
import contextlib
import logging
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from joulegram.collector.kafka import counters
from joulegram.collector.kafka.config import RECORD_MOST_BYTES, KafkaConfig
from joulegram.collector.kafka.producer import RETRY_S, Producer, Record, TooLarge
from joulegram.collector.stages import Busy

log = logging.getLogger(__name__)

FRAME = "frame"  # the value is one frame
RECORD = "record"  # the value is a record, from where it could not be unpacked
CUT = "cut"  # the value is the beginning of what is too large to be parked
DETAIL_MOST = 2_000  # characters
NODE_MOST = 255  # characters; a longer name is no node's
TOO_LARGE = "too_large"
# A letter has headers of at most 10 kB beside it, and must fit the topic with them.
LETTER_MOST_BYTES = RECORD_MOST_BYTES - 16 * 2**10
CUT_BYTES = 4_096
UNPACKED_MOST_BYTES = 64 * 2**20  # of a letter that is parked compressed; of a larger one, CUT


@dataclass(frozen=True, slots=True)
class Letter:
    """What was parked, why, and where it came from."""

    what: str  # FRAME, RECORD or CUT
    value: bytes
    reason: str  # a short code: bytes, sums, shape, node, clock, too_old, conflict, too_large
    detail: str
    source: str  # topic:partition:offset
    parked_at_ms: int
    node: str = ""

    def cut(self) -> "Letter":
        """The letter that is left of one that is too large."""
        topic, partition, offset = self.source.rsplit(":", 2)
        detail = (
            f"{len(self.value)} bytes are too large for the topic of dead letters; here are the "
            f"first {min(CUT_BYTES, len(self.value))}. While kafka.retention_days last, all of it "
            f"is had by kafka-console-consumer --topic {topic} --partition {partition} --offset "
            f"{offset} --max-messages 1. It was refused for {self.reason}: {self.detail}"
        )
        return replace(
            self, what=CUT, value=self.value[:CUT_BYTES], reason=TOO_LARGE, detail=detail
        )

    def headers(self) -> list[tuple[str, bytes]]:
        """As headers of a record."""
        return [
            ("what", self.what.encode()),
            ("reason", self.reason.encode()),
            ("detail", self.detail[:DETAIL_MOST].encode()),
            ("source", self.source.encode()),
            ("parked_at_ms", str(self.parked_at_ms).encode()),
            ("node", self.node[:NODE_MOST].encode()),
        ]

    @classmethod
    def read(cls, value: bytes, headers: Sequence[tuple[str, bytes]]) -> "Letter":
        """The letter of a record; what it does not say is left empty."""
        said = {key: text.decode(errors="replace") for key, text in headers if text is not None}
        at = said.get("parked_at_ms", "")
        if said.get("encoding") == "deflate":
            value = _unpacked(value)
        return cls(
            what=said.get("what", RECORD),
            value=value,
            reason=said.get("reason", ""),
            detail=said.get("detail", ""),
            source=said.get("source", ""),
            # Beyond 13 digits (the year 2286) it is no time that could be shown.
            parked_at_ms=int(at) if at.isdecimal() and len(at) <= 13 else 0,
            node=said.get("node", ""),
        )


def _unpacked(value: bytes) -> bytes:
    """As it was before it was compressed; what no writer of ours compressed, as it is."""
    unpacking = zlib.decompressobj()
    try:
        # Its end may not be seen yet where it fills the bound to the byte.
        unpacked = unpacking.decompress(value, UNPACKED_MOST_BYTES + 1)
        return unpacked if unpacking.eof else value
    except zlib.error:
        return value


def now_ms() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class DeadLetters:
    """Parks letters in their topic."""

    config: KafkaConfig
    producer: Producer
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def park(self, letters: Sequence[Letter]) -> None:
        """Return once the brokers have acknowledged them, however long that takes."""
        parked = await asyncio.gather(*map(self._park, letters))
        for letter in parked:
            counters.PARKED.labels(letter.reason).inc()
        # What is not all there is the gravest, and rare.
        first = next((one for one in parked if one.what == CUT), parked[0])
        log.warning(
            "parked %d dead letters, such as one of %s from %s: %s: %s",
            len(parked),
            first.node[:NODE_MOST] or "an unknown node",
            first.source,
            first.reason,
            first.detail[:DETAIL_MOST],
        )

    async def _park(self, letter: Letter) -> Letter:
        """Park one, or the beginning of one; as it went."""
        if len(letter.value) > LETTER_MOST_BYTES:
            letter, record = await asyncio.to_thread(self._fitted, letter)
        else:
            record = self._record(letter)
        attempt = 0
        alone = False
        while True:
            try:
                async with self._one if alone else contextlib.nullcontext():
                    await self.producer.put([record])
                return letter
            except Busy:
                pass
            except TooLarge:
                # Somebody lowered the topic's max.message.bytes after it was checked. The client
                # says so of all that it had sent meanwhile: who was alone is meant.
                if alone and len(letter.value) > CUT_BYTES:
                    letter = letter.cut()
                    record = self._record(letter)
                alone = True
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1

    def _fitted(self, letter: Letter) -> tuple[Letter, Record]:
        """A large letter compressed, or its beginning. Slow."""
        if len(letter.value) <= UNPACKED_MOST_BYTES:
            packed = zlib.compress(letter.value, 1)
            if len(packed) <= LETTER_MOST_BYTES:
                headers = [*letter.headers(), ("encoding", b"deflate")]
                return letter, Record(self.config.dead_letter_topic, 0, packed, headers)
        letter = letter.cut()
        return letter, self._record(letter)

    def _record(self, letter: Letter) -> Record:
        return Record(self.config.dead_letter_topic, 0, letter.value, letter.headers())
