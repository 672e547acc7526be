"""GPUs: whose energy it is, who holds them, and that every row adds up, on a played machine."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.attribution import IDLE, WHOLE, GpuWork, Metered, attribute
from joulegram.agent.conservation import check
from joulegram.agent.errors import SensorFailed
from joulegram.agent.gpus import held, only_holder
from joulegram.agent.owners.batch import Batch
from joulegram.agent.owners.known import Known
from joulegram.agent.owners.owners import Owners
from joulegram.agent.sensors.gpu import GpuLook, GpuOpen, GpuUse
from joulegram.agent.workloads import Owner
from tests.agent.played import Machine, device_j, rows
from tests.agent.test_identity import Said

JOB_A, JOB_B = b"/slurm/uid_1000/job_1/step_0", b"/slurm/uid_1000/job_2/step_0"
A, B = Owner("slurm", "1"), Owner("slurm", "2")
uj = st.integers(0, 10**13)


class PlayedMachine(Machine):
    seconds = 0.0

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        super().advance(seconds)


@dataclass
class PlayedGpu:
    """A GPU whose power, users and openers a test sets; its counter grows as ticks are read."""

    machine: PlayedMachine
    watts: float = 0.0
    busy: dict[int, float] = field(default_factory=dict)  # pid: SM use, 0..1
    slices: dict[int, int] = field(default_factory=dict)  # pid: slices of 7 of its instance
    opened: list[int] = field(default_factory=list)
    device: str = "gpu:GPU-1"
    component: str = "gpu"
    range_uj: int = 0
    max_power_w: float = 700.0
    floor_w: float = 0.0
    quality: str = "measured"
    modelled: bool = False
    part: str = "{slices}g"  # how an instance is named
    counted_s: float = 0.0
    looked_s: float = 0.0
    blind: bool = False  # it does not say who uses it
    began_s: float = 0.0  # before a look; 0: not told
    unlisted: str = ""  # an instance that is as busy as pid 0, which no process is listed on

    def read_uj(self) -> int:
        return round(self.machine.seconds * self.watts * 1e6)

    def names(self):
        uuid = self.device.removeprefix("gpu:")
        return {uuid[-1:]: 1.0, uuid: 1.0, "MIG-1g": 1 / 7, "MIG-4g": 4 / 7}

    def look(self):
        if self.blind:
            raise SensorFailed("played")
        elapsed_ns = round((self.machine.seconds - self.looked_s) * 1e9)
        self.looked_s = self.machine.seconds
        uses = []
        for pid, share in self.busy.items():
            busy_ns = round(share * elapsed_ns)
            weight, where = busy_ns * self.slices.get(pid, 7), "" if pid else self.unlisted
            uses.append(GpuUse(pid, busy_ns, weight, where, round(self.began_s * 1e9)))
        opened = [
            GpuOpen(
                pid,
                self.part.format(pid=pid, slices=self.slices[pid]) if pid in self.slices else "",
                self.slices.get(pid, 7) / 7,
            )
            for pid in self.opened
        ]
        return GpuLook(uses, opened, self.modelled)


@pytest.fixture
def machine(tmp_path):
    machine = PlayedMachine(tmp_path)
    machine.task(1, b"train", JOB_A)
    machine.task(2, b"infer", JOB_B)
    return machine


def giving_out(gpus):
    """A scheduler that gave each of these workloads a GPU."""
    owners = Owners(Batch(Path("/nowhere")))
    owners.sources.append(Said({o: Known(reserved_gpus=(gpu,)) for o, gpu in gpus.items()}))
    return owners


def gpu_j(frames, kind, holder=None, **row):
    """Joules of GPUs in matching rows; `holder` is the id of who holds an idle row's GPU."""
    total = 0
    for frame in frames:
        for r in rows(frame):
            held_by = frame.workloads[int(r["holder"])].id if r["holder"] != -1 else None
            if r["kind"] == kind and held_by == holder and all(r[k] == v for k, v in row.items()):
                total += int(r["gpu_uj"])
    return total / 1e6


def near(expected):
    return pytest.approx(expected, rel=0.01)


