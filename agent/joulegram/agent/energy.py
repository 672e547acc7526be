"""Every device's counter or power meter, read once a tick, spread over the windows."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

from joulegram.agent.attribution import DERIVED, MEASURED, MODELLED, Metered
from joulegram.agent.clock import Clock
from joulegram.agent.counters import PLATFORM_MAX_POWER_W, UNKNOWN_MAX_POWER_W, Counter, Interval
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.floors import Floors
from joulegram.agent.integral import Integral
from joulegram.agent.sensors.sensor import PowerSensor, Sensor
from joulegram.agent.textfile import Torn
from joulegram.agent.windows import DeviceEnergy, Timeline, Window

log = logging.getLogger(__name__)

# How long a frame waits for a counter that stopped answering.
LATE_NS = 30_000_000_000
# Windows that begin so long after its last answer do not wait: a counter that is gone shall not
# keep all other numbers late for good.
GONE_NS = 300_000_000_000

# A bridge may reach a little into the next window: a tick reads just after a window's end.
BRIDGED_SHARE = 0.02
WHOLE_SHARE = 0.999  # of a window, measured: then it says something of the idle floor

AnySensor: TypeAlias = Sensor | PowerSensor


@dataclass(slots=True)
class MeteredDevice:
    """A sensor and what it has said so far."""

    sensor: AnySensor
    history: Counter | Integral
    floor_uw: int | None  # configured or the sensor's own; None: to be learnt
    silent: bool = False  # it did not answer for LATE_NS
    failures: int = 0
    error: str = ""
    doubted: bool = False  # it failed since sensors were last looked for

    def moved(self, found: AnySensor, tick_s: float) -> bool:
        """Take what was found under its name, where its files are elsewhere since it failed.

        Kernel modules and packages that left come back under another number, and what has
        the old number may be somebody else's. Of several files all must be there again: a part
        is no whole. What the new ones counted before now was never read: a gap.
        """
        old, new = files(self.sensor), files(found)
        alike = type(found) is type(self.sensor) and len(new) == len(old)
        moved = self.doubted and alike and new != old
        if moved:
            self.sensor, self.history = found, history_of(found, tick_s)
        self.doubted = bool(self.error)
        return moved

    def owes(self, window: Window, now_ns: int) -> bool:
        """Whether it has yet to say what it counted in the window, and may still do so in time."""
        read_ns = self.history.last_ns
        if read_ns is None or read_ns >= window.end_ns:
            return False
        return now_ns - window.end_ns <= LATE_NS and window.begin_ns - read_ns <= GONE_NS

    def heard(self, now_ns: int) -> None:
        """Say it once when frames go without it, and when it is back."""
        read_ns, name = self.history.last_ns, self.sensor.device
        if read_ns is None:
            return
        silent = now_ns - read_ns > LATE_NS
        if silent and not self.silent:
            log.warning(
                "%s has not answered for %d s; frames go without it: %s",
                name,
                LATE_NS // 1_000_000_000,
                self.error,
            )
        elif self.silent and not silent:
            log.warning("%s answers again", name)
        self.silent = silent

    def read(self, clock: Clock) -> Interval | None:
        """Raises: SensorDenied, SensorFailed, OSError, Torn."""
        if isinstance(self.history, Integral):
            return self.history.take(clock.mono_ns(), cast(PowerSensor, self.sensor).sample())
        value_uj = cast(Sensor, self.sensor).read_uj()
        # The model counts by the monotonic clock: nothing of its own lies in a suspend.
        asleep_ns = 0 if self.sensor.quality == MODELLED else clock.asleep_ns()
        return self.history.read(clock.mono_ns(), value_uj, asleep_ns)


def files(sensor: AnySensor) -> tuple[Path, ...]:
    """Where it reads; nothing where it asks in another way."""
    one = (path,) if (path := getattr(sensor, "path", None)) else ()
    return tuple(getattr(sensor, "paths", one))


def history_of(sensor: AnySensor, tick_s: float) -> Counter | Integral:
    """What remembers a sensor's readings, empty."""
    if not hasattr(sensor, "read_uj"):
        return Integral(sensor.averaged_s, tick_s)
    limit_w = sensor.max_power_w or UNKNOWN_MAX_POWER_W
    jump_w = PLATFORM_MAX_POWER_W if sensor.component == "other" else UNKNOWN_MAX_POWER_W
    return Counter(cast(Sensor, sensor).range_uj, limit_w, tick_s, jump_w)


