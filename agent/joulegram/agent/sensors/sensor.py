"""What a sensor is: an energy counter, or a power meter that is integrated by whoever reads it."""

from dataclasses import dataclass
from typing import Protocol


class Metering(Protocol):
    """What every sensor says of itself. Attributes do not change while it lives."""

    @property
    def device(self) -> str: ...  # cpu0, dram0, cpu1-die0, gpu:<uuid>, platform
    @property
    def component(self) -> str: ...  # cpu, dram, gpu, other
    @property
    def max_power_w(self) -> float: ...  # 0: unknown
    @property
    def floor_w(self) -> float: ...  # idle floor that the sensor itself knows; 0: none
    @property
    def quality(self) -> str: ...  # measured, derived or modelled


class Sensor(Metering, Protocol):
    """One energy counter of one device."""

    @property
    def range_uj(self) -> int: ...  # it starts again from 0 after this value; 0: never

    def read_uj(self) -> int:
        """Raises: SensorDenied, SensorFailed, OSError, Torn."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Power at one moment, or its mean over the time just before.

    Attributes:
        at_ns: monotonic, on the agent's Clock.
        since_ns: where the power is the growth of an energy, when its count began; samples of one
            count have it in common. None: power.
        grown_uj: the whole count, since then.
    """

    power_uw: int
    at_ns: int
    since_ns: int | None = None
    grown_uj: int = 0


class PowerSensor(Metering, Protocol):
    """A power meter of one device that has no energy counter; `quality` is derived.

    Samples are integrated (trapezoid), and time without a sample is a gap that nobody fills.
    """

    @property
    def averaged_s(self) -> float: ...  # each sample is the mean over so long before it; 0: a point

    def sample(self) -> Sample:
        """The newest sample; the same one again where nothing new was measured.

        Raises: SensorDenied, SensorFailed, OSError, Torn.
        """
