"""Which sensor counts, where several say something of one device."""

from dataclasses import dataclass

import pytest

from joulegram.agent.clock import SystemClock
from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.machine import Machine, chosen
from tests.agent.played import Machine as Played


@dataclass
class Said:
    """A counter that answers, or raises."""

    device: str
    component: str
    answer: int | Exception = 1
    range_uj: int = 0
    max_power_w: float = 0.0
    floor_w: float = 0.0
    quality: str = "measured"

    def read_uj(self) -> int:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


MODEL = Said("cpu0", "cpu", quality="modelled")
DENIED, FAILED = SensorDenied("root only"), SensorFailed("torn")


def of(*kinds: list[Said]) -> list[Said]:
    return chosen(kinds, MODEL)  # type: ignore[return-value]


def test_the_first_kind_counts_for_a_component_and_no_device_twice():
    rapl = [Said("cpu0", "cpu"), Said("cpu1", "cpu")]
    blade = [Said("cpu0", "cpu"), Said("dram0", "dram")]
    assert of(rapl, blade) == [*rapl, blade[1]]


def test_a_kind_for_root_only_yields_to_the_next_and_at_last_to_the_model():
    denied, blade = [Said("cpu0", "cpu", DENIED)], [Said("cpu0", "cpu")]
    assert of(denied, blade) == blade
    assert of(denied) == [MODEL]


def test_a_counter_that_fails_is_not_replaced_by_a_guess():
    assert of([Said("cpu0", "cpu", FAILED)]) == [Said("cpu0", "cpu", FAILED)]


def test_a_denied_memory_or_platform_is_listed_where_nothing_else_is():
    dram = Said("dram0", "dram", DENIED)
    assert of([Said("cpu0", "cpu"), dram]) == [Said("cpu0", "cpu"), dram]


def test_every_gpu_counts_once():
    first = [Said("gpu:a", "gpu", 1)]
    second = [Said("gpu:a", "gpu", 2), Said("gpu:b", "gpu", 3)]
    assert [s.answer for s in of(first, second) if s.component == "gpu"] == [1, 3]


@pytest.fixture
def found(tmp_path):
    """What a machine finds, by device, with its class."""
    played = Played(tmp_path)

    def find(**config):
        machine = Machine(played.config(**config), SystemClock())
        try:
            return {s.device: type(s).__name__ for s in machine.sensors()}
        finally:
            machine.close()

    return played, find


def write(root, files):
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


CRAY = {
    "sys/cray/pm_counters/energy": "1000 J 1690000000000000 us\n",
    "sys/cray/pm_counters/cpu_energy": "600 J 1690000000000000 us\n",
    "sys/cray/pm_counters/memory_energy": "60 J 1690000000000000 us\n",
    "sys/cray/pm_counters/freshness": "1\n",
    "sys/cray/pm_counters/startup": "1\n",
    "sys/cray/pm_counters/generation": "1\n",
}
METER = {"sys/class/hwmon/hwmon0/name": "power_meter\n"} | {
    "sys/class/hwmon/hwmon0/power1_average": "150000000\n"
}


def test_the_platform_is_the_blades_then_psys_then_a_meters(found):
    played, find = found
    assert find() == {"cpu0": "LoadModel"}
    write(played.root, METER)
    assert find() == {"cpu0": "LoadModel", "platform": "PowerMeter"}
    played.zone("intel-rapl:0", "package-0")
    played.zone("intel-rapl:1", "psys")
    assert find() == {"cpu0": "RaplZone", "platform": "RaplZone"}
    write(played.root, CRAY)
    assert find() == {"cpu0": "RaplZone", "platform": "CrayCounter", "dram0": "CrayCounter"}


def test_a_captured_tree_does_not_ask_this_machines_controller(found):
    _, find = found
    assert "platform" not in find(ipmi="auto")


def test_a_controller_that_is_named_is_the_platform(found):
    _, find = found
    assert find(redfish_url="http://127.0.0.1:9")["platform"] == "SlowPlatform"


def test_the_defaults_are_this_machines(found):
    machine = Machine(AgentConfig(), SystemClock())
    try:
        assert any(sensor.component == "cpu" for sensor in machine.sensors())
    finally:
        machine.close()
