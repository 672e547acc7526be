"""A broker for this folder, and what its tests share."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from joulegram.collector.kafka.config import KafkaConfig
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate
from tests.collector.ledgers import opened
from tests.kafka import Broker, kafka_broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real broker that nobody ends; tests have topics of their own."""
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as made:
        yield made


def settings_of(broker: Broker, **more: Any) -> KafkaConfig:
    """[kafka] for one broker, with names that no other test uses and short patience."""
    names = broker.names()
    made = KafkaConfig(
        brokers=(broker.address,),
        topic=names.topic,
        dead_letter_topic=names.dead_letters,
        group=names.group,
        partitions=4,
        replication_factor=1,
        min_insync_replicas=1,
        linger_s=0.02,
        delivery_timeout_s=2.0,
        session_timeout_s=10.0,
    )
    return replace(made, **more)


@pytest.fixture
def settings(broker: Broker) -> KafkaConfig:
    """[kafka] of a test of its own."""
    return settings_of(broker)


@dataclass(frozen=True)
class Shared:
    """A ledger that others write to as well: what is stored must be looked up each time."""

    ledger: Ledger
    exclusive: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)


@pytest.fixture(params=["chdb", "clickhouse"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger that several writers share."""
    with opened(request, request.param, tmp_path / "ledger") as made:
        migrate(made)
        shared: Any = Shared(made)
        yield shared
