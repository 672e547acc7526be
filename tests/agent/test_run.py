"""A running agent outlives its disk's bad moments."""

import subprocess
import sys
from pathlib import Path

from joulegram.agent.spool.home import energy_uj
from joulegram.agent.spool.spool import Spool
from tests.agent.made_frames import made_frame
from tests.agent.test_spool import fill, mounted

SCRIPT = """
import logging, resource, sys, threading
from pathlib import Path
from joulegram.agent.config import AgentConfig
from joulegram.agent.metrics import AgentMetrics
from joulegram.agent.run import serve
from tests.agent.made_frames import made_frame

state, fails_for = Path(sys.argv[1]), int(sys.argv[2])
full = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

class Meter:
    unsound = 0
    def frames(self, stop):
        for seq in range(1, 11 + fails_for):
            if seq == 6:  # no file may grow: what a full disk looks like from here
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, full[1]))
            if seq == 6 + fails_for:
                resource.setrlimit(resource.RLIMIT_FSIZE, full)
            yield made_frame(seq, processes=500)
        for family in metrics.collect():
            if family.name == "joulegram_agent_dropped_joules":
                for sample in family.samples:
                    print(sample.labels["reason"], round(sample.value * 1e6))

metrics = AgentMetrics()
config = AgentConfig(node="n1", state=state, collector="127.0.0.1:1", http="")
serve(Meter(), config, threading.Event(), metrics=metrics)
"""


def played(state: Path, fails_for: int) -> tuple[str, str]:
    """What it said about lost joules, and its log."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(state), str(fails_for)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


def pending(state: Path) -> list[int]:
    etc = Path("/etc/machine-id")
    spool = Spool.open(state, "n1", etc.read_text() if etc.exists() else "")
    frames = spool.offer(1000, recent=False) + spool.offer(1000, recent=True)
    spool.close()
    return [frame.seq for frame in frames]


def test_frames_wait_in_memory_while_the_disk_is_full(tmp_path: Path) -> None:
    lost, log = played(tmp_path, fails_for=20)
    assert pending(tmp_path) == list(range(1, 31))
    assert log.count("Check that the disk") == 1
    assert lost == ""


def test_a_disk_that_stays_full_costs_the_oldest_frames(tmp_path: Path) -> None:
    """Sixty frames wait in memory; what is beyond that is lost, and counted."""
    lost, _ = played(tmp_path, fails_for=100)
    found = pending(tmp_path)
    assert found[:5] == [1, 2, 3, 4, 5]
    assert found[5:] == list(range(47, 111))
    gone = sum(energy_uj(made_frame(seq, processes=500)) for seq in range(6, 47))
    assert lost == f"disk {gone}\n"


FULL_AT_THE_START = """
import sys, threading
from pathlib import Path
from joulegram.agent.config import AgentConfig
from joulegram.agent.metrics import AgentMetrics
from joulegram.agent.run import serve
from tests.agent.made_frames import made_frame

state, ballast = map(Path, sys.argv[1:])

def said(name):
    for family in metrics.collect():
        if family.name == f"joulegram_agent_{name}":
            return [sample.value for sample in family.samples]

class Meter:
    unsound = 0
    def frames(self, stop):
        for seq in range(1, 5):
            yield made_frame(seq, processes=20)
        print(said("spool_usable"), said("unwritten_frames"), said("unwritten_limit_frames"))
        ballast.unlink()
        yield made_frame(5, processes=20)
        print(said("spool_usable"), said("unwritten_frames"), said("dropped_joules"))

metrics = AgentMetrics()
config = AgentConfig(node="n1", state=state, collector="127.0.0.1:1", http="")
sys.exit(serve(Meter(), config, threading.Event(), metrics=metrics))
"""


def test_an_agent_starts_on_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=3m") as disk:
        fill(disk / "ballast")
        ended = subprocess.run(
            [sys.executable, "-c", FULL_AT_THE_START, disk / "state", disk / "ballast"],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines() == ["[0] [4] [60]", "[1] [0] []"], ended.stderr
        assert "No space left" in ended.stderr or "full" in ended.stderr
        assert pending(disk / "state") == [1, 2, 3, 4, 5]
