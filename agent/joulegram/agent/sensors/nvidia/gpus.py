"""NVIDIA GPUs: energy from the board's counter, users from the driver (users.py).

Reads  NVML through NVIDIA's own binding: nvmlDeviceGetTotalEnergyConsumption (Volta and later),
       else field NVML_FI_DEV_POWER_INSTANT, else nvmlDeviceGetPowerUsage
Format https://docs.nvidia.com/deploy/nvml-api/

The counter is millijoules since the driver was loaded; it never wraps, and starts again from 0
when the driver is loaded again.
"""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.aside import PATIENCE_S, Aside
from joulegram.agent.sensors.gpu import GpuLook
from joulegram.agent.sensors.nvidia.nvml import Board, NotTold, Nvml, handles
from joulegram.agent.sensors.nvidia.users import Users
from joulegram.agent.sensors.sensor import Sample

log = logging.getLogger(__name__)

UJ_PER_MJ = UW_PER_MW = 1000
FI_TOTAL_ENERGY = 83  # NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, mJ
FI_POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT, mW
UNSIGNED_INT, UNSIGNED_LONG, UNSIGNED_LONG_LONG = 1, 2, 3  # NVML_VALUE_TYPE_*
AMPERE, GA100 = 7, (8, 0)  # NVML_DEVICE_ARCH_AMPERE; compute capability of the A100 and A30
# nvmlDeviceGetPowerUsage: "On Ampere (except GA100) or newer GPUs, the API returns power averaged
# over 1 sec interval. On GA100 and older architectures, instantaneous power is returned."
AVERAGED_S = 1.0
# A power that is older was dated by another clock than ours.
OLDEST_US = 10_000_000
# The first session wakes GPUs up that nobody uses: a second or two for each.
FIRST_PATIENCE_S = 30.0


@dataclass(slots=True)
class CountingNvidia:
    """A GPU with an energy counter."""

    board: Board
    users: Users
    aside: Aside
    device: str
    max_power_w: float
    by_field: bool = False  # the counter is told as a field only
    component: str = "gpu"
    quality: str = "measured"
    floor_w: float = 0.0
    range_uj: int = 0

    def read_uj(self) -> int:
        """Raises: SensorDenied, SensorFailed."""
        return self.aside.ask(self._read_uj)

    def names(self) -> Mapping[str, float]:
        return self.users.names()

    def look(self) -> GpuLook:
        return self.aside.ask(self.users.look)

    def _read_uj(self) -> int:
        try:
            return UJ_PER_MJ * energy_mj(self.board, self.by_field)
        except NotTold as exc:
            self.board.lost()
            raise SensorFailed(f"{self.device}: no energy counter any more ({exc})") from exc


@dataclass(slots=True)
class SampledNvidia:
    """A GPU without an energy counter: its power, to be integrated."""

    board: Board
    users: Users
    aside: Aside
    device: str
    max_power_w: float
    clock: Clock
    instant: bool  # by field; else the older function
    averaged_s: float
    component: str = "gpu"
    quality: str = "derived"
    floor_w: float = 0.0
    _told: tuple[int, int] = field(default=(0, 0), init=False)  # (power, timestamp) of the field
    _stamps_lie: bool = field(default=False, init=False)

    def sample(self) -> Sample:
        """Raises: SensorDenied, SensorFailed."""
        return self.aside.ask(self._sample)

    def names(self) -> Mapping[str, float]:
        return self.users.names()

    def look(self) -> GpuLook:
        return self.aside.ask(self.users.look)

    def _sample(self) -> Sample:
        now_ns, wall_us = self.clock.mono_ns(), self.clock.wall_ns() // 1000
        try:
            if not self.instant:
                return Sample(UW_PER_MW * _power_mw(self.board), now_ns)
            power_mw, at_us = _field(self.board, FI_POWER_INSTANT)
        except NotTold as exc:
            self.board.lost()
            raise SensorFailed(f"{self.device}: its power is not told any more ({exc})") from exc
        before_mw, before_us = self._told
        # A new value under an old time: the time is not that of the measurement.
        self._stamps_lie = self._stamps_lie or (at_us == before_us and power_mw != before_mw)
        self._told = power_mw, at_us
        age_us = wall_us - at_us
        if self._stamps_lie or not 0 <= age_us <= OLDEST_US:
            age_us = 0
        return Sample(UW_PER_MW * power_mw, now_ns - 1000 * age_us)


NvidiaGpu: TypeAlias = CountingNvidia | SampledNvidia


