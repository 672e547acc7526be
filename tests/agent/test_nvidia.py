"""NVIDIA GPUs through NVIDIA's own binding, on a played library (tests/agent/nvml)."""

import ctypes
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.errors import AgentError
from joulegram.agent.sensors.gpu import NO_PID, GpuLook
from joulegram.agent.sensors.nvidia.gpus import NvidiaGpus
from joulegram.agent.sensors.nvidia.sm_use import LOOK_MAX_US, SmSample, SmUse
from tests.agent.nvml.asked import START_US, Asked, asking
from tests.agent.nvml.library import build
from tests.agent.played import Clock
from tests.servers import wait_until

MS_NS = 1_000_000
A = "gpu GPU-a\nenergy_mj 5000\nlimit_mw 100000 700000\n"


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def machine(library, tmp_path_factory) -> Iterator[Asked]:
    with asking(library, tmp_path_factory.mktemp("trace")) as asked:
        yield asked


def at(second: float) -> int:
    return START_US + round(second * 1e6)


def busy_ms(asked: Asked) -> dict[int, float]:
    look = asked.look()
    assert not look.modelled
    return {use.pid: use.busy_ns / MS_NS for use in look.uses}


def shares(asked: Asked) -> dict[int, float]:
    """How the GPU's active energy goes."""
    uses = asked.look().uses
    return {use.pid: use.weight / sum(u.weight for u in uses) for use in uses}


# Energy


def test_the_counter_is_microjoules_since_the_driver_was_loaded(machine):
    (gpu,) = machine.begin(A)
    assert gpu == {
        "device": "gpu:GPU-a",
        "component": "gpu",
        "quality": "measured",
        "max_power_w": 700.0,
        "averaged_s": None,
        "range_uj": 0,
    }
    assert machine.read() == 5_000_000
    machine.play("gpu GPU-a\nenergy_mj 17\n", 1)
    assert machine.read() == 17_000


@pytest.mark.parametrize(
    ("more", "averaged_s", "power_w"),
    [
        ("power_mw 70000\ncc 9 0", 1.0, 70),
        ("power_mw 70000\ncc 8 0\narch 7", 0.0, 70),  # GA100 tells power at the moment
        ("power_mw 70000\narch 9", 1.0, 70),
        ("power_mw 70000\narch 5", 0.0, 70),
        ("power_mw 70000\ninstant_mw 90000\narch 9", 0.0, 90),
    ],
)
def test_without_a_counter_power_is_sampled_and_derived(machine, more, averaged_s, power_w):
    (gpu,) = machine.begin(f"gpu GPU-a\n{more}\n")
    assert (gpu["quality"], gpu["averaged_s"]) == ("derived", averaged_s)
    assert machine.read()[0] == power_w * 1_000_000


def test_a_power_field_says_when_it_was_measured(machine):
    machine.begin(f"gpu GPU-a\ninstant_mw 100000 {at(-0.4)}\n")
    power_uw, then_ns = machine.read()
    machine.play(f"gpu GPU-a\ninstant_mw 100000 {at(-0.4)}\n", 1)
    assert machine.read() == [power_uw, then_ns], "nothing new was measured"
    machine.play(f"gpu GPU-a\ninstant_mw 300000 {at(9.6)}\n", 9)
    assert machine.read() == [300_000_000, then_ns + 10_000_000_000]


def test_a_time_that_stands_still_under_new_values_is_not_believed(machine):
    machine.begin(f"gpu GPU-a\ninstant_mw 100000 {at(0)}\n")
    _, first_ns = machine.read()
    machine.play(f"gpu GPU-a\ninstant_mw 200000 {at(0)}\n", 2)
    assert machine.read() == [200_000_000, first_ns + 2_000_000_000]


def test_a_power_dated_by_another_clock_was_measured_when_it_was_read(machine):
    machine.begin("gpu GPU-a\ninstant_mw 100000 5000000\n")
    _, first_ns = machine.read()
    machine.play("gpu GPU-a\ninstant_mw 200000 7000000\n", 2)
    assert machine.read() == [200_000_000, first_ns + 2_000_000_000]
    machine.begin("gpu GPU-a\ninstant_mw 100000\n")
    assert machine.read()[1] == first_ns, "as where no other time is told"


