"""`joulegram schema show|plan|apply`: where the ledger's schema stands, and bringing it on.

The embedded ledger is migrated by every start of the collector, since nobody else can have it
open. Servers are migrated here alone, under a lease, so that an operator chooses the moment.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from joulegram.collector.config import CollectorConfig
from joulegram.collector.errors import LedgerFailed, LedgerUnusable
from joulegram.collector.ledger import cluster as clusters
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.config import ClickhouseConfig
from joulegram.collector.ledger.lease import lease
from joulegram.collector.ledger.ledger import Ledger
from joulegram.collector.ledger.migrate import Plan, Step, migrate, plan
from joulegram.collector.retention import kept

HELP = "shows, plans and applies the ledger's schema"
TABLES = {"collector": CollectorConfig, "clickhouse": ClickhouseConfig}
WORDS = {
    "show": "the version of the ledger, what it holds and since when",
    "plan": "the statements that would bring it to the newest version",
    "apply": "run them, step by step; what is done already is not done again",
}


def run(word: str, collector: CollectorConfig, clickhouse: ClickhouseConfig) -> int:
    """Do what `word` says; the exit status.

    Raises: CollectorError: a ledger in use, servers that do not answer, a lease that is taken, a
        schema that this joulegram does not know.
    """
    try:
        with _opened(collector, clickhouse) as ledger:
            _do(word, ledger)
    except LedgerFailed as failed:
        if word != "apply":
            raise
        itself = ", see that each finds itself in `system.clusters` (docs/operations.md)"
        raise LedgerFailed(
            f"{failed}. What is done stays done: start every server"
            f"{clickhouse.cluster and itself}, then run `joulegram schema apply` again."
        ) from failed
    return 0


def _do(word: str, ledger: "_Opened") -> None:
    ahead = plan(ledger.ledger)
    print(f"{ledger.name}: schema version {ahead.version} of {ahead.newest}")
    if word == "apply":
        ahead.check_known()
        _apply(ledger, ahead)
    elif word == "plan":
        ahead.check_known()
        _show_steps(ahead)
    else:
        _show(ledger.ledger, ahead)


@dataclass(frozen=True, slots=True)
class _Opened:
    ledger: Ledger
    name: str
    leased: bool  # others may migrate it too


@contextlib.contextmanager
def _opened(collector: CollectorConfig, clickhouse: ClickhouseConfig) -> Iterator[_Opened]:
    if clickhouse.hosts:
        from joulegram.collector.ledger.clickhouse import ClickhouseLedger

        servers: Ledger = ClickhouseLedger(clickhouse)
        where = f"cluster {clickhouse.cluster}" if clickhouse.cluster else clickhouse.hosts[0]
        name = f"database {clickhouse.database} on {where}"
        opened = _Opened(servers, name, leased=True)
    else:
        data = collector.data.expanduser().absolute()
        # Opening makes one: to look is no reason to, least of all in a directory of other things.
        if not (data / "chdb").is_dir():
            raise LedgerUnusable(
                f"there is no ledger in {data}: name its directory with --data DIR, or its servers "
                "with --clickhouse-host HOST:PORT. The first start of a collector makes one."
            )
        os.chdir(data)  # importing chDB reads a config.xml of the current directory
        opened = _Opened(ChdbLedger(data), f"ledger {data}", leased=False)
    try:
        yield opened
    finally:
        opened.ledger.close()


def _apply(opened: _Opened, ahead: Plan) -> None:
    if not ahead.steps:
        print("nothing to do")
        return

    def say(step: Step) -> None:
        print(f"applying {step.name}: {len(step.statements)} statements", flush=True)

    if not opened.leased:
        done = migrate(opened.ledger, on_step=say)
        print(_done(done))
        return
    for statement in clusters.databases(opened.ledger.cluster, _database(opened)):
        opened.ledger.execute(statement)
    with lease(opened.ledger) as renew:

        def go_on(step: Step) -> None:
            renew()
            say(step)

        done = migrate(opened.ledger, on_step=go_on)
    print(_done(done))


def _done(versions: Sequence[int]) -> str:
    return f"applied {', '.join(map(str, versions))}" if versions else "somebody has just done it"


def _database(opened: _Opened) -> str:
    name: str = opened.ledger.query("SELECT currentDatabase() AS name")["name"][0].as_py()
    return name


def _show_steps(ahead: Plan) -> None:
    if not ahead.steps:
        print("nothing to do")
    for step in ahead.steps:
        print(f"\n-- {step.name}")
        for statement in step.statements:
            print(f"{statement};")


def _show(ledger: Ledger, ahead: Plan) -> None:
    server = ".".join(map(str, ahead.server))
    print(f"ClickHouse {server}")
    for one in ahead.applied:
        at = datetime.fromtimestamp(one.applied_at_ms / 1000, UTC)
        print(f"  {one.name}  applied {at:%Y-%m-%d %H:%M:%S} UTC")
    for step in ahead.steps:
        print(f"  {step.name}  missing: `joulegram schema apply`")
    for line in kept(ledger) if ahead.applied and not ahead.steps else ():
        print(line)
    sys.stdout.flush()
