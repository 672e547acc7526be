"""Kepler and Scaphandre, where they are: on the same counters, /proc and floor as our agent.

Found by KEPLER and SCAPHANDRE (paths of the programs) or on PATH; a peer that is not there is
left out. Each is asked for its metrics as a Prometheus would, as often as it reads anew; a tick
is one such reading. Scaphandre knows no other sysfs than /sys: it runs in a mount namespace of its
own, with the counters laid over /sys/class, which takes root. docs/comparison.md has the table.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench._crowd import counters, crowd
from bench.agent_tick import Cost, agent, beside_floor, sink

PROCESSES, BUSY = 1000, 20
WARM_UP_S = 12.0
NO_LIMIT = 1000.0  # theirs to keep


@dataclass(frozen=True, slots=True)
class Peer:
    """Another meter of processes.

    Args:
        argv: from program, sysfs and port to what is run.
        metric: of its exposition, what it says of each process.
        every_s: from one reading to the next.
    """

    name: str
    variable: str
    argv: Callable[[str, Path, int], list[str]]
    metric: str
    every_s: int

    def program(self) -> str | None:
        return os.environ.get(self.variable) or shutil.which(self.name)


def _kepler(program: str, sysfs: Path, port: int) -> list[str]:
    argv = [program, f"--host.sysfs={sysfs}", "--host.procfs=/proc", "--monitor.interval=1s"]
    return [*argv, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]


def _scaphandre(program: str, sysfs: Path, port: int) -> list[str]:
    mount = f"mount --bind {sysfs}/class /sys/class"
    serve = f"exec {program} prometheus --address 127.0.0.1 --port {port}"
    return ["unshare", "--mount", "sh", "-c", f"{mount} && {serve}"]


PEERS = (
    Peer("kepler", "KEPLER", _kepler, "kepler_process_cpu_joules_total", 1),
    # Asked again within 2 s it repeats itself.
    Peer("scaphandre", "SCAPHANDRE", _scaphandre, "scaph_process_power_consumption_microwatts", 3),
)


def run() -> list[dict[str, Any]]:
    present = [peer for peer in PEERS if peer.program()]
    for peer in PEERS:
        if peer not in present:
            print(f"bench: no {peer.name} here ({peer.variable}); left out", file=sys.stderr)
    if not present:
        return []
    rows = []
    with crowd(PROCESSES, BUSY), tempfile.TemporaryDirectory() as none, counters() as sysfs:
        with sink() as address, agent(sysfs, address, "--cgroupfs", none) as pid:
            time.sleep(WARM_UP_S)
            rows.append(_row("ours", beside_floor(pid), 1, "the shipped agent"))
        for peer in present:
            with _running(peer, sysfs) as (pid, total):
                cost = beside_floor(pid)
                what = f"{peer.metric} sums to {total():g}"
                rows.append(_row(peer.name, cost, peer.every_s, what))
    return rows


def _row(name: str, cost: Cost, every_s: int, what: str) -> dict[str, Any]:
    ours_ns = cost.ours_ns * every_s  # of a reading, not of a second
    return {
        "name": f"peer_{name}",
        "ratio": ours_ns / cost.floor_ns,
        "limit": NO_LIMIT,
        "ours": ours_ns / cost.processes / 1000,
        "reference": cost.floor_ns / cost.processes / 1000,
        "unit": f"us CPU per process and tick ({cost.processes} processes; {what})",
    }


@contextlib.contextmanager
def _running(peer: Peer, sysfs: Path) -> Iterator[tuple[int, Callable[[], float]]]:
    """A peer's pid, and what its processes' metric sums to."""
    port = 28_000 + os.getpid() % 2000
    url = f"http://127.0.0.1:{port}/metrics"
    stop = threading.Event()
    last = [""]

    def scrape() -> None:
        while not stop.wait(peer.every_s):
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
                last[0] = answer.read().decode(errors="replace")

    def total() -> float:
        lines = [line for line in last[0].splitlines() if line.startswith(peer.metric)]
        return sum(float(line.rsplit(" ", 1)[1].strip('"')) for line in lines)

    with subprocess.Popen(
        peer.argv(peer.program() or peer.name, sysfs, port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as program:
        scraper = threading.Thread(target=scrape)
        scraper.start()
        try:
            time.sleep(WARM_UP_S)
            if program.poll() is not None:
                said = program.stderr.read() if program.stderr else b""
                raise RuntimeError(f"{peer.name} ended: {said.decode(errors='replace')[-500:]}")
            yield program.pid, total
        finally:
            stop.set()
            scraper.join()
            program.kill()


if __name__ == "__main__":
    for row in run():
        print(row)