# Use


def test_two_jobs_that_slice_time_share_by_their_use(machine):
    """Golden case 9."""
    machine.begin(A + f"process compute 1\nprocess compute 2\nsample 1 {at(0)} 50\n")
    assert machine.look().uses == []
    machine.play(
        A + f"process compute 1\nprocess compute 2\nsample 1 {at(1)} 50\nsample 2 {at(1)} 50\n", 1
    )
    assert shares(machine) == {1: 0.5, 2: 0.5}


def test_use_is_weighted_by_time_not_by_the_number_of_samples(machine):
    machine.begin(A + f"sample 1 {at(0)} 1\nsample 2 {at(0)} 1\n")
    machine.look()
    samples = [(1, 0.2, 90), (1, 1.0, 10), (2, 1.0, 26)]
    machine.play(A + "".join(f"sample {p} {at(t)} {sm}\n" for p, t, sm in samples), 1)
    assert busy_ms(machine) == {1: 0.2 * 900 + 0.8 * 100, 2: 260}


def test_whoever_begins_counts_from_the_look_before(machine):
    """However many samples the others have by then, and whatever clock they are dated by."""
    for base_s in (0, -1_000_000_000):
        machine.begin(A)
        machine.look()
        samples = [(1, 0.2, 100), (1, 0.4, 100), (2, 0.4, 100)]
        played = "".join(f"sample {p} {at(base_s + t)} {sm}\n" for p, t, sm in samples)
        machine.play(A + played, 0.4)
        assert busy_ms(machine) == {1: 400, 2: 400}


def test_no_sample_is_counted_twice(machine):
    """Neither one that the library gives again, nor one from before the first look."""
    trace = A + f"sample 1 {at(-0.5)} 100\nsample 1 {at(0)} 100\n"
    machine.begin(trace)
    assert busy_ms(machine) == {}
    trace += f"sample 1 {at(0.5)} 40\n"
    machine.play(trace, 0.5)
    assert busy_ms(machine) == {1: 200}
    machine.play(trace, 0.5)
    assert busy_ms(machine) == {}


def test_a_sample_after_a_pause_stands_for_one_period(machine):
    machine.begin(A + f"sample 1 {at(0)} 100\n")
    machine.look()
    machine.play(A, 60)
    assert busy_ms(machine) == {}
    machine.play(A + f"sample 1 {at(61)} 100\n", 1)
    assert busy_ms(machine) == {1: 1000}


def test_a_clock_that_was_set_back_restarts_the_cursor(machine):
    machine.begin(A + f"sample 1 {at(0)} 100\n")
    machine.look()
    machine.play(A + f"sample 1 {at(-3600)} 100\n", -3600)
    assert busy_ms(machine) == {}
    machine.play(A + f"sample 1 {at(-3599.5)} 100\n", 0.5)
    assert busy_ms(machine) == {1: 500}


def test_samples_from_the_future_and_nonsense_are_not_believed(machine):
    machine.begin(A + f"sample 1 {at(0)} 100\n")
    machine.look()
    nonsense = f"sample 1 {1 << 63} 100\nsample 2 {at(0.5)} 4294967295\nsample 0 {at(0.5)} 50\n"
    machine.play(A + nonsense + f"sample 3 {at(0.5)} 50\n", 0.5)
    assert busy_ms(machine) == {3: 250}


def test_not_found_is_no_samples_and_the_tick_goes_on(machine):
    """Golden cases 10 and 11: it is open, nothing ran, nothing is an error."""
    machine.begin(A + "process compute 1\nerror nvmlDeviceGetProcessUtilization 6\nutil 0\n")
    for _ in range(2):
        look = machine.look()
        assert (look.uses, look.modelled) == ([], False)
        assert [(p.pid, p.partition, p.fraction) for p in look.opened] == [(1, "", 1.0)]
        assert machine.read() == 5_000_000
        machine.play(A + "process compute 1\nerror nvmlDeviceGetProcessUtilization 6\nutil 0\n", 1)


def test_whoever_opens_it_counts_once(machine):
    """Compute, graphics and MPS; garbage pids do not."""
    machine.begin(
        A + "process compute 1\nprocess graphics 1\nprocess graphics 2\nprocess mps 3\n"
        "process compute 0\nprocess compute 4294967295\n"
    )
    assert [p.pid for p in machine.look().opened] == [1, 2, 3]


