"""The commands of docs/operations.md, "Backup and restore": the same integers afterwards."""

import os
import shutil
import subprocess
from pathlib import Path

from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.rollup import Rollup
from tests.clickhouse import USER, ClickhouseServer
from tests.collector.made_frames import energy_uj, frame
from tests.collector.test_rollup import EVER, NEWEST, expected, keep, slots
from tests.servers import need

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

# Slots before the rows they are made from, and rows before what their frames say besides:
# whatever lands meanwhile is then whole or does not count.
ORDER = (
    "slots",
    "totals",
    "rows",
    "devices",
    "reservations",
    "workloads",
    "intensity",
    "settings",
)
FRAMES = [frame(seq, gpu=True) for seq in range(1, 61)]


def held(ledger: Ledger) -> tuple[int, int]:
    """(frames, uJ), each frame once."""
    (found,) = ledger.query(
        "SELECT count() AS n, sum(uj) AS uj FROM (SELECT max(total_uj) AS uj FROM rows "
        "WHERE row = 0 GROUP BY node, epoch, seq)"
    ).to_pylist()
    return int(found["n"]), int(found["uj"])


def test_a_directory_that_is_copied_back_and_what_was_sent_since_again(tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    ledger = ChdbLedger(data)
    migrate(ledger)
    keep(ledger, FRAMES[:40])
    Rollup(ledger).refresh(*EVER)
    ledger.close()
    shutil.copytree(
        data, backup, symlinks=True
    )  # cp -a data backup, while the collector is stopped
    ledger = ChdbLedger(data)
    keep(ledger, FRAMES[40:])
    Rollup(ledger).refresh(*EVER)
    ledger.close()

    shutil.rmtree(data)
    shutil.copytree(backup, data, symlinks=True)
    ledger = ChdbLedger(data)
    assert migrate(ledger) == []
    assert held(ledger) == (40, energy_uj(FRAMES[:40]))
    keep(ledger, FRAMES[30:])  # `joulegram resend --since` sends more than is missing
    Rollup(ledger).refresh(*EVER)
    assert held(ledger) == (60, energy_uj(FRAMES))
    assert slots(ledger) == expected(FRAMES)
    ledger.close()


def run(script: str, server: ClickhouseServer, *words: str | Path) -> tuple[int, str]:
    """(exit status, what it said) of a script of deploy/, by the server's own client."""
    client = f"{need('clickhouse-client')} --port {server.port} --user {USER} "
    done = subprocess.run(
        [DEPLOY / script, *words],
        env={**os.environ, "CLIENT": f"{client} --password {server.password}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_server_is_backed_up_and_restored(clickhouse: ClickhouseServer, tmp_path: Path) -> None:
    data, backup = clickhouse.folder / "data", tmp_path / "backup"
    with clickhouse.database() as lost, clickhouse.database() as found:
        ledger = ClickhouseLedger(clickhouse.config(lost))
        migrate(ledger)
        keep(ledger, FRAMES[:40])
        Rollup(ledger).refresh(*EVER)
        status, said = run("ledger-backup", clickhouse, backup, lost, data)
        assert status == 0, said
        assert [line.partition(":")[0] for line in said.splitlines()] == list(ORDER)
        assert not list((data / "shadow").glob("joulegram*"))
        keep(ledger, FRAMES[40:])
        ledger.close()

        restored = ClickhouseLedger(clickhouse.config(found))
        migrate(restored)  # joulegram schema apply
        status, said = run("ledger-restore", clickhouse, backup, found, data)
        assert status == 0, said
        assert held(restored) == (40, energy_uj(FRAMES[:40]))
        assert slots(restored) == expected(FRAMES[:40])
        # Cut short and run again: what is there twice counts once for who reports.
        status, said = run("ledger-restore", clickhouse, backup, found, data)
        assert status == 0, said
        assert held(restored) == (40, energy_uj(FRAMES[:40]))
        (total,) = restored.query(
            f"SELECT sum(energy_uj) AS uj FROM (SELECT * FROM slots FINAL WHERE {NEWEST})"
        ).to_pylist()
        assert total["uj"] == energy_uj(FRAMES[:40])
        restored.execute("OPTIMIZE TABLE slots FINAL")  # for `slots` below, which reads without
        keep(restored, FRAMES[30:])
        Rollup(restored).refresh(*EVER)
        assert held(restored) == (60, energy_uj(FRAMES))
        assert slots(restored) == expected(FRAMES)
        restored.close()


def test_a_backup_of_nothing_does_not_look_like_one(
    clickhouse: ClickhouseServer, tmp_path: Path
) -> None:
    data, backup = clickhouse.folder / "data", tmp_path / "backup"
    with clickhouse.database() as database:
        status, said = run("ledger-backup", clickhouse, backup, database, data)
        assert status == 1 and "no ledger lies in" in said
        ledger = ClickhouseLedger(clickhouse.config(database))
        migrate(ledger)
        keep(ledger, FRAMES[:1])
        ledger.close()
        status, said = run("ledger-backup", clickhouse, backup, database, tmp_path)
        assert status == 1 and "<path>" in said
        assert not backup.exists()
        status, said = run("ledger-backup", clickhouse, backup, database, data)
        assert status == 0, said
        status, said = run("ledger-backup", clickhouse, backup, database, data)
        assert status != 0 and "exists" in said
        status, said = run("ledger-restore", clickhouse, tmp_path, database, data)
        assert status == 1 and "missing" in said
