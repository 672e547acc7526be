"""Power meters of machines and of Grace sockets: nothing twice, nothing half, nothing invented."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.hwmon import EnergyMeter, PowerMeter, find
from tests.agent.played import Clock, Machine, device_j

WATT = 1_000_000
NOBODY = 65534


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def hwmon(
    sysfs: Path, number: int, name: str, files: dict[str, object], old_style: bool = False
) -> Path:
    """A hwmon device; old drivers have all their files, `name` too, at the parent's folder."""
    folder = sysfs / f"class/hwmon/hwmon{number}"
    parent = sysfs / f"devices/dev{number}"
    parent.mkdir(parents=True)
    folder.mkdir(parents=True)
    (folder / "device").symlink_to(parent)
    for file, value in {"name": name, **files}.items():
        ((parent if old_style else folder) / file).write_text(f"{value}\n")
    return parent if old_style else folder


def acpi(sysfs: Path, number: int, watts: float, oem_info: str = "", **more: object) -> Path:
    """An ACPI power meter as drivers/hwmon/acpi_power_meter.c shows it."""
    files = {
        "power1_average": round(watts * WATT),
        "power1_average_interval": 1000,
        "power1_average_interval_min": 50,
        "power1_is_battery": 0,
        "power1_accuracy": "100.0%",
        "power1_model_number": "",
        "power1_serial_number": "",
        "power1_oem_info": oem_info,
        **more,
    }
    return hwmon(sysfs, number, "power_meter", files)


def grace(sysfs: Path, socket: int, first: int, module: float = 0.0) -> None:
    """The four meters of one socket; 0 W: no module meter, as on a Grace CPU superchip."""
    meters = {"Grace": 200.0, "CPU": 90.0, "SysIO": 20.0} | ({"Module": module} if module else {})
    for n, (what, watts) in enumerate(meters.items()):
        acpi(sysfs, first + n, watts, f"{what} Power Socket {socket}", power1_average_interval=50)


def power_meters(sysfs: Path) -> list[PowerMeter]:
    found = find(sysfs, Clock())
    meters = [meter for meter in found if isinstance(meter, PowerMeter)]
    assert len(meters) == len(found)
    return meters


def watts_of(sysfs: Path) -> dict[str, float]:
    return {m.device: m.sample().power_uw / WATT for m in power_meters(sysfs)}


def test_no_hwmon_is_an_answer(tmp_path):
    assert find(tmp_path, Clock()) == []


@pytest.mark.parametrize("old_style", [False, True])
def test_a_single_acpi_meter_is_the_machine(tmp_path, old_style):
    files: dict[str, object] = {"power1_average": 412 * WATT, "power1_average_interval": 2000}
    hwmon(tmp_path, 3, "power_meter", files, old_style)
    (meter,) = find(tmp_path, clock := Clock())
    assert isinstance(meter, PowerMeter)
    assert (meter.device, meter.component, meter.quality) == ("platform", "other", "derived")
    assert meter.averaged_s == 2.0
    assert meter.sample().power_uw == 412 * WATT
    assert meter.sample().at_ns == clock.mono_ns()


def test_a_moment_is_no_mean(tmp_path):
    files: dict[str, object] = {"power1_input": 5 * WATT, "power1_average_interval": 9000}
    hwmon(tmp_path, 0, "power_meter", files)
    assert [m.averaged_s for m in power_meters(tmp_path)] == [0.0]


def test_an_interval_that_firmware_does_not_know_is_none(tmp_path):
    acpi(tmp_path, 0, 300, power1_average_interval=4294967295)
    assert [m.averaged_s for m in power_meters(tmp_path)] == [0.0]


def test_grace_sockets_and_modules_each_count_once(tmp_path):
    grace(tmp_path, 0, 0, module=700)
    grace(tmp_path, 1, 10, module=650)
    meters = power_meters(tmp_path)
    assert [(m.device, m.component, m.averaged_s) for m in meters] == [
        ("cpu0", "cpu", 0.05),
        ("cpu1", "cpu", 0.05),
        ("platform", "other", 0.05),
    ]
    assert watts_of(tmp_path) == {"cpu0": 200, "cpu1": 200, "platform": 1350}


def test_a_grace_cpu_superchip_has_no_platform_of_its_own(tmp_path):
    grace(tmp_path, 0, 0)
    grace(tmp_path, 1, 10)
    assert watts_of(tmp_path) == {"cpu0": 200, "cpu1": 200}


def test_a_module_that_may_stand_for_two_sockets_is_not_the_machine(tmp_path):
    grace(tmp_path, 0, 0, module=900)
    grace(tmp_path, 1, 10)
    assert watts_of(tmp_path) == {"cpu0": 200, "cpu1": 200}


def test_a_meter_of_the_whole_machine_goes_before_its_modules(tmp_path):
    grace(tmp_path, 0, 0, module=700)
    acpi(tmp_path, 9, 1100, "System Board Input")
    assert watts_of(tmp_path) == {"cpu0": 200, "platform": 1100}


def test_without_a_grace_meter_the_rails_are_added(tmp_path):
    acpi(tmp_path, 0, 90, "CPU Power Socket 1")
    acpi(tmp_path, 1, 20, "SysIO Power Socket 1")
    acpi(tmp_path, 2, 400, "GPU Power Socket 1")
    assert watts_of(tmp_path) == {"cpu1": 110}