def test_whoever_uses_it_has_it_open_where_the_driver_lists_nobody(machine):
    machine.begin(A + f"sample 1 {at(0)} 100\n")
    machine.look()
    machine.play(A + f"sample 1 {at(0.5)} 50\n", 0.5)
    assert [p.pid for p in machine.look().opened] == [1]


def test_mps_clients_share_by_their_own_use(machine):
    clients = "process compute 9\nprocess mps 1\nprocess mps 2\n"
    machine.begin(A + clients)
    machine.look()
    machine.play(A + clients + f"sample 1 {at(1)} 60\nsample 2 {at(1)} 20\n", 1)
    assert shares(machine) == {1: 0.75, 2: 0.25}


@pytest.mark.parametrize(
    ("more", "busy"), [("util 80\n", 400 * MS_NS), ("", 0)], ids=["utilisation", "nothing"]
)
def test_without_samples_per_process_its_parts_are_equal_and_modelled(machine, more, busy):
    trace = A + more + "error nvmlDeviceGetProcessUtilization 3\nprocess compute 1\nprocess mps 2\n"
    machine.begin(trace)
    assert machine.look().uses == []
    machine.play(trace, 1)
    look = machine.look()
    assert look.modelled
    assert [(use.pid, use.busy_ns) for use in look.uses] == [(1, busy), (2, busy)]
    assert look.uses[0].weight == look.uses[1].weight > 0


def test_without_samples_who_has_just_ended_did_what_was_done(machine):
    blind = A + "util 80\nerror nvmlDeviceGetProcessUtilization 3\n"
    machine.begin(blind + "process compute 1\n")
    machine.look()
    machine.play(blind, 0.5)
    look = machine.look()
    assert [(use.pid, use.busy_ns) for use in look.uses] == [(1, 400 * MS_NS)]
    assert look.opened == [], "it does not hold it any more"
    machine.play(blind, 0.5)
    assert machine.look().uses == []


# Processes that came and went


def accounted(pid: int, ms: int, share: int, running: int = 0) -> str:
    return f"accounted {pid} {ms} {share} {at(0)} {running}\n"


def test_a_process_that_ended_between_two_looks_is_owed_its_time(machine):
    """By accounting mode: in all what it did, less what was counted, and nobody before us."""
    on = A + "accounting 1\n" + accounted(5, 90_000, 100)
    machine.begin(on + accounted(7, 0, 0, running=1) + "process compute 7\n")
    assert busy_ms(machine) == {}
    machine.play(on + accounted(7, 0, 0, 1) + "process compute 7\n" + f"sample 7 {at(1)} 100\n", 1)
    assert busy_ms(machine) == {7: 1000}
    gone = on + accounted(7, 1400, 100) + accounted(8, 300, 50)
    machine.play(gone, 1)
    assert busy_ms(machine) == {7: 400, 8: 150}
    machine.play(gone, 1)
    assert busy_ms(machine) == {}


def test_accounting_mode_says_since_when(machine):
    """A pid may be another's by now; what lies ahead of us is no time."""
    on = A + "accounting 1\n"
    machine.begin(on)
    machine.look()
    later = f"accounted 8 300 50 {at(9)} 0\n"
    machine.play(on + f"accounted 7 300 100 {at(0.5)} 0\n" + later, 1)
    assert {use.pid: use.began_ns / MS_NS for use in machine.look().uses} == {7: 500, 8: 0}


def test_nobody_is_owed_more_than_the_time_since_the_look_before(machine):
    """What it did before the agent began is not this tick's."""
    machine.begin(A + "accounting 1\nprocess compute 7\n" + accounted(7, 0, 0, running=1))
    machine.look()
    machine.play(A + "accounting 1\n" + accounted(7, 3_600_000, 80), 1)
    assert busy_ms(machine) == {7: 800}


def test_accounting_that_is_off_is_not_asked_for(machine):
    machine.begin(A + "accounting 0\n")
    machine.look()
    machine.play(A + "accounting 0\n" + accounted(7, 300, 100), 1)
    assert busy_ms(machine) == {}


