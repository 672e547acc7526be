"""How old a joule is when it can be read: from the close of its window, while many agents send.

    python -m bench.freshness --streams 10000 --minutes 2

Directly: one collector; a frame is in the ledger when its agent is told so, and in /metrics when
its node's counter has moved. Through Kafka: `--role intake`, a real broker, and `--role
writer,grid,web`, whose counter moves once rows are in the ledger. Agents send within 2 s of the
close, as real ones do. /metrics is read every POLL_S, which is in what is found.
"""

import argparse
import contextlib
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.streams import (
    BIN_S,
    BINS,
    ENERGY_UJ,
    WINDOW_S,
    clients_of,
    everybody_is_there_s,
    quantile,
)
from tests.kafka import kafka_broker
from tests.servers import Program, joulegram, running, wait_until

SHORT = 2_000, 0.75  # in `make bench`: agents, minutes
POLL_S = 0.5
SETTLE_S = 10.0
LIMITS_S = {"ledger": 5.0, "metrics": 4.0, "ledger_kafka": 8.0}


def run() -> list[dict[str, Any]]:
    """The short form; entries of build/bench.json."""
    streams, _ = SHORT
    return [
        {
            "name": f"freshness_{name}",
            "ratio": round(p99_s / LIMITS_S[name], 3),
            "limit": 1.0,
            "ours": p99_s,
            "reference": LIMITS_S[name],
            "unit": f"s after the close, p99, {streams:,} agents",
        }
        for name, p99_s in measure(*SHORT).items()
    ]


def measure(streams: int, minutes: float) -> dict[str, float]:
    """{of LIMITS_S: p99 in s}; without Java and Maven nothing of Kafka."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="joulegram-bench-") as name:
        folder = Path(name)
        with _started(folder / "direct", "--data", folder / "data") as collector:
            acked, shown = _watched(_agents_on(collector), collector, streams, minutes)
            found |= {"ledger": quantile(acked, 0.99), "metrics": quantile(shown, 0.99)}
        if shutil.which("java") is None or shutil.which("mvn") is None:
            print("bench: freshness through Kafka is skipped: apt-get install a JRE, and maven")
            return found
        with kafka_broker(folder / "kafka") as broker:
            kafka = folder / "kafka.toml"
            kafka.write_text(
                f'[kafka]\nbrokers = ["{broker.address}"]\npartitions = 4\n'
                "replication_factor = 1\nmin_insync_replicas = 1\n"
            )
            apart = ("--config", kafka, "--role")
            with (
                _started(folder / "intake", *apart, "intake") as intake,
                _started(
                    folder / "writer", *apart, "writer,grid,web", "--data", folder / "written"
                ) as writer,
            ):
                _, shown = _watched(_agents_on(intake), writer, streams, minutes)
                found["ledger_kafka"] = quantile(shown, 0.99)
    return found


@contextlib.contextmanager
def _started(folder: Path, *more: str | Path) -> Iterator[Program]:
    argv = joulegram(
        "collector", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--neso-url", "", *more
    )
    with running(argv, folder, name="collector") as program:
        wait_until(lambda: "http://" in program.said(), "the collector's line", 60.0)
        yield program


def _agents_on(program: Program) -> str:
    return program.said().split("agents on ")[1].split(",")[0]


def _watched(agents_on: str, shows: Program, streams: int, minutes: float) -> tuple[Any, Any]:
    """Counts per BIN_S of age: when agents were told, and when the counters moved."""
    url = f"http://{shows.said().partition('http://')[2].split()[0]}/metrics"
    measured_s = everybody_is_there_s(streams)
    end_s = measured_s + minutes * 60
    clients = clients_of(agents_on, streams, measured_s, end_s)
    try:
        time.sleep(max(0.0, measured_s - time.time()))
        moves = _moves(url, end_s - WINDOW_S / 2)
        told = [json.loads(client.communicate(timeout=60)[0]) for client in clients]
    finally:
        for client in clients:
            if client.poll() is None:
                client.kill()
    lost = streams - sum(one["alive"] for one in told)
    assert not lost, f"{lost} of {streams} streams were lost: {[one['why'] for one in told]}"
    time.sleep(SETTLE_S)
    all_windows = _windows(url)
    # Agents send every window up to the last that closes before the end.
    last_s = (math.ceil(end_s / WINDOW_S) - 1) * WINDOW_S
    shown = np.zeros(BINS, np.int64)
    for node, at_s, windows in moves:
        closed_s = last_s - (all_windows[node] - windows) * WINDOW_S
        shown[min(BINS - 1, int((at_s - closed_s) / BIN_S))] += 1
    return np.sum([one["ages"] for one in told], axis=0), shown


def _moves(url: str, until_s: float) -> list[tuple[str, float, int]]:
    """(node, when it was read, epoch s, windows that its counter held by then), of each window."""
    moves = []
    before = _windows(url)
    while time.time() < until_s:
        polled_s = time.time()
        now = _windows(url)
        at_s = time.time()
        for node, windows in now.items():
            moves += [(node, at_s, n + 1) for n in range(before.get(node, windows), windows)]
        before = now
        time.sleep(max(0.0, polled_s + POLL_S - time.time()))
    return moves


def _windows(url: str) -> dict[str, int]:
    """How many windows each node's counter holds."""
    found = {}
    for line in httpx.get(url, timeout=30.0).text.splitlines():
        if line.startswith("joulegram_energy_joules_total{"):
            labels, _, joules = line.rpartition(" ")
            found[labels] = round(float(joules) * 1e6 / ENERGY_UJ)
    return found


def main(argv: Sequence[str]) -> int:
    """By hand."""
    parser = argparse.ArgumentParser(prog="python -m bench.freshness")
    parser.add_argument("--streams", type=int, default=SHORT[0])
    parser.add_argument("--minutes", type=float, default=SHORT[1])
    told = parser.parse_args(argv)
    for name, p99_s in measure(told.streams, told.minutes).items():
        print(f"{name:14} {p99_s:6.2f} s after the close, p99; at most {LIMITS_S[name]:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
