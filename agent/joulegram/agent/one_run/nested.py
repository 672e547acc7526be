"""Whether this process is inside another `joulegram run`, which counts it already.

The outer one leaves its name in JOULEGRAM_RUN. That may have travelled where the outer one's
descendants are not (a job submitted from inside a run takes its environment along), so that it
is believed only where the parents lead there, too.

Reads  /proc/<pid>/stat, /proc/self/ns/pid, /proc/sys/kernel/random/boot_id
"""

import os
from pathlib import Path

from joulegram.agent.one_run.lineage import DEPTH_MAX, stat_of

VARIABLE = "JOULEGRAM_RUN"
PROC = Path("/proc")


def name() -> str:
    """What JOULEGRAM_RUN says inside a run of this process."""
    stat = stat_of(PROC, os.getpid())
    return f"{_boot()}/{_namespace()}/{os.getpid()}/{stat.start_ticks if stat else 0}"


def outer(said: str) -> int | None:
    """Pid of the run that this process is inside of; None: of none.

    Args:
        said: the variable; "" where it is not set.
    """
    try:
        boot, namespace, pid, start = said.split("/")
        wanted = int(pid), int(start)
    except ValueError:
        return None
    if boot != _boot():
        return None
    if namespace != _namespace():  # a container of this machine: who is beyond it cannot be seen
        return wanted[0]
    at = os.getpid()
    for _ in range(DEPTH_MAX):
        stat = stat_of(PROC, at)
        if stat is None or at <= 0:
            return None
        if (at, stat.start_ticks) == wanted:
            return at
        at = stat.parent
    return None


def _boot() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str((PROC / "self/ns/pid").stat().st_ino)
    except OSError:
        return ""
