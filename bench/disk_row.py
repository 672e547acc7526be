"""Bytes on disk per row of a process, in the ledger's newest schema, on a simulated site.

The rows of 20 nodes over 3 hours of a working day in 10 s windows, written by `joulegram simulate`
and merged. Reference: the most it may be. Beside it, what the last change of codecs costs: CPU of
inserting the very same columns into a table with the codecs of 0001, and with today's.
`python -m bench.disk_row` prints a table by column; `--codecs` also tries the candidates.
"""

# ruff: noqa: S608  (our own names)

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.migrate import SCHEMA, server_version, statements

LIMIT_BYTES = 10.0
SITE = ("--nodes", "20", "--hours", "3", "--since", "2026-09-28T11:00", "--seed", "1")
ROUNDS = 5  # inserts of each, in turns

NUMBERS = (
    "ZSTD(1)", "ZSTD(3)", "ZSTD(6)", "T64, ZSTD(1)", "T64, ZSTD(3)", "T64('bit'), ZSTD(1)",
    "Delta, ZSTD(1)", "DoubleDelta, ZSTD(1)", "Gorilla, ZSTD(1)", "GCD, ZSTD(1)",
    "GCD, T64, ZSTD(1)",
)  # fmt: skip
TEXTS = ("LZ4", "ZSTD(1)", "ZSTD(3)")
ORDER = "ORDER BY node, window, epoch, seq, row"


def run() -> list[dict[str, Any]]:
    """Measure; two entries of build/bench.json."""
    found = json.loads(_child())
    show(found)
    return [
        {
            "name": "disk_row",
            "ratio": round(found["bytes"] / LIMIT_BYTES, 3),
            "limit": 1.0,
            "ours": round(found["bytes"], 3),
            "reference": LIMIT_BYTES,
            "unit": "bytes on disk/row",
        },
        {
            "name": "disk_row_insert",
            "ratio": round(found["insert_us"] / found["insert_first_us"], 3),
            "limit": 1.15,
            "ours": round(found["insert_us"], 3),
            "reference": round(found["insert_first_us"], 3),
            "unit": "us CPU/row, bare insert",
        },
    ]


def _child(*arguments: str) -> str:
    with tempfile.TemporaryDirectory(prefix="joulegram-bench-") as folder:
        argv = [sys.executable, "-m", "joulegram.cli.main", "simulate", *SITE]
        argv += ["--window", "10", "--data", folder]
        subprocess.run(argv, cwd=folder, stdout=subprocess.DEVNULL, timeout=400, check=True)
        # A process of its own: one process holds one ledger directory.
        argv = [sys.executable, "-m", "bench.disk_row", "--in", folder, *arguments]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=400, check=True)
    return done.stdout.splitlines()[-1]


def _measure(ledger: ChdbLedger, codecs: bool) -> dict[str, Any]:
    ledger.execute("OPTIMIZE TABLE rows FINAL")
    counted = _one(ledger, "SELECT sum(row > 0) AS rows, sum(row = 0) AS frames FROM rows")
    rows = counted["rows"]
    parts = "active AND table = 'rows' AND database = currentDatabase()"
    columns = ledger.query(
        "SELECT column, sum(column_data_compressed_bytes) AS size, "
        "sum(column_data_uncompressed_bytes) AS plain FROM system.parts_columns "
        f"WHERE {parts} GROUP BY column ORDER BY size DESC, column"
    ).to_pylist()
    whole = _one(ledger, f"SELECT sum(bytes_on_disk) AS size FROM system.parts WHERE {parts}")
    kinds = {
        row["name"]: (row["type"], row["codec"])
        for row in ledger.query(
            "SELECT name, type, compression_codec AS codec FROM system.columns "
            "WHERE table = 'rows' AND database = currentDatabase()"
        ).to_pylist()
    }
    found = {
        **counted,
        "bytes": whole["size"] / rows,
        "columns": [
            {
                "column": row["column"],
                "codec": kinds[row["column"]][1].removeprefix("CODEC") or "(LZ4)",
                "bytes": row["size"] / rows,
                "plain": row["plain"] / rows,
            }
            for row in columns
        ],
        **_insert_cost(ledger),
    }
    if codecs:
        found["tried"] = {name: _try(ledger, name, kind, rows) for name, (kind, _) in kinds.items()}
    return found


