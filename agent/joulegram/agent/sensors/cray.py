"""Energy of a Cray node and its parts from the blade controller's counters (pm_counters).

Reads  <sysfs>/cray/pm_counters/{energy,cpu_energy,cpu<n>_energy,memory_energy,accel<n>_energy,
       freshness,startup,generation}, each `VALUE [UNIT] [TIME us]`, energies in J
Format https://cray-hpe.github.io/docs-csm/, "User Access to Compute Node Power Data"

`freshness` counts the controller's scans, ten a second. `startup` changes when the controller
starts again and its energies with it. `generation` counts changes of the power cap, which leave
the energies alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.textfile import Torn, is_there, read_whole

LINE = re.compile(rb"(\d{1,18})(?: (J))?(?: \d{1,20} us)? *\n")
NAME = re.compile(r"(cpu|memory|accel)(\d{0,3})_energy")
COMPONENTS = {"cpu": "cpu", "memory": "dram", "accel": "gpu"}
UJ_PER_J = 1_000_000

# The scans of a sound controller are 0.1 s apart. One tick that finds nothing new proves little.
STALE_NS = 1_500_000_000
ATTEMPTS = 4
# More than any node with its accelerators is fed; the energies say no maximum of their own.
NODE_MAX_W = 10_000.0


@dataclass(slots=True)
class CrayCounter:
    """One energy file. What `read_uj` says starts again from 0 when the controller does.

    Attributes:
        device: platform, cpu<n>, dram<n>; gpu:accel<n> for a comparison with the GPU's own.
    """

    path: Path
    device: str
    component: str
    clock: Clock
    max_power_w: float = NODE_MAX_W
    range_uj: int = field(default=0, init=False)
    floor_w: float = field(default=0.0, init=False)
    quality: str = field(default="measured", init=False)
    _start: tuple[str, int] | None = field(default=None, init=False)
    _base_j: int = field(default=0, init=False)
    _value_j: int = field(default=0, init=False)
    _freshness: int = field(default=-1, init=False)
    _fresh_ns: int = field(default=0, init=False)

    def read_uj(self) -> int:
        """Energy since the first reading, or since the controller started again.

        A value below the last one tells the reader of a reset, so it is 0 then, even where the
        controller's own counter came back with a greater one.

        Raises: SensorDenied, SensorFailed; the latter too while the controller does not scan.
        """
        energy_j, freshness, start = self._consistent()
        now_ns = self.clock.mono_ns()
        if freshness != self._freshness:
            self._freshness, self._fresh_ns = freshness, now_ns
        elif now_ns - self._fresh_ns > STALE_NS:
            raise SensorFailed(
                f"{self.path} is stale: `freshness` beside it has stood at {freshness} for "
                f"{(now_ns - self._fresh_ns) / 1e9:.0f} s. The blade controller has stopped "
                "scanning; it may be restarting."
            )
        if start != self._start or energy_j < self._value_j:
            self._start, self._base_j = start, energy_j
        self._value_j = energy_j
        return (energy_j - self._base_j) * UJ_PER_J

    def _consistent(self) -> tuple[int, int, tuple[str, int]]:
        """(energy, freshness, what changes with a reset), all of one scan."""
        folder = self.path.parent
        for _ in range(ATTEMPTS):
            before = _read(folder / "freshness")
            start = self._started(folder)
            energy_j = _read(self.path, unit=b"J")
            if before == _read(folder / "freshness"):
                return energy_j, before, start
        raise SensorFailed(
            f"{self.path} cannot be read within one scan: `freshness` changes under the reader. "
            "The machine is too busy; the agent tries again at its next tick."
        )

    def _started(self, folder: Path) -> tuple[str, int]:
        """Changes when the energies start again. Where there is no `startup` the cap must do."""
        for name in ("startup", "generation"):
            if is_there(folder / name):
                return name, _read(folder / name)
        return "", 0


def find(sysfs: Path, clock: Clock) -> list[CrayCounter]:
    """The node and its parts, `platform` first. None is an answer, not an error.

    Sockets that are told apart are listed instead of their sum.
    """
    folder = sysfs / "cray/pm_counters"
    if not is_there(folder):
        return []
    node = [CrayCounter(folder / "energy", "platform", "other", clock)]
    parts = [p for p in _parts(folder, clock) if p.component != "gpu"]
    return [counter for counter in node + parts if is_there(counter.path)]


def accelerators(sysfs: Path, clock: Clock) -> list[CrayCounter]:
    """The accelerators as the blade sees them: to compare with, never to add."""
    return [p for p in _parts(sysfs / "cray/pm_counters", clock) if p.component == "gpu"]


def _parts(folder: Path, clock: Clock) -> Iterator[CrayCounter]:
    try:
        names = sorted(
            filter(None, (NAME.fullmatch(entry.name) for entry in folder.iterdir())), key=_order
        )
    except OSError:
        return
    numbered = {name[1] for name in names if name[2]}
    for name in names:
        part, number = name[1], name[2]
        if not number and part in numbered:
            continue
        component = COMPONENTS[part]
        device = f"gpu:accel{number or 0}" if part == "accel" else f"{component}{number or 0}"
        yield CrayCounter(folder / name[0], device, component, clock)


def _order(name: re.Match[str]) -> tuple[str, int]:
    return name[1], int(name[2] or 0)


def _read(path: Path, unit: bytes | None = None) -> int:
    def value(raw: bytes) -> int | None:
        line = LINE.fullmatch(raw)
        return int(line[1]) if line and line[2] == unit else None

    try:
        return read_whole(path, value)
    except PermissionError as exc:
        raise SensorDenied(
            f"cannot read {path}: this user may not. Run the agent as root, or let its user "
            "read the folder."
        ) from exc
    except (OSError, Torn) as exc:
        raise SensorFailed(f"cannot read {path}: {exc}") from exc