def test_two_jobs_that_share_a_gpu_by_time_get_half_each(machine):
    gpu = PlayedGpu(machine, 400.0, busy={1: 0.5, 2: 0.5}, opened=[1, 2])
    frames = machine.play(3, sensors=[gpu])
    assert gpu_j(frames, "slurm", id="1", pid=1, command="train") == near(600)
    assert gpu_j(frames, "slurm", id="2", pid=2) == near(600)
    assert device_j(frames, "gpu:GPU-1") == near(1200)
    (first, *_) = [r for r in rows(frames[1]) if r["pid"] == 1]
    assert first["gpu_ns"] == near(0.5e9)


def test_a_gpu_that_a_job_has_open_and_does_not_use_is_idle_and_held_by_it(machine):
    gpu = PlayedGpu(machine, 70.0, opened=[1])
    frames = machine.play(3, sensors=[gpu])
    assert gpu_j(frames, "idle", holder="1") == near(210)
    assert device_j(frames, "gpu:GPU-1", "idle_uj") == near(210)
    for frame in frames:
        (workload,) = [w for w in frame.workloads if w.id == "1"]
        assert [(r.device, r.fraction) for r in workload.reserved_devices] == [(0, 1.0)]


def test_a_held_gpu_is_in_every_frame_even_at_0_j(machine):
    frames = machine.play(3, sensors=[PlayedGpu(machine, 0.0, opened=[1])])
    for frame in frames:
        held_rows = [r for r in rows(frame) if r["holder"] != -1]
        assert [frame.workloads[int(r["holder"])].id for r in held_rows] == ["1"]
        assert [r["gpu_uj"] for r in held_rows] == [0]


def test_mig_instances_of_1_and_4_slices_share_active_energy_1_to_4(machine):
    gpu = PlayedGpu(machine, 350.0, busy={1: 1.0, 2: 1.0}, slices={1: 1, 2: 4}, opened=[1, 2])
    frames = machine.play(3, sensors=[gpu])
    assert gpu_j(frames, "slurm", id="1") == near(3 * 70)
    assert gpu_j(frames, "slurm", id="2") == near(3 * 280)


def test_the_floor_of_slices_that_nobody_holds_is_nobodys(machine):
    gpu = PlayedGpu(machine, 400.0, busy={1: 1.0}, slices={1: 1}, opened=[1])
    frames = machine.play(3, sensors=[gpu], idle_w={"gpu:GPU-1": 70.0})
    assert gpu_j(frames, "slurm", id="1") == near(3 * 330)
    assert gpu_j(frames, "idle", holder="1") == near(3 * 10)
    assert gpu_j(frames, "idle") == near(3 * 60)


def test_a_gpu_that_does_not_say_who_uses_it_is_held_as_before(machine):
    """Held workloads appear in every frame, also where a look fails for whole windows."""
    gpu = PlayedGpu(machine, 70.0, opened=[1])
    given = PlayedGpu(machine, 0.0, opened=[1], device="gpu:GPU-2")
    owners = giving_out({B: "GPU-2"})

    def blind():
        gpu.blind = given.blind = True

    events = {1.2: blind, 4.7: lambda: machine.end(1)}
    frames = machine.play(7, events, sensors=[gpu, given], owners=owners)
    holders = [
        [
            (r["gpu_device"], frame.workloads[int(r["holder"])].id)
            for r in rows(frame)
            if r["holder"] != -1
        ]
        for frame in frames
    ]
    assert holders == [[(0, "1"), (1, "2")]] * 5 + [[(1, "2")]] * 2
    assert gpu_j(frames, "idle", holder="1") == near(70 * 5)
    assert gpu_j(frames, "unattributed") == near(70 * 2)


def test_a_gpu_of_which_every_slice_is_held_leaves_nothing_to_nobody(machine):
    pids = range(10, 17)
    for pid in pids:
        machine.task(pid, b"infer", f"/slurm/uid_1000/job_{pid}/step_0".encode())
    slices = dict.fromkeys(pids, 1)
    gpu = PlayedGpu(machine, 700.0, slices=slices, opened=list(pids), part="MIG-{pid}")
    for frame in machine.play(3, sensors=[gpu], idle_w={"gpu:GPU-1": 700.0}):
        idle = [r for r in rows(frame) if r["kind"] == "idle"]
        assert [r["gpu_uj"] for r in idle if r["holder"] == -1] == []
        assert [round(int(r["gpu_uj"]) / 1e6) for r in idle] == [100] * 7


