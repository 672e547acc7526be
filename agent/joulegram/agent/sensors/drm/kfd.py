"""AMD compute processes (ROCm), as the kernel's fusion driver (KFD) lists them.

Reads  <sysfs>/class/kfd/kfd/topology/nodes/*/{gpu_id,properties}
       <sysfs>/class/kfd/kfd/proc/<pid>/{vram_<gpu id>,stats_<gpu id>/cu_occupancy,
       queues/*/gpuid}
Format drivers/gpu/drm/amd/amdkfd/{kfd_topology,kfd_process}.c of the Linux kernel

Compute queues of ROCm go around the DRM scheduler, so fdinfo counts no time for them. Instead
`cu_occupancy` says how many compute units a process's waves fill now.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from joulegram.agent.textfile import Torn, read_count, read_whole

PROPERTY = re.compile(rb"^([a-z_]{1,40}) (\d{1,20})$", re.M)
PROCESSES_MAX = 256  # of one GPU that are looked at
QUEUES_MAX = 64  # of one process
NODES_MAX = 256


@dataclass(frozen=True, slots=True)
class Node:
    """One GPU of the topology, or one partition of a GPU."""

    gpu_id: int
    address: str  # PCI, of the whole GPU
    unique_id: int  # 0: none
    units: int  # compute units
    with_cpu: bool  # CPU cores are on the same node: an APU


@dataclass(frozen=True, slots=True)
class Compute:
    """What one process does on one GPU now."""

    occupied: int | None  # compute units; None: this GPU does not tell
    open: bool  # it has memory or queues there; ROCm opens every GPU of the machine anyway


def nodes(sysfs: Path) -> list[Node]:
    """Every GPU that can compute. None is an answer, not an error."""
    folder = sysfs / "class/kfd/kfd/topology/nodes"
    return [node for path in _entries(folder, NODES_MAX) if (node := _node(path))]


def computing(sysfs: Path, gpu_id: int) -> dict[int, Compute]:
    """Every process that KFD knows, and what it does on one GPU."""
    found: dict[int, Compute] = {}
    for process in _entries(sysfs / "class/kfd/kfd/proc", PROCESSES_MAX):
        stats = process / f"stats_{gpu_id}/cu_occupancy"
        occupied = _count(stats)
        if occupied is None and stats.exists():  # unreadable now is not untold for good
            occupied = 0
        open_here = bool(_count(process / f"vram_{gpu_id}")) or gpu_id in _queues(process)
        found[int(process.name)] = Compute(occupied, open_here or bool(occupied))
    return found


def _node(path: Path) -> Node | None:
    gpu_id = _count(path / "gpu_id")
    with contextlib.suppress(OSError, Torn):
        said = read_whole(path / "properties", _properties)
        if gpu_id and said.get("simd_count"):
            at = said.get("location_id", 0)
            return Node(
                gpu_id,
                # Without the function: the driver counts partitions there.
                f"{said.get('domain', 0):04x}:{at >> 8 & 0xFF:02x}:{at >> 3 & 0x1F:02x}.0",
                said.get("unique_id", 0),
                said["simd_count"] // max(1, said.get("simd_per_cu", 1)),
                bool(said.get("cpu_cores_count")),
            )
    return None


def _properties(raw: bytes) -> dict[str, int] | None:
    if not raw.endswith(b"\n"):
        return None
    return {name.decode(): int(value) for name, value in PROPERTY.findall(raw)}


def _queues(process: Path) -> Iterator[int]:
    for queue in _entries(process / "queues", QUEUES_MAX):
        if (gpu_id := _count(queue / "gpuid")) is not None:
            yield gpu_id


def _entries(folder: Path, most: int) -> list[Path]:
    """What is in a folder under a number, lowest first."""
    try:
        found = [path for path in folder.iterdir() if path.name.isdecimal()]
    except OSError:
        return []
    return sorted(found, key=lambda path: (len(path.name), path.name))[:most]


def _count(path: Path) -> int | None:
    with contextlib.suppress(OSError, Torn):
        return read_count(path)
    return None
