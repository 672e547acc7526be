"""Power meters of whole machines and of NVIDIA Grace sockets, as hwmon and ACPI show them.

Reads  <sysfs>/class/hwmon/hwmon*/[device/]{name,measures/*}, and for each n
       power<n>_{average,average_interval,input,label,oem_info,is_battery}, energy<n>_{input,label}
Format https://docs.kernel.org/hwmon/sysfs-interface.html (uW, ms, uJ)
       https://docs.kernel.org/hwmon/acpi_power_meter.html
       https://docs.nvidia.com/grace-perf-tuning-guide/power-thermals.html, "Power Telemetry"

**Grace.** ACPI meters say in `power1_oem_info` what they measure: "Module Power Socket 0" (the
Grace socket, the GPU beside it and its memory, and what the regulators lose), inside it "Grace
Power Socket 0" (CPU, SoC, LPDDR5X memory, and their regulators' loss), inside that "CPU Power
Socket 0" (the cores' rail) and "SysIO Power Socket 0" (the SoC's rail). CPU and SysIO together
are no more than some 55 % of Grace on an idle node, and no meter tells the rest, memory and
losses, apart. So `cpu<n>` is the Grace meter: all that the socket draws and nothing twice, as
RAPL's package is; its memory lies inside it and there is no `dram<n>`. Where firmware shows no
Grace meter, `cpu<n>` is CPU + SysIO, which misses memory and losses. The modules together are
`platform`, if every socket has one (one module's meter may stand for a board of two sockets);
GPUs and sockets are then taken out of it by rule 20, and `other` is what is left.

**Whole machines.** `platform` comes from the first of these that is there:
1. a meter that calls itself the system's or the total;
2. PSU inputs, all of them, added: each feeds a part of the machine;
3. an ACPI meter that says nothing of itself. Several of them may be halves of one machine or
   count each other's watts again, and nothing tells which: the greatest reading stands for the
   machine. It is never counted twice, and is too small where they were halves;
4. Grace modules.
A meter that says it measures processors or memory alone is left out, and so are batteries. An
energy counter goes before its power.
"""

import contextlib
import errno
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.sensor import Sample
from joulegram.agent.textfile import (
    Torn,
    as_line,
    is_there,
    matching,
    read_count,
    read_whole,
)

ACPI = "power_meter"
# IBM's Active Energy Manager: channel 1 is the system.
SYSTEM_DRIVERS = {"aem1": 1, "aem2": 1}
# What else says in a label that it measures all: OPAL and OCC, Apple's SMC, Corsair's PSUs.
TOTAL_DRIVERS = (ACPI, "ibmpowernv", "occ", "macsmc_hwmon", "corsairpsu")
TOTAL = re.compile(
    r"(total|system|node|chassis|machine)|((total|system|node|chassis) ){1,2}"
    r"(input )?power|power total|power[ _-]?consumption",
    re.I,
)
PSU = re.compile(r"(psu|ps|power[ _-]supply)[ _-]?\d{1,2}([ _-](input|in|ac))?([ _-]power)?", re.I)
# Server power supplies on PMBus; "pin" is what they take from the wall. Other PMBus devices with
# a "pin" are regulators behind them.
PSU_DRIVERS = ("bel-pfe", "cffps", "dps920ab", "ipsps1", "pfe1100", "pfe3000", "ym2151e")
GRACE = re.compile(r"(\w[\w ]{0,30}?)(?: input)? power(?: in uw)? socket (\d{1,4})", re.I)
SOCKET, CORES, SYSIO = ("grace", "total"), ("cpu", "cpu rail"), ("sysio", "soc rail")
MODULE = ("module",)
PARTS = ("ACPI0007", "LNXCPU", "PNP0C80")  # processors and memory, as ACPI names them

UNKNOWN_INTERVAL_MS = 0xFFFF_FFFF  # ACPI's "unknown"; of power too, in mW
MAX_UW = 1_000_000_000_000  # no node draws a megawatt
CHANNEL = re.compile(r"(power|energy)(\d{1,3})_(average|input)")
CHANNELS_MAX = 64  # of one hwmon device