def test_a_process_that_ended_since_it_was_seen_is_still_charged_to_its_workload(machine):
    gpu = PlayedGpu(machine, 400.0, busy={1: 1.0}, opened=[1])
    machine.task(3, b"short", JOB_B)

    def end():
        gpu.opened, gpu.busy = [1], {1: 0.25, 3: 0.75}
        machine.end(3)

    def then():
        gpu.busy = {1: 1.0}

    gpu.opened = [1, 3]
    frames = machine.play(4, {1.3: end, 1.6: then}, sensors=[gpu])
    assert gpu_j(frames, "slurm", id="2", command="short") == near(0.75 * 0.5 * 400)
    assert gpu_j(frames, "unattributed") == 0


def test_use_of_a_process_whose_pid_is_another_jobs_by_now_stays_its_own(machine):
    gpu = PlayedGpu(machine, 400.0, busy={1: 1.0}, opened=[1])
    machine.task(3, b"short", JOB_B)

    def end():
        gpu.opened, gpu.busy = [1], {3: 1.0}
        machine.end(3)
        machine.task(3, b"next", JOB_A, start=5000)

    def then():
        gpu.opened, gpu.busy = [1, 3], {3: 1.0}

    gpu.opened = [1, 3]
    frames = machine.play(4, {1.3: end, 1.6: then}, sensors=[gpu])
    assert gpu_j(frames, "slurm", id="2", command="short", start_ticks=1000) == near(0.5 * 400)
    assert gpu_j(frames[2:], "slurm", id="1", command="next", start_ticks=5000) == near(2 * 400)


@pytest.mark.parametrize("seen_open", [False, True])
@pytest.mark.parametrize("tick_s", [0.5, 5.0])
def test_use_that_is_told_when_the_process_has_ended_is_its_workloads(machine, tick_s, seen_open):
    """Of accounting mode, or the last samples; whether or not a look had found it on the GPU."""
    gpu = PlayedGpu(machine, 400.0, opened=[2] if seen_open else [])

    def end():
        gpu.busy, gpu.opened = {2: 1.0}, []
        machine.end(2)

    def then():
        gpu.busy = {}

    events = {6.3: end, 6.3 + tick_s: then}
    frames = machine.play(3, events, sensors=[gpu], tick_s=tick_s, window_s=5)
    assert gpu_j(frames[1:2], "slurm", id="2", pid=2, command="infer") == near(5 * 400)


def test_a_pid_that_was_gone_for_long_is_nobodys(machine):
    gpu = PlayedGpu(machine, 400.0)
    events = {1.2: lambda: machine.end(2), 6.2: lambda: gpu.busy.update({2: 1.0})}
    frames = machine.play(8, events, sensors=[gpu])
    assert gpu_j(frames, "slurm") == 0
    assert gpu_j(frames, "unattributed") == near(8 * 400)


@pytest.mark.parametrize(
    ("began_s", "owner"),
    [(3.0, "1"), (0.2, "2"), (1.8, None), (0.0, "2"), (999.0, "2")],
    ids=["the first", "the second", "between them", "not told", "nonsense"],
)
def test_of_those_that_had_a_pid_the_one_who_was_there_when_use_began_is_charged(
    machine, began_s, owner
):
    """Pid 3 is job 1's from 4 s to 2 s before the look, and job 2's from 0.5 s before it."""
    machine.task(3, b"first", JOB_A, start=400)
    uptime = machine.root / "proc/uptime"
    uptime.write_text("8.00 0.00\n")
    gpu = PlayedGpu(machine, 400.0)

    def again():
        machine.task(3, b"second", JOB_B, start=750)

    def tell():
        gpu.busy, gpu.began_s = {3: 1.0}, began_s

    events = {1.2: lambda: machine.end(3), 3.3: again, 3.4: tell, 3.6: lambda: gpu.busy.clear()}
    frames = machine.play(4, events, sensors=[gpu])
    charged = {r["id"] for f in frames for r in rows(f) if r["kind"] == "slurm" and r["gpu_uj"]}
    assert charged == ({owner} if owner else set())


