"""What this machine offers to meter: the sensors, listed in one place."""

from pathlib import Path

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.procfs import cpu_times
from joulegram.agent.sensors.model import LoadModel
from joulegram.agent.sensors.powercap import RaplZone
from joulegram.agent.sensors.sensor import Sensor
from joulegram.agent.textfile import Torn, as_line, read_whole


def sensors(sysfs: Path, procfs: Path, tdp_w: float, clock: Clock) -> list[Sensor]:
    """One sensor per device, best first: counters, and the load model where none may be read.

    A package whose counter fails is listed and stays at coverage 0. Only where there is no
    package, or every package is root-only, do modelled numbers stand in.
    """
    zones = RaplZone.find(sysfs)
    packages = [zone for zone in zones if zone.component == "cpu"]
    if any(not denied(zone) for zone in packages):
        return list(zones)
    others = [zone for zone in zones if zone.component != "cpu"]
    return [LoadModel(lambda: cpu_times(procfs), clock, tdp_w), *others]


def denied(zone: RaplZone) -> bool:
    """Whether only a permission keeps the zone from being read."""
    try:
        zone.read_uj()
    except SensorDenied:
        return True
    except SensorFailed:
        return False
    return False


def boot_id(procfs: Path) -> str:
    """The kernel's random name of this boot; "" where a captured tree has none."""
    try:
        return read_whole(procfs / "sys/kernel/random/boot_id", as_line)
    except (OSError, Torn):
        return ""
