"""What NVML says of the processes on a GPU, or on a MIG device of it.

Reads  nvmlDeviceGet{Compute,Graphics,MPSCompute}RunningProcesses, nvmlDeviceGetProcessUtilization
Format https://docs.nvidia.com/deploy/nvml-api/
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from joulegram.agent.errors import SensorDenied
from joulegram.agent.sensors.nvml import EMPTY, FUNCTION_NOT_FOUND, NotTold
from joulegram.agent.sensors.sm_use import SmSample

# (function, arguments) -> answer of one device. Raises: NotTold, SensorDenied, SensorFailed.
Ask: TypeAlias = Callable[..., Any]

OPEN_CALLS = tuple(
    tuple(f"nvmlDeviceGet{kind}RunningProcesses_v{version}" for version in (3, 2))
    for kind in ("Compute", "Graphics", "MPSCompute")
)
NO_INSTANCE = 0xFFFFFFFF  # the instance of a process on a GPU that is not cut into any


@dataclass(frozen=True, slots=True)
class Opened:
    """A process that has a device open."""

    pid: int  # in the agent's own namespace
    gi: int
    ci: int


def opened(ask: Ask) -> list[Opened]:
    """Raises: SensorFailed."""
    found = []
    for versions in OPEN_CALLS:
        for name in versions:
            try:
                found += [
                    Opened(int(p.pid), int(p.gpuInstanceId), int(p.computeInstanceId))
                    for p in ask(name)
                    if 0 < p.pid < 1 << 31
                ]
            except NotTold as exc:
                if exc.code == FUNCTION_NOT_FOUND:
                    continue  # an older library
            except SensorDenied:
                pass
            break
    return found


def sm_samples(ask: Ask, since_us: int) -> list[SmSample] | None:
    """Samples newer than that; None: the device does not tell. Raises: SensorFailed."""
    try:
        told = ask("nvmlDeviceGetProcessUtilization", since_us)
    except NotTold as exc:
        return [] if exc.code in EMPTY else None
    except SensorDenied:
        return None
    return [SmSample(int(s.pid), int(s.timeStamp), int(s.smUtil)) for s in told]
