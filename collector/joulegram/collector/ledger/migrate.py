"""Brings a ledger to the newest schema: numbered SQL files, forward only.

A kill may come between a statement and the record of its file, which is then applied again:
every statement in schema/ can be repeated (CREATE TABLE IF NOT EXISTS, ADD COLUMN IF NOT EXISTS).
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from joulegram.collector.errors import SchemaTooNew
from joulegram.collector.ledger.ledger import Ledger

SCHEMA = Path(__file__).parent / "schema"

VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_versions (version UInt32, name String, applied_at_ms UInt64)
ENGINE = MergeTree ORDER BY version
/* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1 */
"""

_GUARD = re.compile(r"/\*\s*>=(\d+)\.(\d+)\s(.*?)\*/", re.DOTALL)


def migrate(ledger: Ledger, schema: Path = SCHEMA) -> list[int]:
    """Apply the files the ledger has not seen, in order.

    Returns: the versions applied.
    Raises: SchemaTooNew when the ledger has versions that `schema` does not.
    """
    server = server_version(ledger)
    for statement in statements(VERSIONS, server):
        ledger.execute(statement)
    files = {int(path.name.split("_")[0]): path for path in sorted(schema.glob("*.sql"))}
    seen = set(ledger.query("SELECT version FROM schema_versions")["version"].to_pylist())
    if unknown := seen - files.keys():
        raise SchemaTooNew(
            f"the ledger has schema version {max(unknown)}, this joulegram knows up to "
            f"{max(files)}. Start the joulegram that wrote it, or a newer one."
        )
    missing = sorted(files.keys() - seen)
    for version in missing:
        for statement in statements(files[version].read_text(), server):
            ledger.execute(statement)
        ledger.insert(
            "schema_versions",
            {
                "version": np.array([version], np.uint32),
                "name": [files[version].stem],
                "applied_at_ms": np.array([time.time_ns() // 1_000_000], np.uint64),
            },
        )
    return missing


def server_version(ledger: Ledger) -> tuple[int, int]:
    """(major, minor) of the ClickHouse that answers."""
    text: str = ledger.query("SELECT version() AS version")["version"][0].as_py()
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def statements(sql: str, server: tuple[int, int]) -> Iterator[str]:
    """The statements of a file as this server understands them.

    `-- ...` is a comment; `/* >=20.1 TEXT */` is TEXT from server 20.1 on and nothing before.
    """

    def guarded(match: re.Match[str]) -> str:
        return match[3] if server >= (int(match[1]), int(match[2])) else ""

    plain = _GUARD.sub(guarded, re.sub(r"--[^\n]*", "", sql))
    for statement in plain.split(";"):
        if statement.strip():
            yield statement.strip()
