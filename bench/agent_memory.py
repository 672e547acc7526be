"""What the shipped agent keeps in memory while processes come and go, 100 starts a second.

Ours: resident memory of `joulegram agent` at the end of the churn, on a crowd of 1,000
processes; reference: 60 MB. The second row is its growth over the last half of the churn.
BENCH_CHURN_S says how long (default 120 s; 1800 for the half hour of the promise).
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench._crowd import counters, crowd
from bench.agent_tick import agent, sink

PROCESSES, BUSY = 1000, 20
LIMIT_MB, GROWTH = 60.0, 1.02
STARTS_PER_S = 100
WARM_UP_S = 10.0
CHURN = """
import os, time
n = 0
begin = time.monotonic()
while True:
    os.posix_spawnp("sleep", ["sleep", "0.5"], os.environ)
    n += 1
    time.sleep(max(0.0, begin + n / 100 - time.monotonic()))
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


def run() -> list[dict[str, Any]]:
    churn_s = float(os.environ.get("BENCH_CHURN_S", "120"))
    with (
        crowd(PROCESSES, BUSY),
        tempfile.TemporaryDirectory() as none,
        counters() as sysfs,
        sink() as address,
        agent(sysfs, address, "--cgroupfs", none) as pid,
    ):
        time.sleep(WARM_UP_S)
        churn = subprocess.Popen([sys.executable, "-c", CHURN])
        try:
            time.sleep(churn_s / 2)
            half_mb = resident_mb(pid)
            time.sleep(churn_s / 2)
            end_mb = resident_mb(pid)
        finally:
            churn.kill()
            churn.wait()
    of = f"{churn_s:g} s of {STARTS_PER_S} process starts a second, {PROCESSES} others"
    return [
        {
            "name": "agent_memory",
            "ratio": end_mb / LIMIT_MB,
            "limit": 1.0,
            "ours": end_mb,
            "reference": LIMIT_MB,
            "unit": f"MB resident after {of}",
        },
        {
            "name": "agent_memory_growth",
            "ratio": end_mb / half_mb,
            "limit": GROWTH,
            "ours": end_mb,
            "reference": half_mb,
            "unit": f"MB resident at the end and at half of {of}",
        },
    ]


def resident_mb(pid: int) -> float:
    """Megabytes, of 1,000,000 bytes."""
    line = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    for row in run():
        print(row)
