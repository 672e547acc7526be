"""The command of a run: started, signalled, waited for, and nothing else between it and its user.

Its standard streams, terminal, process group and environment are those that it would have had;
JOULEGRAM_RUN is added. What it leaves behind is adopted (prctl(2), PR_SET_CHILD_SUBREAPER).
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>, Linux 3.4
SI_KERNEL = 0x80  # <asm-generic/siginfo.h>: from a terminal, which tells the command as well
FORWARDED = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
}
PYTHONS_OWN = [signal.SIGPIPE, signal.SIGXFSZ]  # ignored by Python, not by who started it
NOT_FOUND, NOT_STARTED = 127, 126  # as shells say it


@dataclass(frozen=True, slots=True)
class Ended:
    """How the command ended."""

    status: int  # as the shell gives it: 128 + the signal's number if one ended it
    signal: int  # 0: none
    waited_ns: int  # CPU time of all that was waited for


def adopt() -> bool:
    """Become the parent of what the command leaves behind."""
    try:
        return bool(ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def run(argv: Sequence[str], environ: Mapping[str, str], meter: int) -> Ended:
    """Run the command to its end.

    Args:
        meter: pid of a child whose time is not the command's; 0: there is none.
    Raises: OSError when it cannot be started.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mine = {*FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, mine)
    try:
        pid = os.posix_spawnp(
            argv[0], list(argv), environ, setsigmask=before, setsigdef=PYTHONS_OWN
        )
        waited_ns = 0
        while True:
            ended = _ended(meter)
            waited_ns += sum(child_ns for _, _, child_ns in ended)
            for child, status, _ in ended:
                if child == pid:
                    return _how(status, waited_ns)
            said = signal.sigwaitinfo(mine)
            if said.si_signo != signal.SIGCHLD and said.si_code != SI_KERNEL:
                with contextlib.suppress(OSError):  # it has just ended, or became another user
                    os.kill(pid, said.si_signo)
    finally:
        # What came for the command is not for us.
        while signal.sigtimedwait(FORWARDED, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended(meter: int) -> list[tuple[int, int, int]]:
    """Children that have ended: (pid, wait status, CPU time of it and of what it waited for)."""
    found: list[tuple[int, int, int]] = []
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid != meter:
            found.append((pid, status, round((usage.ru_utime + usage.ru_stime) * 1e9)))


def _how(status: int, waited_ns: int) -> Ended:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return Ended(128 + number, number, waited_ns)
    return Ended(os.WEXITSTATUS(status), 0, waited_ns)
