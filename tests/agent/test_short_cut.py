"""The short cut (agent/use/members.py): who is not read, and that it loses nothing."""

import itertools

import pytest

from joulegram.agent.clock import SystemClock
from joulegram.agent.use.cgroups import Cgroups
from joulegram.agent.use.members import Members
from joulegram.agent.use.procfs import MET_PER_SCAN, Processes
from tests.agent.played import Machine, energy_j, rows


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path, cpus=8, kernels=True, root_counts=True)
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, group=b"/system.slice/steady.service", cores=1.0)
    return machine


def near(expected, rel=0.02):
    return pytest.approx(expected, rel=rel)


def test_a_process_whose_cgroup_stood_still_is_not_read(machine):
    """Its file says a minute more; its cgroup's counter knows that it did not run."""
    for pid in range(100, 300):
        quiet = machine.task(pid, group=b"/system.slice/quiet.service")

    def lie():
        quiet.used_s += 60.0

    frames = machine.play(4, {2.1: lie})
    assert not [r for f in frames for r in rows(f) if r["pid"] == quiet.pid]


def test_every_process_is_read_now_and_then_all_the_same(machine):
    """One that nothing tells of: it moved to a root that does not list its processes."""
    task = machine.task(20, group=b"/system.slice/quiet.service")
    write = machine._write_members

    def write_but_roots():
        write()
        (machine.root / "cgroup/cgroup.procs").write_text("")

    def move():
        machine._write_members = write_but_roots
        machine.move(20, b"/")
        task.cores = 1.0

    frames = machine.play(70, {2.1: move}, tick_s=1.0)
    assert energy_j(frames, "system", pid=20) == near(50 * 67.9, rel=0.05)


@pytest.mark.parametrize("cores", [0.015, 0.5])
def test_an_idle_process_that_moved_unseen_is_found_by_what_its_new_cgroup_counted(machine, cores):
    """Little by little, too: what is missing adds up."""
    task = machine.task(20, group=b"/system.slice/x.service")
    machine.task(21, group=b"/system.slice/y.service")

    def move():
        machine.move(20, b"/system.slice/y.service")
        task.cores = cores

    frames = machine.play(12, {2.0: move}, fold_cores=0.0)
    active_j = 100 * cores / (1 + cores)
    assert energy_j(frames[8:], "systemd", "y.service", pid=20) == near(4 * active_j, rel=0.35)
    # A jiffy is the grain of both.
    assert energy_j(frames, "systemd", "y.service") == near(10 * active_j, rel=0.1)
    assert energy_j(frames, "systemd", "x.service") == 0


def test_a_process_that_moved_to_the_root_is_found_there(machine):
    task = machine.task(20, group=b"/system.slice/x.service")

    def move():
        machine.move(20, b"/")
        task.cores = 1.0

    frames = machine.play(5, {2.0: move})
    assert energy_j(frames[3:], "system", pid=20) == near(100)


def test_processes_of_a_threaded_cgroup_count_in_the_domain_above(machine):
    inside = "/system.slice/pool.service/threads"
    machine.task(20, group=inside.encode(), cores=1.0)
    (machine._group_folder(inside) / "cgroup.type").write_text("threaded\n")
    frames = machine.play(4)
    assert energy_j(frames, "systemd", "pool.service", pid=20) == near(200)
    assert energy_j(frames, "systemd", "pool.service", pid=0) < 4


def test_a_zombie_is_read_once_more_and_its_pid_may_be_somebody_elses_soon(machine):
    task = machine.task(20, group=b"/system.slice/a.service", cores=1.0)
    write = machine._write_task

    def write_zombie(of):
        write(of)
        if of is task:
            stat = machine.root / "proc/20/stat"
            stat.write_bytes(stat.read_bytes().replace(b") S ", b") Z "))

    def die():
        task.cores = 0.0
        machine._write_task = write_zombie
        write_zombie(task)

    def reuse():
        machine.end(20)
        machine._write_task = write
        machine.task(20, comm=b"next", start=9000, group=b"/system.slice/b.service", cores=1.0)

    frames = machine.play(7, {2.3: die, 4.0: reuse})
    assert energy_j(frames[2:4], "systemd", "a.service", pid=20) == near(100 * 0.3 / 1.3, rel=0.2)
    assert energy_j(frames[5:], "systemd", "b.service", pid=20, command="next") == near(100)


def test_zombies_take_no_turn_of_those_that_may_run(tmp_path):
    """Thousands are there after a job was killed, until somebody waits for them."""
    made = []
    for zombies in (0, 1000):
        procfs = tmp_path / f"proc{zombies}"
        for pid in range(10, 250 + zombies):
            folder = procfs / str(pid)
            folder.mkdir(parents=True)
            state = "S" if pid < 250 else "Z"
            times = "0 " * 4 + "20 0 1 0"
            folder.joinpath("stat").write_text(
                f"{pid} (x) {state} 1 1 1 0 -1 0 0 0 0 0 {times} 7 0 0\n"
            )
            folder.joinpath("cgroup").write_text("0::/a\n")
        processes = Processes(procfs, counts_forks=True)
        processes.scan(1, 10**9)
        members = Members(processes, Cgroups(tmp_path / "none", SystemClock(), kernels=False))
        members.sample()
        ticks = [members.sample() for _ in range(90)]
        made.append([[process.pid for process in some] for some in ticks])
        processes.close()
    assert made[0] == made[1]
    assert set(itertools.chain(*made[0])) == set(range(10, 250))


