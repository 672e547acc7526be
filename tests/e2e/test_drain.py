"""A collector that is stopped in peace says so; its agents come back, each at a time of its own."""

from pathlib import Path

import pytest

from joulegram.agent.spool.home import ACKED
from tests.e2e.test_agent_program import fed
from tests.e2e.test_resend import Site, states
from tests.servers import wait_until


@pytest.mark.timeout(240)
def test_an_agent_comes_back_after_a_drain_and_nothing_is_lost(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with fed(site.machine), site.metering() as agent:
        with site.collecting():
            wait_until(lambda: site.acknowledged(3), "frames in the ledger")
        wait_until(lambda: "drains: back in" in agent.said(), "it knows why the stream ended")
        before = states(site.state).count(ACKED)
        with site.collecting():
            wait_until(lambda: site.acknowledged(before + 3), "it is back", 120)
            assert agent.stop() == 0
            wait_until(site.all_is_there, "every joule in the ledger")
