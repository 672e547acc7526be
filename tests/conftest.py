"""What every test may ask for. Servers are started once a session, on the first request."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.clickhouse import clickhouse
from tests.servers import Prometheus, prometheus_server

__all__ = ["clickhouse"]

# How long an example takes is the machine's business, which others may load.
settings.register_profile("any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own configuration never reaches a test."""
    for name in os.environ:
        if name.startswith("JOULEGRAM_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real Prometheus, scraping what a test tells it to `watch`."""
    with prometheus_server(tmp_path_factory.mktemp("prometheus")) as server:
        yield server
