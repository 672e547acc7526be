"""CPU time and who used it: short lives, pids used again, cgroups that come and go."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from replay.agent import Played, play, row_uj, watch
from replay.case import Case, Part, Stage
from replay.feeder import Feeder
from replay.tree import KERNEL, Forks, Machine

A, B = "/system.slice/a.service", "/system.slice/b.service"


def storm(machine: Machine, cores: float) -> Forks:
    """A shell in a.service that starts children of 50 ms back to back."""
    shell = machine.task(10, A, comm=b"sh")
    fork = Forks(shell, cores, live_s=0.05, next_pid=5000)
    machine.forks.append(fork)
    return fork


def shares(machine: Machine, marks: list[tuple[float, float]]) -> tuple[float, float]:
    """Of the CPU time between two marks, the parts of a.service and b.service."""
    a_s, b_s = (after - before for before, after in zip(*marks, strict=True))
    return a_s / (a_s + b_s), b_s / (a_s + b_s)


def short_lives(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    # All gone when the tick comes, on multiples of 5 s.
    storm(machine, 1.0).paused = lambda: not 0.15 < time.time() % 5 < 4.7
    machine.task(11, B, cores=1.0)
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((machine.used_s(A), machine.used_s(B)))

    played = play(stage, machine, 2, {0.0: mark, 10.0: mark}, tick_s=5.0, window_s=5.0)
    of_a, of_b = shares(machine, marks)
    return of_two(played, 1000, of_a, of_b)


def of_two(played: Played, joules: float, of_a: float, of_b: float) -> Sequence[Part]:
    room = played.within(100)
    return [
        Part("workload", joules * of_a, played.joules("systemd", "a.service"), within=room),
        Part("bystander", joules * of_b, played.joules("systemd", "b.service"), within=room),
        Part("anybody else", 0, played.total_j - played.joules("systemd"), within=room / 2),
    ]


def fork_storm(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    storm(machine, 25 / 30)
    machine.task(11, B, cores=25 / 30)
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((machine.used_s(A), machine.used_s(B)))

    played = play(stage, machine, 30, {0.0: mark, 30.0: mark})
    of_a, of_b = shares(machine, marks)
    used_s = marks[1][0] - marks[0][0]
    parts = [Part("its CPU time", 25, used_s, "s", within=0.5)]
    return [*parts, *of_two(played, 3000, of_a, of_b)]


def pid_again(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(10, cores=1.0, comm=b"old", used_s=5000.0)
    machine.task(11, cores=1.0, comm=b"steady", used_s=70.0)

    def reuse() -> None:
        machine.end(10)
        machine.task(10, cores=1.0, comm=b"new", start=90_000, used_s=0.5)

    played = play(stage, machine, 6, {2.5: reuse}, tick_s=0.1)
    old, new, steady = (
        played.joules("system", command=command) for command in ("old", "new", "steady")
    )
    start = {row["start_ticks"] for row in played.rows("system", command="new")}
    greatest = max(row_uj(row) for row in played.rows("system")) / 1e6
    # The new one comes with half a second of use: 0.5, 1 and 1 of 2.5 in that window.
    room = played.within(100) + 5  # what the old one used after its last tick, nobody sees
    return [
        Part("old, 2.5 s", 120, old, within=room),
        Part("new, 3.5 s", 190, new, within=room),
        Part("steady", 290, steady, within=room),
        Part("new's start", "90000", " ".join(map(str, start))),
        Part("greatest row", 50, greatest, within=played.within_window(50)),
    ]


def exec_(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    task = machine.task(10, A, cores=1.0, comm=b"sh")

    def call_exec() -> None:
        task.comm = b"python"

    played = play(stage, machine, 6, {3.5: call_exec})
    identities = {(r["pid"], r["start_ticks"]) for r in played.rows("systemd") if r["pid"]}
    room = played.within(100)
    return [
        Part("process", "(10, 1000)", " ".join(map(str, identities))),
        # A window's row has the name that the process had when the window was closed.
        Part("as sh", 300, played.joules("systemd", command="sh"), within=room),
        Part("as python", 300, played.joules("systemd", command="python"), within=room),
        Part("energy", 600, played.joules("systemd"), within=room),
    ]


def denied(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(10, A, cores=1.0)
    job = "/system.slice/slurmstepd.scope/job_7/step_0"
    machine.task(11, job, cores=2.0, comm=b"secret")
    for name in ("exe", "environ", "io"):
        path = machine.proc / f"11/{name}"
        path.symlink_to(path.name)  # opening it fails, root's too
    hidden = machine.proc / "12"
    hidden.mkdir()  # as hidepid=1: a folder, and nothing in it that may be read
    for name in ("stat", "cgroup", "environ"):
        (hidden / name).symlink_to(name)
    played = play(stage, machine)
    third = 100 * played.seconds / 3
    room = played.within(100)
    return [
        Part("job of the denied one", 2 * third, played.joules("slurm", "7"), within=room),
        Part("its row", 2 * third, played.joules("slurm", "7", command="secret"), within=room),
        Part("its neighbour", third, played.joules("systemd", "a.service", pid=10), within=room),
    ]


def three_to_one(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(10, A, cores=1.5)
    machine.task(11, A, cores=0.5)
    played = play(stage, machine)
    room = played.within(100)
    all_j = 100 * played.seconds
    return [
        Part("three", 0.75 * all_j, played.joules("systemd", "a.service", pid=10), within=room),
        Part("one", 0.25 * all_j, played.joules("systemd", "a.service", pid=11), within=room),
    ]


def alone(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(10, A, cores=0.337)
    parts = []
    with Feeder(machine, stage) as feeder, ThreadPoolExecutor() as pool:
        played = {
            tick_s: pool.submit(watch, stage, feeder, 10, tick_s=tick_s, name=f"tick-{tick_s}")
            for tick_s in (0.1, 0.5, 1.0)
        }
    for tick_s, of_tick in played.items():
        seen = of_tick.result()
        remainder = seen.joules("systemd", "a.service", pid=0)
        parts.append(
            Part(f"remainder, tick {tick_s:g} s", 0, remainder, within=seen.within(100) + 6)
        )
        energy = seen.joules("systemd", "a.service")
        parts.append(Part("all", 1000, energy, within=seen.within(100)))
    return parts


def migrant(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    x, y = "/system.slice/x.service", "/system.slice/y.service"
    task = machine.task(10, x)
    machine.task(11, y)

    def move() -> None:
        machine.move(10, y)

    def burn() -> None:
        task.cores = 2.0

    played = play(stage, machine, 6, {1.4: move, 2.5: burn})
    room = played.within(100)  # alone, it has all of the window in which it begins
    return [
        Part("y.service, by its pid", 400, played.joules("systemd", "y.service", pid=10),
             within=room),
        Part("x.service", 0, played.joules("systemd", "x.service")),
    ]  # fmt: skip


def flash(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(10, A + "/main", cores=1.0)
    machine.task(11, B, cores=1.0)

    def begin(path: str) -> None:
        machine.add_group(path)

    def burn(path: str) -> None:
        machine.burn(path, 2.0)

    def end(path: str) -> None:
        machine.remove_group(path)

    inner, outer, alone = A + "/flash", "/system.slice/flash.service", "/flash"
    events = {
        1.3: lambda: begin(inner), 1.5: lambda: burn(inner), 1.7: lambda: end(inner),
        3.3: lambda: begin(outer), 3.5: lambda: burn(outer), 3.7: lambda: end(outer),
        5.3: lambda: begin(alone), 5.5: lambda: burn(alone), 5.7: lambda: end(alone),
    }  # fmt: skip
    played = play(stage, machine, 7, events, tick_s=1.0)
    second, fourth, sixth = (played.from_frame(n, n + 1) for n in (1, 3, 5))
    room = played.within_window(75)
    return [
        Part("within a.service: its", 75, second.joules("systemd", "a.service"), within=room),
        Part("beside it: b.service's", 25, second.joules("systemd", "b.service"), within=room),
        Part("in system.slice: system's", 50, fourth.joules("system"), within=room),
        Part("in the root: system's", 50, sixth.joules("system"), within=room),
        Part("all", 700, played.total_j, within=played.within(100)),
    ]


def kernel(stage: Stage) -> Sequence[Part]:
    machine = Machine(stage.folder / "machine")
    machine.zone("intel-rapl:0", "package-0", 100.0)
    machine.task(2, comm=b"kthreadd", cores=1.0, flags=KERNEL, parent=0)
    machine.task(9, comm=b"kworker/0:1", cores=1.0, flags=KERNEL, parent=2)
    machine.task(1, "/init.scope", comm=b"systemd", cores=1.0, parent=0)
    machine.task(10, A, cores=1.0)
    machine.irq_cores = 1.0
    played = play(stage, machine)
    fifth = 20 * played.seconds
    room = played.within(100)
    return [
        Part("system", 4 * fifth, played.joules("system"), within=room),
        Part("of it kernel threads", 2 * fifth,
             played.joules("system", pid=2) + played.joules("system", pid=9), within=room),
        Part("of it interrupts", fifth, played.joules("system", pid=0), within=room),
        Part("a.service", fifth, played.joules("systemd"), within=room),
    ]  # fmt: skip


def steal(stage: Stage) -> Sequence[Part]:
    """Without sensors the modelled watts follow the load; the same load, with and without."""

    def one(name: str, steal_cores: float, guest_cores: float) -> Played:
        room = stage.room(name)
        machine = Machine(room.folder / "machine", cpus=4)
        machine.task(10, A, cores=2.0 - guest_cores)
        machine.steal_cores, machine.guest_cores = steal_cores, guest_cores
        return play(room, machine, flags=["--tdp-w=100"])

    with ThreadPoolExecutor() as pool:
        plain, stolen, guest = pool.map(
            one, ("plain", "stolen", "guest"), (0.0, 1.5, 0.0), (0.0, 0.0, 1.0)
        )
    room = plain.within(100, 2)
    return [
        Part("beside 1.5 CPUs of steal", plain.total_j, stolen.total_j, within=room),
        Part("half of the use is guest", plain.total_j, guest.total_j, within=room),
        Part("quality", "modelled", " ".join(set(plain.of_device("cpu0", "quality")))),
    ]


CASES = (
    Case(5, "children of 50 ms all through a 5 s tick, gone at the tick", short_lives, 25),
    Case(6, "a pid is used again with less CPU time", pid_again),
    Case(21, "a shell forks 50 ms children back to back, 25 cpu-s in 30 s", fork_storm, 38),
    Case(22, "a process calls exec", exec_),
    Case(25, "a process that may not be inspected", denied),
    Case(26, "two processes 3 : 1 in one workload", three_to_one),
    Case(27, "one process alone in its cgroup", alone, 16),
    Case(28, "an idle process moves from cgroup X to Y, then burns", migrant),
    Case(29, "a cgroup is made, burns 2 cpu-s and is removed between ticks", flash, 12),
    Case(32, "kernel threads and irq time", kernel),
    Case(34, "steal and guest time", steal),
)
