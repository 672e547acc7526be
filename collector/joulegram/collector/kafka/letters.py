"""Dead letters: frames and records that can never be stored, kept with the reason."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from joulegram.collector.kafka import counters
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.producer import RETRY_S, Producer, Record
from joulegram.collector.stages import Busy

log = logging.getLogger(__name__)

FRAME = "frame"  # the value is one frame
RECORD = "record"  # the value is a whole record that could not be unpacked
DETAIL_MOST = 2_000  # characters


@dataclass(frozen=True, slots=True)
class Letter:
    """What was parked, why, and where it came from."""

    what: str  # FRAME or RECORD
    value: bytes
    reason: str  # a short code: bytes, sums, shape, node, clock, too_old, conflict
    detail: str
    source: str  # topic:partition:offset
    parked_at_ms: int
    node: str = ""

    def headers(self) -> list[tuple[str, bytes]]:
        """As headers of a record."""
        return [
            ("what", self.what.encode()),
            ("reason", self.reason.encode()),
            ("detail", self.detail[:DETAIL_MOST].encode()),
            ("source", self.source.encode()),
            ("parked_at_ms", str(self.parked_at_ms).encode()),
            ("node", self.node.encode()),
        ]

    @classmethod
    def read(cls, value: bytes, headers: Sequence[tuple[str, bytes]]) -> "Letter":
        """The letter of a record; what it does not say is left empty."""
        said = {key: text.decode(errors="replace") for key, text in headers if text is not None}
        at = said.get("parked_at_ms", "")
        return cls(
            what=said.get("what", RECORD),
            value=value,
            reason=said.get("reason", ""),
            detail=said.get("detail", ""),
            source=said.get("source", ""),
            parked_at_ms=int(at) if at.isdigit() else 0,
            node=said.get("node", ""),
        )


def now_ms() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class DeadLetters:
    """Parks letters in their topic."""

    config: KafkaConfig
    producer: Producer

    async def park(self, letters: Sequence[Letter]) -> None:
        """Return once the brokers have acknowledged them, however long that takes."""
        records = [
            Record(self.config.dead_letter_topic, 0, letter.value, letter.headers())
            for letter in letters
        ]
        attempt = 0
        while True:
            try:
                await self.producer.put(records)
                break
            except Busy:
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                attempt += 1
        for letter in letters:
            counters.PARKED.labels(letter.reason).inc()
        first = letters[0]
        log.warning(
            "parked %d dead letters, the first of %s from %s: %s: %s",
            len(letters), first.node or "an unknown node", first.source, first.reason, first.detail,
        )  # fmt: skip
