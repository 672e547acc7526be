"""How far the writers are behind the topic, and how long until retention deletes what they need.

Asked of the brokers, so that any process can say it, an intake too while no writer runs.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka import counters
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.letters import now_ms
from joulegram.collector.kafka.reasons import told

log = logging.getLogger(__name__)

EVERY_S = 15.0
# The age of the oldest record that nobody has committed is found between two of these.
AGES_S = (5, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 3 * 3_600, 8 * 3_600, 86_400)


@dataclass(frozen=True, slots=True)
class Lag:
    """Of all partitions together."""

    records: int
    oldest_s: float  # at most; 0: nothing waits
    to_loss_s: float  # at least
    lost: int  # records that were deleted unread


def measure(
    config: KafkaConfig,
    now: Callable[[], int] = now_ms,
    on_answer: Callable[[], None] = lambda: None,
) -> Lag:
    """Ask the brokers. Blocking. Raises: KafkaError.

    Args:
        on_answer: called once those of the topic have answered, whatever the group's say.
    """
    client = KafkaConsumer(**connection(config), enable_auto_commit=False, metrics_enabled=False)
    try:
        partitions = [
            TopicPartition(config.topic, number)
            for number in sorted(client.partitions_for_topic(config.topic) or ())
        ]
        first, last = client.beginning_offsets(partitions), client.end_offsets(partitions)
        on_answer()
        committed = _committed(config, partitions)
        waiting: list[TopicPartition] = []
        records = lost = 0
        for one in partitions:
            # A group that has committed nothing begins with what is there.
            at = committed.get(one, first[one])
            lost += max(0, first[one] - at)
            committed[one] = max(at, first[one])
            records += last[one] - committed[one]
            if committed[one] < last[one]:
                waiting.append(one)
        retention_s = config.retention_days * 86_400
        oldest_s = _oldest_s(client, waiting, committed, retention_s, now())
        return Lag(records, oldest_s, max(0.0, retention_s - oldest_s), lost)
    finally:
        client.close(autocommit=False)


def _committed(
    config: KafkaConfig, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    admin = KafkaAdminClient(**connection(config))
    try:
        found = admin.list_group_offsets({config.group: list(partitions)})[config.group]
        return {one: said.offset for one, said in found.items() if said.offset >= 0}
    finally:
        admin.close()


def _oldest_s(
    client: Any,
    waiting: Sequence[TopicPartition],
    committed: dict[TopicPartition, int],
    retention_s: float,
    at_ms: int,
) -> float:
    """The least of AGES_S (or retention) that no waiting record is older than."""
    if not waiting:
        return 0.0
    ages = [age for age in AGES_S if age < retention_s]
    days = range(2, int(retention_s // 86_400) + 1)
    ages += [day * 86_400 for day in days if day * 86_400 < retention_s]

    def all_younger(age_s: float) -> bool:
        since_ms = round(at_ms - age_s * 1000)
        found = client.offsets_for_times(dict.fromkeys(waiting, since_ms))
        # Nothing since then: what waits is older.
        return all(
            found[one] is not None and committed[one] >= found[one].offset for one in waiting
        )

    low, high = 0, len(ages)
    while low < high:
        middle = (low + high) // 2
        if all_younger(ages[middle]):
            high = middle
        else:
            low = middle + 1
    return float(ages[low]) if low < len(ages) else retention_s


async def run(config: KafkaConfig, on_answer: Callable[[], None], every_s: float = EVERY_S) -> None:
    """Keep the gauges until cancelled; while nobody answers they stay as they were.

    Args:
        on_answer: as of `measure`; called from a thread.
    """
    failing = False
    while True:
        try:
            show(await asyncio.to_thread(measure, config, on_answer=on_answer))
            failing = False
        except (KafkaError, OSError, BadSetting) as failed:
            if not failing:
                log.warning("lag is not known, asking again: %s", told(failed))
            failing = True
        await asyncio.sleep(every_s)


def show(lag: Lag) -> None:
    """Set the gauges."""
    counters.LAG.set(lag.records)
    counters.OLDEST.set(lag.oldest_s)
    counters.TO_LOSS.set(lag.to_loss_s)
    counters.LOST.set(lag.lost)
    counters.LAG_KNOWN.set(time.time())