@dataclass(frozen=True, slots=True)
class Channel:
    """One meter of a hwmon device, by its files."""

    driver: str
    number: int
    label: str
    power: Path | None
    energy: Path | None
    averaged_s: float

    def grace(self) -> tuple[str, int]:
        """(what of a socket it measures, which socket); ("", 0) where it says nothing of one."""
        said = GRACE.fullmatch(self.label)
        return (said[1].lower(), int(said[2])) if said else ("", 0)


@dataclass(frozen=True, slots=True)
class PowerMeter:
    """One or several power meters that stand for one device.

    Args:
        combine: of their powers: sum or max. All must answer: a part is no whole.
    """

    paths: tuple[Path, ...]
    device: str
    component: str
    clock: Clock
    averaged_s: float
    combine: Callable[[Iterable[int]], int] = sum
    max_power_w: float = field(default=0.0, init=False)
    floor_w: float = field(default=0.0, init=False)
    quality: str = field(default="derived", init=False)

    def sample(self) -> Sample:
        """Raises: SensorDenied, SensorFailed."""
        power_uw = self.combine([read_micro(path) for path in self.paths])
        if not 0 < power_uw < MAX_UW:
            raise SensorFailed(
                f"{self.paths[0]}: {power_uw / 1e6:g} W cannot be its power. Firmware that shows a "
                "meter it does not have does this; its update may help."
            )
        return Sample(power_uw, self.clock.mono_ns())


@dataclass(frozen=True, slots=True)
class EnergyMeter:
    """One or several energy counters that together stand for one device."""

    paths: tuple[Path, ...]
    device: str
    component: str
    range_uj: int = field(default=0, init=False)
    max_power_w: float = field(default=0.0, init=False)
    floor_w: float = field(default=0.0, init=False)
    quality: str = field(default="measured", init=False)

    def read_uj(self) -> int:
        """Raises: SensorDenied, SensorFailed."""
        return sum(read_micro(path) for path in self.paths)


Meter: TypeAlias = PowerMeter | EnergyMeter


def find(sysfs: Path, clock: Clock) -> list[Meter]:
    """The sockets and the whole machine, each once. None is an answer, not an error."""
    channels = list(_channels(sysfs))
    sockets = sorted(_sockets(channels).items())
    found = [_meter(parts, f"cpu{number}", "cpu", clock) for number, parts in sockets]
    whole, combine = _whole(channels)
    found.append(_meter(whole, "platform", "other", clock, combine))
    return [meter for meter in found if meter]


def read_micro(path: Path) -> int:
    """A value of a hwmon file, uW or uJ. Raises: SensorDenied, SensorFailed."""
    try:
        return read_count(path)
    except OSError as exc:
        # EPERM comes from the driver itself: asleep, or in a reset.
        if exc.errno == errno.EACCES:
            raise SensorDenied(
                f"cannot read {path}: it is for root only. Run the agent as root or give it "
                "CAP_DAC_READ_SEARCH."
            ) from exc
        raise SensorFailed(f"cannot read {path}: {exc.strerror or exc}") from exc
    except Torn as exc:
        raise SensorFailed(f"cannot read {path}: {exc}") from exc


def optional(path: Path) -> int:
    """The value of a file that may be missing or foolish; 0 then."""
    with contextlib.suppress(OSError, Torn):
        return read_count(path)
    return 0


def line(path: Path) -> str:
    """The text of a file that may be missing or foolish; "" then."""
    with contextlib.suppress(OSError, Torn):
        return read_whole(path, as_line).strip()
    return ""


def _channels(sysfs: Path) -> Iterator[Channel]:
    """Every channel of every hwmon device, in the devices' order."""
    for hwmon in sorted(matching(sysfs, "class/hwmon/hwmon*"), key=_order):
        # Drivers of the old style have their files, name included, at the device's own folder.
        driver = line(hwmon / "name") or line(hwmon / "device/name")
        for folder in (hwmon, hwmon / "device"):
            numbers = _numbers(folder)
            for number in numbers:
                yield from _channel(folder, driver, number)
            if numbers:
                break


