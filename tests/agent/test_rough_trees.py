"""Trees that change under the reader: half made, removed and made again, full of nonsense."""

import os

import pytest

from joulegram.agent.use.cgroups import memberships
from joulegram.agent.use.usage import PROCESS_SLACK_NS
from tests.agent.played import Machine, device_j, energy_j, rows


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path, cpus=8)
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, group=b"/system.slice/steady.service", cores=1.0)
    return machine


def near(expected, rel=0.02):
    return pytest.approx(expected, rel=rel)


def test_a_cgroup_whose_counter_comes_after_its_folder_is_counted(machine):
    """Met while it was being made; what it used by then is charged too."""
    path = "/system.slice/new.service"
    frames = machine.play(
        5,
        {
            1.2: lambda: machine._group_folder(path).mkdir(),
            1.8: lambda: machine.cgroup(path, used_s=0.4, extra_cores=1.0),
        },
    )
    assert energy_j(frames[2:], "systemd", "new.service") == near(150)
    assert energy_j([frames[1]], "systemd", "new.service") > 0


def test_a_cgroup_removed_and_made_again_under_its_name_goes_on_from_zero(machine):
    """A file system may give the new folder the old one's inode: the open file is a dead one."""
    path = "/system.slice/again.service"
    machine.cgroup(path, extra_cores=1.0)

    def again():
        machine.remove_group(path)
        machine.cgroup(path, extra_cores=1.0)

    frames = machine.play(6, {2.1: again})
    assert energy_j(frames[3:], "systemd", "again.service") == near(150)


def test_a_counter_that_goes_away_leaves_its_processes_to_the_parents(machine):
    """Not charged twice: as the process's own, and as what the parent used beyond its children."""
    machine.task(11, group=b"/system.slice/gone.service/sub", cores=1.0)
    counter = machine._group_folder("/system.slice/gone.service/sub") / "cpu.stat"
    write = machine._write_groups

    def write_but_one():
        write()
        counter.unlink()

    def lose():
        counter.unlink()
        machine._write_groups = write_but_one

    frames = machine.play(6, {2.0: lose})
    assert energy_j(frames[3:], "systemd", "gone.service") == near(150)
    assert energy_j(frames[3:], "systemd", "gone.service", pid=0) < 3


def test_a_process_met_before_its_stat_is_written_is_new_all_the_same(machine):
    folder = machine.root / "proc/44"

    def fill():
        folder.rmdir()
        machine.task(44, start=5000, cores=1.0, used_s=0.4)

    frames = machine.play(4, {1.2: folder.mkdir, 1.6: fill})
    used_ns = sum(int(r["cpu_ns"]) for f in frames[:2] for r in rows(f) if r["pid"] == 44)
    assert used_ns == near(0.8e9, rel=0.1)


def test_a_process_that_appears_with_more_than_it_can_have_used_is_charged_from_here_on(machine):
    """With no cpuN lines too."""
    machine._write_stat = lambda: (machine.root / "proc/stat").write_text("cpu  1 0 0 0 0 0 0\n")
    frames = machine.play(4, {2.1: lambda: machine.task(44, cores=1.0, used_s=900.0)})
    most_ns = max(int(r["cpu_ns"]) for f in frames for r in rows(f) if r["pid"] == 44)
    assert most_ns < 1e9 + PROCESS_SLACK_NS


def test_nonsense_in_procfs_costs_itself_only(machine):
    def scribble():
        (machine.root / "proc/²").mkdir()
        (machine.root / "proc/99").mkdir()
        stat = "99 (x) S a b c d e f g h i j 1 x - y 20 0 1 0 5 0 0\n"
        (machine.root / "proc/99/stat").write_text(stat)
        (machine.root / "proc/stat").write_text("cpu  a b c d e f g h i j\n")
        machine._write_stat = lambda: None

    frames = machine.play(4, {1.2: scribble})
    assert energy_j(frames, "systemd", "steady.service", pid=10) == near(400)


@pytest.mark.parametrize("name", ["new\nline", "cr\rx", ") R 1 (", "a:b"])
def test_a_cgroups_name_may_hold_what_ends_a_line(machine, name):
    groups = f"4:cpu,cpuacct:/x/{name}\n0::/y/{name}.service\n".encode()
    assert memberships(groups) == [("cpu,cpuacct", f"/x/{name}"), ("", f"/y/{name}.service")]
    machine.task(20, group=f"/system.slice/{name}.service".encode(), cores=1.0)
    frames = machine.play(2)
    assert energy_j(frames, "systemd", pid=20) == near(100)


def test_counters_that_come_later_end_the_model(tmp_path, caplog):
    machine = Machine(tmp_path, cpus=8)
    machine.task(10, cores=1.0)

    def plug():
        machine.zone("intel-rapl:1", "package-1", watts=50)
        machine.zone("intel-rapl:0", "package-0", watts=100)

    frames = machine.play(12, {1.0: plug})
    assert [d.quality for d in frames[0].devices] == ["modelled"]
    last = frames[-1].devices
    assert [(d.name, d.quality) for d in last] == [("cpu0", "measured"), ("cpu1", "measured")]
    assert device_j(frames[-1:], "cpu0") == near(100)
    said = [record.message for record in caplog.records]
    assert [("estimated" in text, "measured now" in text) for text in said] == [
        (True, False),
        (False, True),
    ]