# MIG

PARTS = "mig MIG-1 1 0 1\n{}mig MIG-4 2 0 4\n{}"
HELD = "process compute 1 1 0\nprocess compute 2 2 0\n"


@pytest.mark.parametrize("told", ["samples", "monitor", "holders"])
def test_instances_weigh_by_slices_times_activity(machine, told):
    """Golden case 7, however activity is told: 1g and 4g, both busy all the time, 1 : 4."""
    gpm = "gpm\n" if told == "monitor" else ""
    for second in (0, 1, 2):
        inner = ["", ""]
        if told == "samples":
            inner = [f"sample {pid} {at(second)} 100\n" for pid in (1, 2)]
        if told == "monitor":
            inner = ["sm 100\n", "sm 100\n"]
        trace = A + gpm + HELD + PARTS.format(*inner)
        machine.begin(trace) if second == 0 else machine.play(trace, 1)
        look = machine.look()
    assert look.modelled == (told == "holders")
    weights = {use.pid: use.weight for use in look.uses}
    assert weights[2] == 4 * weights[1] > 0
    assert {p.pid: (p.partition, p.fraction) for p in look.opened} == {
        1: ("MIG-1", 1 / 7),
        2: ("MIG-4", 4 / 7),
    }


def test_one_busy_slice_has_all_activity_and_holds_a_seventh(machine):
    """Golden case 8."""
    trace = A + "process compute 1 3 0\nmig MIG-1 3 0 1\n"
    machine.begin(trace)
    machine.look()
    machine.play(trace, 1)
    look = machine.look()
    assert [use.pid for use in look.uses] == [1]
    assert [(p.pid, p.fraction) for p in look.opened] == [(1, 1 / 7)]


def test_an_instance_that_did_nothing_gets_nothing(machine):
    trace = A + "gpm\n" + HELD + PARTS.format("sm 0\n", "sm 25\n")
    machine.begin(trace)
    machine.look()
    machine.play(trace, 1)
    look = machine.look()
    assert [(use.pid, use.busy_ns, use.weight) for use in look.uses] == [
        (2, 250 * MS_NS, 1000 * MS_NS)
    ]


def test_processes_of_one_instance_share_its_activity_modelled(machine):
    trace = A + "gpm\n" + HELD + "process compute 3 2 0\n" + PARTS.format("sm 50\n", "sm 50\n")
    machine.begin(trace)
    machine.look()
    machine.play(trace, 1)
    look = machine.look()
    assert look.modelled
    assert {use.pid: use.weight / MS_NS for use in look.uses} == {1: 500, 2: 1000, 3: 1000}


def watched(machine: Asked, *traces: str) -> GpuLook:
    """The look at the last trace, a second after the one before; the first is seen twice."""
    machine.begin(A + "gpm\n" + traces[0])
    machine.look()
    for trace in traces:
        machine.play(A + "gpm\n" + trace, 1)
        look = machine.look()
    return look


def test_what_an_instance_without_processes_did_is_not_its_neighbours(machine):
    look = watched(
        machine, "process compute 2 2 0\nmig MIG-1 1 0 3\nsm 90\nmig MIG-2 2 0 3\nsm 10\n"
    )
    assert not look.modelled
    assert [(use.pid, use.partition, use.weight / MS_NS) for use in look.uses] == [
        (NO_PID, "MIG-1", 2700),
        (2, "", 300),
    ]


def test_a_process_that_has_just_ended_did_what_its_instance_did(machine):
    parts = PARTS.format("sm 90\n", "sm 10\n")
    look = watched(machine, HELD + parts, "process compute 2 2 0\n" + parts)
    assert {use.pid: use.weight / MS_NS for use in look.uses} == {1: 900, 2: 400}
    machine.play(A + "gpm\n" + "process compute 2 2 0\n" + parts, 1)
    assert {use.pid: use.weight / MS_NS for use in machine.look().uses} == {NO_PID: 900, 2: 400}


