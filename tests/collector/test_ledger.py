"""What every ledger promises, embedded or on a server; and what only the embedded one does."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from joulegram.collector.errors import CollectorError, LedgerInUse, LedgerUnusable
from joulegram.collector.ledger.chdb import CONFIG, ChdbLedger
from joulegram.collector.ledger.ledger import Ledger, literal
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.writer import INSERT_MAX_ROWS
from tests.collector.carbon import TABLES
from tests.collector.ledgers import ledger

__all__ = ["ledger"]

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


def one(ledger: Ledger, sql: str) -> object:
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


def test_a_lock_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()  # or a file of another user
    with pytest.raises(LedgerUnusable, match=r"lock: Is a directory\. .* --data"):
        ChdbLedger(tmp_path)


def test_closed_means_closed(ledger: Ledger) -> None:
    assert ledger.close()
    for ask in (ledger.query, ledger.execute):
        with pytest.raises(CollectorError, match="stopping"):
            ask("SELECT 1")


@pytest.mark.parametrize("command", ["sshd", "x" * 120])
def test_the_largest_insert_lands_as_one_part(ledger: Ledger, command: str) -> None:
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


def test_inserts_and_merges_are_synced_to_the_disk(tmp_path: Path) -> None:
    ledger = ChdbLedger(tmp_path / "ledger")
    migrate(ledger)
    for table in (*TABLES, "schema_versions"):
        created = ledger.query(f"SHOW CREATE TABLE {table}").to_pydict()["statement"][0]
        for setting in ("fsync_after_insert = 1", "fsync_part_directory = 1"):
            assert setting in created, table
    ledger.close()


def test_the_oldest_server_syncs_nothing_and_nobody_claims_it(ledger: Ledger) -> None:
    """docs/operations.md says so; where it changes, the docs must too."""
    created = one(ledger, "SELECT create_table_query AS q FROM system.tables WHERE name = 'rows' "
                  "AND database = currentDatabase()")  # fmt: skip
    assert ("fsync" in str(created)) == ledger.exclusive


SAY_SETTINGS = """
import sys
from pathlib import Path
from joulegram.collector.ledger import chdb
chdb.CONFIG = Path(sys.argv[1])
ledger = chdb.ChdbLedger(Path(sys.argv[2]))
sql = "SELECT value FROM system.server_settings WHERE name = 'mark_cache_size'"
print(ledger.query(sql).column(0)[0].as_py())
"""


def test_its_settings_are_found_wherever_it_is_installed(tmp_path: Path) -> None:
    config = tmp_path / "joulegram-1.0+site 50%20" / "chdb.xml"
    config.parent.mkdir()
    shutil.copy(CONFIG, config)
    argv = [sys.executable, "-c", SAY_SETTINGS, str(config), str(tmp_path / "ledger")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{128 * 2**20}\n", done.stderr


def test_a_path_that_would_be_a_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnusable, match=r"question mark.*--data"):
        ChdbLedger(tmp_path / "what?mode=ro")
    assert not (tmp_path / "what").exists()


def test_many_merged_parts_are_removed_without_a_crowd_of_threads(tmp_path: Path) -> None:
    """Each would keep its memory for as long as the collector runs."""
    ledger = ChdbLedger(tmp_path / "ledger")

    def asked(sql: str) -> int:
        return int(ledger.query(sql).column(0)[0].as_py())

    try:
        ledger.execute(
            "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a SETTINGS "
            "old_parts_lifetime = 3, cleanup_delay_period = 1, max_cleanup_delay_period = 1, "
            "cleanup_delay_period_random_add = 0"
        )
        for number in range(200):
            ledger.insert("t", {"a": np.array([number], np.uint64)})
        ledger.execute("OPTIMIZE TABLE t FINAL")
        inactive = "SELECT count() FROM system.parts WHERE table = 't' AND NOT active"
        threads = "SELECT toUInt64(value) FROM system.metrics WHERE metric = 'GlobalThread'"
        crowd, before = asked(inactive), asked(threads)
        deadline_s = time.monotonic() + 60
        while asked(inactive) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        assert asked(inactive) == 0 < 100 < crowd
        assert asked(threads) < before + 20
        assert asked("SELECT sum(a) FROM t") == sum(range(200))
    finally:
        ledger.close()


def test_literals_come_back_as_they_were(ledger: Ledger) -> None:
    for text in ("plain", "it's", "back\\slash", "\\' OR 1=1 --", "ü\u2028", '"`{x:String}'):
        assert one(ledger, f"SELECT {literal(text)} AS t") == {"t": text}


def test_parameters_come_back_as_they_were_and_are_of_their_type(ledger: Ledger) -> None:
    odd = "it's {y:String} \\' \\N \t\n -- ü"
    asked = (
        "SELECT {x:String} AS x, '{x:String}' AS quoted, {n:UInt64} AS n, {f:Float64} AS f, "
        "toTypeName({n:UInt64}) AS of_n, toTypeName({small:UInt32}) AS of_small"
    )
    found = ledger.query(asked, {"x": odd, "n": 2**64 - 1, "f": 0.1, "small": 1})
    assert found.to_pylist() == [
        {
            "x": odd,
            "quoted": "{x:String}",
            "n": 2**64 - 1,
            "f": 0.1,
            "of_n": "UInt64",
            "of_small": "UInt32",
        }
    ]


@pytest.mark.parametrize("params", [{}, {"n": "1 OR 1 = 1"}])
def test_a_parameter_that_is_missing_or_of_another_type_is_refused(
    ledger: Ledger, params: dict[str, str]
) -> None:
    with pytest.raises(Exception, match=r"n:UInt32|Substitution|cannot be parsed"):
        ledger.query("SELECT 1 AS one WHERE {n:UInt32} = 1", params)


def test_every_type_goes_in_and_comes_out_the_same(ledger: Ledger) -> None:
    ledger.execute(
        "CREATE TABLE t (at DateTime('UTC'), code LowCardinality(String), text String, "
        "texts Array(String), maybe Nullable(UInt64), word Nullable(String), f Float64, b UInt8, "
        "n UInt64, i Int64) ENGINE = MergeTree ORDER BY n"
    )
    sent = {
        "at": np.array([0, 1_790_000_000, 2**32 - 1], np.uint32),
        "code": pa.DictionaryArray.from_arrays([1, 0, 1], ["never", "ü"]),
        "text": ["", "it's", "plain"],
        "texts": pa.array([["a", ""], [], ["ü"]], pa.list_(pa.string())),
        "maybe": pa.array([None, 2**64 - 1, 0], pa.uint64()),
        "word": [None, "", "w"],
        "f": [0.1, -1e300, 3.0],
        "b": np.array([True, False, True]),
        "n": pa.chunked_array([[0, 1], [2**63]], pa.uint64()),
        "i": [-(2**63), 0, 2**63 - 1],
    }
    ledger.insert("t", sent)
    found = ledger.query("SELECT * FROM t ORDER BY n")
    assert found.to_pydict() == {
        "at": [0, 1_790_000_000, 2**32 - 1],
        "code": ["ü", "never", "ü"],
        "text": ["", "it's", "plain"],
        "texts": [["a", ""], [], ["ü"]],
        "maybe": [None, 2**64 - 1, 0],
        "word": [None, "", "w"],
        "f": [0.1, -1e300, 3.0],
        "b": [1, 0, 1],
        "n": [0, 1, 2**63],
        "i": [-(2**63), 0, 2**63 - 1],
    }
    types = {
        "at": pa.uint32(),
        "code": pa.string(),
        "text": pa.string(),
        "maybe": pa.uint64(),
        "word": pa.string(),
        "f": pa.float64(),
        "b": pa.uint8(),
        "n": pa.uint64(),
        "i": pa.int64(),
    }
    for sql in ("SELECT * FROM t", "SELECT * FROM t WHERE n > 1000 AND n < 2000"):
        schema = ledger.query(sql).schema
        assert {name: schema.field(name).type for name in types} == types
        assert pa.types.is_list(schema.field("texts").type)


def test_a_failed_insert_raises_and_keeps_nothing(ledger: Ledger) -> None:
    ledger.execute("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
    with pytest.raises(Exception, match="No such column b"):
        ledger.insert("t", {"b": np.arange(3)})
    with pytest.raises(Exception, match="nowhere"):
        ledger.insert("nowhere", {"a": np.arange(3)})
    ledger.insert("t", {"a": np.arange(3, dtype=np.uint64)})
    assert one(ledger, "SELECT count() AS n, sum(a) AS s FROM t") == {"n": 3, "s": 3}


def test_threads_ask_and_write_at_once(ledger: Ledger) -> None:
    ledger.execute("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")

    def work(number: int) -> int:
        ledger.insert("t", {"a": np.full(10, number, np.uint64)})
        found = ledger.query("SELECT count() AS n FROM t WHERE a = {a:UInt64}", {"a": number})
        return int(found["n"][0].as_py())

    with ThreadPoolExecutor(24) as threads:
        assert list(threads.map(work, range(100))) == [10] * 100
    assert one(ledger, "SELECT count() AS n, sum(a) AS s FROM t") == {"n": 1000, "s": 49_500}