@dataclass(slots=True)
class NvidiaGpus:
    """Every NVIDIA GPU of this machine. Keep one: the library is one per process, too."""

    clock: Clock
    unmetered: dict[str, str] = field(default_factory=dict, init=False)  # device: why
    _nvml: Nvml = field(init=False)
    _aside: Aside = field(default_factory=lambda: Aside("NVML"), init=False)
    _known: dict[str, NvidiaGpu] = field(default_factory=dict, init=False)
    _asked: bool = field(default=False, init=False)
    _late: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._nvml = Nvml(self.clock)

    def find(self) -> list[NvidiaGpu]:
        """All that were ever seen; the same objects again. None is an answer.

        Ask again now and then: a GPU that is added, or was lost at the start, is found later,
        a driver that is installed within ABSENT_FOR_S.
        Only the first call waits for a driver that wakes up.
        """
        if self._nvml.absent:
            return []
        patience_s, self._asked = (PATIENCE_S if self._asked else FIRST_PATIENCE_S), True
        try:
            self._aside.ask(self._find, patience_s)
            self._late = ""
        except SensorFailed as exc:
            self._late = str(exc)
            log.debug("cannot list NVIDIA GPUs: %s", exc)
        return list(self._known.values())

    def why_none(self) -> str:
        """Why there is no NVIDIA GPU to meter, and what to do; "" where there is one."""
        if self._known:
            return ""
        reasons = [f"{device}: {why}" for device, why in self.unmetered.items()]
        reason = self._nvml.why_none or "the NVIDIA driver is loaded and lists no GPU"
        return self._late or "; ".join(reasons) or reason

    def _find(self) -> None:
        if self._nvml.begin():
            for order, uuid in enumerate(handles(self._nvml)):
                if uuid not in self._known:
                    self._add(uuid, order)

    def _add(self, uuid: str, order: int) -> None:
        device = f"gpu:{uuid}"
        try:
            gpu = _metered(Board(self._nvml, uuid, order), self.clock)
        except (SensorFailed, SensorDenied) as exc:
            self.unmetered = {**self.unmetered, device: str(exc)}
            return
        self.unmetered = {d: why for d, why in self.unmetered.items() if d != device}
        self._known = {**self._known, uuid: gpu}
        with contextlib.suppress(SensorFailed):  # each look tries again
            gpu.users.lay_out()


def energy_mj(board: Board, by_field: bool = False) -> int:
    """Raises: NotTold, SensorDenied, SensorFailed."""
    if by_field:
        return _field(board, FI_TOTAL_ENERGY)[0]
    return int(board.ask("nvmlDeviceGetTotalEnergyConsumption"))


def _metered(board: Board, clock: Clock) -> NvidiaGpu:
    """The best way to meter a GPU. Raises: SensorDenied, SensorFailed where there is none."""
    device, users, max_power_w = f"gpu:{board.uuid}", Users(board, clock), _max_power_w(board)
    aside = Aside(device)
    for by_field in (False, True):
        try:
            energy_mj(board, by_field)
        except NotTold:
            continue
        except SensorDenied:
            pass  # a counter: it says on every reading that this user may not
        return CountingNvidia(board, users, aside, device, max_power_w, by_field)
    for instant in (True, False):
        try:
            _field(board, FI_POWER_INSTANT) if instant else _power_mw(board)
        except NotTold:
            continue
        averaged_s = 0.0 if instant else _averaged_s(board)
        return SampledNvidia(board, users, aside, device, max_power_w, clock, instant, averaged_s)
    raise SensorFailed(
        f"{device} tells neither energy nor power: its driver, or the virtual machine's host, "
        "does not pass them on"
    )


def _power_mw(board: Board) -> int:
    return int(board.ask("nvmlDeviceGetPowerUsage"))


def _field(board: Board, which: int) -> tuple[int, int]:
    """(value, us since 1970) of one field. Raises: NotTold, SensorDenied, SensorFailed."""
    told = board.ask("nvmlDeviceGetFieldValues", [which])[0]
    if told.nvmlReturn != 0:
        raise NotTold(f"field {which}", int(told.nvmlReturn))
    if told.valueType == UNSIGNED_INT:
        return int(told.value.uiVal), int(told.timestamp)
    if told.valueType in (UNSIGNED_LONG, UNSIGNED_LONG_LONG):
        return int(told.value.ullVal), int(told.timestamp)
    raise NotTold(f"field {which}, of type {told.valueType}", 0)


def _max_power_w(board: Board) -> float:
    """The most that the power limit can be set to, W; 0: not told."""
    constraints = board.told("nvmlDeviceGetPowerManagementLimitConstraints")
    most_mw = int(constraints[1]) if constraints else 0
    for name in ("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit"):
        most_mw = most_mw or int(board.told(name) or 0)
    return most_mw / 1000


def _averaged_s(board: Board) -> float:
    """Over how long nvmlDeviceGetPowerUsage averages."""
    capability = board.told("nvmlDeviceGetCudaComputeCapability")
    if capability:
        return AVERAGED_S if tuple(capability) > GA100 else 0.0
    architecture = board.told("nvmlDeviceGetArchitecture")
    newer = architecture is not None and AMPERE < architecture < 1 << 31
    return AVERAGED_S if newer else 0.0