def _channel(folder: Path, driver: str, number: int) -> Iterator[Channel]:
    power, energy = folder / f"power{number}", folder / f"energy{number}_input"
    files = (Path(f"{power}_average"), Path(f"{power}_input"))
    reading = next((path for path in files if is_there(path)), None)
    averaged_ms = optional(Path(f"{power}_average_interval"))
    if averaged_ms >= UNKNOWN_INTERVAL_MS or reading != files[0]:
        averaged_ms = 0
    labels = (f"{power}_oem_info", f"{power}_label", folder / f"energy{number}_label")
    label = next(filter(None, (line(Path(path)) for path in labels)), "")
    if not optional(Path(f"{power}_is_battery")) and not _measures_parts(folder):
        yield Channel(
            driver,
            number,
            " ".join(label.split()),
            reading,
            energy if is_there(energy) else None,
            averaged_ms / 1000,
        )


def _numbers(folder: Path) -> list[int]:
    try:
        names = [CHANNEL.fullmatch(entry.name) for entry in folder.iterdir()]
    except OSError:
        return []
    return sorted({int(name[2]) for name in names if name})[:CHANNELS_MAX]


def _measures_parts(folder: Path) -> bool:
    for measures in (folder / "measures", folder / "device/measures"):
        with contextlib.suppress(OSError):
            measured = [entry.name for entry in measures.iterdir()]
            return bool(measured) and all(name.startswith(PARTS) for name in measured)
    return False


def _sockets(channels: Sequence[Channel]) -> dict[int, list[Channel]]:
    """The meters that make up each Grace socket."""
    sockets: dict[int, list[Channel]] = {}
    for number in {c.grace()[1] for c in channels if c.grace()[0] in (*SOCKET, *CORES)}:
        if whole := _of_socket(channels, number, SOCKET):
            sockets[number] = whole
        elif cores := _of_socket(channels, number, CORES):
            sockets[number] = cores + _of_socket(channels, number, SYSIO)
    return sockets


def _of_socket(channels: Iterable[Channel], number: int, names: Sequence[str]) -> list[Channel]:
    """The first meter of one of these names, in the names' order."""
    found = (c for name in names for c in channels if c.grace() == (name, number))
    return [channel] if (channel := next(found, None)) else []


def _whole(channels: Sequence[Channel]) -> tuple[list[Channel], Callable[[Iterable[int]], int]]:
    """The meters that stand for the whole machine, and how."""
    total = [c for c in channels if _is_total(c)]
    if total:
        return total[:1], sum
    acpi = [c for c in channels if c.driver == ACPI and not c.grace()[0]]
    inputs = [c for c in acpi if PSU.fullmatch(c.label)]
    inputs += [c for c in channels if c.driver.startswith(PSU_DRIVERS) and c.label == "pin"]
    if inputs:
        return inputs, sum
    if acpi:
        return acpi, max
    sockets = {c.grace()[1] for c in channels if c.grace()[0]}
    modules = [m for n in sorted(sockets) for m in _of_socket(channels, n, MODULE)]
    return (modules, sum) if len(modules) == len(sockets) else ([], sum)


def _is_total(channel: Channel) -> bool:
    if channel.driver in SYSTEM_DRIVERS:
        return channel.number == SYSTEM_DRIVERS[channel.driver]
    return channel.driver in TOTAL_DRIVERS and bool(TOTAL.fullmatch(channel.label))


def _meter(
    channels: Sequence[Channel],
    device: str,
    component: str,
    clock: Clock,
    combine: Callable[[Iterable[int]], int] = sum,
) -> Meter | None:
    """None where there is no channel, or where some count energy and others tell power."""
    if combine is max:  # counters cannot be compared
        channels = [c for c in channels if c.power] if len(channels) > 1 else channels
    energies = tuple(c.energy for c in channels if c.energy)
    powers = tuple(c.power for c in channels if c.power)
    if channels and len(energies) == len(channels) and (combine is sum or len(energies) == 1):
        return EnergyMeter(energies, device, component)
    if channels and len(powers) == len(channels):
        averaged_s = min(c.averaged_s for c in channels)
        return PowerMeter(powers, device, component, clock, averaged_s, combine)
    return None


def _order(hwmon: Path) -> tuple[int, str]:
    return len(hwmon.name), hwmon.name
