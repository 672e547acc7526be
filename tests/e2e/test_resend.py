"""A ledger restored from an older copy gets back what it acknowledged since: integers equal."""

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from joulegram.agent.spool.home import ACKED, OFFERED
from joulegram.agent.uplink.uplink import SPREAD_MS
from tests.agent.played import Machine
from tests.e2e.test_agent_program import ROOTS, fed
from tests.servers import Program, free_port, joulegram, running, wait_until


class Site:
    """One collector with its ledger, and one agent on a played machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger, self.copy, self.state = folder / "ledger", folder / "copy", folder / "agent"
        self.listen, self.page = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.machine = Machine(folder / "machine")
        self.machine.zone("intel-rapl:0", "package-0", watts=150)
        self.machine.task(10, group=b"/system.slice/a.service", cores=3)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[Program]:
        argv = joulegram(
            *("collector", f"--data={self.ledger}", f"--listen={self.listen}"),
            *(f"--http={self.page}", "--neso-url="),
        )
        with running(argv, self.folder, name="collector") as collector:
            collector.await_answer(f"http://{self.page}/api/v1/health", 60)
            yield collector
            assert collector.stop(signal.SIGTERM) == 0, collector.said()

    @contextlib.contextmanager
    def metering(self) -> Iterator[Program]:
        argv = joulegram(
            *("agent", "--node=n1", "--tick=0.1", "--window=1", "--agent-http="),
            *(f"--{name}={self.machine.root / path}" for name, path in ROOTS.items()),
            *(f"--state={self.state}", f"--collector={self.listen}"),
        )
        with running(argv, self.folder, name="agent") as agent:
            yield agent
            assert agent.stop(signal.SIGTERM) == 0, agent.said()

    def resend(self, since: datetime) -> str:
        done = subprocess.run(
            joulegram("resend", f"--since={since.isoformat()}", "--node=n1",
                      f"--state={self.state}"),
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    def metered_uj(self) -> int:
        answer = httpx.get(
            f"http://{self.page}/api/v1/report", params={"since": "1d", "by": "node"}, timeout=30
        )
        metered_uj: int = answer.raise_for_status().json()["metered_uj"]
        return metered_uj

    def all_is_there(self) -> bool:
        """Call it once the agent has stopped: every joule acknowledged is in the ledger, once.

        Of frames that were sent and not acknowledged in time each may be there or not.
        """
        with contextlib.closing(sqlite3.connect(self.state / "spool" / "frames.db")) as db:
            frames = db.execute("SELECT state, energy_uj FROM frames").fetchall()
        possible = {sum(uj for state, uj in frames if state == ACKED)}
        for uj in (uj for state, uj in frames if state == OFFERED):
            possible |= {held + uj for held in possible}
        return self.metered_uj() in possible

    def acknowledged(self, count: int) -> bool:
        return states(self.state).count(ACKED) >= count


def states(state: Path) -> list[int]:
    """Of every frame in the spool."""
    database = state / "spool" / "frames.db"
    if not database.exists():
        return []
    with contextlib.closing(sqlite3.connect(database)) as db:
        # It may be there before its tables are.
        with contextlib.suppress(sqlite3.OperationalError):
            return [found for (found,) in db.execute("SELECT state FROM frames")]
        return []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("running_agent", [True, False], ids=["running", "stopped"])
def test_after_a_restore_the_ledger_is_whole_again(tmp_path: Path, running_agent: bool) -> None:
    site = Site(tmp_path)
    with fed(site.machine):
        with site.collecting(), site.metering():
            wait_until(lambda: site.acknowledged(3), "frames in the first ledger")
        backup = datetime.now(UTC)
        # As `cp -a`: chDB's directory holds links, and does not open without them.
        shutil.copytree(site.ledger, site.copy, symlinks=True)
        with site.collecting(), site.metering():
            wait_until(lambda: site.acknowledged(7), "frames that the copy has not")
        shutil.rmtree(site.ledger)
        site.copy.rename(site.ledger)
        with site.collecting():
            before_uj = site.metered_uj()
            if running_agent:
                with site.metering():
                    wait_until(lambda: site.acknowledged(8), "it runs")
                    said = site.resend(backup)
                    time.sleep(1 + SPREAD_MS / 1000)  # the next window wakes it
                    wait_until(lambda: set(states(site.state)) == {ACKED}, "all of it")
            else:
                said = site.resend(backup)
                with site.metering():
                    wait_until(lambda: set(states(site.state)) == {ACKED}, "all of it")
            wait_until(site.all_is_there, "every joule in the ledger")
            assert site.metered_uj() > before_uj
    frames = int(said.split()[0])
    assert 4 <= frames < len(states(site.state))
