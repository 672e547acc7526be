"""A machine to be metered: a crowd of processes, in cgroups if so wished, and its counters."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ZONES = {"0": "package-0", "0:0": "dram", "1": "package-1", "1:0": "dram", "2": "psys"}
WATTS = {"package-0": 120.0, "package-1": 110.0, "dram": 15.0, "psys": 330.0}
# The idle ones are programs of their own: thousands of forked interpreters need gigabytes.
CODE = """
import os, subprocess, sys, time
total, busy = int(sys.argv[1]), int(sys.argv[2])
pids = []
for n in range(busy):
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(0.1)
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
    pids.append(pid)
for n in range(total - busy):
    pids.append(os.posix_spawnp("sleep", ["sleep", "86400"], os.environ))
print(*pids, flush=True)
signal = sys.stdin.readline()
"""


@contextlib.contextmanager
def crowd(total: int, busy: int) -> Iterator[list[int]]:
    """Pids of so many processes; the busy ones, first, use 1 % of a CPU each."""
    argv = [sys.executable, "-c", CODE, str(total), str(busy)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        try:
            assert parent.stdout is not None
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            if len(pids) != total:
                raise RuntimeError(f"of a crowd of {total} processes {len(pids)} started")
            yield pids
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


@contextlib.contextmanager
def cgroups(count: int) -> Iterator[tuple[Path, list[Path]]]:
    """A mounted cgroup v2 tree and so many services in it. Raises: PermissionError."""
    # No TemporaryDirectory: what it cleans up would be the machine's cgroups.
    folder = Path(tempfile.mkdtemp(prefix="joulegram-bench-"))
    mount = ["mount", "-t", "cgroup2", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        folder.rmdir()
        raise PermissionError("mounting a cgroup v2 tree takes root")
    top = folder / f"joulegram-bench-{os.getpid()}.slice"
    made = [top, *(top / f"bench{n}.service" for n in range(count))]
    try:
        for group in made:
            group.mkdir()
        yield folder, made[1:]
    finally:
        for group in reversed(made):
            _remove(group)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def spread(pids: Sequence[int], groups: Sequence[Path], busy: int, busy_groups: int) -> None:
    """As many processes in each cgroup, the busy ones in the first few."""
    for n, pid in enumerate(pids):
        group = groups[n % busy_groups if n < busy else n % len(groups)]
        (group / "cgroup.procs").write_text(str(pid))


def _remove(group: Path) -> None:
    for _ in range(100):
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:  # its processes are still ending
            time.sleep(0.1)


@contextlib.contextmanager
def counters() -> Iterator[Path]:
    """A sysfs of two packages, their memory and the platform, that draw power."""
    with tempfile.TemporaryDirectory(prefix="joulegram-bench-") as folder:
        zones = []
        for index, name in ZONES.items():
            zone = Path(folder, "class/powercap", f"intel-rapl:{index}")
            zone.mkdir(parents=True)
            (zone / "name").write_text(name + "\n")
            (zone / "max_energy_range_uj").write_text("262143328850\n")
            (zone / "energy_uj").write_text("100000000\n")
            zones.append((os.open(zone / "energy_uj", os.O_WRONLY), WATTS[name]))
        stop = threading.Event()

        def feed() -> None:
            began_s = time.monotonic()
            while not stop.wait(0.5):
                for file, watts in zones:
                    energy_uj = 100_000_000 + round(watts * (time.monotonic() - began_s) * 1e6)
                    os.pwrite(file, b"%d\n" % energy_uj, 0)  # at once: never torn

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            yield Path(folder)
        finally:
            stop.set()
            thread.join()
            for file, _ in zones:
                os.close(file)
