"""Errors of the collector.

CollectorError                    says what is wrong and what to do next
├── LedgerInUse                   another process holds the ledger directory
├── LedgerUnusable                the ledger directory cannot be written
├── LedgerFailed                  no ClickHouse server answers, or one could not do as asked
├── LedgerRefused                 a ClickHouse server does not let us in
├── SchemaTooNew                  the ledger was written by a newer joulegram
├── SchemaTooOld                  servers whose schema nobody has brought up to date
├── LeaseTaken                    somebody else migrates the servers
├── UnknownZone                   a grid zone that no table knows
├── BadSetting                    a value of the configuration that cannot hold
└── BadQuestion                   a report asked in a way that has no answer

Stages (joulegram.collector.stages) raise Busy and Poison.
"""


class CollectorError(Exception):
    """Says what is wrong, names the thing, and says what to do next."""

    for_people = True  # the command line prints it as one line


class LedgerInUse(CollectorError):
    """Another process holds the ledger directory."""


class LedgerUnusable(CollectorError):
    """The ledger directory cannot be made or written."""


class LedgerFailed(CollectorError):
    """A ClickHouse server failed; what was asked of it may have been done or not."""


class LedgerRefused(CollectorError):
    """A ClickHouse server answers and will not have this user, or lacks the database."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code  # the server's own


class SchemaTooNew(CollectorError):
    """The ledger was written by a newer joulegram than this one."""


class SchemaTooOld(CollectorError):
    """The servers lack a schema that this joulegram needs; `joulegram schema apply` brings it."""


class LeaseTaken(CollectorError):
    """Somebody else migrates the servers, or has taken over from us."""


class UnknownZone(CollectorError):
    """A grid zone that no table knows; the message lists the nearest names."""

    exit_status = 2


class BadSetting(CollectorError):
    """A configuration value that cannot hold; the message names the key and the remedy."""

    exit_status = 2


class BadQuestion(CollectorError):
    """A report asked in a way that has no answer; the message says what is accepted."""
