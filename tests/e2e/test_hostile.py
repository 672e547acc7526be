"""What unprivileged neighbours may do to the shipped agent on a real kernel, and what it spends.

Every attack runs beside a bystander in a service of its own, whose joules must stay right, and
the agent's CPU time under it has a bound, in CPUs, far above what was measured (in brackets, on
2 CPUs) and far below what an agent without bounds would take.
"""

import bisect
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.agent.played import Machine
from tests.e2e.test_agent_program import fed

TICK_S = 0.5
FRAMES = 4
ENTER = """
import ctypes, os, sys, time
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
"""
BYSTANDER = """
while True:
    until = time.process_time() + 0.02
    while time.process_time() < until: pass
    time.sleep(0.05)
"""
POD = "6b2f7f3e-9d44-4f6b-8a3e-0c7d6f2f1a11"
NOBODY = "os.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
# No interpreter between forks: thousands a second, so that pids come round.
STORM = """
libc = ctypes.CDLL(None)
while True:
    if libc.fork() == 0:
        libc._exit(0)
    libc.waitpid(-1, None, 0)
"""
SHORT_LIVED = """
while True:
    if os.fork() == 0:
        until = time.process_time() + 0.05
        while time.process_time() < until: pass
        os._exit(0)
    os.wait()
"""
LINGERING = """
libc = ctypes.CDLL(None)
for _ in range(3000):
    if libc.fork() == 0:
        libc.sleep(3600)
        libc._exit(0)
time.sleep(3600)
"""
FLICKER = """
top = Path(sys.argv[1])
while True:
    made = [top / f"g{n}\\udcff" for n in range(300)]
    for group in made:
        group.mkdir()
    for group in made:
        group.rmdir()
"""
# Beside its own name, whatever else a user can call a folder.
IMITATIONS = """
own = Path()
pod = "6b2f7f3e-9d44-4f6b-8a3e-0c7d6f2f1a11"
names = ["slurmstepd.scope/job_77/step_0", "slurm/uid_0/job_77", "lsf/c/job.77.1.1",
         "pbspro/77.head", "oar/root_77", f"kubepods/burstable/pod{pod}",
         f"slurmstepd.scope/job_77/libpod-{'0f' * 32}.scope", "user.slice/user-0.slice",
         "machine-db.scope", "bystander.service"]
while True:
    for name in names:
        (own / name).mkdir(parents=True, exist_ok=True)
        (own / name / "cgroup.procs").write_text(str(os.getpid()))
        until = time.process_time() + 0.1
        while time.process_time() < until: pass
"""
# With a name that changes all the time, to one of its own cgroups and back.
MOVER = """
libc = ctypes.CDLL(None)
ways = []
for name in ("a", "b"):
    (Path(name) / "deep/deeper").mkdir(parents=True)
    ways.append(open(f"{name}/deep/deeper/cgroup.procs", "w"))
while True:
    for way in ways:
        libc.prctl(15, os.urandom(8).hex().encode(), 0, 0, 0)
        way.write(str(os.getpid()))
        way.flush()
"""
THREADS = """
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
static void *rest(void *nothing) { for (;;) pause(); return nothing; }
int main(int argc, char **argv) {
    pthread_attr_t small;
    pthread_t thread;
    int made = 0;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    while (argc > 1 && made < atoi(argv[1]) && !pthread_create(&thread, &small, rest, 0)) made++;
    if (write(1, "ready\\n", 6) != 6) return 1;
    for (;;) { volatile int n; for (n = 0; n < 1000000; n++); usleep(20000); }
}
"""


@pytest.fixture
def site(tmp_path, cgroup2):
    """(cgroup tree, make a group, start a program in one)"""
    folder, make = cgroup2
    programs = []

    def start(code, group, *arguments, **more):
        argv = [sys.executable, "-c", ENTER + code, str(group), *arguments]
        programs.append(subprocess.Popen(argv, start_new_session=True, **more))
        return programs[-1]

    try:
        yield folder, make, start
    finally:
        for program in programs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, 9)
            program.wait()