def test_whoever_has_the_pid_of_one_that_has_just_ended_is_not_charged(machine):
    gpu = PlayedGpu(machine, 400.0)

    def again():
        gpu.busy = {1: 1.0}
        machine.end(1)
        machine.task(1, b"next", JOB_B, start=5000)

    frames = machine.play(3, {1.2: again, 1.6: lambda: gpu.busy.clear()}, sensors=[gpu])
    assert gpu_j(frames, "slurm", id="1", command="train") == near(400)
    assert gpu_j(frames, "slurm", id="2") == 0


def test_a_busy_instance_without_processes_keeps_its_energy_from_its_neighbours(machine):
    gpu = PlayedGpu(machine, 400.0, {0: 0.9, 2: 0.1}, {0: 3, 2: 3}, [2], unlisted="MIG-4g")
    frames = machine.play(3, sensors=[gpu])
    assert gpu_j(frames, "slurm", id="2") == near(3 * 40)
    assert gpu_j(frames, "unattributed") == near(3 * 360)


@pytest.mark.parametrize(("name", "kind"), [("MIG-4g", "slurm"), ("MIG-1g", "unattributed")])
def test_a_busy_instance_without_processes_is_who_it_was_given_to(machine, name, kind):
    gpu = PlayedGpu(machine, 400.0, {0: 0.9, 2: 0.1}, {0: 3, 2: 3}, [2], unlisted="MIG-4g")
    frames = machine.play(3, sensors=[gpu], owners=giving_out({A: name}))
    ids = {"id": "1"} if kind == "slurm" else {}
    assert gpu_j(frames, kind, **ids) == near(3 * 360)


def test_the_one_who_was_given_an_instance():
    def only(partition, holding):
        return only_holder(partition, names, holding, {"0:1": "MIG-a"})

    names = {"0": 1.0, "GPU-1": 1.0, "MIG-a": 1 / 7}
    assert only("MIG-a", [(A, ["MIG-a"]), (B, ["MIG-b"])]) == A
    assert only("MIG-a", [(A, ["GPU-1", "0"])]) == A
    assert only("MIG-a", [(A, ["all"])]) == A
    assert only("MIG-a", [(A, ["MIG-a"]), (B, ["MIG-a"])]) is None
    assert only("MIG-a", [(B, ["1"])]) is None
    assert only("MIG-a", [(A, ["0:1"])]) == A
    assert only("", [(A, ["0"])]) is None


def test_use_by_a_pid_that_nobody_knows_is_unattributed(machine):
    frames = machine.play(2, sensors=[PlayedGpu(machine, 100.0, busy={999: 1.0})])
    assert gpu_j(frames, "unattributed") == near(200)


def test_active_energy_without_any_use_or_holder_is_unattributed(machine):
    gpu = PlayedGpu(machine, 100.0)
    frames = machine.play(2, sensors=[gpu], idle_w={"gpu:GPU-1": 30.0})
    assert gpu_j(frames, "unattributed") == near(140)
    assert gpu_j(frames, "idle") == near(60)


def test_a_process_on_two_gpus_has_two_rows_and_its_cpu_time_once(machine):
    machine.tasks[1].cores = 1.0
    one = PlayedGpu(machine, 100.0, busy={1: 1.0})
    two = PlayedGpu(machine, 300.0, busy={1: 1.0}, device="gpu:GPU-2")
    frames = machine.play(2, sensors=[one, two])
    own = [r for r in rows(frames[1]) if r["pid"] == 1]
    assert [r["gpu_uj"] for r in own] == [near(100e6), near(300e6)]
    assert [r["cpu_ns"] for r in own] == [near(1e9), 0]


def test_a_gpu_whose_shares_are_modelled_says_so_and_the_platform_does_not(machine):
    machine.zone("intel-rapl:0", "package-0", watts=0)
    machine.zone("intel-rapl:1", "psys", watts=500)
    gpu = PlayedGpu(machine, 300.0, busy={1: 1.0}, modelled=True)
    (frame,) = machine.play(1, sensors=[gpu], more_sensors=True)
    assert {d.name: d.quality for d in frame.devices} == {
        "cpu0": "measured",
        "gpu:GPU-1": "modelled",
        "platform": "derived",
    }
    assert device_j([frame], "platform") == near(200)


