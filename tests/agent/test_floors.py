"""Laws of learnt floors: hours of windows, never above a window, kept, and never over a word."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.floors import DAY_MS, DAYS, LEARN_MS, Floors
from tests.agent.played import START_NS, Machine, device_j

HOUR_MS = 3_600_000


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=40), st.integers(1, HOUR_MS))
def test_a_floor_takes_hours_and_never_exceeds_the_lowest_window(energies_uj, length_ms):
    floors = Floors()
    for n, energy_uj in enumerate(energies_uj):
        floors.note("cpu0", n * length_ms, length_ms, energy_uj)
    floor_uw = floors.floor_uw("cpu0")
    if len(energies_uj) * length_ms < LEARN_MS:
        assert floor_uw == 0
    assert all(floor_uw * length_ms <= energy_uj * 1000 for energy_uj in energies_uj)


def test_what_was_lowest_weeks_ago_is_forgotten():
    floors = Floors()
    floors.note("cpu0", 0, LEARN_MS, 10_000)
    for day in range(1, DAYS + 1):
        floors.note("cpu0", day * DAY_MS, LEARN_MS, LEARN_MS * 50_000)
    assert floors.floor_uw("cpu0") == 50_000_000


def test_floors_are_not_written_through_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    (tmp_path / "floors.draft").symlink_to(precious)
    floors = Floors(tmp_path / "floors.json", "n1")
    floors.note("cpu0", 0, LEARN_MS, LEARN_MS * 20_000)
    floors.save()
    assert precious.read_text() == "as it was"
    kept = Floors(tmp_path / "floors.json", "n1")
    kept.load()
    assert kept.floor_uw("cpu0") == 20_000_000


def test_floors_survive_a_restart_and_belong_to_their_node(tmp_path):
    path = tmp_path / "floors.json"
    floors = Floors(path, "n1")
    floors.note("gpu:GPU-1", 0, LEARN_MS, LEARN_MS * 70_000)
    floors.save()
    again, other = Floors(path, "n1"), Floors(path, "n2")
    again.load()
    other.load()
    assert again.floor_uw("gpu:GPU-1") == 70_000_000
    assert other.floor_uw("gpu:GPU-1") == 0


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"\xff\x00{",
        b"[]",
        b'{"node": "n1"}',
        b'{"node": "n1", "devices": {"cpu0": {"1": [1]}}}',
        b'{"node": "n1", "devices": {"cpu0": {"1": [-1, 5]}}}',
        b'{"node": "n1", "devices": {"cpu0": {"x": [1, 5]}}}',
        b'{"node": "n1", "devices": 7}',
        b"[" * 100_000,
    ],
)
def test_a_spoilt_file_costs_what_was_learnt(tmp_path, kept):
    path = tmp_path / "floors.json"
    path.write_bytes(kept)
    floors = Floors(path, "n1")
    floors.load()
    assert floors.floor_uw("cpu0") == 0
    floors.note("cpu0", 0, LEARN_MS, LEARN_MS * 9)
    floors.save()
    assert json.loads(path.read_bytes())["devices"]["cpu0"]


def learnt(watts):
    floors = Floors()
    floors.note("cpu0", START_NS // 1_000_000, LEARN_MS, LEARN_MS * watts * 1000)
    return floors


def test_a_meter_uses_a_learnt_floor_and_lowers_it(tmp_path):
    machine = Machine(tmp_path)
    zone = machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(1, cores=1)

    def rest():
        zone.watts = 20

    floors = learnt(30)
    frames = machine.play(4, {2.0: rest}, floors=floors)
    assert device_j(frames[:2], "cpu0", "idle_uj") == pytest.approx(60, rel=0.01)
    assert floors.floor_uw("cpu0") == pytest.approx(20e6, rel=0.02)
    assert device_j(frames[3:], "cpu0", "idle_uj") == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("configured_w", [0.0, 45.0])
def test_a_configured_floor_is_never_replaced(tmp_path, configured_w):
    machine = Machine(tmp_path)
    machine.zone("intel-rapl:0", "package-0", watts=100)
    machine.task(1, cores=1)
    frames = machine.play(2, floors=learnt(30), idle_w={"cpu0": configured_w})
    assert device_j(frames, "cpu0", "idle_uj") == pytest.approx(2 * configured_w, rel=0.01)
