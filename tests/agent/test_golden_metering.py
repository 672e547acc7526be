"""Golden cases of metering and attribution, played on the shipped meter in virtual time.

Each test is one machine with a known right answer; the frames must give it.
"""

import itertools
import json
import shutil

import pytest

from joulegram.agent.conservation import check
from joulegram.agent.errors import BadSetting
from joulegram.agent.frames import as_json
from tests.agent.played import START_NS, Clock, Machine, device_j, energy_j, rows


@pytest.fixture(params=[None, True], ids=["played", "short_cut"])
def machine(request, tmp_path):
    """The same right answers with and without the short cut (agent/use/members.py).

    And with and without a counter of the root: older kernels and containers have none.
    """
    return Machine(tmp_path, kernels=request.param, root_counts=bool(request.param))


def near(expected, rel=0.01, abs_=0.0):
    return pytest.approx(expected, rel=rel, abs=abs_)


def test_a_wrap_is_the_modulo(machine):
    zone = machine.zone("intel-rapl:0", "package-0", value_uj=262_143_000_000)

    def wrap():
        zone.value_uj = 1_000_000
        zone.write()

    frames = machine.play(3, {1.2: wrap})
    assert sum(f.devices[0].energy_uj for f in frames) == 1_328_850
    assert all(d.coverage == 1.0 and d.quality == "measured" for f in frames for d in f.devices)


def test_the_mmio_twin_is_dropped_by_name_whatever_its_index(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.zone("intel-rapl-mmio:1", "package-0", watts=100)
    frames = machine.play(3)
    assert [d.name for d in frames[0].devices] == ["cpu0"]
    assert device_j(frames, "cpu0") == near(300)


def test_dies_packages_and_dram_are_all_counted_and_cores_are_not(machine):
    machine.zone("intel-rapl:0", "package-0-die-0", watts=40)
    machine.zone("intel-rapl:1", "package-0-die-1", watts=60)
    machine.zone("intel-rapl:0:0", "core", watts=30)
    machine.zone("intel-rapl:0:1", "dram", watts=5)
    machine.task(10, cores=1)
    frames = machine.play(2)
    assert [d.name for d in frames[0].devices] == ["cpu0-die0", "cpu0-die1", "dram0-die0"]
    assert energy_j(frames, "system") == near(2 * 105)


def test_psys_is_the_platform_and_other_is_the_rest(machine):
    machine.zone("intel-rapl:0", "package-0", watts=40)
    machine.zone("intel-rapl:0:0", "dram", watts=5)
    machine.zone("intel-rapl:1", "psys", watts=60)
    machine.task(10, cores=1)
    frames = machine.play(2)
    assert device_j(frames, "platform") == near(30)
    assert device_j(frames, "platform", "raw_uj") == near(120)
    assert {d.quality for f in frames for d in f.devices if d.name == "platform"} == {"derived"}
    assert energy_j(frames, "system") == near(120)


def test_a_platform_reading_below_its_parts_is_cut_and_flagged(machine):
    machine.zone("intel-rapl:0", "package-0", watts=40)
    machine.zone("intel-rapl:1", "psys", watts=30)
    (frame,) = machine.play(1)
    platform = frame.devices[1]
    assert (platform.energy_uj, platform.clamped) == (0, True)
    assert platform.raw_uj == near(30e6)


@pytest.mark.parametrize("version", [1, 2])
def test_children_that_come_and_go_between_ticks_are_their_workloads(tmp_path, version):
    machine = Machine(tmp_path, version=version)
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.cgroup("/system.slice/build.service", extra_cores=3.0)
    machine.task(10, group=b"/system.slice/other.service", cores=1.0)
    frames = machine.play(4)
    assert energy_j(frames, "systemd", "build.service") == near(300)
    assert energy_j(frames, "systemd", "other.service") == near(100)


def test_a_pid_used_again_is_a_new_process(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, comm=b"old", cores=1.0, used_s=5000.0)
    machine.task(11, comm=b"steady", cores=1.0)

    def reuse():
        machine.end(10)
        machine.task(10, comm=b"new", start=5000, cores=1.0)

    frames = machine.play(4, {2.1: reuse})
    assert energy_j(frames, "system") == near(400)
    assert energy_j(frames, "system", command="steady") == near(200, rel=0.02)
    assert energy_j(frames[3:], "system", command="new", start_ticks=5000) == near(50)
    assert energy_j(frames[3:], "system", command="old") == 0


def test_a_reset_is_a_gap_not_a_wrap_worth_megajoules(machine):
    zone = machine.zone("intel-rapl:0", "package-0", watts=100, value_uj=200_000_000_000)

    def reload():
        zone.value_uj = 5_000_000
        zone.write()

    frames = machine.play(4, {1.2: reload})
    covered = [f.devices[0].coverage for f in frames]
    assert covered == [1.0, near(0.5), 1.0, 1.0]
    assert device_j(frames, "cpu0") == near(350)


def test_active_energy_goes_by_use_and_idle_stays_apart(machine):
    machine.zone("intel-rapl:0", "package-0", watts=200)
    machine.task(1, group=b"/system.slice/a.service", cores=16)
    machine.task(2, group=b"/system.slice/b.service", cores=4)
    machine.task(3, group=b"/", cores=4)
    frames = machine.play(3, idle_w={"cpu0": 125.0})
    assert energy_j(frames, "idle") == near(375)
    assert energy_j(frames, "systemd", "a.service") == near(150)
    assert energy_j(frames, "systemd", "b.service") == near(37.5)
    assert energy_j(frames, "system") == near(37.5)


@pytest.mark.parametrize(
    ("comm", "shown"),
    [
        (b"caf\xe9\xff", "caf\\xe9\\xff"),
        (b'a"b\n{c}', 'a"b\n{c}'),
        (b"x) R 1 (", "x) R 1 ("),
        (b"", ""),
    ],
)
def test_names_of_any_bytes_are_shown(machine, comm, shown):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, comm=comm, cores=1, group=b"/system.slice/caf\xe9.service")
    frames = machine.play(2)
    assert energy_j(frames, "systemd", "caf\\xe9.service", command=shown) == near(200)


