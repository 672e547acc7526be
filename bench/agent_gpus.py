"""What the shipped agent costs at 1 Hz with 1,000 processes and 8 GPUs, through the real binding.

The GPUs are played by the tests' own libnvidia-ml.so.1, whose cost is the agent's here: 10
processes have each GPU open, 4 of them compute. May: 1.5 % of one core, or twice the floor of
agent_tick.py, whichever is larger; 75 MB resident with the library loaded.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from bench._crowd import counters, crowd
from bench.agent_memory import resident_mb
from bench.agent_tick import CORE_SHARE, LIMIT, WARM_UP_S, agent, beside_floor, sink
from tests.agent.nvml import library

PROCESSES, BUSY = 1000, 20
GPUS, OPENED, COMPUTING = 8, 10, 4
LIMIT_MB = 75.0


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, crowd(PROCESSES, BUSY) as pids:
        played, none = library.build(Path(folder, "nvml")), Path(folder, "none")
        none.mkdir()
        trace = Path(folder, "trace")
        library.play(trace, _trace(pids))
        env = library.environment(played, trace)
        with (
            counters() as sysfs,
            sink() as address,
            agent(sysfs, address, "--cgroupfs", str(none), env=env) as pid,
        ):
            time.sleep(WARM_UP_S)
            cost = beside_floor(pid)
            memory_mb = resident_mb(pid)
    may_ns = max(CORE_SHARE * 1e9, LIMIT * cost.floor_ns)
    what = f"{PROCESSES} processes, {GPUS} GPUs"
    return [
        {
            "name": "agent_core_gpus",
            "ratio": cost.ours_ns / may_ns,
            "limit": 1.0,
            "ours": cost.ours_ns / 1e7,
            "reference": may_ns / 1e7,
            "unit": f"% of one core at 1 Hz, {what}",
        },
        {
            "name": "agent_memory_gpus",
            "ratio": memory_mb / LIMIT_MB,
            "limit": 1.0,
            "ours": memory_mb,
            "reference": LIMIT_MB,
            "unit": f"MB resident, {what}",
        },
    ]


def _trace(pids: list[int]) -> str:
    now_us = time.time_ns() // 1000
    lines = []
    for gpu in range(GPUS):
        lines += [f"gpu GPU-{gpu}", f"energy_mj 1000 {now_us} 400000", "limit_mw 100000 700000"]
        own = pids[gpu * OPENED : (gpu + 1) * OPENED]
        lines += [f"process compute {pid}" for pid in own]
        lines += [f"busy {pid} 20" for pid in own[:COMPUTING]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for row in run():
        print(row)
