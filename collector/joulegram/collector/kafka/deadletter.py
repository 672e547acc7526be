"""`joulegram deadletter`: what could not be stored and why; and once the cause is gone, again.

A letter that is replayed stays in its topic until `dead_letter_days` have passed. Replaying it
twice is harmless: a frame that is stored is known by its identity.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from joulegram.collector.errors import BadSetting, CollectorError
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.letters import CUT, FRAME, LETTER_MOST_BYTES, RECORD, Letter
from joulegram.collector.kafka.producer import Producer, Record, TooLarge
from joulegram.collector.kafka.reasons import told
from joulegram.collector.kafka.records import Unpackable, pack, partition_of, unpack
from joulegram.collector.packed import Unreadable, read_frame
from joulegram.collector.stages import Busy

HELP = "shows the frames that could never be stored, and sends them again"
TABLES = {"kafka": KafkaConfig}
WORDS = {"list": "the dead letters and their reasons", "replay": "send them to the writers again"}

REPLAY_MOST_BYTES = 4 * 2**20  # on their way at once


@dataclass(frozen=True, slots=True)
class Options:
    """Which letters."""

    reason: str = field(default="", metadata={"help": "only those of this reason, such as too_old"})
    node: str = field(default="", metadata={"help": "only frames of this node"})
    offset: str = field(default="", metadata={"help": "only the letter at this offset"})
    json: bool = field(default=False, metadata={"help": "list: one JSON object a line"})

    def __post_init__(self) -> None:
        """Raises: BadSetting."""
        if self.offset and not self.offset.isdigit():
            raise BadSetting(f"--offset {self.offset}: a number, as `deadletter list` shows it.")

    def takes(self, offset: int, letter: Letter) -> bool:
        """Whether a letter is among those that were asked for."""
        return (
            self.reason in ("", letter.reason)
            and self.node in ("", letter.node)
            and self.offset in ("", str(offset))
        )


OPTIONS = Options


class NoKafka(CollectorError):
    """The brokers do not answer, or took no letter."""


def run(kafka: KafkaConfig, options: Options, word: str) -> int:
    """List or replay; the exit status. Raises: BadSetting, NoKafka."""
    if not kafka.on:
        raise BadSetting(
            "deadletter: no Kafka is configured; name its brokers in [kafka], or with "
            "--kafka-broker HOST:PORT."
        )
    try:
        letters = (one for one in read_letters(kafka) if options.takes(*one))
        if word == "list":
            _list(letters, options)
            return 0
        return asyncio.run(_replay(kafka, letters))
    except BrokenPipeError:
        raise  # who reads what we list has seen enough: `| head`
    except (KafkaError, OSError) as failed:
        raise NoKafka(
            f"Kafka at {', '.join(kafka.brokers)} did not answer: {told(failed)}"
        ) from failed


def read_letters(config: KafkaConfig) -> Iterator[tuple[int, Letter]]:
    """(offset, letter), oldest first, up to the end as it is now. Raises: KafkaError."""
    client = KafkaConsumer(
        **connection(config),
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        metrics_enabled=False,
    )
    try:
        found = client.partitions_for_topic(config.dead_letter_topic)
        if not found:
            return
        partitions = [TopicPartition(config.dead_letter_topic, number) for number in sorted(found)]
        ends = client.end_offsets(partitions)
        client.assign(partitions)
        client.seek_to_beginning(*partitions)
        while any(client.position(one) < ends[one] for one in partitions):
            for partition, records in client.poll(timeout_ms=1_000).items():
                for one in records:
                    if one.offset < ends[partition]:
                        yield one.offset, Letter.read(one.value or b"", one.headers)
    finally:
        client.close(autocommit=False)


def _list(letters: Iterator[tuple[int, Letter]], options: Options) -> None:
    reasons: Counter[str] = Counter()
    for offset, letter in letters:
        reasons[letter.reason] += 1
        parked_at = datetime.fromtimestamp(letter.parked_at_ms / 1000, UTC)
        said: dict[str, Any] = {
            "offset": offset,
            "reason": letter.reason,
            "node": letter.node,
            "parked_at": parked_at.isoformat(timespec="seconds"),
            "what": letter.what,
            "bytes": len(letter.value),
            "source": letter.source,
            "detail": letter.detail,
        }
        if options.json:
            sys.stdout.write(json.dumps(said) + "\n")
        else:
            what = RECORD if letter.what == CUT else letter.what
            who = letter.node or f"unreadable {what}"
            sys.stdout.write(
                f"{offset:>8}  {said['parked_at']}  {letter.reason:<9} {who}  "
                f"({said['bytes']} bytes, {letter.source})\n          {letter.detail}\n"
            )
    if not options.json:
        counted = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        sys.stdout.write(f"{sum(reasons.values())} dead letters{': ' * bool(counted)}{counted}\n")


async def _replay(config: KafkaConfig, letters: Iterator[tuple[int, Letter]]) -> int:
    producer = Producer(config)
    producer.start()
    sent = skipped = size = 0
    batch: list[Record] = []
    try:
        for offset, letter in letters:
            frames, why = _frames(letter)
            if why:
                skipped += 1
                sys.stderr.write(f"offset {offset}: {why}\n")
            for node, frame in frames:
                record = Record(config.topic, partition_of(node, config.partitions), pack([frame]))
                if batch and size + len(frame) > REPLAY_MOST_BYTES:
                    await _put(producer, batch)
                    batch, size = [], 0
                batch.append(record)
                size += len(frame)
                sent += 1
        if batch:
            await _put(producer, batch)
    finally:
        await producer.close()
    sys.stdout.write(f"{sent} frames sent to {config.topic} again, {skipped} left\n")
    return 0 if not skipped else 1


def _frames(letter: Letter) -> tuple[list[tuple[str, bytes]], str]:
    """The frames of a letter, (node, bytes) of each, and why some of it is left, or ""."""
    if letter.what == CUT:
        return [], "only its beginning is here, which is no frame; left where it is"
    packed: Sequence[bytes] = [letter.value]
    why = ""
    if letter.what != FRAME:
        try:
            packed = unpack(letter.value)
        except Unpackable as broken:
            packed = broken.frames
            why = f"{'its end ' * bool(packed)}cannot be read as a frame; left where it is"
    frames = []
    for one in packed:
        read = read_frame(one)
        if isinstance(read, Unreadable):
            why = "cannot be read as a frame; left where it is"
        elif len(one) > LETTER_MOST_BYTES:
            why = f"a frame of {len(one)} bytes is more than its topic takes; left where it is"
        else:
            frames.append((read[0].node, one))
    return frames, why


async def _put(producer: Producer, records: list[Record]) -> None:
    for _ in range(50):
        try:
            return await producer.put(records)
        except (Busy, TooLarge):
            await asyncio.sleep(0.2)
    raise NoKafka("the brokers took no letter within 10 s; nothing is lost, replay again later")