@given(
    st.lists(st.tuples(uj, st.integers(0, 10**9)), max_size=3),
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10**12)), max_size=4),
            st.dictionaries(st.integers(0, 5), st.integers(0, WHOLE), max_size=4),
        ),
        max_size=3,
    ),
    uj,
    st.lists(st.integers(0, 10**12), min_size=5, max_size=5),
)
def test_every_gpus_rows_sum_to_it(gpus, works, platform_uj, cpu_ns):
    devices = [
        Metered(f"gpu:{n}", "gpu", energy, floor, "measured", 1.0)
        for n, (energy, floor) in enumerate(gpus)
    ]
    devices.append(Metered("cpu0", "cpu", 10**9, 10**6, "measured", 1.0))
    devices.append(Metered("platform", "other", platform_uj, 0, "measured", 1.0))
    work = {
        f"gpu:{n}": GpuWork([(u, w, w) for u, w in dict(uses).items()], holds)
        for n, (uses, holds) in enumerate(works)
    }
    drawn, shares = attribute(devices, 1000, cpu_ns, work)
    for index, device in enumerate(drawn):
        if device.component != "gpu":
            continue
        own = [s for s in shares if s.gpu == index]
        assert sum(s.gpu_uj for s in own) == device.energy_uj
        assert sum(s.gpu_uj for s in own if s.use == IDLE) == device.idle_uj
        if device.name in work:
            assert {s.holder for s in own if s.holder >= 0} == set(work[device.name].held)
    for name in ("cpu", "other"):
        parts = [d for d in drawn if d.component == name]
        column = [getattr(s, f"{name}_uj") for s in shares]
        assert sum(column) == sum(d.energy_uj for d in parts)
        idle = [getattr(s, f"{name}_uj") for s in shares if s.use == IDLE]
        assert sum(idle) == sum(d.idle_uj for d in parts)
    assert all(s.gpu >= 0 or s.gpu_uj == 0 for s in shares)


def test_a_server_of_mps_in_its_own_unit_holds_a_part_unless_the_gpu_was_given_out(machine):
    machine.task(3, b"nvidia-cuda-mps", b"/system.slice/nvidia-mps.service")
    alone = PlayedGpu(machine, 90.0, opened=[1, 2, 3])
    given = PlayedGpu(machine, 50.0, opened=[1, 2, 3], device="gpu:GPU-2")
    frames = machine.play(2, sensors=[alone, given], owners=giving_out({A: "GPU-2"}))
    of_alone = {"1": near(60), "2": near(60), "nvidia-mps.service": near(60)}
    assert {h: gpu_j(frames, "idle", holder=h, gpu_device=0) for h in of_alone} == of_alone
    assert gpu_j(frames, "idle", holder="1", gpu_device=1) == near(100)


def test_what_a_scheduler_gave_out_goes_before_what_is_open():
    names = {"0": 1.0, "GPU-1": 1.0, "MIG-a": 1 / 7, "0:1": 1 / 7}

    def holds(holding, opened):
        return held(names, holding, opened, {"0:1": "MIG-a"})

    whole = {GpuOpen(2, "", 1.0): B}
    assert holds([(A, ["0"])], whole) == {A: 1.0}
    assert holds([(A, ["GPU-1", "0"])], {}) == {A: 1.0}
    assert holds([(A, ["1"])], whole) == {B: 1.0}
    assert holds([(A, ["all"])], whole) == {A: 1.0}
    assert holds([(A, ["0"]), (B, ["0"])], {}) == {A: 0.5, B: 0.5}
    part = {GpuOpen(2, "MIG-b", 4 / 7): B}
    assert holds([(A, ["MIG-a"])], part) == {A: pytest.approx(1 / 7), B: pytest.approx(4 / 7)}
    for name in ("MIG-a", "0:1"):
        assert holds([(A, [name])], {GpuOpen(1, "MIG-a", 1 / 7): B}) == {A: pytest.approx(1 / 7)}
    assert holds([], {GpuOpen(3, "", 1.0): Owner("system")}) == {}


def test_frames_with_gpus_conserve(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.tasks[1].cores = 2.0
    gpu = PlayedGpu(machine, 333.3, busy={1: 0.3, 2: 0.1}, opened=[1, 2])
    frames = machine.play(4, sensors=[gpu], more_sensors=True, idle_w={"gpu:GPU-1": 50.0})
    for frame in frames:
        check(frame)
    assert sum(int(r["cpu_uj"]) for f in frames for r in rows(f)) == near(400e6)