def test_a_platform_that_was_not_read_was_not_cut(machine):
    zone = machine.zone("intel-rapl:1", "psys", watts=150)
    zone.write = lambda: (zone.folder / "energy_uj").write_text("")
    zone.write()
    (frame,) = machine.play(1)
    platform = next(d for d in frame.devices if d.name == "platform")
    assert (platform.coverage, platform.energy_uj, platform.clamped) == (0, 0, False)


def test_a_child_that_ends_before_its_parent_is_read_again_counts_once(tmp_path):
    """Where no cgroup counts; a parent's file may be older than its child's end."""
    machine = Machine(tmp_path / "bare", cpus=8)
    machine.zone("intel-rapl:0", "package-0", watts=100)
    shell = machine.task(10, comm=b"sh")
    machine.task(11, comm=b"steady", cores=1.0)
    child = machine.task(12, cores=1.0, parent=10)
    frames = machine.play(
        6, {2.0: lambda: machine.end(12), 2.7: lambda: setattr(shell, "reaped_s", child.used_s)}
    )
    unseen_ns = sum(int(r["cpu_ns"]) for f in frames for r in rows(f) if r["pid"] in (0, 12))
    assert unseen_ns == near(2e9, rel=0.3)  # a tick of it before its end is nobody's


def test_a_jobs_user_is_not_root_because_its_helper_came_first(machine):
    step = b"/system.slice/slurmstepd.scope/job_9/step_0/"
    machine.task(20, group=step + b"slurm", cores=0.1)
    stranger = 4_000_001  # no login name anywhere

    def start():
        machine.task(21, group=step + b"user/task_0", cores=1.0)
        try:
            os.chown(machine.root / "proc/21", stranger, stranger)
        except PermissionError:
            pytest.skip("only root may give a folder away")

    frames = machine.play(4, {1.2: start})
    (user,) = [w.user for w in frames[-1].workloads if w.kind == "slurm"]
    assert user == str(stranger)


def test_a_counter_that_is_torn_at_one_tick_gives_nothing_to_the_parents(machine):
    """What the cgroups above counted meanwhile is held back with it."""
    counter = machine._group_folder("/system.slice/steady.service") / "cpu.stat"
    torn: list[str] = []
    write = machine._write_groups

    def write_all():
        write()
        if torn:
            counter.write_text(torn.pop())

    machine._write_groups = write_all
    frames = machine.play(6, {2.4: lambda: torn.append("usage_us")}, tick_s=1.0, window_s=1.0)
    assert [energy_j([frame], "systemd", "steady.service") for frame in frames] == [near(100)] * 6


def test_a_counter_that_stays_nonsense_is_none(machine):
    """Then its use is its parent's, who is not held back for good."""
    counter = machine._group_folder("/system.slice/steady.service") / "cpu.stat"
    machine.task(11, group=b"/system.slice/other.service", cores=1.0)
    nonsense: list[str] = []
    write = machine._write_groups

    def write_all():
        write()
        for text in nonsense:
            counter.write_text(text)

    machine._write_groups = write_all
    frames = machine.play(12, {2.4: lambda: nonsense.append("usage_usec x\n")})
    assert energy_j(frames[8:], "systemd", "other.service") == near(200)
    assert energy_j(frames[8:], "systemd", "steady.service") == near(200)


def test_a_process_whose_cgroup_file_comes_late_is_charged_to_it_from_its_first_use(machine):
    write, late = machine._write_task, []

    def write_task(task):
        write(task)
        if task.pid in late:
            (machine.root / f"proc/{task.pid}/cgroup").unlink()

    machine._write_task = write_task

    def born():
        late.append(11)
        machine.task(11, group=b"/system.slice/new.service", cores=1.0)

    frames = machine.play(6, {2.1: born, 3.1: late.clear})
    assert energy_j(frames, "system") == pytest.approx(0, abs=2)
    assert energy_j(frames[4:], "systemd", "new.service") == near(100)


def test_a_process_whose_cgroup_is_not_said_counts_once_in_its_cgroups_remainder(machine):
    """Some kernels let nobody read of a path beyond PATH_MAX, others cut it."""
    write = machine._write_task

    def write_task(task):
        write(task)
        if task.pid == 11:
            (machine.root / "proc/11/cgroup").unlink()

    machine._write_task = write_task
    machine.task(11, group=b"/system.slice/deep.service", cores=3.0)
    frames = machine.play(6)
    assert energy_j(frames[2:], "system") == pytest.approx(0, abs=2)
    assert energy_j(frames[2:], "systemd", "steady.service") == near(100)
    assert energy_j(frames[2:], "systemd", "deep.service") == near(300)
