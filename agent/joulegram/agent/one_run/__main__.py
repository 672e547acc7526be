"""`joulegram run -- COMMAND`: meters one command and all that it starts; docs/one-run.md.

The command is this process's child and has all that it would have without it; the meter is
another child, which may fail without harm. Ranks of one job on a node share a meter, and the
last of them to end says the result for all. Imports little: there may be hundreds of ranks.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import BadSetting
from joulegram.agent.one_run import command, meeting, nested, ranks
from joulegram.agent.one_run.meeting import Late, Lost, Meeting
from joulegram.agent.textfile import printable

IDLE = ("separate", "include")
STARTS_WITHIN_S = 30.0  # a home directory far away, and all nodes of a job at once
SAYS_WITHIN_S = 30.0
UNSEEN_S, UNSEEN_SHARE = 1.0, 0.02  # more time without a meter is said
JOINS = 3  # the meter of other ranks may just be ending


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Flags of `joulegram run`."""

    output: Path | None = field(
        default=None,
        metadata={
            "help": "file for the result as JSON; of a job on several nodes each writes its own, "
            "with the node in its name"
        },
    )
    idle: str = field(
        default="separate",
        metadata={
            "help": "include: count what the machine drew idle meanwhile as the run's, where it "
            "had the machine for itself"
        },
    )
    quiet: bool = field(default=False, metadata={"help": "say nothing at the end"})
    apart: bool = field(
        default=False,
        metadata={"help": "meter even inside another joulegram run, which counts the same again"},
    )

    def __post_init__(self) -> None:
        """Raises: BadSetting."""
        if self.idle not in IDLE:
            raise BadSetting(f"--idle {printable(self.idle)[:40]!r}: {' or '.join(IDLE)}.")


HELP = (
    "meter one command and all that it starts; at the end joules, grams, and what was not metered"
)
TABLES = {
    "agent": AgentConfig,
    **{e.name: e.load() for e in entry_points(group="joulegram.tables", name="grid")},
}
OPTIONS = RunOptions
HOMELESS = True  # a uid that no database knows, in a container
REST = "COMMAND [ARGUMENT ...]"
FLAGS = {
    "agent": ("node", "sysfs", "procfs", "cgroupfs", "state", "idle_w", "tdp_w"),
    "grid": ("zone", "pue"),
}


def run(agent: AgentConfig, grid: Any, options: RunOptions, rest: Sequence[str]) -> int:
    """Run the command; its exit status, or 128 + the number of the signal that ended it."""
    outside = nested.outer(os.environ.get(nested.VARIABLE, ""))
    rank = ranks.rank_of(os.environ, os.getppid())
    if shutil.which(rest[0]) is None:
        _say(f"{printable(rest[0])}: no such command; is it on PATH, and executable?")
        return command.NOT_FOUND
    if outside is not None and not options.apart:
        if rank is None or rank.rank == 0:
            _say(f"metered already, by joulegram run (pid {outside}) around it")
        return _instead(rest)
    adopted = command.adopt()
    way, meter = _meter(agent, rank)
    environ = {**os.environ, nested.VARIABLE: nested.name()}
    began_s, began = time.monotonic(), datetime.now(UTC)
    try:
        ended = command.run(rest, environ, meter)
        ended_s = time.monotonic()
    except OSError as failed:
        return _not_started(rest[0], failed)
    try:
        document = _result(way, ended)
        if document is not None:
            document |= {
                "command": printable(Path(rest[0]).name),
                "began": began.isoformat(timespec="milliseconds"),
                # Of ranks, the time from the first one's beginning to the last one's end.
                "duration_s": round(ended_s - began_s, 3) if not rank else document["metered_s"],
                "exit_status": ended.status,
                "ended_how": _how(ended),
                "of_ranks": rank.size if rank else 0,
            }
            unmetered_s = document["duration_s"] - document["metered_s"]
            if unmetered_s > max(UNSEEN_S, UNSEEN_SHARE * document["duration_s"]):
                document["remarks"].append(f"{unmetered_s:.1f} s of the run were not metered.")
            if not adopted:
                document["remarks"].append("What the command left behind is not metered.")
            _finish(document, grid, options, rank)
    except KeyboardInterrupt:
        _say("interrupted before the result was there")
    except Lost as lost:
        _say(f"no result, the meter does not answer: {lost}")
    except Exception as fault:  # a fault of ours must not become the command's
        _say(f"no result: {type(fault).__name__}: {fault}. Please report this.")
    return ended.status