@dataclass
class Kernel:
    """What the kernel says that the bystander and the whole machine used, s, while it watches."""

    bystander: Path  # its cgroup
    at_s: list[float] = field(default_factory=list)  # wall clock
    bystander_s: list[float] = field(default_factory=list)
    machine_s: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def watches(self):
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(stop,))
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()

    def _watch(self, stop):
        while not stop.wait(0.02):
            usage = (self.bystander / "cpu.stat").read_text().splitlines()[0]
            columns = [
                int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
            ]
            user, nice, system, _idle, _iowait, irq, softirq = columns
            self.at_s.append(time.time())
            self.bystander_s.append(int(usage.removeprefix("usage_usec ")) / 1e6)
            self.machine_s.append((user + nice + system + irq + softirq) / 100)

    def used_s(self, begin_s, end_s):
        """In this time, the bystander and the machine."""
        before, after = (bisect.bisect(self.at_s, at_s) - 1 for at_s in (begin_s, end_s))
        return (
            self.bystander_s[after] - self.bystander_s[before],
            self.machine_s[after] - self.machine_s[before],
        )


def metered(tmp_path, folder, *flags, before=()):
    """Frames of a shipped agent, how many CPUs it used once it had begun, and the kernel's word."""
    kernel = Kernel(folder / "system.slice/bystander.service")
    with kernel.watches():
        return *_metered(tmp_path, folder, flags, before), kernel


def _metered(tmp_path, folder, flags, before):
    machine = Machine(tmp_path / "tree")
    machine.zone("intel-rapl:0", "package-0", watts=50)
    command = [*before, sys.executable, "-m", "joulegram.cli.main", "agent", "--print"]
    command += [f"--frames={FRAMES}", f"--tick={TICK_S}", "--window=1", "--node=n"]
    command += ["--fold-cores=0", f"--sysfs={machine.root}/sys", f"--cgroupfs={folder}", *flags]
    with fed(machine), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        lines = [program.stdout.readline()]
        clock = (~program.pid << 3) | 2  # CPU time of a process, clock_getcpuclockid(3)
        cpu_ns, began_ns = time.clock_gettime_ns(clock), time.monotonic_ns()
        # The last frame comes as it ends.
        lines += [program.stdout.readline() for _ in range(FRAMES - 2)]
        spent = (time.clock_gettime_ns(clock) - cpu_ns) / (time.monotonic_ns() - began_ns)
        lines += program.stdout.readlines()
        assert program.wait(30) == 0
    print(f"the agent used {spent:.3f} CPUs")
    return [json.loads(line) for line in lines], spent


def used_s(frames, identity, **row):
    return sum(
        r["cpu_ns"] / 1e9
        for f in frames
        for r in f["rows"]
        if f["workloads"][r["workload"]]["id"] == identity
        and all(r[name] == value for name, value in row.items())
    )


def check_bystander(frames, kernel):
    """Nobody's attack costs it more than what it used, nor any frame a microjoule."""
    due_j = got_j = all_s = 0.0
    for frame in frames:
        drawn = sum(d["energy_uj"] for d in frame["devices"])
        assert drawn == sum(r[f"{c}_uj"] for r in frame["rows"] for c in ("cpu", "dram", "other"))
        begin_s = frame["window_start_ms"] / 1000
        own_s, machine_s = kernel.used_s(begin_s, begin_s + frame["window_ms"] / 1000)
        due_j += drawn / 1e6 * own_s / machine_s
        all_s += machine_s
        got_j += sum(
            r["cpu_uj"] / 1e6
            for r in frame["rows"]
            if frame["workloads"][r["workload"]]["id"] == "bystander.service"
        )
    # The kernel samples the machine's use at clock ticks of 10 ms: three standard deviations.
    error = max(0.15, 3 * (0.01 / all_s) ** 0.5)
    print(f"the bystander got {got_j:.1f} J, due {due_j:.1f} J, give or take {error:.0%}")
    assert got_j == pytest.approx(due_j, rel=error)


