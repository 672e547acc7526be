"""The command `joulegram`: finds the sub-command, runs it, and speaks plainly when it fails.

Exit status: 0 done, 1 failed, 2 not understood, 130 after Ctrl-C, 141 when the reader of a
pipe went away.
"""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from joulegram.cli.errors import UsageError

PAGE = """\
joulegram: joules in, grams out. The energy and carbon of every process, workload and team.

  joulegram up         all of it on this machine; prints the address of the page

People
  joulegram run        meters one command and all it starts; joules and grams at the end
  joulegram top        live in the terminal: who draws the watts now
  joulegram report     energy and grams of a past time, by workload, user or team

Operators
  joulegram check      which sensors work here, which do not, why, and what to do
  joulegram agent      meters this node, sends to a collector
  joulegram collector  receives, keeps the ledger, asks the grid, serves page, API and /metrics
  joulegram resend     sent frames go to the collector again, after its ledger was restored
  joulegram schema     shows, plans and applies the schema of the ledger
  joulegram deadletter shows what could never be stored, and sends it again (Kafka)
  joulegram rewind     after a restore: writers read Kafka again from a time on
  joulegram simulate   a made-up site of nodes, jobs and teams, for demos and sizing
  joulegram config     every setting in force, and where it comes from

  joulegram COMMAND --help    what a command takes
  joulegram version           which joulegram this is
"""

# Commands of the CLI itself: modules with HELP and run(argv) -> exit status. Everything
# else is a part, found by its entry point. All are imported only when they are asked for.
OWN = {
    "up": "joulegram.cli.up",
    "top": "joulegram.cli.top",
    "report": "joulegram.cli.report",
    "config": "joulegram.cli.config",
}


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    _fill_streams()
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as failed:
        if failed.errno not in NO_ROOM or failed.filename is not None:
            raise
        _drop_output()
        print(f"joulegram: cannot write what there is to say: {failed.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as failed:
        if not getattr(failed, "for_people", False):
            raise
        print(f"joulegram: {failed}", file=sys.stderr)
        return int(getattr(failed, "exit_status", 1))


def _fill_streams() -> None:
    """Nothing else may become what a closed standard stream was: a spool, the way to a meter.

    Python's files close on exec, so a command that is run has its streams closed as they were.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


def _drop_output() -> None:
    """Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(PAGE, end="")
        return 0
    command, rest = words[0], words[1:]
    if command in ("version", "--version", "-V"):
        from importlib.metadata import version

        print(f"joulegram {version('joulegram')}")
        return 0
    if command in OWN:
        status: int = import_module(OWN[command]).run(rest)
        return status

    from joulegram.cli import parts
    from joulegram.cli.settings import nearest

    if command not in (names := parts.parts()):
        raise UsageError(f"no command {command}; {nearest(command, [*OWN, *names, 'version'])}")
    return parts.run(command, rest)


if __name__ == "__main__":
    sys.exit(main())
