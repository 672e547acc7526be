"""What a tick of the agent costs per process, against the bare reading of the same files.

Floor: the same processes' `stat` files, kept open, read once a tick with os.pread and thrown
away. Ours: the whole meter (sensors, processes, cgroups, attribution, frames) and the
serialising of every frame, on this machine's own /proc. Both in turn at every tick, on one
thread, so that the machine's mood hits both.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.agent.config import AgentConfig
from joulegram.agent.meter import Meter
from joulegram.agent.procfs import raise_file_limit

PROCESSES, BUSY = 1000, 20
TICK_S, TICKS_PER_WINDOW, WINDOWS = 0.1, 10, 15
LIMIT = 4.0

CROWD = """
import os, sys, time
total, busy = int(sys.argv[1]), int(sys.argv[2])
for n in range(total - 1):
    if os.fork() == 0:
        while True:
            time.sleep(0.1 if n < busy else 3600)
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
print("ready", flush=True)
time.sleep(3600)
"""


@dataclass
class MeasuringClock:
    """The real clocks; while the meter waits for its tick, the floor is measured."""

    files: list[int]
    ours_ns: list[int] = field(default_factory=list)
    floor_ns: list[int] = field(default_factory=list)
    wall_ns = staticmethod(time.time_ns)
    mono_ns = staticmethod(time.monotonic_ns)
    _since_ns: int = 0

    def wait(self, stop: threading.Event, for_s: float) -> bool:
        until_ns = time.monotonic_ns() + round(for_s * 1e9)
        now_ns = time.thread_time_ns()
        if self._since_ns:
            self.ours_ns.append(now_ns - self._since_ns)
            for file in self.files:
                try:
                    os.pread(file, 2048, 0)
                except ProcessLookupError:  # somebody else's process, which ended
                    continue
            self.floor_ns.append(time.thread_time_ns() - now_ns)
        stopped = stop.wait(max(0.0, (until_ns - time.monotonic_ns()) / 1e9))
        self._since_ns = time.thread_time_ns()
        return stopped


def run() -> list[dict[str, object]]:
    """Measure; CPU per process and tick, ours over the floor."""
    crowd = subprocess.Popen(
        [sys.executable, "-c", CROWD, str(PROCESSES), str(BUSY)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        if crowd.stdout is None or not crowd.stdout.readline():
            raise RuntimeError("the crowd of processes did not start")
        clock, processes = _measure()
    finally:
        os.killpg(crowd.pid, signal.SIGKILL)
        crowd.wait()
    ours_us = sum(clock.ours_ns) / len(clock.ours_ns) / processes / 1000
    floor_us = sum(clock.floor_ns) / len(clock.floor_ns) / processes / 1000
    return [
        {
            "name": "agent_process_tick",
            "ratio": ours_us / floor_us,
            "limit": LIMIT,
            "ours": ours_us,
            "reference": floor_us,
            "unit": f"us CPU per process and tick ({processes} processes, {BUSY} busy)",
        }
    ]


def _measure() -> tuple[MeasuringClock, int]:
    raise_file_limit()
    processes = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    files = [os.open(folder / "stat", os.O_RDONLY) for folder in processes]
    clock = MeasuringClock(files)
    meter = Meter(AgentConfig(tick_s=TICK_S, window_s=TICK_S * TICKS_PER_WINDOW), clock)
    for frame in meter.frames(threading.Event()):
        frame.SerializeToString()
        if meter.seq >= WINDOWS:
            break
    for file in files:
        os.close(file)
    return clock, len(files)


if __name__ == "__main__":
    print(run())
