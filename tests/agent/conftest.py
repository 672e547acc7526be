"""What several tests of the agent start from."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulegram.agent.spool.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool of node n1."""
    with contextlib.closing(Spool.open(tmp_path, "n1")) as spool:
        yield spool
