"""What a row costs the collector when a ClickHouse server keeps it, against a bare insert of it.

Ours: CPU time of the shipped `joulegram collector` with [clickhouse] hosts, everything it does
meanwhile included, from gRPC bytes to durable rows; the load is collector_row's. Reference: CPU
time of a client that inserts the very same columns, read back from the server, through
clickhouse-driver's own columnar insert (numpy), in as many inserts of the same rows. What the
server spends is in neither. `python -m bench.driver_row` prints our own insert of them too.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_driver import Client

from bench import collector_row as load
from bench._sending import collector
from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.migrate import migrate
from tests.clickhouse import USER, ClickhouseServer

LIMIT = 3.5
OURS, THEIRS, AGAIN = "ours", "reference", "again"


def run() -> list[dict[str, Any]]:
    """Measure; one entry of build/bench.json, none where clickhouse-server is missing."""
    entry = _measure()
    return [] if entry is None else [entry[0]]


def _measure() -> tuple[dict[str, Any], dict[str, float]] | None:
    if shutil.which("clickhouse-server") is None:
        print("bench: collector_row_driver is skipped: apt-get install clickhouse-server")
        return None
    with tempfile.TemporaryDirectory(prefix="joulegram-bench-") as folder:
        server = ClickhouseServer(Path(folder) / "clickhouse")
        with server.running():
            for database in (OURS, THEIRS, AGAIN):
                ledger = ClickhouseLedger(server.config(database))
                migrate(ledger)
                ledger.close()
            ours_us = _collector(server, Path(folder))
            blocks = _blocks(server)
            assert sum(len(block["row"]) for block in blocks) == load.ROWS + (
                load.STREAMS * load.FRAMES_PER_STREAM
            ), "a row of ours is missing, or there twice"
            reference_us = _bare(server, blocks)
            own_insert_us = _own(server, blocks)
    entry = {
        "name": "collector_row_driver",
        "ratio": round(ours_us / reference_us, 3),
        "limit": LIMIT,
        "ours": round(ours_us, 3),
        "reference": round(reference_us, 3),
        "unit": "us CPU/row",
    }
    return entry, {"our insert alone": own_insert_us, "inserts": len(blocks)}


def _collector(server: ClickhouseServer, folder: Path) -> float:
    """CPU of the collector per row, us."""
    start_ms = int(time.time() * 1000) // 300_000 * 300_000 - 300_000
    start_ms -= (load.FRAMES_PER_STREAM + load.WARM_UP_FRAMES) * load.WINDOW_MS
    config = folder / "joulegram.toml"
    config.write_text(server.toml(OURS))
    flags = ("--config", str(config), "--data", str(folder / "data"))
    with collector(folder, *flags) as (pid, address):
        cpu_s, _ = json.loads(load._child("send", address, str(start_ms), str(pid)))
    return float(cpu_s) / load.ROWS * 1e6


def _blocks(server: ClickhouseServer) -> list[dict[str, pa.ChunkedArray]]:
    """The rows of ours, insert by insert, without those of the warm-up."""
    ledger = ClickhouseLedger(server.config(OURS, query_max_bytes=20_000_000_000))
    whole = ledger.query(
        "SELECT * FROM rows WHERE seq > {warm_up:UInt64}", {"warm_up": load.WARM_UP_FRAMES}
    )
    landed = whole["landed_at_ms"]
    blocks = []
    for ms in sorted(set(landed.to_pylist())):
        block = whole.filter(pc.equal(landed, ms))
        blocks.append({name: block[name] for name in block.column_names})
    ledger.close()
    return blocks


def _bare(server: ClickhouseServer, blocks: Sequence[dict[str, pa.ChunkedArray]]) -> float:
    """CPU per row of the driver's own columnar insert, us. Its arrays are made before."""
    client = Client(
        server.host,
        server.port,
        database=THEIRS,
        user=USER,
        password=server.password,
        settings={"use_numpy": True, "allow_experimental_low_cardinality_type": 1},
    )
    arrays = [
        [np.array(column.to_pylist(), object) if _is_text(column) else column.to_numpy()
         for column in block.values()]
        for block in blocks
    ]  # fmt: skip
    names = ", ".join(blocks[0])

    def insert(columns: Sequence[Any]) -> None:
        client.execute(f"INSERT INTO rows ({names}) VALUES", columns, columnar=True)

    insert([column[:1000] for column in arrays[0]])
    spent = sum(_timed(insert, columns) for columns in arrays)
    client.disconnect()
    return spent / sum(len(block["row"]) for block in blocks) * 1e6


def _own(server: ClickhouseServer, blocks: Sequence[dict[str, pa.ChunkedArray]]) -> float:
    """CPU per row of our insert of the same, us, from the columns that the writer makes."""
    ledger = ClickhouseLedger(server.config(AGAIN))
    made = [
        {name: column.combine_chunks().dictionary_encode() if _is_text(column)
         else column.to_numpy() for name, column in block.items()}
        for block in blocks
    ]  # fmt: skip
    spent = sum(_timed(lambda columns: ledger.insert("rows", columns), block) for block in made)
    ledger.close()
    return spent / sum(len(block["row"]) for block in blocks) * 1e6


def _is_text(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_string(column.type))


def _timed(work: Callable[[Any], None], argument: Any) -> float:
    before_s = time.process_time()
    work(argument)
    return time.process_time() - before_s


if __name__ == "__main__":
    measured = _measure()
    if measured:
        entry, steps = measured
        print(entry, f"{steps['inserts']:.0f} inserts")
        print(f"  our insert alone {steps['our insert alone']:6.3f} us CPU/row")