def test_a_played_grace_hopper_adds_up_to_its_module(tmp_path):
    machine = Machine(tmp_path)
    grace(tmp_path / "sys", 0, 0, module=700)
    clock = Clock()
    frames = machine.play(3, clock=clock, sensors=find(tmp_path / "sys", clock))
    assert device_j(frames, "cpu0") == pytest.approx(600, rel=0.01)
    assert device_j(frames, "platform") == pytest.approx(1500, rel=0.01)
    assert device_j(frames, "platform", "raw_uj") == pytest.approx(2100, rel=0.01)


def test_inputs_of_a_machines_power_supplies_are_added(tmp_path):
    acpi(tmp_path, 0, 240, "PSU1 Input")
    acpi(tmp_path, 1, 260, "PSU2 Input")
    assert watts_of(tmp_path) == {"platform": 500}


def test_supplies_on_pmbus_count_what_they_take_not_what_they_give(tmp_path):
    for n in (0, 1):
        files: dict[str, object] = {
            "power1_label": "pin",
            "power1_input": 300 * WATT,
            "power2_label": "pout1",
            "power2_input": 280 * WATT,
        }
        hwmon(tmp_path, n, "dps920ab", files)
    hwmon(tmp_path, 2, "isl68137", {"power1_label": "pin", "power1_input": 90 * WATT})
    assert watts_of(tmp_path) == {"platform": 600}


def test_meters_that_cannot_be_told_apart_are_never_added(tmp_path):
    acpi(tmp_path, 0, 240)
    acpi(tmp_path, 1, 500)
    assert watts_of(tmp_path) == {"platform": 500}


def test_a_total_goes_before_what_it_is_made_of(tmp_path):
    acpi(tmp_path, 0, 300, "PSU1")
    acpi(tmp_path, 1, 300, "PSU2")
    acpi(tmp_path, 2, 590, "Total System Power")
    assert watts_of(tmp_path) == {"platform": 590}


def test_parts_batteries_and_strangers_are_not_the_machine(tmp_path):
    cpus = acpi(tmp_path, 0, 120)
    (cpus / "device/measures/LNXCPU:00").mkdir(parents=True)
    acpi(tmp_path, 1, 30, power1_is_battery=1)
    hwmon(tmp_path, 2, "amdgpu", {"power1_average": 90 * WATT, "power1_label": "PPT"})
    hwmon(tmp_path, 3, "ina226", {"power1_input": 3 * WATT})
    hwmon(tmp_path, 4, "coretemp", {"temp1_input": 45000})
    assert find(tmp_path, Clock()) == []


def test_a_meter_of_the_system_bus_is_the_machine(tmp_path):
    (acpi(tmp_path, 0, 120) / "device/measures/LNXSYBUS:00").mkdir(parents=True)
    assert watts_of(tmp_path) == {"platform": 120}


def test_an_energy_counter_goes_before_its_power(tmp_path):
    files: dict[str, object] = {
        "energy1_input": 5_000_000,
        "energy2_input": 4_000_000,
        "power1_average": 300 * WATT,
        "power2_average": 280 * WATT,
    }
    folder = hwmon(tmp_path, 0, "aem2", files)
    (meter,) = find(tmp_path, Clock())
    assert isinstance(meter, EnergyMeter)
    assert (meter.device, meter.quality, meter.range_uj) == ("platform", "measured", 0)
    assert meter.read_uj() == 5_000_000
    (folder / "energy1_input").write_text("5300000\n")
    assert meter.read_uj() == 5_300_000


@pytest.mark.parametrize(
    "content", ["", "12", "-5\n", "1\n2\n", "\xff\n", "0\n", "4294967295000\n"]
)
def test_what_cannot_be_the_power_is_no_sample(tmp_path, content):
    folder = acpi(tmp_path, 0, 100)
    (meter,) = power_meters(tmp_path)
    (folder / "power1_average").write_text(content, encoding="latin-1")
    with pytest.raises(SensorFailed, match="power1_average"):
        meter.sample()


def test_a_sum_without_one_of_its_parts_is_no_sum(tmp_path):
    acpi(tmp_path, 0, 240, "PS1")
    second = acpi(tmp_path, 1, 260, "PS2")
    (meter,) = power_meters(tmp_path)
    (second / "power1_average").unlink()
    with pytest.raises(SensorFailed, match="hwmon1"):
        meter.sample()


def test_a_meter_for_root_only_says_what_to_do(open_path):
    folder = acpi(open_path, 0, 240)
    (meter,) = power_meters(open_path)
    (folder / "power1_average").chmod(0o000)
    with pytest.raises(SensorDenied, match="CAP_DAC_READ_SEARCH"):
        as_nobody(meter.sample)


def as_nobody(call):
    if os.geteuid() != 0:
        return call()
    os.seteuid(NOBODY)
    try:
        return call()
    finally:
        os.seteuid(0)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "name",
                "power1_average",
                "power1_average_interval",
                "power1_oem_info",
                "power1_is_battery",
                "power2_input",
                "power2_label",
                "energy1_input",
                "energy3_input",
            ]
        ),
        st.binary(max_size=40)
        | st.sampled_from([b"power_meter\n", b"CPU Power Socket 0\n", b"PSU1\n", b"7000000\n"]),
    )
)
def test_whatever_the_files_hold_a_sensor_answers_or_fails(files):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "class/hwmon/hwmon0"
        path.mkdir(parents=True)
        for name, content in files.items():
            (path / name).write_bytes(content)
        for meter in find(Path(folder), Clock()):
            try:
                if isinstance(meter, PowerMeter):
                    assert meter.sample().power_uw > 0
                else:
                    assert meter.read_uj() >= 0
            except SensorFailed:
                continue
