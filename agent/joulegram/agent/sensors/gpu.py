"""What a GPU says beyond its energy: who used it, and who has it open."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from joulegram.agent.sensors.sensor import PowerSensor, Sensor

NO_PID = 0


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What one process did on a GPU between two looks, or a partition without any."""

    pid: int  # NO_PID: the partition was busy, and no process is listed there
    busy_ns: int  # time-weighted use of the whole GPU or of its partition: SM or engine time
    weight: int  # shares out the GPU's active energy; busy_ns, for MIG busy_ns x slices
    partition: str = ""  # where it is known that nobody else can have done it
    began_ns: int = 0  # it was there so long before the look; 0: not told


@dataclass(frozen=True, slots=True)
class GpuOpen:
    """A process that has the GPU open, busy or not."""

    pid: int
    partition: str  # "" for the whole GPU, else the MIG instance's name
    fraction: float  # of the GPU that the partition is: 1.0, or slices / all slices


@dataclass(frozen=True, slots=True)
class GpuLook:
    """One look at a GPU. An empty one is an answer: nobody used it, or no samples."""

    uses: Sequence[GpuUse] = ()  # since the look before
    opened: Sequence[GpuOpen] = ()  # now
    modelled: bool = False  # the weights come from slices held, since activity is not told
    parts: Mapping[str, str] = field(default_factory=dict)  # {other name: partition}


class GpuUsers(Protocol):
    """The part of a GPU sensor that knows pids. A GPU is this and a Sensor or a PowerSensor."""

    @property
    def device(self) -> str: ...  # gpu:<uuid>

    def names(self) -> Mapping[str, float]:
        """Every name a scheduler may give it or a part of it: {name: fraction of the GPU}.

        An index ("0"), a UUID ("GPU-..."), a PCI address, MIG instances ("MIG-...": 1/7).
        """

    def look(self) -> GpuLook:
        """Who used it since the last call, who has it open.

        Raises: SensorDenied, SensorFailed, OSError.
        """


class CountingGpu(Sensor, GpuUsers, Protocol):
    """A GPU with an energy counter."""


class SampledGpu(PowerSensor, GpuUsers, Protocol):
    """A GPU whose power alone can be read."""