def test_control_characters_in_a_units_name_are_escaped(machine):
    """The collector refuses them in identities; nobody's unit name may cost a node its frames."""
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, group=b"/system.slice/a\x01\tb.service", cores=1)
    frames = machine.play(2)
    assert energy_j(frames, "systemd", "a\\x01\\x09b.service") == near(200)


def test_a_gap_is_bridged_over_its_windows(machine):
    zone = machine.zone("intel-rapl:0", "package-0", watts=80)
    machine.task(10, cores=1)
    counter, hidden = zone.folder / "energy_uj", zone.folder / "hidden"
    zone.write = lambda: (hidden if hidden.exists() else counter).write_text(
        f"{int(zone.value_uj)}\n"
    )
    frames = machine.play(
        8, {1.7: lambda: counter.rename(hidden), 6.6: lambda: hidden.rename(counter)}
    )
    assert [f.devices[0].energy_uj / 1e6 for f in frames] == [near(80)] * 8
    assert [f.devices[0].coverage for f in frames] == [1.0] * 8
    qualities = [f.devices[0].quality for f in frames]
    assert qualities == ["measured", *["derived"] * 6, "measured"]
    assert [f.seq for f in frames] == list(range(1, 9))


def test_a_gap_in_which_the_counter_may_have_wrapped_is_not_bridged(machine):
    zone = machine.zone(
        "intel-rapl:0", "package-0", watts=80, range_uj=400_000_000, max_power_uw=100_000_000
    )
    counter, hidden = zone.folder / "energy_uj", zone.folder / "hidden"
    zone.write = lambda: (hidden if hidden.exists() else counter).write_text(
        f"{int(zone.value_uj)}\n"
    )
    frames = machine.play(
        8, {1.2: lambda: counter.rename(hidden), 6.2: lambda: hidden.rename(counter)}
    )
    assert [round(f.devices[0].coverage, 1) for f in frames] == [1, 0, 0, 0, 0, 0, 0.5, 1]
    assert device_j(frames, "cpu0") == near(80 * 2.5)


