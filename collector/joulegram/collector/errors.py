"""Errors of the collector.

CollectorError                    says what is wrong and what to do next
├── LedgerInUse                   another process holds the ledger directory
├── LedgerUnusable                the ledger directory cannot be written
├── SchemaTooNew                  the ledger was written by a newer joulegram
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


class SchemaTooNew(CollectorError):
    """The ledger was written by a newer joulegram than this one."""


class UnknownZone(CollectorError):
    """A grid zone that no table knows; the message lists the nearest names."""

    exit_status = 2


class BadSetting(CollectorError):
    """A configuration value that cannot hold; the message names the key and the remedy."""

    exit_status = 2


class BadQuestion(CollectorError):
    """A report asked in a way that has no answer; the message says what is accepted."""
