"""A ledger, writer and roll-up for tests that ask questions of them."""

from collections.abc import Iterator

import pytest

from tests.collector.carbon import Place, place


@pytest.fixture(scope="module")
def shared() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.fixture
def site(shared: Place) -> Place:
    """A ledger with nothing in it."""
    shared.clear()
    return shared