def test_each_frame_waits_half_a_minute_of_its_own_then_goes_without(machine):
    """What it counted in windows already sent joins the oldest that still waits."""
    zone = machine.zone("intel-rapl:0", "package-0", watts=80)
    machine.zone("intel-rapl:1", "package-1", watts=20)
    counter, hidden = zone.folder / "energy_uj", zone.folder / "hidden"
    zone.write = lambda: (hidden if hidden.exists() else counter).write_text(
        f"{int(zone.value_uj)}\n"
    )
    frames = machine.play(
        45, {1.2: lambda: counter.rename(hidden), 40.2: lambda: hidden.rename(counter)}
    )
    cpu0 = [f.devices[0] for f in frames]
    assert [n for n, d in enumerate(cpu0) if d.coverage < 0.9] == list(range(1, 10))
    assert all(d.energy_uj == 0 for d in cpu0[2:10])
    assert [n for n, d in enumerate(cpu0) if d.late] == [10]
    assert cpu0[10].energy_uj == near(80e6 * 9.5, rel=0.1)
    assert [d.energy_uj for d in cpu0[11:]] == [near(80e6)] * 34
    assert {d.quality for d in cpu0[10:40]} == {"derived"}
    assert device_j(frames, "cpu0") == near(80 * 45)
    assert device_j(frames, "cpu1") == near(20 * 45)
    assert all(f.devices[1].coverage == 1.0 for f in frames)


def test_a_counter_that_is_gone_does_not_keep_other_numbers_late_for_good(machine):
    machine.zone("intel-rapl:0", "package-0", watts=80)
    machine.zone("intel-rapl:1", "package-1", watts=20)
    clock = Clock()
    events = {1.0: lambda: shutil.rmtree(machine.zones.pop("intel-rapl:1").folder)}
    ages_s = {}
    for frame in itertools.islice(machine.frames(events, clock, tick_s=1.0), 400):
        ages_s[frame.seq] = clock.wall / 1e9 - frame.window_start_ms / 1e3 - 1
    assert ages_s[200] == near(30, abs_=1)
    assert ages_s[400] == near(0, abs_=1)


def test_what_a_platform_took_of_a_silent_part_is_at_coverage_0(machine):
    zone = machine.zone("intel-rapl:0", "package-0", watts=60)
    machine.zone("intel-rapl:1", "psys", watts=100)
    counter, hidden = zone.folder / "energy_uj", zone.folder / "hidden"
    zone.write = lambda: (hidden if hidden.exists() else counter).write_text(
        f"{int(zone.value_uj)}\n"
    )
    frames = machine.play(
        45, {2.2: lambda: counter.rename(hidden), 37.2: lambda: hidden.rename(counter)}
    )
    cpu0, platform = zip(*(f.devices for f in frames), strict=True)
    for part, rest in zip(cpu0, platform, strict=True):
        assert rest.energy_uj == max(0, rest.raw_uj - part.energy_uj)
        assert rest.coverage == min(part.coverage, 1.0)
    assert [n for n, d in enumerate(cpu0) if d.coverage == 0] == list(range(3, 7))
    assert [d.clamped for d in platform] == [d.late for d in cpu0]
    assert device_j(frames, "cpu0") == near(60 * 45)
    assert device_j(frames, "platform", "raw_uj") == near(100 * 45)


def test_a_part_that_left_for_good_stays_listed_and_lowers_the_platforms_coverage(machine):
    machine.zone("intel-rapl:0", "package-0", watts=10)
    machine.zone("intel-rapl:1", "package-1", watts=20)
    machine.zone("intel-rapl:2", "psys", watts=50)
    events = {2.2: lambda: shutil.rmtree(machine.zones.pop("intel-rapl:1").folder)}
    for frame in machine.play(40, events)[3:]:
        assert [(d.name, d.coverage) for d in frame.devices] == [
            ("cpu0", 1.0),
            ("cpu1", 0.0),
            ("platform", 0.0),
        ]


