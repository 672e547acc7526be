"""Errors of the command line.

CliError              one line for a person; exit status 1
└── UsageError        what was asked cannot be understood or is not allowed; exit status 2

Every part's own errors carry `for_people = True` (and may carry `exit_status`), so that
main.py can print them as one line without importing the parts. Anything else is a fault of
ours and keeps its traceback.
"""


class CliError(Exception):
    """Says what is wrong, names the thing, and says what to do next."""

    for_people = True
    exit_status = 1


class UsageError(CliError):
    """A flag, a variable or a key of the configuration is not what it must be."""

    exit_status = 2