def test_a_fork_storm_with_pids_that_come_round(tmp_path, site):
    """And 3,000 processes that stay. (0.05 CPUs)"""
    folder, make, start = site
    start(BYSTANDER, make("/system.slice/bystander.service"))
    storm = make("/system.slice/storm.service")
    start(STORM, storm)
    start(LINGERING, storm)
    frames, spent, kernel = metered(tmp_path, folder)
    check_bystander(frames, kernel)
    assert used_s(frames, "storm.service") > 0.5
    assert spent < 0.5


def test_children_that_come_and_go_in_the_root_are_not_paid_for_by_others(tmp_path, site):
    """No cgroup but the root counts them, and they live between two ticks. (0.02 CPUs)"""
    folder, make, start = site
    start(BYSTANDER, make("/system.slice/bystander.service"))
    start(SHORT_LIVED, folder)
    frames, spent, kernel = metered(tmp_path, folder)
    check_bystander(frames, kernel)
    assert spent < 0.3


def test_tens_of_thousands_of_threads(tmp_path, site):
    """50,000 where this machine has the pids for them. (0.02 CPUs)"""
    if (cc := shutil.which("cc")) is None:
        pytest.skip("no C compiler to make a program of many threads with")
    folder, make, start = site
    start(BYSTANDER, make("/system.slice/bystander.service"))
    (tmp_path / "threads.c").write_text(THREADS)
    subprocess.run([cc, "-pthread", "-o", tmp_path / "t", tmp_path / "threads.c"], check=True)
    # Others need pids meanwhile.
    pids = int(Path("/proc/sys/kernel/pid_max").read_text()) // 2
    threads = make("/system.slice/threads.service")
    code = f"os.execv({str(tmp_path / 't')!r}, ['t', sys.argv[2]])"
    program = start(code, threads, str(min(50_000, pids)), stdout=subprocess.PIPE)
    assert program.stdout.readline() == b"ready\n"
    frames, spent, kernel = metered(tmp_path, folder)
    check_bystander(frames, kernel)
    assert used_s(frames, "threads.service", pid=program.pid) > 0.01
    assert spent < 0.3


def test_cgroups_made_and_removed_at_speed(tmp_path, site):
    """Thousands a second, their names not UTF-8. (0.1 CPUs)"""
    folder, make, start = site
    start(BYSTANDER, make("/system.slice/bystander.service"))
    flicker = make("/user.slice/user-1000.slice/user@1000.service")
    program = start(FLICKER, flicker)
    try:
        frames, spent, kernel = metered(tmp_path, folder)
    finally:
        program.kill()
        program.wait()
        for group in flicker.iterdir():
            if group.is_dir():
                group.rmdir()
    check_bystander(frames, kernel)
    assert used_s(frames, "1000") > 0.5
    assert spent < 0.5


def metered_beside_delegated(tmp_path, site, code):
    """What `metered` says, and the pid of a user's program in a service given to it."""
    folder, make, start = site
    own = make("/system.slice/own.service")
    for name in ("", "cgroup.procs"):
        os.chown(own / name, 65534, 65534)
    # From within: the way there is for root alone.
    program = start("os.chdir(sys.argv[1])\n" + NOBODY + code, own)
    try:
        return *metered(tmp_path, folder), program.pid
    finally:
        program.kill()
        program.wait()
        for group in sorted(own.glob("**/"), key=lambda path: -len(path.parts))[:-1]:
            group.rmdir()