def test_a_zombie_whose_threads_go_on_is_no_zombie(machine):
    task = machine.task(20, group=b"/system.slice/a.service", cores=1.0)
    write = machine._write_task

    def write_leader(of):
        write(of)
        if of is task:
            stat = machine.root / "proc/20/stat"
            text = stat.read_bytes().replace(b") S ", b") Z ").replace(b" 20 0 1 0 ", b" 20 0 3 0 ")
            stat.write_bytes(text)

    machine._write_task = write_leader
    frames = machine.play(4)
    assert energy_j(frames, "systemd", "a.service", pid=20) == near(200)


def test_a_pid_that_was_half_written_is_looked_at_again_though_nothing_was_forked(machine):
    task = machine.task(20, group=b"/system.slice/a.service", cores=1.0)
    write = machine._write_task

    def write_half(of):
        write(of)
        if of is task:
            (machine.root / "proc/20/stat").write_text("20 (wo")

    machine._write_task = write_half
    frames = machine.play(5, {2.0: lambda: setattr(machine, "_write_task", write)})
    assert energy_j(frames[3:], "systemd", "a.service", pid=20) == near(100)


def test_nothing_forked_nothing_listed(machine):
    """A pid that appears without a fork is a lie of the tree; the next listing believes it."""

    def appear():
        machine.task(20, group=b"/system.slice/a.service", cores=1.0)
        machine.forks -= 1

    frames = machine.play(4, {1.2: appear})
    # Its cgroup tells of it, and asks for the listing.
    assert energy_j(frames[2:], "systemd", "a.service", pid=20) == near(100)


def test_more_new_processes_than_a_tick_may_meet_are_met_in_turn(machine):
    """A storm cannot make a tick longer than its bound, nor hide who came in the meantime."""

    def storm():
        for pid in range(1000, 1000 + MET_PER_SCAN + 50):
            machine.forks += 1
            folder = machine.root / f"proc/{pid}"
            folder.mkdir()
            (folder / "stat").write_bytes(
                f"{pid} (s) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 7".encode() + b" 0\n"
            )
            (folder / "cgroup").write_text("0::/system.slice/storm.service\n")
        machine.task(30_000, group=b"/system.slice/late.service", cores=1.0)

    frames = machine.play(5, {2.1: storm})
    assert energy_j(frames[3:], "systemd", "late.service", pid=30_000) == near(100)


def test_joules_per_workload_are_the_same_with_and_without_the_short_cut(tmp_path):
    """A machine on which everything happens: starts, ends, moves, execs, children, cgroups."""

    def played(kernels):
        machine = Machine(tmp_path / str(kernels), cpus=16, kernels=kernels, root_counts=True)
        machine.zone("intel-rapl:0", "package-0", watts=200)
        services = [f"/system.slice/s{n}.service" for n in range(6)]
        pids = itertools.count(100)
        for n, service in enumerate(services):
            for m in range(5):
                machine.task(next(pids), group=service.encode(), cores=0.3 * (n % 3) * (m == 0))
        machine.cgroup("/system.slice/forks.service", extra_cores=0.7)
        job = "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"

        def job_starts():
            machine.task(500, group=services[0].encode())  # forked by the daemon, then moved
            machine.move(500, job.encode())
            machine.tasks[500].cores = 2.0

        def job_ends():
            machine.end(500)
            machine.remove_group(job)

        def flash():
            machine.cgroup(services[1] + "/flash", used_s=1.0)
            machine.remove_group(services[1] + "/flash")

        events = {
            1.3: job_starts,
            2.4: lambda: machine.move(100, services[4].encode()),
            2.6: lambda: setattr(machine.tasks[100], "cores", 1.0),
            3.3: flash,
            3.7: lambda: machine.end(105),
            4.2: lambda: machine.task(105, comm=b"again", start=7000, cores=0.4),
            5.2: lambda: machine.move(106, b"/"),
            5.4: lambda: setattr(machine.tasks[106], "cores", 0.5),
            6.3: job_ends,
        }
        return machine.play(12, events)

    without, with_it = played(None), played(True)
    workloads = {(w.kind, w.id) for f in without for w in f.workloads}
    assert len(workloads) > 6
    for kind, identity in workloads:
        assert energy_j(with_it, kind, identity) == near(energy_j(without, kind, identity), 0.002)
        for pid in (100, 105, 106, 500):
            # Within one tick of a migration.
            want = energy_j(without, kind, identity, pid=pid)
            assert energy_j(with_it, kind, identity, pid=pid) == pytest.approx(
                want, abs=60, rel=0.1
            )
