"""Brings a ledger to the newest schema: numbered SQL files, forward only.

A kill may come between a statement and the record of its file, which is then applied again:
every statement in schema/ can be repeated (CREATE TABLE IF NOT EXISTS, ADD COLUMN IF NOT EXISTS).
The embedded ledger is migrated when it is opened, under the lock of its directory. Servers are
migrated by `joulegram schema apply` alone, under a lease.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from joulegram.collector.errors import CollectorError, SchemaTooNew, SchemaTooOld
from joulegram.collector.ledger.cluster import on_cluster
from joulegram.collector.ledger.ledger import Ledger, literal

WATCH_EVERY_S = 60.0
SCHEMA = Path(__file__).parent / "schema"

VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_versions (version UInt32, name String, applied_at_ms UInt64)
ENGINE = MergeTree ORDER BY version
/* >=21.1 SETTINGS fsync_after_insert = 1, fsync_part_directory = 1 */
"""

_GUARD = re.compile(r"/\*\s*>=(\d+)\.(\d+)\s(.*?)\*/", re.DOTALL)
_ADD = re.compile(
    r"(?P<alter>ALTER TABLE (?:(?P<database>\w+)\.)?(?P<table>\w+)(?: ON CLUSTER \S+)? ADD COLUMN)"
    r" IF NOT EXISTS (?P<definition>(?P<column>\w+) .*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Applied:
    """A version that the ledger has."""

    version: int
    name: str
    applied_at_ms: int


@dataclass(frozen=True, slots=True)
class Step:
    """One file that the ledger lacks, as this server would get it. Repeatable."""

    version: int
    name: str
    statements: Sequence[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a ledger stands, and the steps to the newest schema, in order."""

    server: tuple[int, int]
    newest: int  # that this joulegram knows
    applied: Sequence[Applied]
    steps: Sequence[Step]

    @property
    def version(self) -> int:
        """The greatest version the ledger has; 0: none."""
        return max((one.version for one in self.applied), default=0)

    def check_known(self) -> None:
        """Raises: SchemaTooNew when the ledger has versions that this joulegram does not know."""
        if self.version > self.newest:
            raise SchemaTooNew(
                f"the ledger has schema version {self.version}, this joulegram knows up to "
                f"{self.newest}. Start the joulegram that wrote it, or a newer one."
            )

    def check_current(self) -> None:
        """Raises: SchemaTooNew; SchemaTooOld when steps are missing."""
        self.check_known()
        if self.steps:
            raise SchemaTooOld(
                f"the ledger has schema version {self.version}, this joulegram writes "
                f"{self.newest}. Run `joulegram schema plan` and `joulegram schema apply` with "
                "the same configuration; a collector never migrates servers by itself."
            )


def plan(ledger: Ledger, schema: Path = SCHEMA) -> Plan:
    """What the ledger has and lacks; changes nothing."""
    server = server_version(ledger)
    applied: list[Applied] = []
    if ledger.query(
        "SELECT name FROM system.tables WHERE database = currentDatabase() "
        "AND name = 'schema_versions'"
    ).num_rows:
        found = ledger.query(
            "SELECT version, any(name) AS title, min(applied_at_ms) AS at_ms FROM schema_versions "
            "GROUP BY version ORDER BY version"
        ).to_pylist()
        applied = [Applied(row["version"], row["title"], row["at_ms"]) for row in found]
    files = _files(schema)
    database = _database(ledger)
    steps = [
        Step(
            version,
            files[version].stem,
            [
                made
                for statement in statements(files[version].read_text(), server)
                for made in on_cluster(statement, ledger.cluster, database)
            ],
        )
        for version in sorted(files.keys() - {one.version for one in applied})
    ]
    return Plan(server, _newest(schema), applied, steps)


def _files(schema: Path) -> dict[int, Path]:
    return {int(path.name.split("_")[0]): path for path in sorted(schema.glob("*.sql"))}


def _newest(schema: Path) -> int:
    return max(_files(schema), default=0)


def migrate(
    ledger: Ledger,
    schema: Path = SCHEMA,
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[int]:
    """Apply the files the ledger has not seen, in order, each recorded once it is done.

    Args:
        on_step: called before each step; what it raises ends the migration there.
    Returns: the versions applied.
    Raises: SchemaTooNew when the ledger has versions that `schema` does not.
    """
    ahead = plan(ledger, schema)
    ahead.check_known()
    if not ahead.steps:
        return []
    for statement in statements(VERSIONS, ahead.server):
        for made in on_cluster(statement, ledger.cluster, _database(ledger)):
            ledger.execute(made)
    for step in ahead.steps:
        on_step(step)
        for statement in step.statements:
            _execute(ledger, statement)
        ledger.insert(
            "schema_versions",
            {
                "version": np.array([step.version], np.uint32),
                "name": [step.name],
                "applied_at_ms": np.array([time.time_ns() // 1_000_000], np.uint64),
            },
        )
    return [step.version for step in ahead.steps]


async def watch(ledger: Ledger, every_s: float = WATCH_EVERY_S) -> None:
    """Never return while we know the version of a ledger that others may migrate.

    Raises: SchemaTooNew when somebody has brought it to one that this joulegram does not know.
    """
    # What runs here: the files may be a newer joulegram's by then, or gone while it is installed.
    newest = _newest(SCHEMA)
    while True:
        await asyncio.sleep(every_s)
        try:
            ahead = await asyncio.to_thread(plan, ledger)
        except (CollectorError, OSError):  # servers do not answer; whoever writes says so
            continue
        replace(ahead, newest=newest).check_known()


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


def _execute(ledger: Ledger, statement: str) -> None:
    """Run a statement. 18.16 knows no ADD COLUMN IF NOT EXISTS: we look first."""
    if add := _ADD.fullmatch(statement):
        database = literal(add["database"]) if add["database"] else "currentDatabase()"
        there = ledger.query(
            f"SELECT name FROM system.columns WHERE database = {database} "
            f"AND table = {literal(add['table'])} AND name = {literal(add['column'])}"
        )
        if there.num_rows:
            return
        statement = f"{add['alter']} {add['definition']}"
    ledger.execute(statement)


def _database(ledger: Ledger) -> str:
    name: str = ledger.query("SELECT currentDatabase() AS name")["name"][0].as_py()
    return name
