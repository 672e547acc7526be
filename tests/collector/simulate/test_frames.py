"""A made-up site's frames: the same every time, and each as a collector wants it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from joulegram.collector.simulate.cluster import TEAMS
from joulegram.collector.simulate.fleet import Fleet, Plan
from joulegram.collector.simulate.frames import CHUNK, NOBODY, Made, Maker
from joulegram.collector.simulate.totals import TEAM_NAMES, Totals
from joulegram.collector.validate import validate
from joulegram.v1.telemetry_pb2 import Frame

MONDAY_S = 1_790_553_600  # 2026-09-28, midnight
LATER_MS = (MONDAY_S + 30 * 86_400) * 1000


def plan(**more: int) -> Plan:
    given = {"nodes": 24, "jobs": 0, "since_s": MONDAY_S + 9 * 3600, "windows": 100, "window_s": 10}
    return Plan(**{**given, "seed": 3, **more}, prefix="sim")  # type: ignore[arg-type]


def made_by(plan: Plan) -> list[Made]:
    fleet = Fleet(plan)
    return [m for node in fleet.nodes for m in Maker(fleet, node, TEAM_NAMES).frames()]


@pytest.fixture(scope="module", params=[(10, 100), (300, 100)], ids=["10 s", "300 s"])
def made(request: pytest.FixtureRequest) -> list[Made]:
    window_s, windows = request.param
    return made_by(plan(window_s=window_s, windows=windows))


@pytest.fixture(scope="module")
def day() -> list[Made]:
    """A Monday of 40 nodes."""
    return made_by(plan(nodes=40, window_s=300, windows=288, since_s=MONDAY_S))


@pytest.fixture(scope="module")
def frames(made: list[Made]) -> list[Frame]:
    return [Frame.FromString(one.packed) for one in made]


def test_a_collector_takes_every_frame(frames: list[Frame]) -> None:
    """Shape, times, and every sum to the microjoule: the rules of the intake itself."""
    for frame in frames:
        assert validate(frame, frame.node, LATER_MS, 90.0) is None
        assert frame.simulated


def test_the_totals_are_those_of_the_devices(made: list[Made], frames: list[Frame]) -> None:
    totals = Totals()
    for one in made:
        totals.add(one)
    drawn = sum(device.energy_uj for frame in frames for device in frame.devices)
    assert drawn == totals.energy_uj == sum(totals.team_uj.values())
    assert totals.rows == sum(len(frame.rows.workload) // 4 for frame in frames)
    assert all(uj > 0 for uj in totals.component_uj.values())


def test_equal_seeds_make_equal_bytes_in_any_process_and_order() -> None:
    """Strings hash differently in every process; windows may be asked for one node at a time."""
    program = (
        "import hashlib; from tests.collector.simulate.test_frames import made_by, plan;"
        "print(hashlib.sha256(b''.join(m.packed for m in made_by(plan()))).hexdigest())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    fleet = Fleet(plan())
    makers = [Maker(fleet, node, TEAM_NAMES) for node in fleet.nodes]
    by_node: dict[str, list[bytes]] = {node.name: [] for node in fleet.nodes}
    for first in range(0, plan().windows, CHUNK):
        for maker in reversed(makers):
            for one in maker.chunk(first):
                by_node[one.node.name].append(one.packed)
    digest = hashlib.sha256(b"".join(b for of_node in by_node.values() for b in of_node))
    assert elsewhere.stdout.strip() == digest.hexdigest()


def test_another_seed_or_number_of_jobs_is_another_agent_start() -> None:
    """So that a ledger keeps both, and refuses neither as a conflict."""
    epochs = {
        Frame.FromString(made_by(other)[0].packed).epoch
        for other in (plan(windows=1), plan(windows=1, seed=4), plan(windows=1, jobs=5))
    }
    assert len(epochs) == 3


def test_the_site_has_what_sites_have(day: list[Made]) -> None:
    frames = [Frame.FromString(one.packed) for one in day]
    kinds = {w.kind for frame in frames for w in frame.workloads}
    assert kinds == {
        "idle", "system", "unattributed", "slurm", "kubernetes", "user", "systemd",
    }  # fmt: skip
    on: dict[str, set[str]] = {}
    for frame in frames:
        for workload in frame.workloads:
            if workload.kind == "slurm":
                on.setdefault(workload.id, set()).add(frame.node)
    assert max(map(len, on.values())) >= 4, "no job runs on several nodes"
    last_ms = max(frame.window_start_ms for frame in frames)
    at_the_end = {w.id for f in frames if f.window_start_ms == last_ms for w in f.workloads}
    assert len(set(on) - at_the_end) > len(on) / 2, "most jobs have ended by then"
    assert any(d.quality == "modelled" for frame in frames for d in frame.devices)
    assert any(0 < d.coverage < 1 for frame in frames for d in frame.devices)
    assert len(frames) < 40 * 288, "no agent was ever away"
    held = [
        (frame, i)
        for frame in frames
        if frame.rows.holder
        for i in np.nonzero(np.frombuffer(frame.rows.holder, "<i4") >= 0)[0].tolist()
    ]
    assert held
    for frame, i in held[:50]:
        holder = frame.workloads[int(np.frombuffer(frame.rows.holder, "<i4")[i])]
        of_row = frame.workloads[int(np.frombuffer(frame.rows.workload, "<u4")[i])]
        device = int(np.frombuffer(frame.rows.gpu_device, "<i4")[i])
        assert of_row.kind == "idle" and device in {r.device for r in holder.reserved_devices}


def test_by_day_more_than_by_night(day: list[Made]) -> None:
    """A site of people: pods and sessions follow the sun."""
    noon, night = Totals(), Totals()
    for one in day:
        hour = one.window * 300 // 3600
        if one.node.role != "slurm":
            (noon if 11 <= hour < 17 else night).add(one)
    shop = noon.team_uj["shop"] / 6, night.team_uj["shop"] / 18
    assert shop[0] > 1.5 * shop[1]


def test_every_team_draws_and_so_does_nobody(day: list[Made]) -> None:
    totals = Totals()
    for one in day:
        totals.add(one)
    assert set(totals.team_uj) == {*TEAMS, NOBODY}
    assert all(totals.team_uj.values())


def test_a_thousand_nodes_take_little_memory() -> None:
    """Memory grows with nodes and jobs, and not with the time that is played."""
    program = (
        "from tests.collector.simulate.test_frames import plan;"
        "from joulegram.collector.simulate.frames import CHUNK, Maker;"
        "from joulegram.collector.simulate.fleet import Fleet;"
        "from joulegram.collector.simulate.totals import TEAM_NAMES;"
        "p = plan(nodes=1000, window_s=300, windows=CHUNK + 6); fleet = Fleet(p);"
        "makers = [Maker(fleet, n, TEAM_NAMES) for n in fleet.nodes];"
        # Not getrusage: it begins with what the parent had.
        "status = lambda: open('/proc/self/status').read();"
        "peak = lambda: int(status().split('VmHWM:')[1].split()[0]) // 1024;"
        "play = lambda first: [len(m.chunk(first)) for m in makers];"
        "play(0); once = peak(); play(CHUNK); print(once, peak())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    once_mb, twice_mb = map(int, done.stdout.split())
    assert once_mb < 400
    assert twice_mb < once_mb + 60