def test_packages_that_come_back_under_each_others_numbers_keep_their_names(machine):
    for n, watts in enumerate((10, 20, 40)):
        machine.zone(f"intel-rapl:{n}", f"package-{n}", watts=watts)
    machine.task(10, cores=1)

    def leave():
        for entry in ("intel-rapl:1", "intel-rapl:2"):
            shutil.rmtree(machine.zones.pop(entry).folder)

    def come_back():
        machine.zone("intel-rapl:2", "package-1", watts=20)
        machine.zone("intel-rapl:1", "package-2", watts=40)

    frames = machine.play(22, {3.2: leave, 12.2: come_back})
    of_last = {d.name: (d.energy_uj, d.coverage) for d in frames[-1].devices}
    assert of_last == {f"cpu{n}": (near(w * 1e6), 1.0) for n, w in enumerate((10, 20, 40))}
    assert device_j(frames, "cpu0") == near(220)
    assert energy_j(frames, "system") == near(sum(device_j(frames, f"cpu{n}") for n in range(3)))


def test_a_package_that_comes_back_under_another_number_is_metered_on(machine):
    machine.zone("intel-rapl:0", "package-0", watts=10)
    machine.zone("intel-rapl:1", "package-1", watts=20)
    events = {
        3.2: lambda: shutil.rmtree(machine.zones.pop("intel-rapl:1").folder),
        8.2: lambda: machine.zone("intel-rapl:3", "package-1", watts=20, value_uj=500_000_000),
    }
    frames = machine.play(20, events)
    cpu1 = [f.devices[1] for f in frames]
    assert [d.coverage for d in cpu1[4:8]] == [0.0] * 4
    assert [d.energy_uj for d in cpu1[-5:]] == [near(20e6)] * 5
    # What the new counter held when it was met is not this gap's.
    assert device_j(frames, "cpu1") == near(20 * sum(d.coverage for d in cpu1))


def test_a_power_meter_that_is_numbered_anew_is_metered_on(machine):
    machine.zone("intel-rapl:0", "package-0", watts=40)
    hwmon = machine.root / "sys/class/hwmon"
    (hwmon / "hwmon0").mkdir(parents=True)
    (hwmon / "hwmon0/name").write_text("power_meter\n")
    (hwmon / "hwmon0/power1_average").write_text("100000000\n")
    frames = machine.play(20, {3.2: lambda: (hwmon / "hwmon0").rename(hwmon / "hwmon7")})
    platform = [f.devices[1] for f in frames]
    assert [(d.raw_uj, d.coverage) for d in platform[-5:]] == [(near(100e6), 1.0)] * 5


def test_a_guest_names_its_host_in_every_frame(machine):
    machine.zone("intel-rapl:0", "package-0", watts=10)
    assert [f.host_node for f in machine.play(2, host_node="metal7")] == ["metal7"] * 2
    (frame,) = machine.play(1, host_node="metal7")
    assert json.loads(as_json(frame))["host_node"] == "metal7"
    assert json.loads(as_json(machine.play(1)[0]))["host_node"] == ""


@pytest.mark.parametrize(("host", "says"), [("n1", "this node itself"), ("a\n", "--host-node")])
def test_a_host_that_no_collector_would_take_is_refused(machine, host, says):
    with pytest.raises(BadSetting, match=says):
        machine.config(host_node=host)


def test_a_counter_that_never_read_well_is_listed_and_not_waited_for(machine):
    zone = machine.zone("intel-rapl:0", "package-0", watts=80)
    zone.write = lambda: (zone.folder / "energy_uj").write_text("garbage\n")
    zone.write()
    machine.zone("intel-rapl:1", "package-1", watts=20)
    frames = machine.play(3)
    assert [(d.name, d.coverage) for d in frames[0].devices] == [("cpu0", 0.0), ("cpu1", 1.0)]