def _meter(agent: AgentConfig, rank: ranks.Rank | None) -> tuple[socket.socket | None, int]:
    """The way to a meter that is metering, and its pid if it is our child. None: there is none."""
    number = rank.rank if rank else None
    why = ""
    for attempt in range(JOINS):
        child = 0
        try:
            met = meeting.with_others(rank.job) if rank and attempt < JOINS - 1 else meeting.alone()
            child = _bring(agent, met)
            meeting.say(met.way, {"hello": 1, "rank": number})
            heard = meeting.hear(met.way, STARTS_WITHIN_S)
        except Late:
            _say("metering has not begun yet; the command starts, and is metered from when it has")
            return met.way, child
        except Lost as lost:
            why = str(lost)
            if child:
                return None, _unmetered(why, child)
            continue
        if "ready" in heard:
            return met.way, child
        why = str(heard.get("failed") or heard.get("refused") or "it is not ready")
        if child:
            return None, _unmetered(why, child)
        rank = rank if "refused" not in heard else None
    return None, _unmetered(why, 0)


def _unmetered(why: str, child: int) -> int:
    _say(f"the command is not metered: {why}")
    return child


def _bring(agent: AgentConfig, met: Meeting) -> int:
    """Start the meter where it is ours to bring; its pid, else 0."""
    if met.meter is None:
        return 0
    child = os.fork()
    if child == 0:
        _be_the_meter(agent, met.meter, met.listener)
    met.meter.close()
    if met.listener is not None:
        met.listener.close()
    return child


def _be_the_meter(agent: AgentConfig, first: socket.socket, listener: socket.socket | None) -> None:
    """Never returns. Holds nothing that the command's readers and launchers wait for."""
    status = 1
    try:
        os.setsid()
        for number in command.FORWARDED:
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for file in (0, 1, 2):
            os.dup2(null, file)
        kept = sorted({first.fileno(), *([listener.fileno()] if listener else [])})
        for low, high in zip([2, *kept], [*kept, 1 << 20], strict=True):
            os.closerange(low + 1, high)
        from joulegram.agent.one_run import metering

        metering.main(agent, first, listener)
        status = 0
    finally:
        os._exit(status)


def _result(way: socket.socket | None, ended: command.Ended) -> dict[str, Any] | None:
    """What the meter says; None where other ranks go on, or nothing was metered. Raises: Lost."""
    if way is None:
        return None
    meeting.say(way, {"ended": ended.status, "waited_ns": ended.waited_ns})
    while True:
        heard = meeting.hear(way, SAYS_WITHIN_S)
        if "ready" not in heard:  # which may have come too late to wait for
            break
    if why := heard.get("failed") or heard.get("refused"):
        raise Lost(str(why))
    found = heard.get("result")
    return found if isinstance(found, dict) else None


def _finish(
    document: dict[str, Any], grid: Any, options: RunOptions, rank: ranks.Rank | None
) -> None:
    """Grams, the file, the summary."""
    from joulegram.agent.one_run import result

    if options.idle == "include":
        result.with_idle(document)
    (value,) = entry_points(group="joulegram.intensity", name="yearly")
    intensity = value.load()(grid.zone, datetime.now(UTC).year)
    document["carbon"] = result.carbon(document["energy_uj"]["total"], grid.pue, intensity)
    if options.output is not None:
        path = options.output
        if rank is not None and rank.nodes != 1:
            node = document["node"].replace("/", "_")
            path = path.with_name(f"{path.stem}.{node}{path.suffix}")
        try:
            _write(path, document)
        except OSError as failed:
            _say(f"--output {path}: cannot be written: {failed.strerror}")
    if not options.quiet:
        from rich.console import Console

        from joulegram.agent.one_run.summary import show

        with contextlib.suppress(OSError):  # nobody listens
            show(document, Console(stderr=True, highlight=False))


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("x") as file:  # never through a link that another user made
            file.write(json.dumps(document, indent=2) + "\n")
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _instead(rest: Sequence[str]) -> int:
    """Become the command."""
    for number in command.PYTHONS_OWN:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(rest[0], list(rest))  # noqa: S606 - the user's own command
    except OSError as failed:
        return _not_started(rest[0], failed)


def _not_started(name: str, failed: OSError) -> int:
    # A shell would take such a file for a script of its own.
    remedy = "; begin a script with #!/bin/sh" if failed.errno == errno.ENOEXEC else ""
    _say(f"{printable(name)}: cannot be started: {failed.strerror}{remedy}")
    return command.NOT_STARTED


def _how(ended: command.Ended) -> str:
    if ended.signal:
        return f"ended by {signal.Signals(ended.signal).name}"
    return f"exit status {ended.status}"


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"joulegram run: {text}", file=sys.stderr, flush=True)  # noqa: T201