def test_samples_of_who_is_listed_nowhere_weigh_as_the_part_that_holds_nobody(machine):
    for second in (0, 1, 2):
        inner = (f"sample {pid} {at(second)} {sm}\n" for pid, sm in ((9, 90), (2, 10)))
        trace = A + "process compute 2 2 0\n" + "".join(inner) + PARTS.format("", "")
        trace = trace.replace("MIG-1 1 0 1", "MIG-1 1 0 3")
        machine.begin(trace) if second == 0 else machine.play(trace, 1)
        weights = {use.pid: use.weight / MS_NS for use in machine.look().uses}
    assert weights == {9: 2700, 2: 400}


@pytest.mark.parametrize("pids", [(5,), (5, 6), ()])
def test_compute_instances_share_all_that_their_gpu_instance_did(machine, pids):
    """Half of 4 slices; beside a neighbour of 1."""
    inside = "".join(f"process compute {pid} 2 {pid - 5}\n" for pid in pids)
    parts = "mig MIG-1c 2 0 4 1\nsm 50\nmig MIG-2c 2 1 4 2\nsm 50\nmig MIG-1 1 0 1\nsm 100\n"
    look = watched(machine, inside + "process compute 1 1 0\n" + parts)
    weights = {use.pid: round(use.weight / MS_NS) for use in look.uses}
    shared = {(5,): {5: 2000}, (5, 6): {5: 667, 6: 1333}, (): {NO_PID: 2000}}[pids]
    assert weights == {**shared, 1: 1000}
    assert look.modelled == (len(pids) > 1)
    assert {use.partition for use in look.uses} == {""}, "nobody knows which of the two"


def test_an_instance_with_processes_that_tells_nothing_gives_nothing_to_the_others(machine):
    look = watched(machine, HELD + PARTS.format("sm 10\n", ""))
    assert look.modelled
    assert {use.pid: use.weight / MS_NS for use in look.uses} == {1: 1000, 2: 4000}


def test_compute_instances_hold_their_own_slices(machine):
    machine.begin(A + "mig MIG-1c 2 0 4 1\nmig MIG-3c 2 1 4 3\nprocess compute 5 2 1\n")
    assert [(p.partition, p.fraction) for p in machine.look().opened] == [("MIG-3c", 3 / 7)]


def test_each_device_is_asked_where_the_gpu_does_not_place_its_processes(machine):
    """An older driver, or a user who may not see all of the GPU."""
    hidden = "error nvmlDeviceGetComputeRunningProcesses_v3 4\n"
    machine.begin(A + hidden + HELD + PARTS.format("", ""))
    assert {p.pid: p.partition for p in machine.look().opened} == {1: "MIG-1", 2: "MIG-4"}


def test_a_smaller_gpu_has_fewer_slices(machine):
    machine.begin(A + "slices 4\nmig MIG-1 1 0 1\nprocess compute 1 1 0\n")
    assert machine.look().opened[0].fraction == 1 / 4


def test_instances_made_and_destroyed_while_it_runs(machine):
    machine.begin(A + HELD + PARTS.format("", ""))
    machine.look()
    other = A + "mig MIG-1 1 0 1\nmig MIG-2 5 0 2\nprocess compute 9 5 0\n"
    machine.play(other, 1)
    machine.look()
    machine.play(other, 1)
    assert [(p.pid, p.partition) for p in machine.look().opened] == [(9, "MIG-2")]
    machine.play(A + "process compute 9\n", 11)
    assert [(p.pid, p.partition, p.fraction) for p in machine.look().opened] == [(9, "", 1.0)]


# Names


def test_every_name_a_scheduler_may_use(machine):
    machine.begin("gpu GPU-z\npower_mw 1\n" + A + "bus 00000000:AF:00.0\nminor 3\n")
    assert set(machine.names()) == {
        "1", "GPU-a", "nvidia3", "/dev/nvidia3",
        "af:00.0", "AF:00.0", "0000:af:00.0", "0000:AF:00.0", "00000000:af:00.0",
        "00000000:AF:00.0",
    }  # fmt: skip
    machine.begin(A + "mig MIG-1 1 0 1\nmig MIG-3 2 0 3\n")
    parts = {name: part for name, part in machine.names().items() if part != 1}
    assert parts == {
        "MIG-1": 1 / 7, "MIG-GPU-a/1/0": 1 / 7, "0:0": 1 / 7,
        "MIG-3": 3 / 7, "MIG-GPU-a/2/0": 3 / 7, "0:1": 3 / 7,
    }  # fmt: skip