@dataclass(slots=True)
class Devices:
    """All metered parts of the node.

    Args:
        floors_w: idle floor per device name, W, as configured; never replaced by a learnt one.
    """

    clock: Clock
    tick_s: float
    floors_w: Mapping[str, float]
    learnt: Floors = field(default_factory=Floors)
    metered: dict[str, MeteredDevice] = field(default_factory=dict)

    def add(self, sensor: AnySensor) -> bool:
        """Meter one more device, unless one of that name is metered already.

        A model stands in for counters; the first counter of its component ends it.

        Returns: whether this is the sensor from now on.
        """
        for name, known in list(self.metered.items()):
            stood_in = sensor.quality != MODELLED and known.sensor.quality == MODELLED
            if stood_in and known.sensor.component == sensor.component:
                log.warning("%s is measured now, by a counter", sensor.device)
                del self.metered[name]
        if (device := self.metered.get(sensor.device)) is not None:
            if moved := device.moved(sensor, self.tick_s):
                log.warning("%s is read from %s now", sensor.device, files(sensor)[0])
            return moved
        if sensor.quality == MODELLED:
            log.warning(
                "%s is estimated from load, not measured: `joulegram check` says why", sensor.device
            )
        self.metered[sensor.device] = MeteredDevice(
            sensor, history_of(sensor, self.tick_s), self._known_floor_uw(sensor)
        )
        return True

    def tick(self, timeline: Timeline) -> None:
        """Read every counter once."""
        for device in self.metered.values():
            self._read(device, timeline)
            device.heard(self.clock.mono_ns())

    def wait_for(self, window: Window, now_ns: int) -> bool:
        """Whether some counter has yet to say what it counted in the window."""
        return any(device.owes(window, now_ns) for device in self.metered.values())

    def of(self, window: Window) -> list[Metered]:
        """What was metered in a window, in a fixed order."""
        return [self._metered(name, window) for name in sorted(self.metered)]

    def _metered(self, name: str, window: Window) -> Metered:
        device = self.metered[name]
        gathered = window.energy.get(name) or DeviceEnergy()
        coverage = window.coverage(gathered.covered_ns)
        quality = device.sensor.quality
        if quality == MEASURED and window.coverage(gathered.bridged_ns) > BRIDGED_SHARE:
            quality = DERIVED
        return Metered(
            name,
            device.sensor.component,
            gathered.energy_uj,
            self._floor_uw(device, window, gathered, coverage),
            quality,
            coverage,
            gathered.late,
        )

    def _floor_uw(
        self, device: MeteredDevice, window: Window, gathered: DeviceEnergy, coverage: float
    ) -> int:
        if device.floor_uw is not None:
            return device.floor_uw
        name = device.sensor.device
        if window.whole and coverage >= WHOLE_SHARE and not gathered.late:
            self.learnt.note(name, window.start_ms, window.length_ms, gathered.energy_uj)
        return self.learnt.floor_uw(name)

    def _known_floor_uw(self, sensor: AnySensor) -> int | None:
        if sensor.device in self.floors_w:
            return round(self.floors_w[sensor.device] * 1e6)
        # What a whole platform draws at rest is its parts' to say.
        if sensor.floor_w or sensor.quality == MODELLED or sensor.component == "other":
            return round(sensor.floor_w * 1e6)
        return None

    def _read(self, device: MeteredDevice, timeline: Timeline) -> None:
        try:
            interval = device.read(self.clock)
        except (SensorDenied, SensorFailed, OSError, Torn) as exc:
            device.history.failed()
            device.failures += 1
            device.doubted = True
            if str(exc) != device.error:  # say each trouble once
                device.error = str(exc)
                log.warning("%s: %s", device.sensor.device, exc)
            return
        device.error = ""
        if interval is None:
            return
        name, start_ns = device.sensor.device, interval.start_ns
        awake_uj = interval.energy_uj - interval.asleep_uj
        for window, energy_uj, inside_ns in timeline.spread(awake_uj, start_ns, interval.end_ns):
            if (gathered := window.energy.get(name)) is None:
                gathered = window.energy[name] = DeviceEnergy()
            gathered.energy_uj += energy_uj
            gathered.covered_ns += inside_ns
            gathered.bridged_ns += inside_ns if interval.bridged else 0
            gathered.late |= inside_ns == 0
        # No window holds the time of a suspend: its energy comes with the one that it closed.
        if interval.asleep_uj:
            for window, energy_uj, _ in timeline.spread(interval.asleep_uj, start_ns, start_ns + 1):
                gathered = window.energy.setdefault(name, DeviceEnergy())
                gathered.energy_uj += energy_uj
                gathered.late = True
