"""The commands of docs/operations.md, "Backup and restore": the same integers afterwards."""

import shutil
from pathlib import Path

from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.clickhouse import ClickhouseLedger
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import migrate
from joulegram.collector.rollup import Rollup
from tests.clickhouse import ClickhouseServer
from tests.collector.made_frames import energy_uj, frame
from tests.collector.test_rollup import EVER, expected, keep, slots

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


def test_partitions_of_a_server_that_are_frozen_and_attached(clickhouse: ClickhouseServer) -> None:
    data = clickhouse.folder / "data"
    with clickhouse.database() as lost, clickhouse.database() as found:
        ledger = ClickhouseLedger(clickhouse.config(lost))
        migrate(ledger)
        keep(ledger, FRAMES[:40])
        Rollup(ledger).refresh(*EVER)
        with clickhouse.client(lost) as client:
            for table in ORDER:
                for (partition,) in client.execute(
                    "SELECT DISTINCT partition_id FROM system.parts WHERE active "
                    f"AND database = '{lost}' AND table = '{table}'"
                ):
                    client.execute(f"ALTER TABLE {table} FREEZE PARTITION ID '{partition}'")
        backup = clickhouse.folder / "backup"
        shutil.move(data / "shadow", backup)
        keep(ledger, FRAMES[40:])
        ledger.close()

        restored = ClickhouseLedger(clickhouse.config(found))
        migrate(restored)  # joulegram schema apply
        with clickhouse.client(found) as client:
            for table in ORDER:
                detached = data / "data" / found / table / "detached"
                for part in sorted(backup.glob(f"*/data/{lost}/{table}/*")):
                    shutil.copytree(part, detached / part.name)
                    client.execute(f"ALTER TABLE {table} ATTACH PART '{part.name}'")
        assert held(restored) == (40, energy_uj(FRAMES[:40]))
        assert slots(restored) == expected(FRAMES[:40])
        keep(restored, FRAMES[30:])
        Rollup(restored).refresh(*EVER)
        assert held(restored) == (60, energy_uj(FRAMES))
        assert slots(restored) == expected(FRAMES)
        restored.close()
