"""CPU and DRAM energy from the kernel's powercap counters (RAPL, Intel and AMD).

Reads  <sysfs>/class/powercap/intel-rapl*:*/{name,energy_uj,max_energy_range_uj,
       constraint_0_max_power_uw}
Format https://docs.kernel.org/power/powercap/powercap.html
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.textfile import Torn, as_line, read_count, read_whole

ZONE = re.compile(r"intel-rapl(-mmio)?:\d+(:\d+)*")
SOUND_MAX_W = 100_000.0
PACKAGE = re.compile(r"package-(\d+)(?:-die-(\d+))?")


@dataclass(frozen=True, slots=True)
class RaplZone:
    """One energy counter; it grows, and starts again from 0 after `range_uj`.

    What it is asked once, by whoever begins to meter it, is read when asked: zones are looked for
    every few seconds.
    """

    path: Path
    device: str  # cpu0, dram0, cpu1-die0, platform
    component: str  # cpu, dram, other
    quality: str = "measured"
    floor_w: float = 0.0  # idle floor; RAPL knows none

    @classmethod
    def find(cls, sysfs: Path) -> list[Self]:
        """Every zone of this machine that is counted once. None is an answer, not an error.

        The package's cores and graphics lie inside the package. A memory-mapped (mmio) twin
        of a package counts the same energy again, and so does a second psys: they are left out,
        unless they answer and the first does not.
        """
        folders = _folders(sysfs)
        names = {zone: _name(path) for zone, path in folders.items()}
        found: dict[str, Self] = {}
        # mmio zones sort last, so that a twin finds its original already there.
        for zone in sorted(folders, key=lambda z: ("-mmio" in z, _numbers(z))):
            device, component = _identify(zone, names)
            if not component:
                continue
            again = device in found and ("-mmio" in zone or component == "other")
            if not again:
                device = _unused(device, found)
            one = cls(Path(folders[zone]), device, component)
            if not again or (not found[device]._answers() and one._answers()):
                found[device] = one
        return list(found.values())

    @property
    def range_uj(self) -> int:
        return _count(f"{self.path}/max_energy_range_uj")

    @property
    def max_power_w(self) -> float:
        """What the kernel says it can draw, W; 0 where it says nothing, or nonsense."""
        most_w = _count(f"{self.path}/constraint_0_max_power_uw") / 1e6
        return most_w if most_w < SOUND_MAX_W else 0.0

    def read_uj(self) -> int:
        """Raises: SensorDenied where only root may read the counter, SensorFailed otherwise."""
        path = f"{self.path}/energy_uj"
        try:
            return read_count(path)
        except PermissionError as exc:
            raise SensorDenied(
                f"cannot read {path}: energy counters are root-only since Linux 5.10. Run the "
                "agent as root or give it CAP_DAC_READ_SEARCH (the unit in deploy/systemd does)."
            ) from exc
        except (OSError, Torn) as exc:
            raise SensorFailed(f"cannot read {path}: {exc}") from exc

    def _answers(self) -> bool:
        try:
            self.read_uj()
        except (SensorDenied, SensorFailed):
            return False
        return True


def _folders(sysfs: Path) -> dict[str, str]:
    """Zone name -> folder. Zones appear flat in class/powercap and nested in one another."""
    # As text: looked at every few seconds, and a Path costs as much as the file in it.
    folders: dict[str, str] = {}
    waiting = [top := f"{sysfs}/class/powercap"]
    while waiting:
        above = waiting.pop()
        try:
            names = sorted(os.listdir(above))  # noqa: PTH208
        except OSError:
            continue
        for name in names:
            if above == top and name in ("intel-rapl", "intel-rapl-mmio"):  # the control types
                waiting.append(f"{above}/{name}")
            elif ZONE.fullmatch(name) and name not in folders:
                folders[name] = f"{above}/{name}"
                waiting.append(folders[name])
    return folders


def _identify(zone: str, names: dict[str, str]) -> tuple[str, str]:
    """(device, component); component is "" for a zone that lies inside another."""
    name = names[zone]
    if package := PACKAGE.fullmatch(name):
        return f"cpu{_place(package)}", "cpu"
    if name == "psys":
        return "platform", "other"
    if name == "dram":
        package = PACKAGE.fullmatch(names.get(zone.rpartition(":")[0], ""))
        return f"dram{_place(package) if package else _numbers(zone)[0]}", "dram"
    return name, ""


def _place(package: re.Match[str]) -> str:
    number, die = package.groups()
    return number if die is None else f"{number}-die{die}"


def _unused(device: str, taken: Collection[str]) -> str:
    name, n = device, 1
    while name in taken:
        n += 1
        name = f"{device}-{n}"
    return name


def _numbers(zone: str) -> list[int]:
    return [int(part) for part in zone.split(":")[1:]]


def _name(folder: str) -> str:
    try:
        return read_whole(f"{folder}/name", as_line)
    except (OSError, Torn):
        return ""


def _count(path: str) -> int:
    try:
        return read_count(path)
    except (OSError, Torn):
        return 0
