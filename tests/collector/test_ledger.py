"""The embedded ledger: one owner, whole inserts, no server's leftovers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from joulegram.collector.errors import CollectorError, LedgerInUse
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.ledger import literal
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.writer import INSERT_MAX_ROWS

OPEN = """
import sys
from pathlib import Path
from joulegram.collector.errors import LedgerInUse
from joulegram.collector.ledger.chdb import ChdbLedger
try:
    ChdbLedger(Path(sys.argv[1]))
except LedgerInUse as exc:
    print(exc)
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ChdbLedger]:
    ledger = ChdbLedger(tmp_path / "ledger")
    migrate(ledger)
    yield ledger
    ledger.close()


def one(ledger: ChdbLedger, sql: str) -> object:
    return ledger.query(sql).to_pylist()[0]


def test_a_second_process_is_told_who_holds_it_and_what_to_do(tmp_path: Path) -> None:
    ledger = ChdbLedger(tmp_path / "ledger")
    try:
        ledger.execute("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
        ledger.insert("t", {"a": np.arange(3, dtype=np.uint64)})
        # The holder's pid, as a second process sees it: run this very check from another one.
        other = subprocess.run(
            [sys.executable, "-c", OPEN, str(tmp_path / "ledger")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert f"in use by process {os.getpid()}" in other.stdout
        assert "--data" in other.stdout
        assert one(ledger, "SELECT sum(a) AS s FROM t") == {"s": 3}
        with pytest.raises(LedgerInUse):
            ChdbLedger(tmp_path / "ledger")
    finally:
        ledger.close()
    again = ChdbLedger(tmp_path / "ledger")
    assert one(again, "SELECT count() AS n FROM t") == {"n": 3}
    again.close()


def test_closed_means_closed(tmp_path: Path) -> None:
    ledger = ChdbLedger(tmp_path / "ledger")
    assert ledger.close()
    with pytest.raises(CollectorError, match="stopping"):
        ledger.query("SELECT 1")


@pytest.mark.parametrize("command", ["sshd", "x" * 120])
def test_the_largest_insert_lands_as_one_part(ledger: ChdbLedger, command: str) -> None:
    """Whole or not at all: a kill between two parts would leave half a frame."""
    n = INSERT_MAX_ROWS
    ledger.execute("SYSTEM STOP MERGES rows")
    ledger.insert(
        "rows",
        {
            "node": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array(["n1"])),
            "window": np.full(n, 1_790_000_000, np.uint32),
            "epoch": np.ones(n, np.uint64),
            "seq": np.repeat(np.arange(n // 100, dtype=np.uint64), 100),
            "row": np.tile(np.arange(100, dtype=np.uint32), n // 100),
            "command": pa.array([f"{command}{i % 1000}" for i in range(n)]),
            "cpu_uj": np.random.default_rng(1).integers(0, 2**60, n).astype(np.uint64),
        },
    )
    parts = ledger.query(
        "SELECT rows, level FROM system.parts WHERE active AND table = 'rows' "
        "AND database = currentDatabase()"
    ).to_pylist()
    assert parts == [{"rows": n, "level": 0}]


def test_inserts_and_merges_are_synced_to_the_disk(ledger: ChdbLedger) -> None:
    for table in ("rows", "devices", "reservations", "workloads", "slots", "intensity", "settings"):
        created = ledger.query(f"SHOW CREATE TABLE {table}").to_pydict()["statement"][0]
        for setting in ("fsync_after_insert = 1", "fsync_part_directory = 1"):
            assert setting in created, table


def test_literals_come_back_as_they_were(ledger: ChdbLedger) -> None:
    for text in ("plain", "it's", "back\\slash", "\\' OR 1=1 --", "ü\u2028", '"`{x:String}'):
        assert one(ledger, f"SELECT {literal(text)} AS t") == {"t": text}
