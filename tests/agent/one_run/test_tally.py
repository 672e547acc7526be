"""What a run's frames add up to: its own, its GPUs' idle, and the machine's idle apart."""

import itertools
import threading

import pytest

from joulegram.agent.findings import DENIED, MISSING, Finding
from joulegram.agent.meter import Meter
from joulegram.agent.one_run import result
from joulegram.agent.one_run.lineage import KIND, Lineage
from joulegram.agent.one_run.summary import lines
from joulegram.agent.one_run.tally import Tally
from joulegram.agent.workloads import Owner
from joulegram.collector.grid.zones import value_in
from tests.agent import test_gpus
from tests.agent.played import Clock, energy_j

RUN, METER, COMMAND, WORKER = 10, 11, 12, 13
SESSION = b"/user.slice/user-1000.slice/session-1.scope"
OWNER = Owner(KIND, "1")


@pytest.fixture
def machine(tmp_path):
    machine = test_gpus.PlayedMachine(tmp_path, cpus=8)
    machine.task(1, b"init", parent=0)
    machine.task(RUN, b"joulegram", SESSION, parent=1)
    machine.task(METER, b"joulegram", SESSION, cores=0.5, parent=RUN)
    machine.task(COMMAND, b"train", SESSION, cores=1, parent=RUN)
    machine.task(WORKER, b"worker", SESSION, cores=0.5, parent=COMMAND)
    machine.task(20, b"other", SESSION, cores=1, parent=1)
    return machine


def metered(machine, *gpus, seconds=3, each_s=lambda seconds: None, **config):
    """(tally, frames) of a run on the machine."""
    clock = Clock()

    def pass_time(seconds):
        each_s(seconds)
        machine.advance(seconds)

    clock.on_wait = pass_time
    lineage = Lineage(machine.root / "proc", OWNER, own=METER)
    lineage.add(RUN)
    settings = machine.config(slurm="off", docker_socket="", **config)
    found = None
    if gpus:
        zones = Meter(settings, clock, run=lineage).devices.metered.values()
        found = lambda: [*(d.sensor for d in zones), *gpus]  # noqa: E731
    meter = Meter(settings, clock, run=lineage, find=found, kernels=machine.kernels)
    tally = Tally(OWNER)
    frames = list(itertools.islice(meter.frames(threading.Event()), seconds))
    for frame in frames:
        tally.add(frame)
    return tally, frames


def document(tally, **more):
    said = {
        "elapsed_ms": 3000.0,
        "used_ns": tally.cpu_ns,
        "left": 0,
        "ranks": 1,
        "node": "n1",
        "troubles": [],
        "errors": {},
        "unknown_floors": [],
        "failure": "",
        **more,
    }
    found = result.measured(tally, **said)
    intensity = value_in("GB", 2025)
    found["carbon"] = result.carbon(found["energy_uj"]["total"], 1.2, intensity)
    return found | {"command": "train", "duration_s": 3.0, "ended_how": "exit status 0"}


def near(expected):
    return pytest.approx(expected, rel=0.02)