def test_exec_keeps_the_process_under_its_new_name(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    task = machine.task(10, comm=b"sh", cores=1)
    frames = machine.play(4, {2.0: lambda: setattr(task, "comm", b"python")})
    assert {(r["pid"], r["start_ticks"]) for f in frames for r in rows(f) if r["pid"]} == {
        (10, 1000)
    }
    assert energy_j(frames[3:], "system", command="python") == near(100)


def test_two_packages_are_pooled(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.zone("intel-rapl:1", "package-1", watts=60)
    machine.zone("intel-rapl:0:0", "dram", watts=10)
    machine.zone("intel-rapl:1:0", "dram", watts=6)
    machine.task(10, group=b"/system.slice/a.service", cores=3)
    machine.task(11, group=b"/system.slice/a.service", cores=1)
    frames = machine.play(2)
    assert [d.name for d in frames[0].devices] == ["cpu0", "cpu1", "dram0", "dram1"]
    assert energy_j(frames, "systemd", "a.service", pid=10) == near(2 * 132)
    assert energy_j(frames, "systemd", "a.service", pid=11) == near(2 * 44)


def test_a_counter_that_stands_still_is_zero_joules(machine):
    zone = machine.zone("intel-rapl:0", "package-0", watts=100)
    frames = machine.play(
        8, {2: lambda: setattr(zone, "watts", 0), 6: lambda: setattr(zone, "watts", 100)}
    )
    assert [round(f.devices[0].energy_uj / 1e8) for f in frames] == [1, 1, 0, 0, 0, 0, 1, 1]


def test_one_process_alone_in_its_cgroup_leaves_no_remainder(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, group=b"/system.slice/a.service", cores=0.337)
    frames = machine.play(20, tick_s=0.1)
    assert energy_j(frames, "systemd", "a.service", pid=0) < 0.02 * 2000
    assert energy_j(frames, "systemd", "a.service") == near(2000)


def test_a_process_that_moved_is_charged_where_it_burns(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    task = machine.task(10, group=b"/system.slice/x.service")
    machine.task(11, group=b"/system.slice/y.service")

    def move():
        machine.move(10, b"/system.slice/y.service")
        task.cores = 2.0

    frames = machine.play(5, {2.0: move})
    assert energy_j(frames, "systemd", "y.service", pid=10) == near(300)
    assert energy_j(frames, "systemd", "x.service") == 0


def test_a_cgroup_made_and_removed_between_ticks_is_its_parents(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, group=b"/system.slice/a.service/main", cores=1.0)

    def flash():
        machine.cgroup("/system.slice/a.service/flash", used_s=2.0)
        machine.remove_group("/system.slice/a.service/flash")

    frames = machine.play(3, {1.2: flash})
    assert energy_j(frames, "systemd", "a.service", pid=0) == near(100 * 2 / 3, rel=0.02)
    assert energy_j(frames, "systemd", "a.service") == near(300)


def test_a_floor_above_the_power_leaves_nothing_negative(machine):
    machine.zone("intel-rapl:0", "package-0", watts=50)
    machine.task(10, cores=1.0)
    frames = machine.play(2, idle_w={"cpu0": 70.0})
    assert energy_j(frames, "idle") == near(100)
    assert energy_j(frames, "system") == 0


def test_kernel_threads_interrupts_and_inner_cgroups_are_the_systems(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(2, comm=b"kthreadd", cores=1.0, flags=0x208040)
    machine.task(10, group=b"/system.slice", cores=1.0)
    machine.task(1, comm=b"systemd", group=b"/init.scope", cores=1.0)
    machine.irq_cores = 1.0
    frames = machine.play(3)
    assert energy_j(frames, "system") == near(300)
    assert energy_j(frames, "system", pid=0) == near(75)


def test_a_container_inside_a_job_is_the_jobs(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    job = b"/system.slice/slurmstepd.scope/job_123/step_0/user/task_0"
    machine.task(10, group=job + b"/docker-" + b"a1" * 32 + b".scope", cores=1.0)
    machine.task(11, group=b"/system.slice/docker-" + b"b2" * 32 + b".scope", cores=1.0)
    frames = machine.play(2)
    assert energy_j(frames, "slurm", "123") == near(100)
    assert energy_j(frames, "container", "b2" * 32) == near(100)


def test_a_sluid_folder_resolves_to_its_job(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, group=b"/system.slice/slurmstepd.scope/sD7K9B0X1CZ00A/step_0", cores=1.0)
    (machine.root / "proc/10/environ").write_bytes(b"A=1\0SLURM_JOB_ID=4711\0")
    machine.extra_cores["/system.slice/slurmstepd.scope/sD7K9B0X1CZ00A/step_0"] = 1.0
    frames = machine.play(2)
    assert energy_j(frames, "slurm", "4711") == near(200)


def test_steal_is_nobodys_and_guest_counts_once(tmp_path):
    """Without sensors the model's load must not hold steal time, nor guest time twice."""
    quiet, noisy = Machine(tmp_path / "a", cpus=2), Machine(tmp_path / "b", cpus=2)
    for machine in (quiet, noisy):
        machine.task(10, cores=0.5)
    noisy.steal_cores = 1.0
    assert device_j(quiet.play(3), "cpu0") == near(device_j(noisy.play(3), "cpu0"))


def test_without_any_counter_reaped_children_count_once(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    shell = machine.task(10, comm=b"sh", cores=0.0)
    machine.task(11, comm=b"steady", cores=1.0)

    def child_ends():
        shell.reaped_s += child.used_s  # nearly all of it was charged while it lived
        machine.end(12)

    child = machine.task(12, comm=b"child", cores=1.0, parent=10)
    frames = machine.play(
        6, {2.0: child_ends, 4.2: lambda: setattr(shell, "reaped_s", shell.reaped_s + 3.0)}
    )
    of_child = energy_j(frames, "system", command="child") + energy_j(frames[:3], "system", pid=0)
    assert of_child == near(100, rel=0.05)
    # 3 CPU-seconds of children nobody saw, beside one steady CPU
    assert energy_j([frames[4]], "system", pid=0) == near(75, rel=0.05)
    assert energy_j(frames[2:4], "system", command="steady") == near(200, rel=0.05)


def test_a_long_child_reaped_before_it_is_seen_to_end_costs_a_tick_at_most(tmp_path):
    machine = Machine(tmp_path, cpus=2)
    machine.zone("intel-rapl:0", "package-0", watts=100)
    shell = machine.task(10, comm=b"sh")
    machine.task(11, comm=b"steady", cores=1.0)
    child = machine.task(12, comm=b"job", cores=1.0, used_s=36_000.0, parent=10)

    def reaped():  # and still in the listing
        child.cores = 0.0
        shell.reaped_s += child.used_s

    frames = machine.play(6, {2.2: reaped, 2.9: lambda: machine.end(12)})
    assert energy_j(frames[4:], "system", command="steady") == near(200)
    assert energy_j([frames[2]], "system", command="steady") > 40


def test_a_clock_step_closes_the_window_early(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    clock = Clock()

    def step():
        clock.wall += 3_600_000_000_000

    frames = machine.play(5, {1.3: step}, clock)
    covered = [round(f.devices[0].coverage, 2) for f in frames]
    assert covered[0] == 1.0 and covered[1] < 1.0 and covered[3:] == [1.0, 1.0]
    starts = [f.window_start_ms for f in frames]
    assert starts[2] - starts[1] >= 3_599_000
    elapsed_s = 4 + 0.0
    assert device_j(frames, "cpu0") >= 100 * elapsed_s - 60


def test_what_a_counter_counts_while_suspended_comes_flagged(machine):
    """No window is of that time: 60 J pass for no half second's power, and for no package's."""
    zone = machine.zone("intel-rapl:0", "package-0", watts=20)
    machine.task(10, cores=1)
    clock = Clock()

    def suspend():
        clock.suspend(60)
        zone.advance(60 * 1 / 20)

    frames = machine.play(8, {3.3: suspend}, clock)
    cpu0 = [f.devices[0] for f in frames]
    covered = [round(d.coverage, 1) for d in cpu0]
    assert covered == [1.0, 1.0, 1.0, near(0.5), near(0.5), 1.0, 1.0, 1.0]
    assert frames[4].window_start_ms - frames[3].window_start_ms == 60_000
    assert [d.late for d in cpu0] == [False] * 3 + [True] + [False] * 4
    assert cpu0[3].quality == "derived"
    assert [d.energy_uj for d in cpu0[5:]] == [near(20e6)] * 3
    # Nothing is lost. Where in the gap it was drawn, nobody knows: it goes by time.
    assert device_j(frames, "cpu0") == near(60 + 20 * 7)


@pytest.mark.parametrize(
    ("asleep_s", "asleep_w"),
    [(4 * 3600, 0.5), (4 * 3600, None), (600, None), (60, None)],
    ids=["counts_on", "starts_at_0", "starts_at_0_soon", "starts_at_0_at_once"],
)
def test_a_suspend_in_which_a_counter_may_have_wrapped_is_not_bridged(machine, asleep_s, asleep_w):
    zone = machine.zone("intel-rapl:0", "package-0", watts=20, value_uj=50_000_000)
    clock = Clock()

    def suspend():
        clock.suspend(asleep_s)
        zone.value_uj = 0 if asleep_w is None else zone.value_uj + asleep_w * asleep_s * 1e6
        zone.write()

    frames = machine.play(8, {3.3: suspend}, clock)
    covered_s = sum(f.devices[0].coverage for f in frames)
    assert device_j(frames, "cpu0") == near(20 * covered_s)
    assert covered_s == near(6.5)
    assert not any(f.devices[0].late for f in frames)


def test_a_counter_without_a_range_keeps_what_it_counted_in_a_long_suspend(machine):
    zone = machine.zone("intel-rapl:0", "package-0", watts=20, range_uj=0)
    clock = Clock()

    def suspend():
        clock.suspend(4 * 3600)
        zone.advance(4 * 3600 * 0.5 / 20)

    frames = machine.play(8, {3.3: suspend}, clock)
    assert device_j(frames, "cpu0") == near(0.5 * 4 * 3600 + 20 * 7)
    assert [f.devices[0].late for f in frames] == [False] * 3 + [True] + [False] * 4


def test_the_load_model_has_nothing_of_the_time_asleep(machine):
    machine.task(10, cores=1)
    clock = Clock()
    frames = machine.play(8, {3.3: lambda: clock.suspend(60)}, clock, tdp_w=100.0)
    assert not any(f.devices[0].late for f in frames)
    per_s = device_j(frames[:3], "cpu0") / 3
    assert device_j(frames, "cpu0") == near(per_s * 7)


def test_a_power_meter_says_nothing_of_the_time_asleep(machine):
    hwmon = machine.root / "sys/class/hwmon/hwmon0"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("power_meter\n")
    (hwmon / "power1_average").write_text("100000000\n")
    machine.zone("intel-rapl:0", "package-0", watts=20)
    clock = Clock()
    frames = machine.play(8, {3.3: lambda: clock.suspend(60)}, clock)
    platform = [f.devices[1] for f in frames]
    covered_s = sum(d.coverage for d in platform)
    assert device_j(frames, "platform", "raw_uj") == near(100 * covered_s)
    assert device_j(frames, "platform", "raw_uj") == near(100 * 7, rel=0.02)


def test_a_clock_set_back_within_a_window_makes_two_frames_of_it(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    clock = Clock()

    def back():
        clock.wall -= 300_000_000

    frames = machine.play(4, {1.6: back}, clock)
    starts = [f.window_start_ms for f in frames]
    assert len(set(starts)) < len(starts)
    assert device_j(frames, "cpu0") == near(
        100 * sum(f.devices[0].coverage for f in frames), rel=0.02
    )


def test_a_clock_step_that_is_seen_late_stretches_no_window(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    clock = Clock()

    def back_and_late():
        clock.wall -= 300_000_000
        clock.late_ms = 2700

    frames = machine.play(6, {1.6: back_and_late}, clock)
    for frame in frames:
        assert device_j([frame], "cpu0") <= 100 * frame.window_ms / 1000 * 1.01
    covered_s = sum(f.devices[0].coverage * f.window_ms / 1000 for f in frames)
    assert device_j(frames, "cpu0") == near(100 * covered_s)


def test_what_was_used_in_a_stall_too_long_to_make_up_comes_flagged(machine):
    """No joule is lost, and none of them passes for the power of one second."""
    machine.zone("intel-rapl:0", "package-0", watts=100, range_uj=10**15)
    clock = Clock()

    def stall():
        clock.late_ms = 400_000

    def go_on():
        clock.late_ms = 2

    frames = machine.play(6, {1.6: stall, 100.0: go_on}, clock)
    assert [f.devices[0].late for f in frames] == [False, False, True, False, False, False]
    assert device_j(frames, "cpu0") == near(100 * 405)
    starts = [f.window_start_ms for f in frames]
    assert starts[3] - starts[2] == 400_000


def test_windows_are_aligned_and_first_frame_is_the_first_whole_window(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    clock = Clock(wall=START_NS + 400_000_000)
    frames = machine.play(3, clock=clock)
    assert [f.window_start_ms % 1000 for f in frames] == [0, 0, 0]
    assert frames[0].window_start_ms == START_NS // 1_000_000 + 1000
    assert [f.seq for f in frames] == [1, 2, 3]
    assert device_j(frames, "cpu0") == near(300)


def test_a_process_nobody_may_inspect_costs_its_own_details_only(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, cores=1.0)
    (machine.root / "proc/11").mkdir()  # no stat at all
    (machine.root / "proc/12").mkdir()
    (machine.root / "proc/12/stat").write_text("12 (torn")
    frames = machine.play(2)
    assert energy_j(frames, "system", pid=10) == near(200)


def test_small_processes_fold_into_their_workloads_remainder(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(10, group=b"/system.slice/a.service", cores=0.5)
    for pid in range(20, 40):
        machine.task(pid, group=b"/system.slice/a.service", cores=0.005)
    frames = machine.play(10, window_s=10.0, tick_s=1.0)
    assert {r["pid"] for f in frames for r in rows(f)} == {0, 10}
    assert energy_j(frames, "systemd", "a.service") == near(10_000)


def test_every_frame_conserves(machine):
    machine.zone("intel-rapl:0", "package-0", watts=123.456789)
    machine.zone("intel-rapl:0:0", "dram", watts=7.654321)
    machine.zone("intel-rapl:1", "psys", watts=170.1)
    for pid in range(10, 47):
        machine.task(pid, group=f"/system.slice/s{pid % 7}.service".encode(), cores=0.1 * pid / 7)
    for frame in machine.play(5, idle_w={"cpu0": 31.7, "dram0": 2.2}):
        check(frame)


def test_without_a_procfs_energy_is_metered_and_nobodys(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    frames = machine.play(2, procfs=machine.root / "nowhere")
    assert energy_j(frames, "unattributed") == near(200)


def test_a_package_that_is_plugged_in_later_is_metered_from_then_on(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    frames = machine.play(12, {1.0: lambda: machine.zone("intel-rapl:1", "package-1", watts=40)})
    assert [d.name for d in frames[-1].devices] == ["cpu0", "cpu1"]
    assert device_j(frames[-1:], "cpu1") == near(40)


def test_who_moves_among_the_cgroups_of_one_workload_is_counted_once(machine):
    """Counted where it ran, claimed where it was seen: the two are one workload's."""
    machine.zone("intel-rapl:0", "package-0", watts=100)
    steps = [f"/system.slice/job.service/{name}".encode() for name in "abcd"]
    machine.task(10, group=steps[0], cores=1.0)
    machine.task(11, group=b"/system.slice/other.service", cores=1.0)
    for step in steps:
        machine.cgroup(step.decode())
    # Four moves a tick, so that it is never seen where it burned most.
    moves = {n / 4 + 0.05: lambda n=n: machine.move(10, steps[n % 4]) for n in range(1, 24)}
    frames = machine.play(6, moves, tick_s=1.0)
    for frame in frames[1:-1]:
        assert energy_j([frame], "systemd", "job.service") == near(50, rel=0.05)
