"""`joulegram rewind`: after the ledger was restored, writers read again what Kafka still holds.

Goes back by when an intake wrote a record. Going too far back costs time and nothing else: a
frame that the ledger has is known by its identity. Older frames the agents still have:
`joulegram resend`.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import CoordinatorNotAvailableError, KafkaError
from kafka.structs import OffsetAndMetadata

from joulegram.collector.errors import BadSetting, CollectorError
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.reasons import told
from joulegram.collector.web.questions import BadTime, parse_time

HELP = "has writers read the topic again from a time on, after the ledger was restored"
TABLES = {"kafka": KafkaConfig}
COORDINATOR_S = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Options:
    """How far back."""

    since: str = field(
        default="",
        metadata={
            "help": "when the backup began, such as 6h or 2026-11-01T12:00Z; take it earlier"
        },
    )


OPTIONS = Options


class NotRewound(CollectorError):
    """The brokers do not answer or have no such topic, or writers still run."""


def run(kafka: KafkaConfig, options: Options) -> int:
    """Rewind, and say by how much. Returns 0. Raises: BadSetting, NotRewound."""
    if not kafka.on:
        raise BadSetting(
            "rewind: no Kafka is configured; name its brokers in [kafka], or with --kafka-broker "
            "HOST:PORT."
        )
    try:
        since = parse_time(options.since, datetime.now(UTC))
    except BadTime as bad:
        raise BadSetting(f"--since: {bad}") from bad
    try:
        records = rewind(kafka, round(since.timestamp() * 1000))
    except (KafkaError, OSError) as failed:
        raise NotRewound(
            f"Kafka at {', '.join(kafka.brokers)} did not do it: {told(failed)}"
        ) from failed
    sys.stdout.write(
        f"{records} records since {since:%Y-%m-%dT%H:%M:%SZ} are read again by the writers of "
        f"{kafka.group} once they start.\n"
    )
    return 0


def rewind(config: KafkaConfig, since_ms: int) -> int:
    """Set the group to the first records written since then; it never goes forward.

    Returns: how many records will be read again or for the first time.
    Raises: NotRewound while a writer runs; KafkaError.
    """
    client = KafkaConsumer(
        **connection(config),
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        metrics_enabled=False,
    )
    admin = KafkaAdminClient(**connection(config))
    try:
        partitions = [
            TopicPartition(config.topic, number)
            for number in sorted(client.partitions_for_topic(config.topic) or ())
        ]
        if not partitions:
            raise NotRewound(
                f"there is no topic {config.topic} at {', '.join(config.brokers)}: give the "
                "writers' own file with --config, or correct kafka.topic."
            )
        first, last = client.beginning_offsets(partitions), client.end_offsets(partitions)
        found = client.offsets_for_times(dict.fromkeys(partitions, since_ms))
        said = _committed(admin, config.group, partitions)
        targets: dict[TopicPartition, int] = {}
        for one in partitions:
            begin = last[one] if found[one] is None else found[one].offset
            # What nobody has read yet stays to be read. -1: nothing was committed.
            if one in said and said[one].offset >= 0:
                targets[one] = min(begin, said[one].offset)
        _set(admin, config, targets)
        # Where nothing was committed, writers begin with the oldest record.
        return sum(last[one] - targets.get(one, first[one]) for one in partitions)
    finally:
        admin.close()
        client.close(autocommit=False)


def _committed(
    admin: KafkaAdminClient, group: str, partitions: Sequence[TopicPartition]
) -> Mapping[TopicPartition, OffsetAndMetadata]:
    """What a group has read; asked again while the brokers have nobody yet who keeps groups."""
    for delay_s in COORDINATOR_S:
        try:
            return admin.list_group_offsets({group: partitions})[group]  # type: ignore[no-any-return]
        except CoordinatorNotAvailableError:
            time.sleep(delay_s)
    return admin.list_group_offsets({group: partitions})[group]  # type: ignore[no-any-return]


def _set(
    admin: KafkaAdminClient, config: KafkaConfig, targets: Mapping[TopicPartition, int]
) -> None:
    if not targets:
        return
    offsets = {one: OffsetAndMetadata(at, "", -1) for one, at in targets.items()}
    outcome = admin.alter_group_offsets(config.group, offsets)
    failed = {error.__name__ for error in outcome.values() if error.errno}
    if failed:
        raise NotRewound(
            f"the group {config.group} was not rewound ({', '.join(sorted(failed))}): a writer of "
            "it still runs, or was killed a moment ago. Stop every writer, wait for "
            f"session_timeout_s = {config.session_timeout_s:g} s, and try again."
        )
