"""`make chaos`, its short form: joules sent = joules stored, whatever is broken meanwhile."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kafka import jars
from tests.servers import need

ROOT = Path(__file__).resolve().parents[2]


def chaos(shape: str, seed: int, seconds: float, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """What a run printed, and its table."""
    table = folder / "chaos.json"
    argv = [sys.executable, "-m", "chaos", "--shape", shape, "--seed", str(seed)]
    argv += ["--minutes", str(seconds / 60), "--json", str(table), "--keep", str(folder / "run")]
    done = subprocess.run(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    found: list[dict[str, Any]] = json.loads(table.read_text())
    return done.stdout, found


def check(said: str, table: list[dict[str, Any]], least_faults: int) -> None:
    assert "nothing lost, nothing doubled" in said
    faults = [
        row for row in table if "frames" not in row["fault"] and "sending" not in row["fault"]
    ]
    assert sum(row["times"] for row in faults) >= least_faults
    for row in table:
        assert row["sent_uj"] == row["stored_uj"], row
        assert row["lost_uj"] == row["doubled_uj"] == 0, row
    assert sum(row["sent_uj"] for row in faults) > 0
    repeated = next(row for row in table if row["fault"] == "repeated and shuffled frames")
    assert repeated["times"] > 0 < repeated["sent_uj"]


@pytest.mark.timeout(600)
def test_direct(tmp_path: Path) -> None:
    said, table = chaos("direct", 307, 30, tmp_path)
    check(said, table, 5)


@pytest.mark.timeout(600)
def test_through_kafka(tmp_path: Path) -> None:
    need("java")
    need("clickhouse-server")
    jars()
    said, table = chaos("kafka", 302, 32, tmp_path)
    check(said, table, 5)
