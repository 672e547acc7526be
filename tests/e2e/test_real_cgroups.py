"""Workloads of a real kernel: cgroup v2, short-lived processes, the shipped agent."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.agent.played import Machine
from tests.e2e.test_agent_program import fed, joules

FORKS = (
    "import os, time\n"
    "end = time.time() + {seconds}\n"
    "while time.time() < end:\n"
    "    if os.fork() == 0:\n"
    "        done = time.process_time() + 0.05\n"
    "        while time.process_time() < done: pass\n"
    "        os._exit(0)\n"
    "    os.wait()\n"
)


@pytest.fixture
def cgroup2(tmp_path):
    """A mounted cgroup v2 tree; groups made below it are removed again."""
    if os.geteuid() != 0:
        pytest.skip("mounting a cgroup tree needs root")
    folder = tmp_path / "cgroup2"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=False).returncode:
        pytest.skip("this kernel or container does not let us mount cgroup2")
    made = []

    def make(path):
        group = folder
        for part in path.strip("/").split("/"):
            group = group / part
            if not group.exists():
                group.mkdir()
                made.append(group)
        return group

    try:
        yield folder, make
    finally:
        for group in reversed(made):
            for _ in range(50):
                try:
                    group.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)
        subprocess.run(["umount", folder], check=False)


def test_children_that_live_50_ms_are_their_services(tmp_path, cgroup2):
    """Every CPU-second of a fork loop is the service's, though no child is ever seen twice."""
    folder, make = cgroup2
    group = make("/system.slice/forker.service")
    machine = Machine(tmp_path / "tree")
    machine.zone("intel-rapl:0", "package-0", watts=50)
    code = FORKS.format(seconds=8)
    enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    forker = subprocess.Popen([sys.executable, "-c", "import os\n" + enter + code])
    try:
        with fed(machine):
            command = [sys.executable, "-m", "joulegram.cli.main", "agent", "--print"]
            command += ["--frames=4", "--tick=0.5", "--window=1", "--node=n"]
            command += [f"--sysfs={machine.root}/sys", f"--cgroupfs={folder}"]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
    finally:
        forker.wait(timeout=30)
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    used_ns = sum(
        row["cpu_ns"]
        for frame in frames
        for row in frame["rows"]
        if frame["workloads"][row["workload"]]["id"] == "forker.service"
    )
    counted_s = 4.0  # one CPU, all the time
    assert used_ns / 1e9 == pytest.approx(counted_s, rel=0.3)
    assert joules(frames, "systemd", "forker.service") > 0
