"""`joulegram schema`: what it says, what it does, who may, and what a past ledger keeps."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulegram.collector import schema_command
from joulegram.collector.config import CollectorConfig
from joulegram.collector.errors import (
    LeaseTaken,
    LedgerFailed,
    LedgerUnusable,
    SchemaTooNew,
    SchemaTooOld,
)
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.config import ClickhouseConfig
from joulegram.collector.ledger.lease import LEASE_S, lease
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import SCHEMA, migrate, plan, watch
from joulegram.collector.rollup import Rollup
from tests.clickhouse import ClickhouseServer
from tests.collector.ledgers import KINDS, opened
from tests.collector.made_frames import frame
from tests.collector.test_rollup import EVER, expected, keep, slots
from tests.servers import joulegram

FILES = sorted(SCHEMA.glob("*.sql"))


@pytest.fixture(params=KINDS)
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """A ledger without a table."""
    with opened(request, request.param, tmp_path / "ledger") as made:
        yield made


@pytest.fixture(autouse=True)
def stay_here(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)


def past(tmp_path: Path, count: int) -> Path:
    """The schema as it was when it had so many files."""
    folder = tmp_path / f"schema{count}"
    folder.mkdir(parents=True)
    for file in FILES[:count]:
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("count", range(1, len(FILES)))
def test_a_past_ledger_keeps_its_data(bare: Ledger, tmp_path: Path, count: int) -> None:
    migrate(bare, past(tmp_path, count))
    with pytest.raises(SchemaTooOld, match="schema apply"):
        plan(bare).check_current()
    frames = [frame(seq, gpu=True) for seq in range(1, 40)]
    keep(bare, frames[:30])
    # As the roll-up of that time wrote it.
    bare.insert(
        "slots",
        {
            "node": ["n1"], "slot": [1_790_000_100], "generation": [1_790_000_400_000],
            "entry": ["frames"], "frames": [3], "frames_hash": [7],
        },
    )  # fmt: skip
    migrate(bare)
    plan(bare).check_current()
    keep(bare, frames[30:])
    Rollup(bare).refresh(*EVER)
    assert slots(bare) == expected(frames)


def test_a_writer_refuses_what_it_does_not_know(bare: Ledger, tmp_path: Path) -> None:
    future = past(tmp_path, len(FILES))
    (future / "9000_more.sql").write_text("CREATE TABLE IF NOT EXISTS m (a UInt8) ENGINE = Memory;")
    migrate(bare, future)
    with pytest.raises(SchemaTooNew, match="9000"):
        plan(bare).check_current()


def test_a_writer_that_runs_ends_when_it_does_not_know_the_schema_any_more(
    bare: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unanswering:
        failures = 2

        def query(self, sql: str) -> object:
            if self.failures:
                self.failures -= 1
                raise LedgerFailed("no server answers")
            return bare.query(sql)

        cluster = ""

    installed = past(tmp_path / "installed", len(FILES))
    monkeypatch.setattr("joulegram.collector.ledger.migrate.SCHEMA", installed)

    async def run() -> None:
        watching = asyncio.create_task(watch(Unanswering(), every_s=0.01))  # type: ignore[arg-type]
        await asyncio.wait({watching}, timeout=0.3)
        # An update of the program under way is none of the ledger.
        for file in installed.iterdir():
            file.unlink()
        await asyncio.wait({watching}, timeout=0.3)
        assert not watching.done()
        future = past(tmp_path, len(FILES))
        more = "CREATE TABLE IF NOT EXISTS m (a UInt8) ENGINE = Memory;"
        (future / "9000_more.sql").write_text(more)
        await asyncio.to_thread(migrate, bare, future)
        with pytest.raises(SchemaTooNew, match="9000"):
            async with asyncio.timeout(20.0):
                await watching

    migrate(bare)
    asyncio.run(run())


def test_show_plan_apply_of_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, none = CollectorConfig(data=tmp_path / "data"), ClickhouseConfig()
    with pytest.raises(LedgerUnusable, match="--data"):
        schema_command.run("show", config, none)
    ledger = ChdbLedger(config.data)
    migrate(ledger, past(tmp_path, 1))
    ledger.close()

    def said(word: str) -> str:
        assert schema_command.run(word, config, none) == 0
        return capsys.readouterr().out

    newest = len(FILES)
    assert f"schema version 1 of {newest}" in said("show")
    planned = said("plan")
    assert "-- 0002_totals" in planned and "CREATE TABLE IF NOT EXISTS totals" in planned
    assert "applying 0002_totals" in said("apply")
    shown = said("show")
    assert f"schema version {newest} of {newest}" in shown and "totals" in shown
    assert "nothing to do" in said("plan") and "nothing to do" in said("apply")


def test_looking_makes_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    for word in ("show", "plan", "apply"):
        with pytest.raises(LedgerUnusable, match=r"there is no ledger in .* --data"):
            schema_command.run(word, CollectorConfig(data=tmp_path), ClickhouseConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_server_is_migrated_by_apply_alone(
    clickhouse: ClickhouseServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with clickhouse.database() as name:
        toml = tmp_path / "joulegram.toml"
        toml.write_text(clickhouse.toml(name))

        def program(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                joulegram(*words, "--config", str(toml)),
                capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
            )  # fmt: skip

        collector = program("collector", "--data", "d", "--listen", "127.0.0.1:0", "--http",
                            "127.0.0.1:0")  # fmt: skip
        assert collector.returncode == 1 and "joulegram schema apply" in collector.stderr
        assert "applied 1, 2" in program("schema", "apply").stdout
        assert f"version {len(FILES)} of {len(FILES)}" in program("schema", "show").stdout
        wrong = program("schema")
        assert wrong.returncode == 2 and "show|plan|apply" in wrong.stderr


def test_of_many_who_want_the_lease_one_has_it(clickhouse: ClickhouseServer) -> None:
    with clickhouse.database() as name:
        one, other = (ClickhouseLedger(clickhouse.config(name)) for _ in range(2))
        now = [1000.0]
        with lease(one, holder="first", clock=lambda: now[0]) as renew:
            renew()
            second = lease(other, holder="second", clock=lambda: now[0])
            with pytest.raises(LeaseTaken, match="first"), second:
                raise AssertionError
            # The first hangs; its time is up, and when it comes back it is not the holder.
            now[0] += LEASE_S + 1
            second = lease(other, holder="second", clock=lambda: now[0])
            with second, pytest.raises(LeaseTaken, match="second"):
                renew()
        with lease(one, holder="third", clock=lambda: now[0]):  # given back
            pass
        left = one.query(
            "SELECT count() AS n FROM system.tables WHERE database = currentDatabase() "
            "AND name LIKE 'schema_lease%'"
        ).to_pylist()
        assert left[0]["n"] <= 4
        one.close()
        other.close()


def test_two_who_take_the_same_step_do_not_both_hold_it(clickhouse: ClickhouseServer) -> None:
    """Both saw the lease free; the second creates what is there already."""
    with clickhouse.database() as name:
        ledger = ClickhouseLedger(clickhouse.config(name))

        class Late:
            """Sees the lease as it was before the other took it."""

            exclusive, cluster = False, ""
            looked = 0

            def query(self, sql: str, params: None = None) -> object:
                found = ledger.query(sql)
                self.looked += 1
                return found.slice(0, 0) if self.looked == 1 else found

            def execute(self, sql: str) -> None:
                ledger.execute(sql)

        late = lease(Late(), holder="late")  # type: ignore[arg-type]
        with lease(ledger, holder="first"), pytest.raises(LeaseTaken, match="first"), late:
            raise AssertionError
        ledger.close()
