"""Opens the ledger that the configuration names."""

import errno
import os
from pathlib import Path

from joulegram.collector.errors import LedgerUnusable
from joulegram.collector.ledger.chdb import ChdbLedger
from joulegram.collector.ledger.config import ClickhouseConfig
from joulegram.collector.ledger.ledger import Ledger


def open_ledger(data: Path, clickhouse: ClickhouseConfig) -> Ledger:
    """The servers of [clickhouse]; where it names none, the embedded ledger in `data`.

    Embedded, this process moves into `data`: importing chDB reads a config.xml of the current
    directory.
    Raises: LedgerUnusable, LedgerInUse; LedgerRefused, LedgerFailed, BadSetting.
    """
    if clickhouse.hosts:
        # Imported here: its driver brings pandas, which the embedded ledger does without.
        from joulegram.collector.ledger.clickhouse import ClickhouseLedger

        return ClickhouseLedger(clickhouse)
    try:
        data.mkdir(parents=True, exist_ok=True)
        os.chdir(data)
        if not os.access(data, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as denied:
        raise LedgerUnusable(
            f"cannot keep a ledger in {data}: {denied.strerror}. Make it a directory that this "
            "user may write, or name another with --data DIR."
        ) from denied
    return ChdbLedger(data)
