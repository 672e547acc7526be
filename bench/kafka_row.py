"""What a row costs through Kafka, from gRPC bytes to durable, against the direct path.

Ours: CPU time of a `joulegram collector --role intake` and one `--role writer,grid,web` together,
with a real broker between them whose own CPU is not counted, as the ledger server's would not be.
Reference: the one process that takes the same frames directly, in the same run. Both are the
shipped program with chDB. When it merges is chance, as in collector_row: of three runs the middle
one counts. `python -m bench.kafka_row` runs once and prints the two sides too.
"""

import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench import collector_row as load
from bench._sending import send_all
from joulegram.collector.ledger.chdb import ChdbLedger
from tests.kafka import Broker, kafka_broker
from tests.servers import Program, joulegram, running, wait_until

NAME = "collector_row_kafka"
LIMIT = 1.8
PARTITIONS = 4
FRAMES_A_RECORD = 20  # at least; fewer would make it dearer
WITHIN_S = 240.0


def run() -> list[dict[str, Any]]:
    """Measure; one entry of build/bench.json, or none where Kafka cannot be had."""
    missing = [program for program in ("java", "mvn") if shutil.which(program) is None]
    if missing:
        print(f"bench: {NAME} is skipped: apt-get install openjdk-17-jre-headless maven")
        return []
    return [load.middle(_measure)]


def _measure() -> tuple[dict[str, Any], dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="joulegram-bench-") as name:
        folder = Path(name)
        now_ms = int(time.time() * 1000) // 300_000 * 300_000
        frames = load.FRAMES_PER_STREAM + load.WARM_UP_FRAMES
        start_ms = now_ms - frames * load.WINDOW_MS - 300_000
        direct_us, _, _ = load._collector(folder, str(start_ms))
        with kafka_broker(folder / "kafka") as broker:
            sides = asyncio.run(_through(folder, broker, start_ms))
        _check_stored(folder / "data")
    ours_us = sides["intake"] + sides["writer"]
    entry = {
        "name": NAME,
        "ratio": round(ours_us / direct_us, 3),
        "limit": LIMIT,
        "ours": round(ours_us, 3),
        "reference": round(direct_us, 3),
        "unit": "us CPU/row",
    }
    return entry, sides


@dataclass(frozen=True)
class _Process:
    """One of ours, and what it says of itself."""

    program: Program

    @property
    def cpu_s(self) -> float:
        return load._cpu_s(self.program.pid)

    def counted(self, name: str) -> float:
        url = self.program.said().partition("://")[2].split()[0]
        text = httpx.get(f"http://{url}/metrics", timeout=10.0).text
        return sum(float(one.split()[-1]) for one in text.splitlines() if one.startswith(name))


@contextlib.contextmanager
def _started(folder: Path, broker: Broker, role: str, *more: str | Path) -> Iterator[_Process]:
    config = folder / "joulegram.toml"
    config.write_text(
        f'[kafka]\nbrokers = ["{broker.address}"]\npartitions = {PARTITIONS}\n'
        "replication_factor = 1\nmin_insync_replicas = 1\n"
    )
    argv = joulegram(
        "collector", "--config", config, "--role", role, "--listen", "127.0.0.1:0",
        "--http", "127.0.0.1:0", "--neso-url", "", *more,
    )  # fmt: skip
    with running(argv, folder, name=role.partition(",")[0]) as program:
        wait_until(lambda: "http://" in program.said(), role, 60.0)
        yield _Process(program)


async def _through(folder: Path, broker: Broker, start_ms: int) -> dict[str, float]:
    """CPU per row of each side, us, and frames a record."""
    with (
        _started(folder, broker, "intake") as intake,
        _started(folder, broker, "writer,grid,web", "--data", folder / "data") as writer,
    ):
        address = intake.program.said().split("agents on ")[1].split(",")[0]
        rows = 0
        before: dict[str, float] = {}
        for first, count in ((1, load.WARM_UP_FRAMES), (1 + load.WARM_UP_FRAMES, 0)):
            count = count or load.FRAMES_PER_STREAM
            serialised = [
                [one.SerializeToString() for one in load._frames(node, first, count, start_ms)]
                for node in range(load.STREAMS)
            ]
            before = _state(intake, writer)
            await send_all(address, serialised)
            rows += load.STREAMS * count * load.ROWS_PER_FRAME
            async with asyncio.timeout(WITHIN_S):
                while writer.counted("joulegram_intake_rows_total") < rows:
                    await asyncio.sleep(0.5)
            await asyncio.sleep(load.SETTLE_S)
        after = _state(intake, writer)
    used = {name: after[name] - before[name] for name in before}
    a_record = used["frames"] / used["records"]
    assert a_record >= FRAMES_A_RECORD, f"only {a_record:.1f} frames a record"
    return {
        "intake": used["intake"] / load.ROWS * 1e6,
        "writer": used["writer"] / load.ROWS * 1e6,
        "frames a record": a_record,
    }


def _state(intake: _Process, writer: _Process) -> dict[str, float]:
    return {
        "records": intake.counted("joulegram_kafka_produced_records_total"),
        "frames": intake.counted("joulegram_kafka_produced_frames_total"),
        "intake": intake.cpu_s,
        "writer": writer.cpu_s,
    }


def _check_stored(data: Path) -> None:
    ledger = ChdbLedger(data)
    found = ledger.query("SELECT count() - sum(row = 0) AS n FROM rows FINAL").to_pylist()[0]["n"]
    ledger.close()
    assert found == load.ROWS + load.STREAMS * load.WARM_UP_FRAMES * load.ROWS_PER_FRAME, found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("bench.kafka_row takes no arguments")
    measured, of_sides = _measure()
    print(measured)
    for side, amount in of_sides.items():
        print(f"  {side:16s} {amount:8.3f}")
