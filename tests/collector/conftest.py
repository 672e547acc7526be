"""A ledger, writer and roll-up for tests that ask questions of them."""

from collections.abc import Iterator

import pytest

from joulegram.collector.ledger.migrate import migrate
from tests.collector.carbon import Place
from tests.collector.ledgers import KINDS, opened


@pytest.fixture(scope="module", params=KINDS)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("ledger")
    with opened(request, request.param, folder) as ledger:
        migrate(ledger)
        yield Place(ledger)


@pytest.fixture
def site(shared: Place) -> Place:
    """A ledger with nothing in it."""
    shared.clear()
    return shared