def test_the_run_gets_its_share_and_the_machines_idle_stays_apart(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.zone("intel-rapl:0:0", "dram", watts=12)
    tally, _ = metered(machine, idle_w={"cpu0": 40.0})
    assert tally.run_uj["cpu"] / 1e6 == near(3 * 60 * 1.5 / 3.0)
    assert tally.run_uj["dram"] / 1e6 == near(3 * 12 * 1.5 / 3.0)
    assert tally.idle_uj["cpu"] / 1e6 == near(3 * 40)
    assert tally.total_uj == tally.run_uj.total()
    assert (tally.quality("cpu"), tally.quality("dram")) == ("measured", "derived")
    assert tally.coverage("cpu", 3000) == near(1.0)
    included = document(tally)
    result.with_idle(included)
    assert included["energy_uj"]["total"] == tally.total_uj + tally.idle_uj.total()


@pytest.mark.parametrize("kernels", [True, False])
def test_children_between_two_ticks_are_the_runs_and_not_its_sessions_too(machine, kernels):
    """One CPU's worth of children that nobody sees: the session's counter holds them as well."""
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.kernels = kernels
    machine.extra_cores[SESSION.decode()] = 1.0

    def wait_for_children(seconds):
        machine.tasks[COMMAND].reaped_s += seconds

    tally, frames = metered(machine, each_s=wait_for_children)
    assert tally.run_uj["cpu"] / 1e6 == near(3 * 100 * 2.5 / 4.0)
    assert energy_j(frames, "user") == near(3 * 100 * 1.5 / 4.0)


def test_a_gpu_that_the_run_holds_idle_is_counted_and_said(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    held = test_gpus.PlayedGpu(machine, watts=80, opened=[WORKER])
    free = test_gpus.PlayedGpu(machine, watts=60, device="gpu:GPU-2")
    tally, _ = metered(machine, held, free, idle_w={"gpu:GPU-2": 60.0})
    assert tally.run_uj["gpu"] == 0
    assert tally.held_uj["gpu"] / 1e6 == near(3 * 80)
    assert tally.idle_uj["gpu"] / 1e6 == near(3 * 60)
    assert tally.total_uj == tally.run_uj["cpu"] + tally.held_uj["gpu"]
    said = "\n".join(lines(document(tally)))
    assert "gpu, idle" in said and "held by the run" in said and "1 GPU" in said


def test_a_busy_gpu_is_its_users(machine):
    gpu = test_gpus.PlayedGpu(
        machine, watts=300, opened=[WORKER, 20], busy={WORKER: 0.75, 20: 0.25}, floor_w=50
    )
    tally, _ = metered(machine, gpu)
    assert tally.run_uj["gpu"] / 1e6 == near(3 * 250 * 0.75)
    # The session's other process holds the GPU, too.
    assert tally.held_uj["gpu"] / 1e6 == near(3 * 50 / 2)
    assert tally.gpu_ns["gpu:GPU-1"] == near(3e9 * 0.75)


def test_the_summary_says_all_that_a_model_card_needs(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    tally, _ = metered(machine)
    said = list(
        lines(
            document(
                tally,
                troubles=[Finding("energy: dram0", DENIED, "root only", "Be root.")],
                unknown_floors=["cpu0"],
                left=2,
            )
        )
    )
    text = "\n".join(said)
    assert said[0].endswith("train on n1: 3.0 s, exit status 0")
    assert "150 J" in text.replace("150.0", "150")
    grams = 150e6 / 3.6e12 * 1.2 * value_in("GB", 2025).g_per_kwh
    assert result.plain(grams) in text and "PUE 1.2" in text
    assert "idle floor of cpu0 is not known" in text
    assert "2 still ran" in text
    assert "dram0 (root only)" in text and "network, storage (never metered)" in text


def test_what_is_missing_in_part_lowers_coverage_and_is_named(machine):
    machine.zone("intel-rapl:0", "package-0", watts=100)
    tally, _ = metered(machine)
    found = document(tally, elapsed_ms=6000.0, errors={"cpu0": "gone"})
    assert found["coverage"]["cpu"] == near(0.5)
    assert any(
        m["what"] == "cpu" and "50 % of the time: gone" in m["why"] for m in found["not_metered"]
    )


def test_without_a_gpu_the_reason_is_one_line():
    tally = Tally(OWNER)
    trouble = Finding("energy: NVIDIA GPU", MISSING, "no driver")
    found = document(tally, troubles=[trouble])
    assert {"what": "gpu", "state": MISSING, "why": "none found: no driver", "remedy": ""} in found[
        "not_metered"
    ]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (0.000012345, "0.0000123"), (1.5, "1.50"), (1234.5, "1230"), (0.0999999, "0.100")],
)
def test_numbers_are_plain_decimals(number, text):
    """A model card's field takes no exponent that a person would stumble over."""
    assert result.plain(number) == text