def test_a_part_is_one_thing_under_every_name(machine):
    machine.begin(A + "mig MIG-1 1 0 1\n")
    assert machine.look().parts == {"0:0": "MIG-1", "MIG-GPU-a/1/0": "MIG-1"}
    assert {machine.names()[name] for name in ("0:0", "MIG-1", "MIG-GPU-a/1/0")} == {1 / 7}


# Trouble

B = "gpu GPU-b\nenergy_mj 9000\n"


@pytest.mark.parametrize("code", [15, 999, 10, 16])
def test_a_lost_gpu_costs_itself_until_it_is_found(machine, code):
    machine.begin(A + B)
    machine.play(A + f"error * {code}\n" + B, 1)
    for ask in (machine.read, machine.look):
        with pytest.raises(AgentError, match=r"GPU-a.*(dmesg|nvidia-smi)"):
            ask()
    assert machine.read("gpu:GPU-b") == 9_000_000
    assert len(machine.find()) == 2
    machine.play(A + B, 1)
    assert machine.read() == 5_000_000
    assert machine.look().uses == []


def test_a_gpu_that_was_removed_is_found_again_under_another_index(machine):
    machine.begin(A + B)
    machine.play(B, 1)
    with pytest.raises(AgentError, match="GPU-a"):
        machine.read()
    machine.play(B + A, 1)
    assert machine.read() == 5_000_000


def test_one_function_in_trouble_costs_its_own_numbers(machine):
    others = ("GraphicsRunningProcesses_v3", "ProcessUtilization", "MigMode", "AccountingMode")
    trace = A + "process compute 1\n" + "".join(f"error nvmlDeviceGet{f} 999\n" for f in others)
    machine.begin(trace)
    assert machine.read() == 5_000_000
    assert "0" in machine.names()
    look = machine.look()
    assert ([p.pid for p in look.opened], look.uses) == ([1], [])
    machine.play(A + f"process compute 1\nsample 1 {at(1)} 50\n", 1)
    assert busy_ms(machine) == {1: 500}


def test_a_gpu_that_only_a_new_session_sees_is_found_after_a_while(machine):
    """A library lists GPUs when it is begun; the others are read all the while."""
    machine.begin("boot 1\n" + A + B)
    machine.play("boot 1\n" + B, 10)
    for second in range(20):
        with pytest.raises(AgentError):
            machine.read()
        assert machine.read("gpu:GPU-b") == 9_000_000
        machine.play("boot 1\n" + B + (A + "plugged\n" if second > 5 else ""), 1)
    machine.play("boot 1\n" + B + A + "plugged\n", 30)
    assert machine.read() == 5_000_000


def test_a_driver_reload_begins_a_new_session(machine):
    machine.begin("boot 1\n" + A + B)
    machine.look()
    machine.play("boot 2\nerror nvmlInitWithFlags 9\n" + A + B, 10)
    with pytest.raises(AgentError, match="session"):
        machine.read()
    with pytest.raises(AgentError, match="modprobe"):
        machine.read("gpu:GPU-b")
    machine.play("boot 2\n" + A + B, 10)
    assert (machine.read(), machine.read("gpu:GPU-b")) == (5_000_000, 9_000_000)
    machine.play("boot 2\n" + A + f"sample 1 {at(21)} 100\n" + B, 1)
    assert busy_ms(machine) == {1: 1000}


def test_a_gpu_lost_at_the_start_or_added_later_is_found_later(machine):
    assert machine.begin(A + "error * 15\n") == []
    assert "NVIDIA" in machine.why_none()
    machine.play(A, 10)
    assert [gpu["device"] for gpu in machine.find()] == ["gpu:GPU-a"]
    machine.play(A + B, 10)
    assert [gpu["device"] for gpu in machine.find()] == ["gpu:GPU-a", "gpu:GPU-b"]


