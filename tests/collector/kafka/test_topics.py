"""Topics are made where they are missing, and what does not hold is said before any frame goes."""

from dataclasses import replace
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.kafka.topics import check_topics


def alter(settings: KafkaConfig, **configs: Any) -> None:
    admin = KafkaAdminClient(bootstrap_servers=list(settings.brokers))
    said = {key.replace("_", "."): str(value) for key, value in configs.items()}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.topic, said)])
    admin.close()


def test_missing_topics_are_made_and_hold(settings: KafkaConfig) -> None:
    check_topics(settings)
    check_topics(settings)


def test_partitions_are_never_changed_in_place(settings: KafkaConfig) -> None:
    check_topics(settings)
    for partitions in (3, 5):
        with pytest.raises(BadSetting, match=r"has 4 partitions, kafka.partitions says"):
            check_topics(replace(settings, partitions=partitions))
    check_topics(settings)


def test_copies_are_what_the_configuration_says(settings: KafkaConfig) -> None:
    with pytest.raises(BadSetting, match="fewer brokers are up"):
        check_topics(replace(settings, replication_factor=3, min_insync_replicas=2))
    check_topics(settings)
    with pytest.raises(BadSetting, match="keeps 1 copies"):
        check_topics(replace(settings, replication_factor=2))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"retention_ms": 86_400_000}, "retention_days"),
        ({"retention_bytes": 10_000_000}, "retention.bytes"),
        ({"cleanup_policy": "compact"}, "compaction"),
        ({"max_message_bytes": 1_000_000}, "max.message.bytes"),
    ],
)
def test_what_would_lose_frames_is_refused_with_its_remedy(
    settings: KafkaConfig, wrong: dict[str, Any], said: str
) -> None:
    check_topics(settings)
    alter(settings, **wrong)
    with pytest.raises(BadSetting, match=said) as refused:
        check_topics(settings)
    assert f"--entity-name {settings.topic} --add-config" in str(refused.value)


def test_too_few_copies_in_sync(settings: KafkaConfig) -> None:
    check_topics(settings)
    with pytest.raises(BadSetting, match=r"min\.insync\.replicas = 1"):
        check_topics(_two(settings))


def _two(settings: KafkaConfig) -> KafkaConfig:
    # 2 of 1 copies is refused by the table itself, so say it past that.
    made = replace(settings)
    object.__setattr__(made, "min_insync_replicas", 2)
    return made


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"brokers": ("kafka",)}, "HOST:PORT"),
        ({"dead_letter_topic": "t", "topic": "t"}, "Name another"),
        ({"min_insync_replicas": 4}, "2 of 3"),
        ({"partitions": 0}, "1 or more"),
        ({"sasl": "PLAIN"}, "belong together"),
        ({"sasl": "GSSAPI"}, "SCRAM-SHA-512"),
        ({"ca_file": "x"}, "tls = true"),
        ({"tls": True, "cert_file": "x"}, "key_file"),
        ({"record_max_bytes": 10}, "1,000"),
        ({"retention_days": 0.0}, "or more"),
        ({"linger_s": 60.0}, "10 seconds"),
    ],
)
def test_a_table_that_cannot_hold_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        KafkaConfig(**wrong)
