"""What the shipped agent costs per process and tick, against the bare reading of the same files.

Ours: CPU time of `joulegram agent`, everything it does included (sensors, processes, cgroups,
attribution, frames, spool, stream to a collector that acknowledges at once, its own /metrics),
at the default tick of 1 s and window of 10 s, on this machine's own /proc and a sysfs whose
counters move. Floor: another process keeps every process's `stat` open, reads each once a tick
with os.pread and throws it away. Both run at the same time, the floor half a second off.

The third row is the short cut (agent/use/members.py): it takes root, for a cgroup v2 tree.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bench._crowd import cgroups, counters, crowd, spread
from joulegram.agent.use.procfs import raise_file_limit
from joulegram.v1.telemetry_pb2 import Ack, Frame, SeqRange

BUSY = 20
TICKS = 30
WARM_UP_S = 12.0  # a frame was sent
LIMIT, LIMIT_CGROUPS = 2.0, 0.7
CORE_SHARE = 0.015  # of a core may be used, or LIMIT times the floor
GROUPS, BUSY_GROUPS = 50, 5

FLOOR = """
import os, sys, time
from joulegram.agent.use.procfs import raise_file_limit
raise_file_limit()
files = []
for pid in sys.argv[2:]:
    try:
        files.append(os.open(f"/proc/{pid}/stat", os.O_RDONLY))
    except FileNotFoundError:  # somebody else's process, which ended
        continue
took_ns = []
for tick in range(int(sys.argv[1])):
    time.sleep(1.5 - time.time() % 1)
    begin_ns = time.thread_time_ns()
    for file in files:
        try:
            os.pread(file, 2048, 0)
        except ProcessLookupError:  # somebody else's process, which ended
            continue
    took_ns.append(time.thread_time_ns() - begin_ns)
print(sum(took_ns) / len(took_ns))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time per tick, ns, and of how many processes."""

    ours_ns: float
    floor_ns: float
    processes: int


def run() -> list[dict[str, Any]]:
    entries = [*_plain("agent_process_tick", 1000), _plain("agent_process_tick_5000", 5000)[0]]
    try:
        entries.append(_in_cgroups())
    except PermissionError as exc:
        print(f"bench: agent_process_tick_cgroups is left out: {exc}", file=sys.stderr)
    return entries


def _plain(name: str, processes: int) -> list[dict[str, Any]]:
    """The row of that name, and how much of a core that is at this tick of 1 s."""
    with crowd(processes, BUSY), tempfile.TemporaryDirectory() as none:
        cost = measure("--cgroupfs", none)
    may_ns = max(CORE_SHARE * 1e9, LIMIT * cost.floor_ns)
    return [
        entry(name, cost, LIMIT, f"{processes} processes of a crowd, {BUSY} busy"),
        {
            "name": "agent_core",
            "ratio": cost.ours_ns / may_ns,
            "limit": 1.0,
            "ours": cost.ours_ns / 1e7,
            "reference": may_ns / 1e7,
            "unit": f"% of one core at 1 Hz, {cost.processes} processes, no GPU",
        },
    ]


def _in_cgroups() -> dict[str, Any]:
    with cgroups(GROUPS) as (tree, groups), crowd(1000, BUSY) as pids:
        spread(pids, groups, BUSY, BUSY_GROUPS)
        cost = measure("--cgroupfs", str(tree))
    what = f"1000 processes in {GROUPS} cgroups, {BUSY_GROUPS} busy"
    return entry("agent_process_tick_cgroups", cost, LIMIT_CGROUPS, what)


def entry(name: str, cost: Cost, limit: float, what: str) -> dict[str, Any]:
    return {
        "name": name,
        "ratio": cost.ours_ns / cost.floor_ns,
        "limit": limit,
        "ours": cost.ours_ns / cost.processes / 1000,
        "reference": cost.floor_ns / cost.processes / 1000,
        "unit": f"us CPU per process and tick ({cost.processes} processes; {what})",
    }


def measure(*flags: str, env: Mapping[str, str] | None = None) -> Cost:
    """A shipped agent and the floor beside it, on all processes there are now.

    Args:
        env: added to the agent's environment; a libnvidia-ml.so.1 to load, say.
    """
    with counters() as sysfs, sink() as address, agent(sysfs, address, *flags, env=env) as pid:
        time.sleep(WARM_UP_S)
        return beside_floor(pid)


def beside_floor(pid: int, ticks: int = TICKS) -> Cost:
    """What a running program spends in so many seconds, and the floor meanwhile."""
    raise_file_limit()
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208
    argv = [sys.executable, "-c", FLOOR, str(ticks), *map(str, pids)]
    floor = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    # Between two ticks, at both ends.
    time.sleep(1.5 - time.time() % 1)
    before_ns = cpu_ns(pid)
    time.sleep(ticks)
    ours_ns = (cpu_ns(pid) - before_ns) / ticks
    said, _ = floor.communicate(timeout=60)
    return Cost(ours_ns, float(said), len(pids))


def cpu_ns(pid: int) -> int:
    """CPU time of a process, threads that ended included: clock_getcpuclockid(3)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


@contextlib.contextmanager
def agent(
    sysfs: Path, collector: str, *flags: str, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A shipped agent's pid."""
    with tempfile.TemporaryDirectory(prefix="joulegram-bench-") as state:
        argv = [sys.executable, "-m", "joulegram.cli.main", "agent", "--node=bench"]
        argv += ["--sysfs", str(sysfs), "--state", state, "--collector", collector]
        argv += ["--agent-http", "127.0.0.1:0", *flags]
        log = Path(state, "log")
        own = {**os.environ, **(env or {})}
        with log.open("w") as said, subprocess.Popen(argv, stderr=said, env=own) as program:
            try:
                yield program.pid
            finally:
                ended = program.poll()
                program.terminate()
                program.wait(20)
                if ended is not None:  # whatever its measuring stumbled over
                    raise RuntimeError(f"the agent ended with {ended}: {log.read_text()}")


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """HOST:PORT of a collector that calls every frame durable and keeps none."""

    def report(frames: Iterator[Frame], _: object) -> Iterator[Ack]:
        for frame in frames:
            seqs = SeqRange(epoch=frame.epoch, first_seq=frame.seq, last_seq=frame.seq)
            yield Ack(durable=[seqs])

    server = grpc.server(ThreadPoolExecutor(4))
    method = grpc.stream_stream_rpc_method_handler(report, Frame.FromString, Ack.SerializeToString)
    service = "joulegram.v1.TelemetryService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Report": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


if __name__ == "__main__":
    for row in run():
        print(row)
