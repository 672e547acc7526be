"""Workloads of a real kernel: cgroup v2, short-lived processes, the shipped agent."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.agent.played import Machine
from tests.e2e.test_agent_program import fed, joules

FORKS = """
import os, time
open({procs!r}, "w").write(str(os.getpid()))
while True:
    if os.fork() == 0:
        done = time.process_time() + 0.05
        while time.process_time() < done: pass
        os._exit(0)
    os.wait()
"""


def test_children_that_live_50_ms_are_their_services(tmp_path, cgroup2):
    """Every CPU-second of a fork loop is the service's, though no child is ever seen twice."""
    folder, make = cgroup2
    group = make("/system.slice/forker.service")
    machine = Machine(tmp_path / "tree")
    machine.zone("intel-rapl:0", "package-0", watts=50)
    argv = [sys.executable, "-m", "joulegram.cli.main", "agent", "--print"]
    argv += ["--frames=4", "--tick=0.5", "--window=1", "--node=n"]
    argv += [f"--sysfs={machine.root}/sys", f"--cgroupfs={folder}"]
    forks = FORKS.format(procs=str(group / "cgroup.procs"))
    counted = []  # the kernel's own words: when, s; CPU time so far, s
    with subprocess.Popen([sys.executable, "-c", forks]) as forker:
        try:
            with fed(machine), subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as agent:
                while agent.poll() is None:
                    usage = (group / "cpu.stat").read_text().split()
                    counted.append((time.time(), int(usage[1]) / 1e6))
                    time.sleep(0.05)
                said, _ = agent.communicate()
        finally:
            forker.kill()
    frames = [json.loads(line) for line in said.splitlines()]
    assert len(frames) == 4
    del frames[0]  # its window had begun before the agent did
    used_ns = sum(
        row["cpu_ns"]
        for frame in frames
        for row in frame["rows"]
        if frame["workloads"][row["workload"]]["id"] == "forker.service"
    )
    first_s = frames[0]["window_start_ms"] / 1000
    until_s = (frames[-1]["window_start_ms"] + frames[-1]["window_ms"]) / 1000
    when_s, so_far_s = zip(*counted, strict=True)
    began_s, ended_s = np.interp([first_s, until_s], when_s, so_far_s)
    assert ended_s - began_s > 0.5
    assert used_ns / 1e9 == pytest.approx(ended_s - began_s, rel=0.15)
    assert joules(frames, "systemd", "forker.service") > 0
