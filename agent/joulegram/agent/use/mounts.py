"""Which kind of filesystem a folder lies on: what the kernel promises of it.

Reads  /proc/self/mountinfo
Format https://docs.kernel.org/filesystems/proc.html, 3.5

A captured or played tree looks like procfs or cgroupfs and is not: its files need not agree
with each other at any moment.
"""

import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")


def filesystem(folder: Path, mounts: Path = MOUNTS) -> str:
    """Its type, such as "proc" or "cgroup2"; "" where nobody says."""
    try:
        device = folder.stat().st_dev
        lines = mounts.read_bytes().splitlines()
    except OSError:
        return ""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    for line in lines:
        mount, _, kind = line.partition(b" - ")
        if mount.split(b" ")[2:3] == [wanted]:
            return kind.partition(b" ")[0].decode(errors="replace")
    return ""


def is_kernels_procfs(folder: Path) -> bool:
    """Whether this is a procfs that shows this process by its own pid, its `stat` included.

    Containers may lay a file of their own over /proc/stat, and show processes of another pid
    namespace, whose numbers are not those in cgroup.procs.
    """
    try:
        same = (folder / "stat").stat().st_dev == folder.stat().st_dev
        own = str((folder / "self").readlink()) == str(os.getpid())
    except OSError:
        return False
    return same and own and filesystem(folder) == "proc"


def is_kernels_cgroup2(folder: Path) -> bool:
    return filesystem(folder) == "cgroup2"
