"""Cray's pm_counters: what they count, that they are fresh, and that a restart is a reset."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram.agent.counters import Counter
from joulegram.agent.errors import SensorFailed
from joulegram.agent.sensors import cray
from tests.agent.played import Clock

TIME = "1690000000000000 us"


class Blade:
    """A folder of counters that scans when told to."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "cray/pm_counters"
        self.folder.mkdir(parents=True)
        self.scans = 100
        self.clock = Clock()
        self.write("startup", 1_368_000_000)
        self.write("generation", 3)
        self.scan(energy="1000 J")

    def write(self, name: str, value: object) -> None:
        (self.folder / name).write_text(f"{value} {TIME}\n")

    def scan(self, seconds: float = 1.0, **values: str) -> None:
        self.scans += 10
        self.clock.mono += round(seconds * 1e9)
        self.write("freshness", self.scans)
        for name, value in values.items():
            self.write(name, value)


@pytest.fixture
def blade(tmp_path: Path) -> Blade:
    return Blade(tmp_path)


def node(blade: Blade) -> cray.CrayCounter:
    return cray.find(blade.folder.parent.parent, blade.clock)[0]


def test_no_cray_is_an_answer(tmp_path: Path) -> None:
    assert cray.find(tmp_path, Clock()) == []
    assert cray.accelerators(tmp_path, Clock()) == []


def test_a_node_of_four_superchips(blade: Blade, tmp_path: Path) -> None:
    """Sockets instead of their sum; accelerators apart, for they are in the node's energy."""
    for name in ("cpu_energy", *(f"{p}{n}_energy" for p in ("cpu", "accel") for n in range(4))):
        blade.write(name, "5 J")
    for name in ("power", "cpu0_power", "accel0_power_cap", "cpu0_temp", "version"):
        blade.write(name, "5 W")
    found = cray.find(tmp_path, blade.clock)
    assert [(c.device, c.component) for c in found] == [
        ("platform", "other"), ("cpu0", "cpu"), ("cpu1", "cpu"), ("cpu2", "cpu"), ("cpu3", "cpu")
    ]  # fmt: skip
    devices = [c.device for c in cray.accelerators(tmp_path, blade.clock)]
    assert devices == ["gpu:accel0", "gpu:accel1", "gpu:accel2", "gpu:accel3"]


def test_a_node_that_tells_only_sums(blade: Blade, tmp_path: Path) -> None:
    blade.write("cpu_energy", "5 J")
    blade.write("memory_energy", "5 J")
    found = cray.find(tmp_path, blade.clock)
    assert [(c.device, c.component) for c in found] == [
        ("platform", "other"), ("cpu0", "cpu"), ("dram0", "dram")
    ]  # fmt: skip


def test_joules_become_microjoules(blade: Blade) -> None:
    sensor, counter = node(blade), Counter(0, cray.NODE_MAX_W, 1.0)
    counter.read(blade.clock.mono_ns(), sensor.read_uj())
    blade.scan(energy="3800 J")
    interval = counter.read(blade.clock.mono_ns(), sensor.read_uj())
    assert interval is not None and interval.energy_uj == 2800 * 10**6, "2.8 kW is no reset"


def test_older_blades_give_no_time(blade: Blade) -> None:
    sensor = node(blade)
    sensor.read_uj()
    (blade.folder / "energy").write_text("1007 J\n")
    (blade.folder / "freshness").write_text("900\n")
    assert sensor.read_uj() == 7_000_000


def test_a_controller_that_stopped_scanning_is_stale(blade: Blade) -> None:
    """Its energy stands still while the node draws power: nothing was measured, it was not 0."""
    sensor = node(blade)
    sensor.read_uj()
    blade.clock.mono += 1_000_000_000
    assert sensor.read_uj() == 0, "one late scan proves nothing"
    blade.clock.mono += 1_000_000_000
    with pytest.raises(SensorFailed, match=r"is stale.*stood at 110 for 2 s"):
        sensor.read_uj()
    blade.scan(energy="1600 J")
    assert sensor.read_uj() == 600 * 10**6, "it went on: the gap can be bridged"


@pytest.mark.parametrize("energy_j", [20, 1000, 1100, 900_000])
def test_a_restarted_controller_is_a_reset(blade: Blade, energy_j: int) -> None:
    """Whatever its energy says then; what it counts afterwards is measured again."""
    sensor, counter = node(blade), Counter(0, cray.NODE_MAX_W, 1.0)
    counter.read(blade.clock.mono_ns(), sensor.read_uj())
    blade.scan(energy="1100 J")
    assert counter.read(blade.clock.mono_ns(), sensor.read_uj()) is not None
    blade.write("startup", 1_368_000_777)
    blade.scan(energy=f"{energy_j} J")
    assert counter.read(blade.clock.mono_ns(), sensor.read_uj()) is None
    blade.scan(energy=f"{energy_j + 90} J")
    interval = counter.read(blade.clock.mono_ns(), sensor.read_uj())
    assert interval is not None and interval.energy_uj == 90 * 10**6


def test_a_new_power_cap_leaves_the_energies_alone(blade: Blade) -> None:
    """`generation` counts caps; `startup` vouches that the counter went on."""
    sensor = node(blade)
    sensor.read_uj()
    blade.write("generation", 4)
    blade.scan(energy="1100 J")
    assert sensor.read_uj() == 100 * 10**6


def test_without_startup_a_new_generation_is_a_reset(blade: Blade) -> None:
    (blade.folder / "startup").unlink()
    sensor = node(blade)
    sensor.read_uj()
    blade.scan(energy="1100 J")
    sensor.read_uj()
    blade.write("generation", 4)
    blade.scan(energy="1200 J")
    assert sensor.read_uj() == 0


def test_a_reset_is_seen_across_an_outage(blade: Blade) -> None:
    sensor = node(blade)
    sensor.read_uj()
    blade.scan(energy="1500 J")
    sensor.read_uj()
    (blade.folder / "energy").unlink()
    with pytest.raises(SensorFailed, match="No such file"):
        sensor.read_uj()
    blade.write("startup", 1_368_000_777)
    blade.scan(energy="1900 J")
    assert sensor.read_uj() == 0


@given(raw=st.binary(max_size=80) | st.from_regex(rb"\d+ [JW]( \d+ us)?\n?", fullmatch=True))
def test_any_bytes_are_a_value_or_a_failure(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    blade = Blade(tmp_path_factory.mktemp("blade"))
    sensor = node(blade)
    for name in ("energy", "freshness", "startup"):
        (blade.folder / name).write_bytes(raw)
    try:
        assert sensor.read_uj() >= 0
    except SensorFailed as exc:
        assert str(blade.folder) in str(exc)
