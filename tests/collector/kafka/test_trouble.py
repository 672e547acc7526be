"""When a producer says that nothing goes to the brokers, and when it does not."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import GroupAuthorizationFailedError

from joulegram.collector.kafka import lag
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.producer import SILENT_S, Producer, Record
from joulegram.collector.kafka.topics import check_topics
from tests.collector.kafka.passing import eventually, producing


def forbid_group(settings: KafkaConfig) -> None:
    """Nobody may ask what the group has committed."""
    group = ResourcePattern(ResourceType.GROUP, settings.group)
    rule = ACL("User:*", "*", ACLOperation.ALL, ACLPermissionType.DENY, group)
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=list(settings.brokers))) as admin:
        admin.create_acls([rule])


async def test_who_may_not_read_the_group_is_in_no_trouble_for_that(settings: KafkaConfig) -> None:
    check_topics(settings)
    forbid_group(settings)
    with pytest.raises(GroupAuthorizationFailedError):
        lag.measure(settings)
    async with producing(settings) as producer:
        producer._heard_s -= 2 * SILENT_S  # idle for so long
        assert "have not answered" in producer.trouble()
        asking = asyncio.create_task(lag.run(settings, producer.heard, every_s=0.1))
        await eventually(lambda: not producer.trouble(), "the topic's brokers to be heard")
        asking.cancel()


@contextlib.contextmanager
def asked_meanwhile(producer: Producer) -> Iterator[list[str | Exception]]:
    """What another thread is told or fails with, until the end."""
    said: list[str | Exception] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            try:
                if trouble := producer.trouble():
                    said.append(trouble)
            except Exception as failed:
                said.append(failed)

    asking = threading.Thread(target=ask)
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    asking.start()
    try:
        yield said
    finally:
        ended.set()
        asking.join()
        sys.setswitchinterval(switch_s)


async def test_trouble_is_told_while_records_come_and_go(settings: KafkaConfig) -> None:
    check_topics(settings)
    async with producing(settings) as producer:
        with asked_meanwhile(producer) as said:
            for _ in range(20):
                await producer.put([Record(settings.topic, 0, b"x")] * 100)
    assert said == []
