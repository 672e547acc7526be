"""What runs in the root cgroup, or below it unseen, is `system`'s: bystanders do not pay."""

import pytest

from joulegram.agent.conservation import check
from tests.agent.played import Machine, energy_j, rows


@pytest.fixture(params=[None, True], ids=["played", "short_cut"])
def machine(request, tmp_path):
    """100 W, of which a.service is due all, as long as nobody else works."""
    return of_100_watts(Machine(tmp_path, kernels=request.param, root_counts=True))


def of_100_watts(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, group=b"/system.slice/a.service", cores=1.0)
    return machine


def near(expected, rel=0.01, abs_=0.0):
    return pytest.approx(expected, rel=rel, abs=abs_)


def used_s(frames, kind):
    return sum(int(r["cpu_ns"]) for f in frames for r in rows(f) if r["kind"] == kind) / 1e9


def root_burns(machine, cores):
    advance = machine.advance

    def burn_too(seconds):
        machine.burn_in_root(cores * seconds)
        advance(seconds)

    machine.advance = burn_too


def flash(machine, parent):
    def come_and_go():
        machine.cgroup(f"{parent}/flash", used_s=2.0)
        machine.remove_group(f"{parent}/flash")

    return come_and_go


@pytest.mark.parametrize("parent", ["", "/system.slice"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_removed_cgroups_last_use_is_its_parents_be_it_the_root(tmp_path, version, parent):
    """Golden case 29."""
    machine = of_100_watts(Machine(tmp_path, version=version, root_counts=True))
    frames = machine.play(5, {2.2: flash(machine, parent)}, tick_s=1.0)
    assert [energy_j([f], "system") for f in frames] == [
        near(200 / 3 if n == 2 else 0, abs_=0.5) for n in range(5)
    ]
    assert energy_j(frames[2:3], "systemd", "a.service") == near(100 / 3)
    for frame in frames:
        check(frame)


def test_children_that_come_and_go_in_the_root_are_systems(machine):
    """Golden case 21, outside any workload."""
    machine.task(5, comm=b"cron")
    root_burns(machine, cores=3.0)
    frames = machine.play(4)
    assert energy_j(frames, "system", pid=0) == near(300)
    assert energy_j(frames, "systemd", "a.service") == near(100)


@pytest.mark.parametrize(("version", "due"), [(1, 400 * 0.06 / 1.06), (2, 0)])
def test_what_may_be_the_error_of_a_sampled_root_is_nobodys(tmp_path, version, due):
    machine = of_100_watts(Machine(tmp_path, version=version, root_counts=True))
    root_burns(machine, cores=0.06)
    frames = machine.play(4, tick_s=1.0)
    assert energy_j(frames, "system") == near(due, rel=0.05)
    assert energy_j(frames, "systemd", "a.service") == near(400 - due)


@pytest.mark.parametrize("version", [1, 2])
def test_of_a_large_machine_the_error_is_a_small_share(tmp_path, version):
    machine = Machine(tmp_path, cpus=128, version=version, root_counts=True)
    machine.zone("intel-rapl:0", "package-0", watts=330, max_power_uw=400_000_000)
    machine.task(10, group=b"/system.slice/a.service", cores=60.0)
    root_burns(machine, cores=5.9)
    frames = machine.play(4)
    assert energy_j(frames, "system") == near(4 * 330 * 5.9 / 65.9, rel=0.02)


def test_a_process_in_the_root_that_begins_to_work_has_its_own_row(tmp_path):
    """The short cut reads it each tick: no counter tells who of the root has run."""
    machine = of_100_watts(Machine(tmp_path, kernels=True, root_counts=True))
    for pid in range(200, 500):
        machine.task(pid, comm=b"kthread")
    machine.task(5, comm=b"init")
    frames = machine.play(12, {5.1: lambda: setattr(machine.tasks[5], "cores", 1.0)}, tick_s=0.25)
    assert energy_j(frames[6:], "system", pid=5) == near(6 * 50, rel=0.02)


def test_processes_threads_and_interrupts_in_the_root_are_counted_once(machine):
    machine.task(5, comm=b"init", cores=0.5)
    machine.task(6, comm=b"kworker/0:1", cores=0.5, flags=0x208040)
    machine.irq_cores = 1.0
    machine.steal_cores = 2.0  # nobody's, though the root's usage_usec holds it
    frames = machine.play(6)
    assert energy_j(frames, "systemd", "a.service") == near(200)
    assert energy_j(frames, "system", pid=5) == near(100, rel=0.02)
    assert energy_j(frames, "system", pid=6) == near(100, rel=0.02)
    assert energy_j(frames, "system", pid=0) == near(200, rel=0.02)


def test_a_root_whose_counter_falls_behind_takes_from_nobody_and_forgets(machine):
    """Work that hides from the clock's ticks; for longer than the burst would be owed."""
    root_burns(machine, cores=-0.5)
    frames = machine.play(30, {25.2: lambda: machine.burn_in_root(4.0)}, tick_s=1.0)
    assert energy_j(frames[:25], "system") == 0
    assert energy_j(frames[:25], "systemd", "a.service") == near(2500)
    # 4 s, less the half second of this window and one that it owes at most.
    assert energy_j(frames[25:26], "system") == near(100 * 2.5 / 3.5, rel=0.05)
    assert energy_j(frames[26:], "system") == 0


def test_what_looks_like_the_root_in_a_container_is_not_believed(machine):
    """It counts itself alone, and processes beyond it look as though they were in it."""
    (machine.root / "cgroup/cgroup.type").write_text("domain\n")
    machine.task(5, cores=1.0)
    frames = machine.play(4, {2.2: lambda: machine.burn_in_root(4.0)})
    assert energy_j(frames, "system") == near(200)
    assert energy_j(frames, "system", pid=0) == 0


def test_a_torn_counter_below_holds_the_roots_back(machine):
    machine.cgroup("/job", extra_cores=2.0)
    write = machine._write_groups

    def tear():
        def write_torn():
            write()
            (machine.root / "cgroup/job/cpu.stat").write_text("usage_usec 1")

        machine._write_groups = write_torn

    frames = machine.play(
        6, {2.2: tear, 3.1: lambda: setattr(machine, "_write_groups", write)}, tick_s=0.5
    )
    # /job is nobody's: both are system's, and neither is counted twice.
    assert used_s(frames, "system") == near(2 * 6, rel=0.02)
    assert used_s(frames, "systemd") == near(6, rel=0.02)


def test_a_roots_counter_that_comes_later_begins_there(tmp_path):
    machine = of_100_watts(Machine(tmp_path))

    def come():
        machine.root_counts = True

    frames = machine.play(6, {2.2: come, 4.2: flash(machine, "")})
    assert energy_j(frames[:4], "system") == 0
    assert energy_j(frames[4:5], "system") == near(200 / 3)


def test_children_waited_for_in_the_root_are_counted_once(tmp_path):
    """No cgroup below it counts."""
    machine = Machine(tmp_path, root_counts=True)
    machine.zone("intel-rapl:0", "package-0", watts=100)
    shell = machine.task(10, comm=b"sh")
    machine.task(11, cores=1.0)

    def wait_for_children():
        machine.burn_in_root(1.0)
        shell.reaped_s += 1.0

    frames = machine.play(4, {0.2 + n: wait_for_children for n in range(4)}, tick_s=1.0)
    assert [used_s([f], "system") for f in frames] == [near(2, rel=0.02)] * 4
