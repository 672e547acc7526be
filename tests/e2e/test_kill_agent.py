"""Kill -9 the agent at any moment: every frame it had kept is delivered, once, as it was.

A scripted meter stands in for the machine, so that windows close every few milliseconds; spool,
uplink and their order are the shipped ones.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from joulegram.agent.spool.spool import Spool
from joulegram.v1.telemetry_pb2 import Ack, Frame
from tests.agent.made_frames import made_frame, serialised
from tests.agent.played_collector import Drop, PlayedCollector, Received, acknowledge, playing
from tests.servers import free_port, wait_until

SCRIPT = """
import os, secrets, signal, sys, threading
from pathlib import Path
from joulegram.agent.config import AgentConfig
from joulegram.agent.run import serve
from tests.agent.made_frames import made_frame

state, collector, http, window_s = sys.argv[1:]
kept = os.open(Path(state) / "kept", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

class Meter:
    unsound = 0
    def frames(self, stop):
        epoch = secrets.randbits(64)
        for seq in range(1, 10**6):
            yield made_frame(seq, epoch)
            os.write(kept, b"%d %d\\n" % (epoch, seq))  # `append` has returned
            if stop.wait(float(window_s)):
                yield made_frame(seq + 1, epoch)
                os.write(kept, b"%d %d\\n" % (epoch, seq + 1))
                return

stop = threading.Event()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stop.set())
config = AgentConfig(node="n1", state=Path(state), collector=collector, http=http)
sys.exit(serve(Meter(), config, stop))
"""


def started(
    state: Path, collector: str, window_s: float = 0.01, http: str = ""
) -> subprocess.Popen[bytes]:
    with (state / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(state), collector, http, str(window_s)],
            stderr=log,
            cwd=Path(__file__).parents[2],
        )


def kept(state: Path) -> list[tuple[int, int]]:
    """(epoch, seq) of every frame that `append` returned for."""
    lines = (state / "kept").read_text().splitlines() if (state / "kept").exists() else []
    return [(int(epoch), int(seq)) for epoch, seq in map(str.split, lines)]


@pytest.mark.timeout(300)
def test_killed_at_any_moment_the_agent_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rng = random.Random(20260101)
    mood = random.Random(5)

    def unreliable(frame: Received) -> Ack | None:
        if mood.random() < 0.01:
            raise Drop
        return acknowledge(frame)

    collector = PlayedCollector(unreliable)
    with playing(collector):
        for turn in range(14):
            before = len(kept(tmp_path))
            agent = started(tmp_path, collector.address)
            # From before it has opened its spool until well into its work.
            if turn % 4:
                wait_until(lambda before=before: len(kept(tmp_path)) > before, "its first frame")  # type: ignore[misc]
            time.sleep(rng.uniform(0.3, 0.6) if turn % 4 == 0 else rng.uniform(0.0, 1.2))
            agent.send_signal(signal.SIGKILL)
            agent.wait()
        # A last one that may end in peace delivers what the others left; its own last frame may
        # find no time, and is then the next one's.
        collector.answer = acknowledge
        for _ in range(5):
            before = len(kept(tmp_path))
            agent = started(tmp_path, collector.address, window_s=3600)
            wait_until(lambda before=before: len(kept(tmp_path)) > before, "a frame of its own")  # type: ignore[misc]
            spooled = set(kept(tmp_path))
            collector.wait_for(lambda spooled=spooled: spooled <= set(collector.acked))  # type: ignore[misc]
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(30) == 0
            if set(kept(tmp_path)) <= set(collector.acked):
                break

    wanted = set(kept(tmp_path))
    assert len(wanted) > 100
    assert len({epoch for epoch, _ in wanted}) > 8
    # A kill may fall between `append` and the line that says so: such a frame is a real one too.
    extra = set(collector.acked) - wanted
    assert len(extra) <= 15
    versions: dict[tuple[int, int], set[bytes]] = {}
    for one in collector.received:
        versions.setdefault((one.epoch, one.seq), set()).add(one.body)
    # By identity each arrived as exactly the frame that was made; repeats are the same bytes.
    assert wanted <= set(collector.acked)
    for (epoch, seq), bodies in versions.items():
        assert bodies == {serialised(made_frame(seq, epoch))}
    joules_made = sum(energy(made_frame(seq, epoch)) for epoch, seq in wanted | extra)
    joules_held = sum(energy(Frame.FromString(min(bodies))) for bodies in versions.values())
    assert joules_held == joules_made
    with contextlib.closing(Spool.open(tmp_path, "n1", machine_id())) as spool:
        assert spool.pending() == 0
        assert not spool.stats().dropped_uj


@pytest.mark.timeout(240)
def test_a_clean_stop_is_quick_and_leaves_nothing_behind(tmp_path: Path) -> None:
    collector = PlayedCollector()
    http = f"127.0.0.1:{free_port()}"
    with playing(collector):
        agent = started(tmp_path, collector.address, http=http)
        collector.wait_for(lambda: len(collector.acked) > 20)
        metrics = httpx.get(f"http://{http}/metrics").text
        assert 'joulegram_agent_uplink_state{state="connected"} 1.0' in metrics
        begun_s = time.monotonic()
        agent.send_signal(signal.SIGINT)
        assert agent.wait(30) == 0
        assert time.monotonic() - begun_s < 5.0
    assert set(kept(tmp_path)) == set(collector.acked)
    assert set(collector.acked.values()) == {1}


@pytest.mark.timeout(240)
def test_without_a_collector_a_stop_keeps_all_for_the_next_start(tmp_path: Path) -> None:
    collector = PlayedCollector()
    agent = started(tmp_path, collector.address)
    wait_until(lambda: len(kept(tmp_path)) > 20, "frames")
    begun_s = time.monotonic()
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(30) == 0
    assert time.monotonic() - begun_s < 5.0
    first = kept(tmp_path)
    with playing(collector):
        agent = started(tmp_path, collector.address, window_s=3600)
        wait_until(lambda: len(kept(tmp_path)) > len(first), "a frame of its own")
        collector.wait_for(lambda: set(first) <= set(collector.acked))
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0


def energy(frame: Frame) -> int:
    return sum(device.energy_uj for device in frame.devices)


def machine_id() -> str:
    path = Path("/etc/machine-id")
    return path.read_text().strip() if path.exists() and os.access(path, os.R_OK) else ""
