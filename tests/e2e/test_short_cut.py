"""The short cut (agent/use/members.py) on a real kernel: both ways of reading, side by side."""

import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from joulegram.agent.clock import SystemClock
from joulegram.agent.identity import Identity
from joulegram.agent.use.cgroups import Cgroups
from joulegram.agent.use.procfs import Processes
from joulegram.agent.use.usage import Usage
from joulegram.agent.windows import Timeline

PROC = Path("/proc")
ENTER = """
import os, sys, time
from pathlib import Path
def enter(group, pid=0):
    Path(group, "cgroup.procs").write_text(str(pid))
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until: pass
"""
QUIET = "enter(sys.argv[1])\ntime.sleep(60)\n"
STEADY = "enter(sys.argv[1])\nwhile True:\n    burn(0.02)\n    time.sleep(0.08)\n"
MOVES = "enter(sys.argv[1])\ntime.sleep(2)\nenter(sys.argv[2])\nburn(0.8)\ntime.sleep(60)\n"
FORKS = """
enter(sys.argv[1])
while True:
    if os.fork() == 0:
        burn(0.05)
        os._exit(0)
    os.wait()
"""
# As schedulers do: fork, then move the child, which runs only then.
STARTS_A_JOB = """
enter(sys.argv[1])
time.sleep(1.5)
ready, go = os.pipe()
if (child := os.fork()) == 0:
    os.read(ready, 1)
    burn(0.5)
    time.sleep(60)
time.sleep(0.5)
enter(sys.argv[2], child)
os.write(go, b"x")
time.sleep(60)
"""


def test_the_short_cut_charges_every_workload_the_same_on_a_real_kernel(cgroup2):
    folder, make = cgroup2
    groups = {
        name: str(make(f"/system.slice/{name}.service"))
        for name in ("steady", "quiet", "forks", "x", "y", "daemon")
    }
    job = str(make("/system.slice/slurmstepd.scope/job_7"))

    def start(code, *arguments):
        return subprocess.Popen([sys.executable, "-c", ENTER + code, *arguments])

    def reader(short_cut):
        processes = Processes(PROC, counts_forks=short_cut)
        cgroups = Cgroups(folder, SystemClock(), kernels=short_cut)
        assert processes.counts_forks == cgroups.kernels == (short_cut is None)
        identity = Identity(PROC, processes, cgroups, "site", "node")
        usage = Usage(PROC, processes, cgroups, identity, fold_cores=0.0)
        return usage, Timeline(1000, time.time_ns(), time.monotonic_ns())

    readers = [reader(None), reader(False)]
    used_ns: list[defaultdict[tuple[str, str], int]] = [defaultdict(int), defaultdict(int)]
    programs = []
    try:
        programs += [start(QUIET, groups["quiet"]) for _ in range(10)]
        programs.append(start(STEADY, groups["steady"]))
        programs.append(start(MOVES, groups["x"], groups["y"]))
        mover = programs[-1].pid
        programs.append(start(STARTS_A_JOB, groups["daemon"], job))
        programs.append(start(FORKS, groups["forks"]))
        for _ in range(24):
            time.sleep(0.25)
            for usage, timeline in readers:
                timeline.advance(time.time_ns(), time.monotonic_ns())
                usage.tick(timeline, time.monotonic_ns())
        for (usage, timeline), sums in zip(readers, used_ns, strict=True):
            for window in timeline.open:
                for use in usage.close(window):
                    sums[use.owner.kind, use.owner.id] += use.cpu_ns
                    if use.process is not None and use.process.pid == mover:
                        sums[use.owner.id, "mover"] += use.cpu_ns
    finally:
        for program in programs:
            program.kill()
            program.wait()
        for usage, _ in readers:
            usage.processes.close()
            usage.cgroups.close()
    short, whole = used_ns
    for key in (
        *(("systemd", f"{name}.service") for name in groups),
        ("slurm", "7"),
        ("y.service", "mover"),
    ):
        # Both look at moments of their own, a few milliseconds apart.
        assert short[key] / 1e9 == pytest.approx(whole[key] / 1e9, rel=0.05, abs=0.06), key
    assert whole["slurm", "7"] > 0.4e9 < whole["y.service", "mover"]
