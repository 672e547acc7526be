"""Every device's counter, read once a tick, spread over the windows."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from joulegram.agent.attribution import DERIVED, MEASURED, MODELLED, Metered
from joulegram.agent.clock import Clock
from joulegram.agent.counters import UNKNOWN_MAX_POWER_W, Counter
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.textfile import Torn
from joulegram.agent.windows import DeviceEnergy, Timeline, Window

log = logging.getLogger(__name__)

# How long a frame waits for a counter that stopped answering.
LATE_NS = 30_000_000_000


# A bridge may reach a little into the next window: a tick reads just after a window's end.
BRIDGED_SHARE = 0.02


class Sensor(Protocol):
    """One energy counter of one device."""

    @property
    def device(self) -> str: ...
    @property
    def component(self) -> str: ...
    @property
    def range_uj(self) -> int: ...
    @property
    def max_power_w(self) -> float: ...  # 0: unknown
    @property
    def floor_w(self) -> float: ...  # idle floor that the sensor itself knows
    @property
    def quality(self) -> str: ...  # measured or modelled
    def read_uj(self) -> int:
        """Raises: SensorDenied, SensorFailed, OSError, Torn."""


@dataclass(slots=True)
class MeteredDevice:
    """A sensor and what its counter has said so far."""

    sensor: Sensor
    counter: Counter
    floor_uw: int
    given_up: bool = False  # it did not answer for LATE_NS; frames wait for it no more
    failures: int = 0
    error: str = ""

    def waits_for(self, window: Window) -> bool:
        read_ns = self.counter.last_ns
        return read_ns is not None and not self.given_up and read_ns < window.end_ns


@dataclass(slots=True)
class Devices:
    """All metered parts of the node.

    Args:
        floors_w: idle floor per device name, W, as configured.
    """

    clock: Clock
    tick_s: float
    floors_w: Mapping[str, float]
    metered: dict[str, MeteredDevice] = field(default_factory=dict)

    def add(self, sensor: Sensor) -> None:
        """Meter one more device, unless one of that name is metered already.

        A model stands in for counters; the first counter of its component ends it.
        """
        for name, known in list(self.metered.items()):
            stood_in = sensor.quality != MODELLED and known.sensor.quality == MODELLED
            if stood_in and known.sensor.component == sensor.component:
                log.warning("%s is measured now, by a counter", sensor.device)
                del self.metered[name]
        if sensor.device in self.metered:
            return
        floor_w = self.floors_w.get(sensor.device, sensor.floor_w)
        limit_w = sensor.max_power_w or UNKNOWN_MAX_POWER_W
        self.metered[sensor.device] = MeteredDevice(
            sensor, Counter(sensor.range_uj, limit_w, self.tick_s), round(floor_w * 1e6)
        )

    def tick(self, timeline: Timeline) -> None:
        """Read every counter once."""
        for device in self.metered.values():
            self._read(device, timeline)

    def give_up_late(self, window: Window, now_ns: int) -> None:
        """Stop waiting for counters that have kept a window for too long."""
        if now_ns - window.end_ns <= LATE_NS:
            return
        for device in self.metered.values():
            if device.waits_for(window):
                device.given_up = True
                log.warning(
                    "%s has not answered for %d s; frames go without it: %s",
                    device.sensor.device,
                    LATE_NS // 1_000_000_000,
                    device.error,
                )

    def wait_for(self, window: Window) -> bool:
        """Whether some counter has yet to say what it counted in the window."""
        return any(device.waits_for(window) for device in self.metered.values())

    def of(self, window: Window) -> list[Metered]:
        """What was metered in a window, in a fixed order."""
        return [self._metered(name, window) for name in sorted(self.metered)]

    def _metered(self, name: str, window: Window) -> Metered:
        device = self.metered[name]
        gathered = window.energy.get(name) or DeviceEnergy()
        quality = device.sensor.quality
        if quality == MEASURED and window.coverage(gathered.bridged_ns) > BRIDGED_SHARE:
            quality = DERIVED
        return Metered(
            name,
            device.sensor.component,
            gathered.energy_uj,
            device.floor_uw,
            quality,
            window.coverage(gathered.covered_ns),
            gathered.late,
        )

    def _read(self, device: MeteredDevice, timeline: Timeline) -> None:
        try:
            value_uj = device.sensor.read_uj()
        except (SensorDenied, SensorFailed, OSError, Torn) as exc:
            device.counter.failed()
            device.failures += 1
            if str(exc) != device.error:  # say each trouble once
                device.error = str(exc)
                log.warning("%s: %s", device.sensor.device, exc)
            return
        if device.given_up:
            device.given_up = False
            log.warning("%s answers again", device.sensor.device)
        device.error = ""
        interval = device.counter.read(self.clock.mono_ns(), value_uj)
        if interval is None:
            return
        for window, energy_uj, inside_ns in timeline.spread(
            interval.energy_uj, interval.start_ns, interval.end_ns
        ):
            gathered = window.energy.setdefault(device.sensor.device, DeviceEnergy())
            gathered.energy_uj += energy_uj
            gathered.covered_ns += inside_ns
            gathered.bridged_ns += inside_ns if interval.bridged else 0
            gathered.late |= inside_ns == 0
