"""The parts that a GPU is cut into (MIG): their slices, and how busy each of them is.

A MIG device is a compute instance inside a GPU instance. Slices are compute slices: 7 of them
make an A100 or an H100, 4 an A30.
Format https://docs.nvidia.com/datacenter/tesla/mig-user-guide/
"""

import logging
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.nvidia.nvml import SUCCESS, Board, NotTold, Nvml

log = logging.getLogger(__name__)

USUAL_SLICES = 7  # A100, H100, H200, B200
# nvml.h, NVML_GPU_INSTANCE_PROFILE_*: those that may be a whole GPU (7, 8, 6, 4 slices).
WHOLE_PROFILES = (4, 5, 6, 3)
MIG_NAME = re.compile(r"\bMIG (?:(\d+)c\.)?(\d+)g\.")
SM_UTIL = 2  # NVML_GPM_METRIC_SM_UTIL: share of the SMs that were busy, percent
GPM_VERSION = 1


@dataclass(frozen=True, slots=True)
class Instance:
    """One MIG device."""

    uuid: str
    handle: Any
    index: int
    gi: int  # GPU instance
    ci: int  # compute instance in it
    slices: int
    gi_slices: int  # of its GPU instance, its own among them
    total: int  # slices of the whole GPU

    @property
    def fraction(self) -> float:
        return self.slices / self.total


def instances(board: Board) -> list[Instance]:
    """Every MIG device of a GPU; none when it is not in MIG mode. Raises: Gone."""
    mode = board.told("nvmlDeviceGetMigMode")
    if not mode or not mode[0]:
        return []
    found = []
    most = board.told("nvmlDeviceGetMaxMigDeviceCount") or USUAL_SLICES
    for index in range(min(most, 64)):
        handle = board.told("nvmlDeviceGetMigDeviceHandleByIndex", index)
        if handle is not None:
            try:
                found.append(_described(board.nvml, handle, index))
            except (NotTold, SensorDenied, SensorFailed) as exc:
                log.debug("MIG device %d does not say what it is: %s", index, exc)
    # Who has a GPU instance alone has all of its slices.
    alone = Counter(gi for _, _, _, gi, _, _, _ in found)
    slices = [
        own if alone[gi] > 1 and 0 < own <= whole else whole for _, _, _, gi, _, whole, own in found
    ]
    total = max(_whole(board, most), sum(slices))
    return [
        Instance(uuid, handle, index, gi, ci, n, max(n, whole), total)
        for (uuid, handle, index, gi, ci, whole, _), n in zip(found, slices, strict=True)
    ]


def _described(nvml: Nvml, handle: Any, index: int) -> tuple[str, Any, int, int, int, int, int]:
    """uuid, handle, index, gi, ci, slices of its GPU instance, slices of its own."""
    uuid = str(nvml.ask("nvmlDeviceGetUUID", handle))
    gi = nvml.told("nvmlDeviceGetGpuInstanceId", handle)
    ci = nvml.told("nvmlDeviceGetComputeInstanceId", handle)
    attributes = nvml.told("nvmlDeviceGetAttributes_v2", handle)
    whole = own = 0
    if attributes is not None:
        whole = int(attributes.gpuInstanceSliceCount)
        own = int(attributes.computeInstanceSliceCount)
    if not 0 < whole <= 64:
        named = MIG_NAME.search(str(nvml.told("nvmlDeviceGetName", handle)))
        whole = int(named[2]) if named else max(1, own)
        own = int(named[1]) if named and named[1] else own
    return uuid, handle, index, -1 if gi is None else gi, -1 if ci is None else ci, whole, own


def _whole(board: Board, most: int) -> int:
    """Slices of the whole GPU."""
    counts = []
    for profile in WHOLE_PROFILES:
        info = board.told("nvmlDeviceGetGpuInstanceProfileInfo", profile)
        if info is None:  # libraries before 2021 know its first version only
            info = board.told("nvmlDeviceGetGpuInstanceProfileInfo", profile, 1)
        counts.append(int(info.sliceCount) if info is not None else 0)
    told = max((count for count in counts if count <= 64), default=0)
    return told or (most if most in (4, 7) else USUAL_SLICES)


@dataclass(slots=True)
class Activity:
    """How busy GPU instances are, as the GPU's own performance monitor (GPM, Hopper on) tells."""

    board: Board
    _supported: bool | None = field(default=None, init=False)
    _generation: int = field(default=0, init=False)
    _asked: Any = field(default=None, init=False)
    _samples: dict[int, tuple[Any, Any]] = field(default_factory=dict, init=False)

    def percent(self, gi: int) -> float | None:
        """Mean share of the instance's SMs that were busy since the call before; None: not told."""
        if self._generation != self.board.generation:
            # Samples of an ended session are void; the library freed what it had.
            self._samples, self._supported = {}, None
            self._generation = self.board.generation
        try:
            if self._supported is None:
                support = self.board.told("nvmlGpmQueryDeviceSupport")
                self._supported = support is not None and bool(support.isSupportedDevice)
            return self._since_before(gi) if self._supported else None
        except (NotTold, SensorDenied, SensorFailed) as exc:
            log.debug("GPU instance %d does not say how busy it was: %s", gi, exc)
            return None

    def keep(self, gis: set[int]) -> None:
        """Forget instances that are no more."""
        for gi in self._samples.keys() - gis:
            for sample in self._samples.pop(gi):
                if sample is not None:
                    self.board.nvml.told("nvmlGpmSampleFree", sample)

    def _since_before(self, gi: int) -> float | None:
        nvml = self.board.nvml
        before, spare = self._samples.get(gi, (None, None))
        if spare is None:
            spare = nvml.ask("nvmlGpmSampleAlloc")
            self._samples[gi] = before, spare
        self.board.ask("nvmlGpmMigSampleGet", gi, spare)
        self._samples[gi] = spare, before
        if before is None:
            return None
        if self._asked is None:
            self._asked = nvml.structure("c_nvmlGpmMetricsGet_t")
        asked = self._asked
        asked.version, asked.numMetrics = GPM_VERSION, 1
        asked.sample1, asked.sample2 = before, spare
        metric = asked.metrics[0]
        metric.metricId, metric.nvmlReturn, metric.value = SM_UTIL, SUCCESS, math.nan
        nvml.ask("nvmlGpmMetricsGet", asked)
        if metric.nvmlReturn != SUCCESS or not 0 <= metric.value <= 100:
            return None
        return float(metric.value)
