"""Zones of real machines' shapes: flat, nested, unreadable, twice."""

import pytest

from joulegram.agent.errors import SensorFailed
from joulegram.agent.sensors.powercap import RaplZone


def zone(root, entry, name, energy="5\n", range_uj="1000\n", max_power_uw=None):
    folder = root / "class/powercap" / entry
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(energy)
    (folder / "max_energy_range_uj").write_text(range_uj)
    if max_power_uw:
        (folder / "constraint_0_max_power_uw").write_text(max_power_uw)
    return folder


def test_no_powercap_is_an_answer(tmp_path):
    assert RaplZone.find(tmp_path) == []


def test_zones_are_found_flat_and_nested_and_counted_once(tmp_path):
    nested = "intel-rapl/intel-rapl:0"
    zone(tmp_path, nested, "package-0")
    zone(tmp_path, f"{nested}/intel-rapl:0:0", "core")
    zone(tmp_path, f"{nested}/intel-rapl:0:1", "dram")
    for link, target in (
        ("intel-rapl:0", nested),
        ("intel-rapl:0:1", f"{nested}/intel-rapl:0:1"),
    ):
        (tmp_path / "class/powercap" / link).symlink_to(tmp_path / "class/powercap" / target)
    assert [z.device for z in RaplZone.find(tmp_path)] == ["cpu0", "dram0"]


def test_the_second_socket_and_its_memory_keep_the_packages_number(tmp_path):
    zone(tmp_path, "intel-rapl:1", "package-1", max_power_uw="180000000\n")
    zone(tmp_path, "intel-rapl:1:0", "dram")
    zones = RaplZone.find(tmp_path)
    assert [(z.device, z.component, z.max_power_w) for z in zones] == [
        ("cpu1", "cpu", 180.0),
        ("dram1", "dram", 0.0),
    ]


def test_an_mmio_zone_without_a_twin_counts(tmp_path):
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    assert [z.device for z in RaplZone.find(tmp_path)] == ["cpu0"]


def test_of_a_zone_and_its_twin_one_that_answers_counts(tmp_path):
    """Never both, and the first where neither says anything."""
    first = zone(tmp_path, "intel-rapl:0", "package-0", energy="")
    twin = zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    for energies, counts in ((("", "5\n"), twin), (("5\n", "5\n"), first), (("", ""), first)):
        (first / "energy_uj").write_text(energies[0])
        (twin / "energy_uj").write_text(energies[1])
        assert [(z.device, z.path) for z in RaplZone.find(tmp_path)] == [("cpu0", counts)]


def test_a_second_psys_counts_the_same_platform_again(tmp_path):
    for n, name in enumerate(("package-0", "psys", "package-1", "psys")):
        zone(tmp_path, f"intel-rapl:{n}", name)
    assert [z.device for z in RaplZone.find(tmp_path)] == ["cpu0", "platform", "cpu1"]


def test_control_types_that_lead_to_one_another_end(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0")
    for control in ("intel-rapl", "intel-rapl-mmio"):
        (tmp_path / "class/powercap" / control).symlink_to(".")
    assert [z.device for z in RaplZone.find(tmp_path)] == ["cpu0"]


@pytest.mark.parametrize("content", ["", "12", "-5\n", "12\n34\n", "twelve\n", "1" * 5000 + "\n"])
def test_a_torn_or_foolish_value_is_no_value(tmp_path, content):
    zone(tmp_path, "intel-rapl:0", "package-0", energy=content)
    with pytest.raises(SensorFailed, match="energy_uj"):
        RaplZone.find(tmp_path)[0].read_uj()
