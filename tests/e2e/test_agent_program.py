"""The shipped agent, through its flags, on a tree that a feeder rewrites in real time."""

import contextlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest

from tests.agent.played import Machine
from tests.redfish_server import redfish_server
from tests.servers import joulegram, running, wait_until

STEP_S = 0.1


@contextlib.contextmanager
def fed(machine):
    """Advance the machine in real time, a step behind the truth, its files in changing order."""
    stop = threading.Event()

    def feed():
        before = time.monotonic()
        while not stop.wait(STEP_S):
            now = time.monotonic()
            order = list(machine.zones.items())
            random.Random(int(now * 1000)).shuffle(order)
            machine.zones = dict(order)
            machine.advance(now - before)
            before = now

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def agent(machine, *flags, frames=8):
    command = [sys.executable, "-m", "joulegram.cli.main", "agent", "--print"]
    command += [f"--frames={frames}", "--node=played", "--tick=0.2", "--window=1"]
    command += [f"--{name}={machine.root}/{path}" for name, path in ROOTS.items()]
    done = subprocess.run(
        [*command, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


ROOTS = {"sysfs": "sys", "procfs": "proc", "cgroupfs": "cgroup"}


def whose(frames):
    return {(w["kind"], w["id"]) for frame in frames for w in frame["workloads"]}


def joules(frames, kind, id_=""):
    return (
        sum(
            sum(row[f"{c}_uj"] for c in ("cpu", "dram", "gpu", "other"))
            for frame in frames
            for row in frame["rows"]
            if (
                frame["workloads"][row["workload"]]["kind"],
                frame["workloads"][row["workload"]]["id"],
            )
            == (kind, id_)
        )
        / 1e6
    )


def test_frames_of_a_played_machine_hold_every_joule(tmp_path):
    machine = Machine(tmp_path)
    machine.zone("intel-rapl:0", "package-0", watts=200)
    machine.zone("intel-rapl:0:0", "dram", watts=20)
    machine.task(10, group=b"/system.slice/a.service", cores=16)
    machine.cgroup("/system.slice/b.service", extra_cores=4.0)
    machine.task(12, comm=b"\xff) R 1 (", cores=4)
    with fed(machine):
        frames = agent(machine, "--idle-w=cpu0=125")
    assert [f["seq"] for f in frames] == list(range(1, 9))
    for before, after in pairwise(frames):
        assert after["window_start_ms"] - before["window_start_ms"] == 1000
    for frame in frames:
        for component in ("cpu", "dram", "other"):
            drawn = sum(d["energy_uj"] for d in frame["devices"] if d["component"] == component)
            assert drawn == sum(row[f"{component}_uj"] for row in frame["rows"])
    # A counter seen half a step late moves energy between windows, not out of them; how late the
    # steps are is up to the machine that plays this one.
    later = frames[2:]
    seconds = len(later)
    idle, drawn = joules(later, "idle"), sum(joules(later, *who) for who in whose(later))
    assert drawn == pytest.approx(220 * seconds, rel=0.15)
    assert idle == pytest.approx(125 * seconds, rel=0.05)
    active = drawn - idle
    assert joules(later, "systemd", "a.service") == pytest.approx(active * 16 / 24, rel=0.15)
    assert joules(later, "systemd", "b.service") == pytest.approx(active * 4 / 24, rel=0.15)
    assert joules(later, "system") == pytest.approx(active * 4 / 24, rel=0.15)


def test_a_controller_that_answers_is_asked_in_silence(tmp_path):
    machine = Machine(tmp_path)
    machine.zone("intel-rapl:0", "package-0")
    command = joulegram("agent", "--print", "--frames=4", "--tick=0.2", "--window=1")
    command += [f"--{name}={machine.root}/{path}" for name, path in ROOTS.items()]
    with redfish_server() as server:
        done = subprocess.run(
            [*command, f"--redfish-url={server.url}"], capture_output=True, text=True, timeout=60
        )
        assert server.asked
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    assert {d["name"] for d in frames[-1]["devices"]} == {"cpu0", "platform"}
    assert (done.returncode, "http" in done.stderr.lower()) == (0, False), done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--window=7"], "divides 300"),
        (["--window=0.5"], "whole seconds"),
        (["--tick=0.3"], "divides the window"),
        ([b"--node=caf\xe9"], "UTF-8"),
        (["--node="], "1 to 255 characters"),
    ],
)
def test_a_bad_setting_is_refused_with_its_remedy(flags, says):
    done = subprocess.run(
        [sys.executable, "-m", "joulegram.cli.main", "agent", "--print", "--frames=1", *flags],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("collector", "says"),
    [("nonsense", "HOST:PORT"), ("[::1:7471", "HOST:PORT"), ("10.0.0.1:7471", "not encrypted")],
)
def test_a_collector_that_is_no_address_is_a_wrong_setting(tmp_path, collector, says):
    done = subprocess.run(
        joulegram("agent", f"--collector={collector}", f"--state={tmp_path / 'state'}"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_collector_whose_name_does_not_resolve_is_waited_for(tmp_path):
    machine = Machine(tmp_path / "machine")
    machine.zone("intel-rapl:0", "package-0", watts=200)
    machine.task(10, group=b"/system.slice/a.service", cores=1)
    argv = joulegram(
        *("agent", "--node=n1", "--tick=0.2", "--window=1", "--agent-http="),
        *(f"--{name}={machine.root / path}" for name, path in ROOTS.items()),
        *("--collector=collector.invalid:7471", "--agent-insecure"),
        f"--state={tmp_path / 'state'}",
    )
    with fed(machine), running(argv, tmp_path, name="agent") as agent:
        wait_until(lambda: "does not resolve" in agent.said(), "a complaint")
        wait_until(lambda: (tmp_path / "state/spool/frames.db").exists(), "a spool")
        time.sleep(2)
        assert agent.stop() == 0
        found = re.search(r"left in the spool for the next start: (\d+)", agent.said())
    assert found and int(found[1]) >= 1
    assert "Traceback" not in agent.said()
