"""Every past schema reaches the same end."""

from pathlib import Path

import pytest

from joulegram.collector.errors import SchemaTooNew
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.migrate import SCHEMA, migrate, statements

FILES = sorted(SCHEMA.glob("*.sql"))
NEWEST = (99, 0)


def tables(ledger: ChdbLedger) -> dict[str, str]:
    found = ledger.query(
        "SELECT name, create_table_query AS q FROM system.tables "
        "WHERE database = currentDatabase() ORDER BY name"
    )
    return {row["name"]: row["q"] for row in found.to_pylist()}


def end(folder: Path) -> dict[str, str]:
    ledger = ChdbLedger(folder)
    migrate(ledger)
    made = tables(ledger)
    ledger.close()
    return made


@pytest.mark.parametrize("prefix", range(len(FILES) + 1))
def test_from_every_past_schema_to_the_same_end(tmp_path: Path, prefix: int) -> None:
    past = tmp_path / "past"
    past.mkdir()
    for file in FILES[:prefix]:
        (past / file.name).write_text(file.read_text())
    ledger = ChdbLedger(tmp_path / "old")
    assert migrate(ledger, past) == [int(f.name[:4]) for f in FILES[:prefix]]
    assert migrate(ledger) == [int(f.name[:4]) for f in FILES[prefix:]]
    assert migrate(ledger) == []
    made = tables(ledger)
    ledger.close()
    assert made == end(tmp_path / "fresh")


def test_a_kill_between_any_two_statements_is_made_good(tmp_path: Path) -> None:
    fresh = end(tmp_path / "fresh")
    todo = [s for file in FILES for s in statements(file.read_text(), NEWEST)]
    for done in range(1, len(todo) + 1):
        ledger = ChdbLedger(tmp_path / f"killed{done}")
        for statement in todo[:done]:
            ledger.execute(statement)
        migrate(ledger)
        assert tables(ledger) == fresh
        ledger.close()


def test_a_newer_ledger_is_left_alone(tmp_path: Path) -> None:
    future = tmp_path / "future"
    future.mkdir()
    for file in FILES:
        (future / file.name).write_text(file.read_text())
    (future / "9000_more.sql").write_text("CREATE TABLE IF NOT EXISTS m (a UInt8) ENGINE = Memory;")
    ledger = ChdbLedger(tmp_path / "ledger")
    migrate(ledger, future)
    before = tables(ledger)
    with pytest.raises(SchemaTooNew, match="9000"):
        migrate(ledger)
    assert tables(ledger) == before
    ledger.close()


def test_guards_and_comments() -> None:
    sql = """
    -- a comment; with a semicolon and a `/* >=20.1 guard */`
    CREATE TABLE t (a UInt8 /* >=20.1 CODEC(ZSTD(1)) */) /* >=21.1
      SETTINGS x = 1 */;
    """
    assert [" ".join(s.split()) for s in statements(sql, (18, 16))] == ["CREATE TABLE t (a UInt8 )"]
    (new,) = statements(sql, (21, 1))
    assert "CODEC(ZSTD(1))" in new and "SETTINGS x = 1" in new and "--" not in new


def test_the_oldest_server_is_asked_nothing_it_does_not_know() -> None:
    for file in FILES:
        for statement in statements(file.read_text(), (18, 16)):
            for unknown in ("CODEC", "SETTINGS", "INDEX", "TTL", "Map("):
                assert unknown not in statement
