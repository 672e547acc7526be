"""Kill -9 of agent and collector, the shipped programs, at any moment: joules in = joules out."""

import contextlib
import random
import signal
import sqlite3
import time
from pathlib import Path

import httpx
import pytest

from joulegram.agent.spool.home import ACKED
from joulegram.v1.telemetry_pb2 import Frame
from tests.agent.played import Machine
from tests.e2e.test_agent_program import ROOTS, fed
from tests.e2e.test_resend import states
from tests.servers import Program, free_port, joulegram, running, wait_until

SEED = 20_261_101
KILLS = 10


def spooled(state: Path) -> dict[tuple[int, int], int]:
    """Every frame that the spool ever took, with its energy, uJ: (epoch, seq) -> uJ."""
    with contextlib.closing(sqlite3.connect(state / "spool" / "frames.db")) as spool:
        bodies = [Frame.FromString(body) for (body,) in spool.execute("SELECT body FROM frames")]
    return {(f.epoch, f.seq): sum(d.energy_uj for d in f.devices) for f in bodies}


@pytest.mark.timeout(300)
def test_killed_together_or_alone_they_lose_and_double_nothing(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    listen, page = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    machine = Machine(tmp_path / "machine")
    machine.zone("intel-rapl:0", "package-0", watts=150)
    machine.zone("intel-rapl:0:0", "dram", watts=12)
    machine.task(10, group=b"/system.slice/a.service", cores=3)
    machine.task(11, group=b"/user.slice/user-0.slice/session-1.scope", cores=1)
    collector_argv = joulegram(
        "collector", f"--data={tmp_path / 'ledger'}", f"--listen={listen}", f"--http={page}"
    )
    agent_argv = joulegram(
        *("agent", "--node=n1", "--tick=0.1", "--window=1", "--agent-http=", "--idle-w=cpu0=40"),
        *(f"--{name}={machine.root / path}" for name, path in ROOTS.items()),
        *(f"--state={tmp_path / 'agent'}", f"--collector={listen}"),
    )

    def ready(collector: Program) -> None:
        collector.await_answer(f"http://{page}/api/v1/health")

    with fed(machine), contextlib.ExitStack() as agents, contextlib.ExitStack() as collectors:
        collector = collectors.enter_context(running(collector_argv, tmp_path, name="collector"))
        ready(collector)
        agent = agents.enter_context(running(agent_argv, tmp_path, name="agent"))
        state = tmp_path / "agent"
        for turn in range(KILLS):
            if turn % 2:  # they get somewhere in between, however slow the machine is
                before = len(states(state))
                wait_until(lambda before=before: len(states(state)) > before, "another frame")  # type: ignore[misc]
            time.sleep(rng.uniform(0.5, 3.0))
            victims = rng.choice([("agent",), ("collector",), ("agent", "collector")])
            if "agent" in victims:
                agent.process.send_signal(signal.SIGKILL)
                agent.process.wait()
                agent = agents.enter_context(running(agent_argv, tmp_path, name="agent"))
            if "collector" in victims:
                collector.process.send_signal(signal.SIGKILL)
                collector.process.wait()
                collector = collectors.enter_context(
                    running(collector_argv, tmp_path, name="collector")
                )
        ready(collector)
        before = len(states(state))
        wait_until(lambda: len(states(state)) > before, "another frame")
        assert agent.stop(signal.SIGTERM) == 0
        for _ in range(10):  # one that ends sends what it has for a few seconds
            with running([*agent_argv, "--frames=1"], tmp_path, name="agent") as last:
                assert last.process.wait(60) == 0
            if set(states(state)) == {ACKED}:
                break
        taken = spooled(state)
        assert len(taken) > 5
        assert len({epoch for epoch, _ in taken}) > 2

        def report(by: str) -> dict[str, object]:
            asked = {"since": "1h", "by": by}
            answer = httpx.get(f"http://{page}/api/v1/report", params=asked, timeout=30)
            found: dict[str, object] = answer.raise_for_status().json()
            return found

        wait_until(lambda: report("node")["metered_uj"] == sum(taken.values()), "every joule")
        by_workload = report("workload")
        assert by_workload["total"]["energy_uj"] == by_workload["metered_uj"]  # type: ignore[index]
