"""What NVML says of the processes on a GPU, or on a MIG device of it.

Reads  nvmlDeviceGet{Compute,Graphics,MPSCompute}RunningProcesses, nvmlDeviceGetProcessUtilization
Format https://docs.nvidia.com/deploy/nvml-api/
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.nvidia.nvml import EMPTY, FUNCTION_NOT_FOUND, NotTold
from joulegram.agent.sensors.nvidia.sm_use import SmSample

log = logging.getLogger(__name__)

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
    """Raises: SensorFailed when no kind of process can be asked for."""
    found: list[Opened] = []
    troubles = []
    for versions in OPEN_CALLS:
        try:
            found += _opened_of(ask, versions)
        except SensorFailed as exc:
            troubles.append(exc)
    if len(troubles) == len(OPEN_CALLS):
        raise troubles[0]
    return found


def sm_samples(ask: Ask, since_us: int) -> list[SmSample] | None:
    """Samples newer than that; None: the device never tells, or not to this user."""
    try:
        told = ask("nvmlDeviceGetProcessUtilization", since_us)
    except NotTold as exc:
        return [] if exc.code in EMPTY else None
    except SensorDenied:
        return None
    except SensorFailed as exc:
        log.debug("no samples this time: %s", exc)
        return []
    return [SmSample(int(s.pid), int(s.timeStamp), int(s.smUtil)) for s in told]


def _opened_of(ask: Ask, versions: Sequence[str]) -> list[Opened]:
    """Raises: SensorFailed."""
    for name in versions:
        try:
            return [
                Opened(int(p.pid), int(p.gpuInstanceId), int(p.computeInstanceId))
                for p in ask(name)
                if 0 < p.pid < 1 << 31
            ]
        except NotTold as exc:
            if exc.code != FUNCTION_NOT_FOUND:  # else an older library
                return []
        except SensorDenied:
            return []
    return []
