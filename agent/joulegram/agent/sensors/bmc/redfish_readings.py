"""What Redfish's resources say of power: the watts in one document, or an energy that grows.

Format DMTF DSP0268, "Redfish Data Model": EnvironmentMetrics, Sensor, PowerSupplyMetrics, Power
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]

MAX_W = 100_000.0
MAX_MEAN_MIN = 1.0  # a mean over longer would give one job's energy to the next
J_PER_KWH = 3_600_000.0
GONE = ("Absent", "UnavailableOffline")  # a supply that feeds nothing
# What a reading of a part is about.
NOT_WHOLE = ("CPU", "CPUSubsystem", "Memory", "MemorySubsystem", "GPU", "GPUSubsystem",
             "Accelerator", "Fan", "StorageDevice", "StorageSubsystem", "NetworkingDevice", "FPGA",
             "ASIC", "TPU", "PowerSupply")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """What one resource says: its power, else an energy that grows."""

    watts: float | None = None
    energy_j: float | None = None

    def __bool__(self) -> bool:
        return self.watts is not None or self.energy_j is not None


def environment(document: Document) -> Reading:
    """EnvironmentMetrics of a chassis."""
    watts = running_w(member(document, "PowerWatts", "Reading"))
    if watts is not None:
        return Reading(watts)
    joules = number(member(document, "EnergyJoules", "Reading"))
    kwh = number(member(document, "EnergykWh", "Reading"))
    if joules is None and kwh is not None:
        joules = kwh * J_PER_KWH
    return Reading(energy_j=joules)


def power(document: Document) -> Reading:
    """Power of a chassis: the control of the whole, not those of its processors and the like.

    Several supplies that are listed for themselves add up.
    """
    controls = _objects(document, "PowerControl")
    of_supplies = [one for one in controls if one.get("PhysicalContext") == "PowerSupply"]
    whole = [one for one in controls if one.get("PhysicalContext") not in NOT_WHOLE]
    now = [running_w(one.get("PowerConsumedWatts")) for one in whole]
    sums = [
        _inputs((one, one.get("PowerConsumedWatts")) for one in of_supplies),
        _inputs((one, one.get("PowerInputWatts")) for one in _objects(document, "PowerSupplies")),
    ]
    said = (*now, *map(_minutes_mean, whole), *sums)
    return Reading(next((watts for watts in said if watts is not None), None))


def sensor(document: Document) -> Reading:
    """A Sensor that EnvironmentMetrics names."""
    of_power = document.get("ReadingUnits", "W") == "W"
    return Reading(running_w(document.get("Reading")) if of_power else None)


def supplies(*documents: Document) -> Reading:
    """PowerSupplyMetrics of all that feed a chassis."""
    return Reading(_inputs((one, member(one, "InputPowerWatts", "Reading")) for one in documents))


# Best first.
READERS: Mapping[str, Callable[..., Reading]] = {
    "EnvironmentMetrics": environment,
    "Sensor": sensor,
    "Power": power,
    "PowerSupplyMetrics": supplies,
}


def _minutes_mean(control: Document) -> float | None:
    """A control's mean power over no more than a minute, W."""
    over_min = number(member(control, "PowerMetrics", "IntervalInMin"))
    if over_min is None or not 0 < over_min <= MAX_MEAN_MIN:
        return None
    return running_w(member(control, "PowerMetrics", "AverageConsumedWatts"))


def _inputs(said: Iterable[tuple[Document, Any]]) -> float | None:
    """The sum of what supplies take in, W, from (supply, reading); each that feeds must say it."""
    feeding = [
        number(reading) for one, reading in said if member(one, "Status", "State") not in GONE
    ]
    known = [watts for watts in feeding if watts is not None]  # 0: not plugged in
    return running_w(math.fsum(known)) if len(known) == len(feeding) else None


def running_w(value: Any) -> float | None:
    """Watts of a running node, W. Controllers that do not measure say 0."""
    watts = number(value)
    return watts if watts is not None and 0 < watts <= MAX_W else None


def number(value: Any) -> float | None:
    """A JSON number; neither null, nor a text, nor what no float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def member(document: Document, *names: str) -> Any:
    found: Any = document
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def listed(document: Document, name: str) -> list[Any]:
    found = document.get(name)
    return found if isinstance(found, list) else []


def _objects(document: Document, name: str) -> list[Document]:
    return [one for one in listed(document, name) if isinstance(one, dict)]