def test_a_gpu_that_hangs_delays_nobody_for_long(machine):
    """Half a second once, then nothing, until it answers again."""
    machine.begin(A + B)
    machine.play(A + "slow nvmlDeviceGetTotalEnergyConsumption 2500\n" + B, 1)
    before_s = time.monotonic()
    for _ in range(4):
        with pytest.raises(AgentError, match="GPU-a has not answered"):
            machine.read()
        with pytest.raises(AgentError, match="GPU-a has not answered"):
            machine.look()
        assert machine.read("gpu:GPU-b") == 9_000_000
    assert time.monotonic() - before_s < 2.0
    machine.play(A + B, 1)
    wait_until(lambda: reads(machine), "the GPU to answer again")
    assert machine.read() == 5_000_000


def reads(asked: Asked) -> bool:
    try:
        asked.read()
    except AgentError:
        return False
    return True


def test_no_driver_and_no_library_are_answers_with_a_reason(machine, tmp_path):
    assert machine.begin("error nvmlInitWithFlags 9\n") == []
    assert "modprobe" in machine.why_none()
    (tmp_path / "none").mkdir()
    with asking(tmp_path / "none", tmp_path) as asked:
        assert asked.begin(A) == []
        assert "no NVIDIA driver" in asked.why_none()


def test_a_gpu_whose_name_is_no_text_costs_itself(machine):
    assert [gpu["device"] for gpu in machine.begin("gpu GPU-\udcff\udcfe\n" + A)] == ["gpu:GPU-a"]
    assert machine.names() == {**machine.names(), "1": 1.0}


def test_a_gpu_that_tells_neither_energy_nor_power_says_so(machine):
    assert machine.begin("gpu GPU-a\n") == []
    assert "neither energy nor power" in machine.why_none()


def test_a_counter_that_only_root_may_read_is_named(machine):
    machine.begin(A + "error nvmlDeviceGetTotalEnergyConsumption 4\n")
    with pytest.raises(AgentError, match="as root"):
        machine.read()


ESSENTIAL = {"nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID"}


def test_a_missing_function_costs_its_own_numbers(tmp_path):
    """A library that knows its GPUs' energy and who computes on them, and nothing more."""
    source = (Path(__file__).parent / "nvml/nvml.c").read_text()
    functions = {word.split("(")[0] for word in source.split() if word.startswith("nvml")}
    kept = ESSENTIAL | {
        "nvmlInit_v2",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetComputeRunningProcesses_v2",
    }
    without = {f for f in functions if f.replace("_", "").isalnum()} - kept
    with asking(build(tmp_path / "lib", without), tmp_path) as asked:
        trace = A + f"process compute 1\nsample 1 {at(0)} 100\n"
        (gpu,) = asked.begin(trace)
        assert (gpu["max_power_w"], asked.read()) == (0.0, 5_000_000)
        asked.look()
        asked.play(trace, 1)
        look = asked.look()
        assert ([use.pid for use in look.uses], look.modelled) == ([1], True)
        assert [p.pid for p in look.opened] == [1]
        assert asked.names() == {"GPU-a": 1.0, "0": 1.0}


# The arithmetic alone

SAMPLES = st.lists(
    st.builds(SmSample, st.integers(0, 4), st.integers(-1, 30_000_000), st.integers(-1, 120)),
    max_size=12,
)


@given(st.lists(st.tuples(SAMPLES, st.integers(0, 3_000_000)), max_size=8))
def test_nobody_is_busier_than_time_allows(looks):
    """Whatever samples come, and however often: use is bounded by time, and never negative."""
    use, now_us, total_ns = SmUse(), 10_000_000, dict[int, int]()
    for samples, elapsed_us in looks:
        now_us += elapsed_us
        use.since_us(now_us)
        for pid, ns in use.take([*samples, *samples], now_us, elapsed_us).items():
            assert ns >= 0
            total_ns[pid] = total_ns.get(pid, 0) + ns
        assert use.take(samples, now_us, 0) == {}, "counted twice"
    assert all(ns <= (LOOK_MAX_US + 31_000_000) * 1000 for ns in total_ns.values())


def test_an_absent_library_is_looked_for_once_a_minute(monkeypatch):
    looked = []

    def nowhere(name):
        looked.append(name)
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", nowhere)
    clock = Clock()
    gpus = NvidiaGpus(clock)
    for second in range(0, 130, 5):
        clock.mono = second * 1_000_000_000
        assert gpus.find() == []
        assert "no NVIDIA driver is installed" in gpus.why_none()
    assert len(looked) == 3