def _insert_cost(ledger: ChdbLedger) -> dict[str, float]:
    """CPU of a bare insert per row: codecs of 0001, and today's."""
    server = server_version(ledger)
    first = next(iter(statements((SCHEMA / "0001_ledger.sql").read_text(), server)))
    ledger.execute(first.replace("EXISTS rows", "EXISTS rows_first"))
    ledger.execute("CREATE TABLE rows_now AS rows")
    block = ledger.query(f"SELECT * FROM rows {ORDER} LIMIT 200000")
    columns = {name: block[name].combine_chunks() for name in block.column_names}
    used = {"rows_first": 0.0, "rows_now": 0.0}
    for turn in range(ROUNDS + 1):
        for table in used:
            before_s = time.process_time()
            ledger.insert(table, columns)
            if turn:  # the first warms up
                used[table] += time.process_time() - before_s
            ledger.execute(f"TRUNCATE TABLE {table}")
    each = {table: s / ROUNDS / block.num_rows * 1e6 for table, s in used.items()}
    return {"insert_first_us": each["rows_first"], "insert_us": each["rows_now"]}


def _try(ledger: ChdbLedger, column: str, kind: str, rows: int) -> dict[str, float]:
    """Bytes per row of a column alone, by codec; what a codec cannot hold is left out."""
    sizes = {}
    for codec in TEXTS if kind.startswith("LowCardinality") else NUMBERS:
        ledger.execute("DROP TABLE IF EXISTS tried")
        try:
            ledger.execute(
                f"CREATE TABLE tried (x {kind} CODEC({codec})) ENGINE = MergeTree "
                "ORDER BY tuple() SETTINGS min_bytes_for_wide_part = 0"
            )
        except RuntimeError:
            continue
        ledger.execute(f"INSERT INTO tried SELECT {column} FROM rows {ORDER}")
        ledger.execute("OPTIMIZE TABLE tried FINAL")
        size = _one(
            ledger,
            "SELECT sum(column_data_compressed_bytes) AS size FROM system.parts_columns "
            "WHERE active AND table = 'tried'",
        )["size"]
        sizes[codec] = size / rows
    return sizes


def _one(ledger: ChdbLedger, sql: str) -> dict[str, Any]:
    row: dict[str, Any] = ledger.query(sql).to_pylist()[0]
    return row


def show(found: Mapping[str, Any]) -> None:
    """The table by column, on stderr: stdout is for the ratios."""
    table = Table(
        "column", "codec", "bytes/row", "of plain",
        title=f"{found['rows']:,} rows in {found['frames']:,} frames: "
        f"{found['bytes']:.2f} bytes/row; bare insert {found['insert_us']:.3f} us CPU/row, with "
        f"the codecs of 0001 {found['insert_first_us']:.3f}",
    )  # fmt: skip
    for row in found["columns"]:
        table.add_row(row["column"], row["codec"], f"{row['bytes']:.3f}", f"{row['plain']:.2f}")
    rest = found["bytes"] - sum(row["bytes"] for row in found["columns"])
    table.add_row("marks, index, checksums", "", f"{rest:.3f}", "")
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 110)
    console.print(table)
    for column, sizes in found.get("tried", {}).items():
        best = sorted(sizes.items(), key=lambda pair: pair[1])[:5]
        console.print(f"{column}: " + ", ".join(f"{c} {size:.3f}" for c, size in best))


def main(argv: Sequence[str]) -> None:
    """By hand: the table; or a child of `run`."""
    if argv[:1] == ["--in"]:
        ledger = ChdbLedger(Path(argv[1]))
        print(json.dumps(_measure(ledger, "--codecs" in argv)))
        ledger.close()
    else:
        show(json.loads(_child(*argv)))


if __name__ == "__main__":
    main(sys.argv[1:])
