"""What a row costs the collector, from gRPC bytes to durable, against a bare insert of it.

Ours: CPU time of the shipped `joulegram collector`, everything it does meanwhile included, while
8 streams send 200-row frames that another process has serialised before. Reference: CPU time of
a process that inserts the very same columns into chDB, with the same settings, the same schema,
as many inserts and as far apart, since what is merged depends on that. `python -m
bench.collector_row` prints the steps too.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench._sending import collector, send_all
from joulegram.collector import columns
from joulegram.collector.checked import Checked
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.packed import PackedFrame
from joulegram.collector.validate import validate_all
from joulegram.collector.writer import Store
from joulegram.v1.telemetry_pb2 import Device, Frame, Rows, Workload

LIMIT = 2.5
RUNS = 3  # the middle one counts: when the database merges is chance, on both sides
STREAMS = 8
FRAMES_PER_STREAM = 2_000  # enough for some twenty inserts, so that merges come on both sides
WARM_UP_FRAMES = 20
ROWS_PER_FRAME = 200
BURST_FRAMES = 64  # validated together
WORKLOADS_PER_FRAME = 30
WINDOW_MS = 10_000
ROWS = STREAMS * FRAMES_PER_STREAM * ROWS_PER_FRAME
SETTLE_S = 2.0  # without a merge: they are part of the price, on both sides
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def run() -> list[dict[str, Any]]:
    """Measure; one entry of build/bench.json."""
    return [middle(_measure)]


def middle(measure: Callable[[], tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    """Of the entries of so many runs, the one with the middle ratio."""
    entries = sorted((measure()[0] for _ in range(RUNS)), key=lambda entry: float(entry["ratio"]))
    return entries[RUNS // 2]


def _measure() -> tuple[dict[str, Any], dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="joulegram-bench-") as folder:
        # Aligned here once: both processes must make the same frames.
        now_ms = int(time.time() * 1000) // 300_000 * 300_000
        start_ms = str(now_ms - (FRAMES_PER_STREAM + WARM_UP_FRAMES) * WINDOW_MS - 300_000)
        ours_us, inserts, took_s = _collector(Path(folder), start_ms)
        folder_of_it = str(Path(folder) / "reference")
        said = _child("reference", folder_of_it, start_ms, str(inserts), str(took_s))
    steps: dict[str, float] = json.loads(said)
    reference_us = steps["insert"]
    rest_us = ours_us - sum(steps.values())
    entry = {
        "name": "collector_row_direct",
        "ratio": round(ours_us / reference_us, 3),
        "limit": LIMIT,
        "ours": round(ours_us, 3),
        "reference": round(reference_us, 3),
        "unit": "us CPU/row",
    }
    return entry, {**steps, "gRPC, acks, roll-up, rest": rest_us, "inserts": inserts}


def _child(*arguments: str) -> str:
    argv = [sys.executable, "-m", "bench.collector_row", *arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    return done.stdout.splitlines()[-1]


def _collector(folder: Path, start_ms: str) -> tuple[float, int, float]:
    """(CPU of the collector per row in us, inserts it made, in how many s)."""
    data = folder / "ours"
    with collector(folder, "--data", str(data)) as (pid, address):
        cpu_s, took_s = json.loads(_child("send", address, start_ms, str(pid)))
    ledger = ChdbLedger(data)
    found = ledger.query(
        "SELECT count() - sum(row = 0) AS n, uniqExact(landed_at_ms) AS inserts FROM rows"
    ).to_pylist()[0]
    ledger.close()
    assert found["n"] == ROWS + STREAMS * WARM_UP_FRAMES * ROWS_PER_FRAME, found
    inserts = found["inserts"] - 1  # one, or few, were the warm-up
    return cpu_s / ROWS * 1e6, inserts, took_s


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _frames(node: int, first: int, count: int, start_ms: int) -> list[Frame]:
    """Frames of a busy node: the same workloads in each, other numbers."""
    rng = np.random.default_rng(node * 100_000 + first)
    workloads = [Workload(scope=f"node{node}", kind=kind) for kind in ("idle", "system")]
    workloads += [
        Workload(
            scope="cluster",
            kind="slurm",
            id=str(node * 1000 + i),
            user=f"user{i % 7}",
            project=f"project{i % 3}",
            name=f"training-{i}",
        )
        for i in range(WORKLOADS_PER_FRAME - 2)
    ]
    command = [f"process-{i % 40}" for i in range(ROWS_PER_FRAME)]
    pid = np.arange(1, ROWS_PER_FRAME + 1, dtype="<u4").tobytes()
    start_ticks = rng.integers(1, 10**7, ROWS_PER_FRAME).astype("<u8").tobytes()
    frames = []
    for seq in range(first, first + count):
        workload = rng.integers(1, WORKLOADS_PER_FRAME, ROWS_PER_FRAME).astype("<u4")
        workload[0] = 0
        cpu = rng.integers(0, 10**7, ROWS_PER_FRAME).astype("<u8")
        dram = rng.integers(0, 10**6, ROWS_PER_FRAME).astype("<u8")
        devices = [
            Device(
                name=name,
                component=component,
                energy_uj=int(uj.sum()),
                idle_uj=int(uj[0]),
                raw_uj=int(uj.sum()),
                quality="measured",
                coverage=1.0,
            )
            for name, component, uj in (("cpu0", "cpu", cpu), ("dram0", "dram", dram))
        ]
        frames.append(
            Frame(
                node=f"node{node}",
                epoch=node + 1,
                seq=seq,
                window_start_ms=start_ms + seq * WINDOW_MS,
                window_ms=WINDOW_MS,
                devices=devices,
                workloads=workloads,
                rows=Rows(
                    workload=workload.tobytes(),
                    pid=pid,
                    start_ticks=start_ticks,
                    command=command,
                    cpu_uj=cpu.tobytes(),
                    dram_uj=dram.tobytes(),
                    cpu_ns=(cpu * 100).tobytes(),
                ),
                boot_id="b",
            )
        )
    return frames


async def _send(address: str, start_ms: int, collector_pid: int) -> tuple[float, float]:
    """CPU time of the collector and time until all is acknowledged, s; without the warm-up."""
    parts = [
        [
            [f.SerializeToString() for f in _frames(node, first, count, start_ms)]
            for node in range(STREAMS)
        ]
        for first, count in ((1, WARM_UP_FRAMES), (1 + WARM_UP_FRAMES, FRAMES_PER_STREAM))
    ]

    used_s = took_s = 0.0
    for part in parts:
        before_s, began_s = _cpu_s(collector_pid), time.monotonic()
        await send_all(address, part)
        took_s = time.monotonic() - began_s
        await asyncio.sleep(SETTLE_S)
        used_s = _cpu_s(collector_pid) - before_s
    return used_s, took_s


def _reference(folder: Path, start_ms: int, inserts: int, within_s: float) -> dict[str, float]:
    """CPU per row of a bare insert, and of each of our steps when it is alone, us."""
    ledger = ChdbLedger(folder)
    migrate(ledger)
    of_node = [
        [f.SerializeToString() for f in _frames(n, 1, FRAMES_PER_STREAM, start_ms)]
        for n in range(STREAMS)
    ]
    serialised = [one for same_seq in zip(*of_node, strict=True) for one in same_seq]
    now_ms = int(time.time() * 1000)
    store = Store(ledger, lambda: now_ms)
    steps: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        before_s = time.process_time()
        done = work(*arguments)
        steps[name] = steps.get(name, 0.0) + (time.process_time() - before_s) / ROWS * 1e6
        return done

    blocks, devices = [], []
    for group in _groups(len(serialised), inserts):
        packed = serialised[group]
        frames = timed("parse", lambda: list(map(PackedFrame.FromString, packed)))  # noqa: B023
        checked: list[Checked] = []
        for first in range(0, len(frames), BURST_FRAMES):
            burst = slice(first, first + BURST_FRAMES)
            nodes = [frame.node for frame in frames[burst]]
            arrived = list(zip(frames[burst], packed[burst], nodes, strict=True))
            checked += timed("validate", validate_all, arrived, now_ms, 90.0)
        hashes = timed("hash", lambda: [columns.hash_of(columns.content_of(f)) for f in frames])  # noqa: B023
        blocks.append(timed("columns", columns.of_rows, checked, hashes, now_ms))
        devices.append(timed("columns", columns.of_devices, checked))
        timed("look-up", store._look_up, checked)
    # Nothing else runs meanwhile: what merges cost, whenever they come, is in it.
    timed("insert", _insert_apart, ledger, blocks, within_s)
    for of_devices in devices:
        timed("devices", ledger.insert, "devices", of_devices)
    ledger.close()
    return steps


def _insert_apart(ledger: ChdbLedger, blocks: Sequence[Any], within_s: float) -> None:
    began_s = time.monotonic()
    for made, block in enumerate(blocks):
        time.sleep(max(0.0, began_s + within_s * made / len(blocks) - time.monotonic()))
        ledger.insert("rows", block)
    _await_merges(ledger)


def _await_merges(ledger: ChdbLedger) -> None:
    quiet_since_s = time.monotonic()
    while time.monotonic() - quiet_since_s < SETTLE_S:
        time.sleep(0.1)
        if ledger.query("SELECT count() AS n FROM system.merges")["n"][0].as_py():
            quiet_since_s = time.monotonic()


def _groups(count: int, parts: int) -> Iterator[slice]:
    for part in range(parts):
        yield slice(count * part // parts, count * (part + 1) // parts)


def main(argv: Sequence[str]) -> None:
    """Children of `run`, or by hand: the entry and the steps."""
    if not argv:
        entry, steps = _measure()
        print(entry, f"{steps.pop('inserts'):.0f} inserts")
        for name, us in steps.items():
            print(f"  {name:28s} {us:6.3f} us CPU/row  {us / entry['reference']:5.2f}")
    elif argv[0] == "send":
        print(json.dumps(asyncio.run(_send(argv[1], int(argv[2]), int(argv[3])))))
    else:
        print(json.dumps(_reference(Path(argv[1]), int(argv[2]), int(argv[3]), float(argv[4]))))


if __name__ == "__main__":
    main(sys.argv[1:])
