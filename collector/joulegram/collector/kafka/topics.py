"""The two topics: made where they are missing, checked where they exist, never changed."""

import logging
from collections.abc import Mapping
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    BrokerResponseError,
    InvalidReplicationFactorError,
    TopicAlreadyExistsError,
)

from joulegram.collector.errors import BadSetting
from joulegram.collector.kafka.client import connection
from joulegram.collector.kafka.config import RECORD_MOST_BYTES, KafkaConfig

log = logging.getLogger(__name__)

DAY_MS = 86_400_000
UNKNOWN_TOPIC = 3


def check_topics(config: KafkaConfig) -> None:
    """Make the topics that are missing, and judge the others. Blocking.

    Raises: BadSetting where a topic is not as the configuration says; KafkaError where the
        brokers do not answer.
    """
    admin = KafkaAdminClient(**connection(config))
    try:
        for name, partitions, days in (
            (config.topic, config.partitions, config.retention_days),
            (config.dead_letter_topic, 1, config.dead_letter_days),
        ):
            _check(admin, config, name, partitions, days)
    finally:
        admin.close()


def _check(
    admin: Any, config: KafkaConfig, name: str, partitions: int, retention_days: float
) -> None:
    (found,) = admin.describe_topics([name])
    if found["error_code"] == UNKNOWN_TOPIC:
        _create(admin, config, name, partitions, retention_days)
        (found,) = admin.describe_topics([name])
    there = found["partitions"]
    if name == config.topic and len(there) != partitions:
        raise BadSetting(
            f"topic {name} has {len(there)} partitions, kafka.partitions says {partitions}. "
            "Frames of a node would change partition, so neither number is changed in place: set "
            f"kafka.partitions to {len(there)}, or let writers drain the topic and name a new one."
        )
    copies = min((len(one["replica_nodes"]) for one in there), default=0)
    if copies < config.replication_factor:
        raise BadSetting(
            f"topic {name} keeps {copies} copies, kafka.replication_factor says "
            f"{config.replication_factor}. Reassign its partitions (kafka-reassign-partitions), or "
            "lower the setting and bear that a lost disk loses frames."
        )
    said = _configured(admin, name)
    insync = int(said["min.insync.replicas"])
    if insync < config.min_insync_replicas:
        raise BadSetting(
            f"topic {name} has min.insync.replicas = {insync}, kafka.min_insync_replicas says "
            f"{config.min_insync_replicas}: {_alter(name, 'min.insync.replicas')}"
            f"{config.min_insync_replicas}"
        )
    retention_ms = int(said["retention.ms"])
    wanted_ms = round(retention_days * DAY_MS)
    if 0 <= retention_ms < wanted_ms:
        raise BadSetting(
            f"topic {name} deletes records after {retention_ms / DAY_MS:.2f} days, "
            f"{_retention_key(config, name)} says {retention_days:g}: "
            f"{_alter(name, 'retention.ms')}{wanted_ms}"
        )
    if int(said["retention.bytes"]) >= 0:
        raise BadSetting(
            f"topic {name} has retention.bytes = {said['retention.bytes']}: it deletes frames "
            f"that nobody has read once it is full. {_alter(name, 'retention.bytes')}-1"
        )
    if "compact" in said["cleanup.policy"]:
        raise BadSetting(
            f"topic {name} has cleanup.policy = {said['cleanup.policy']}: compaction deletes "
            f"frames. {_alter(name, 'cleanup.policy')}delete"
        )
    if said["unclean.leader.election.enable"] == "true":
        raise BadSetting(
            f"topic {name} allows unclean leader election, which loses acknowledged frames: "
            f"{_alter(name, 'unclean.leader.election.enable')}false"
        )
    if int(said["max.message.bytes"]) < RECORD_MOST_BYTES:
        raise BadSetting(
            f"topic {name} takes records of {said['max.message.bytes']} bytes, a frame may have "
            f"more: {_alter(name, 'max.message.bytes')}{RECORD_MOST_BYTES}"
        )


def _create(
    admin: Any, config: KafkaConfig, name: str, partitions: int, retention_days: float
) -> None:
    wanted = {
        "num_partitions": partitions,
        "replication_factor": config.replication_factor,
        "configs": {
            "min.insync.replicas": str(config.min_insync_replicas),
            "retention.ms": str(round(retention_days * DAY_MS)),
            "retention.bytes": "-1",
            "cleanup.policy": "delete",
            "unclean.leader.election.enable": "false",
            "max.message.bytes": str(RECORD_MOST_BYTES),
        },
    }
    try:
        admin.create_topics({name: wanted}, wait_for_metadata=True)
        log.warning("made topic %s with %d partitions", name, partitions)
    except TopicAlreadyExistsError:
        admin.wait_for_topics([name])  # another collector was first
    except InvalidReplicationFactorError as few:
        raise BadSetting(
            f"topic {name} cannot be made with kafka.replication_factor = "
            f"{config.replication_factor}: fewer brokers are up. Start them, or set "
            "replication_factor and min_insync_replicas to what there is."
        ) from few
    except BrokerResponseError as refused:
        raise BadSetting(
            f"topic {name} is missing and could not be made: {type(refused).__name__}. Make it "
            f"with {partitions} partitions, or allow this user to."
        ) from refused


def _configured(admin: Any, name: str) -> Mapping[str, str]:
    asked = ConfigResource(ConfigResourceType.TOPIC, name)
    answer = admin.describe_configs([asked], config_filter="all")["topic"][name]
    return {key: str(one["value"]) for key, one in answer.items()}


def _retention_key(config: KafkaConfig, name: str) -> str:
    return "kafka.retention_days" if name == config.topic else "kafka.dead_letter_days"


def _alter(topic: str, key: str) -> str:
    return f"kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {key}="