def test_a_service_that_may_make_cgroups_passes_for_nobody_else(tmp_path, site):
    """Delegate=yes and User=: it runs through the names of jobs and of a pod. (0.02 CPUs)"""
    _, make, start = site
    start(BYSTANDER, make("/system.slice/bystander.service"))
    make(f"/kubepods/burstable/pod{POD}")
    start(BYSTANDER, make(f"/kubepods/burstable/pod{POD}/{'e1' * 32}"))
    frames, spent, kernel, _ = metered_beside_delegated(tmp_path, site, IMITATIONS)
    check_bystander(frames, kernel)
    names = {(w["kind"], w["id"]) for f in frames for w in f["workloads"]}
    container = ("container", "0f" * 32)  # nobody else has that name: it may be rootless Podman's
    assert {n for n in names if n[0] not in ("idle", "system", "unattributed")} <= {
        ("systemd", "bystander.service"),
        ("systemd", "own.service"),
        ("kubernetes", POD),
        container,
    }
    assert used_s(frames, "own.service") > 1.5
    assert used_s(frames, POD) < 2.5  # its own, in four seconds
    assert spent < 0.3


def test_a_process_that_moves_and_changes_its_name_at_speed_is_one_process(tmp_path, site):
    """Thousands of times a second. (0.06 CPUs)"""
    _, make, start = site
    start(BYSTANDER, make("/system.slice/bystander.service"))
    frames, spent, kernel, pid = metered_beside_delegated(tmp_path, site, MOVER)
    check_bystander(frames, kernel)
    assert used_s(frames, "own.service") > 0.5
    # Each window it has one row, under the name of the last tick.
    rows = [r for f in frames for r in f["rows"] if r["pid"] == pid]
    assert 0 < len(rows) <= len(frames)
    assert len({r["start_ticks"] for r in rows}) == 1
    # What it burned is not counted twice, in its cgroup and for itself.
    assert used_s(frames, "own.service") < 1.2 * FRAMES
    assert spent < 0.5


def test_names_that_imitate_the_kernels_format_and_two_megabytes_of_arguments(tmp_path, site):
    """(0.01 CPUs)"""
    folder, make, start = site
    start(BYSTANDER, make("/system.slice/bystander.service"))
    mimic = make("/system.slice/mimic.service")
    name = b") R 1 (\xff\n"
    start(f"Path('/proc/self/comm').write_bytes({name!r})\n" + BYSTANDER, mimic)
    # As much as execve takes: 2 MB, less what the environment needs.
    start(BYSTANDER, make("/system.slice/long.service"), *["x" * 100_000] * 19)
    frames, spent, kernel = metered(tmp_path, folder)
    check_bystander(frames, kernel)
    shown = {r["command"] for f in frames for r in f["rows"]}
    assert ") R 1 (\\xff\n" in shown
    assert used_s(frames, "mimic.service", command=") R 1 (\\xff\n") > 0.2
    assert used_s(frames, "long.service") > 0.2
    assert max(len(json.dumps(f)) for f in frames) < 200_000
    assert spent < 0.3


def test_processes_that_may_not_be_seen_count_in_their_cgroups(tmp_path, site):
    """On a procfs that hides other users' processes, from an agent that has no right to them."""
    folder, make, start = site
    proc = tmp_path / "proc"
    proc.mkdir()
    mount = ["mount", "-t", "proc", "-o", "hidepid=2", "proc", proc]
    if shutil.which("setpriv") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("no setpriv, or this kernel does not let us hide processes")
    try:
        start(NOBODY + BYSTANDER, make("/system.slice/bystander.service"))
        # Still root by uid, for the interpreter may lie where only root reads.
        drop = ["setpriv", "--regid=1", "--clear-groups", "--bounding-set=-sys_ptrace"]
        frames, spent, kernel = metered(tmp_path, folder, f"--procfs={proc}", before=drop)
    finally:
        subprocess.run(["umount", "--lazy", proc], check=True)
    check_bystander(frames, kernel)
    assert used_s(frames, "bystander.service", pid=0) == used_s(frames, "bystander.service")
    assert spent < 0.3
