"""Whether rows sum to their devices, to the microjoule, and name only what their frame has.

`hold` asks it of a whole burst of frames with a few calls of numpy; `check` asks it of one frame
and says what is wrong. Both give the same verdict.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from joulegram.collector.checked import WIDTHS, Checked, Column
from joulegram.v1.telemetry_pb2 import Device

# No sum in the ledger leaves UInt64.
MAX_ROW_UJ = 10**14  # one row, one frame: 100 MJ; 100,000 of them fit
MAX_NS = 10**18  # one row, one frame: 1e9 s of CPU

COMPONENTS = ("cpu", "dram", "gpu", "other")
GPU = COMPONENTS.index("gpu")
ENERGIES = ("cpu_uj", "dram_uj", "gpu_uj", "other_uj")


class Unsound(Exception):
    """A frame that does not hold."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.refusal = reason, detail


def hold(burst: Sequence[Checked]) -> bool:
    """Whether `check` would pass every one of them."""
    plain = []
    for checked in burst:
        columns = checked.columns
        if columns["gpu_device"] or columns["gpu_uj"] or columns["holder"]:
            # GPUs are told apart one by one.
            try:
                check(checked)
            except Unsound:
                return False
        else:
            plain.append(checked)
    return not plain or _plain_ones_hold(plain)


def _plain_ones_hold(burst: Sequence[Checked]) -> bool:
    # A row of zeros before each frame's, so that a frame without rows has something to sum.
    sizes = np.array([checked.rows + 1 for checked in burst])
    ends = np.cumsum(sizes)
    first = ends - sizes

    def joined(name: str) -> Column | None:
        if not any(checked.columns[name] for checked in burst):
            return None
        width = WIDTHS[name].itemsize
        pieces = []
        for checked, size in zip(burst, sizes.tolist(), strict=True):
            column = checked.columns[name]
            pieces.append(bytes(width if column else width * size))
            pieces.append(column)
        return np.frombuffer(b"".join(pieces), WIDTHS[name])

    workload = joined("workload")
    counts = np.array([len(checked.workloads) for checked in burst])
    if (
        workload is not None
        and (np.maximum.reduceat(workload, first) >= np.maximum(counts, 1)).any()
    ):
        return False
    if (counts[sizes > 1] == 0).any():
        return False

    idle_rows = _idle_rows(burst, workload, sizes)
    frame_of_idle = np.searchsorted(ends, idle_rows, side="right")
    drawn = np.array([_of_devices(checked.devices) for checked in burst], np.uint64)
    for component, name in enumerate(ENERGIES):
        column = joined(name)
        energies, floors = drawn[:, 0, component], drawn[:, 1, component]
        if column is None:
            if energies.any() or floors.any():
                return False
            continue
        if int(column.max()) > MAX_ROW_UJ:
            return False
        if (np.add.reduceat(column, first) != energies).any():
            return False
        of_idle = np.zeros(len(burst), np.uint64)
        np.add.at(of_idle, frame_of_idle, column[idle_rows])
        if (of_idle != floors).any():
            return False
    for name in ("cpu_ns", "gpu_ns"):
        column = joined(name)
        if column is not None and int(column.max()) > MAX_NS:
            return False
    return True


def _idle_rows(burst: Sequence[Checked], workload: Column | None, sizes: Column) -> Column:
    """Positions of the idle rows, and perhaps of some of the zeros before each frame's."""
    if workload is None:
        return np.zeros(0, np.int64)
    kinds = [[w.kind for w in checked.workloads] for checked in burst]
    if all(of_frame.count("idle") == 1 for of_frame in kinds):
        idle = np.array([of_frame.index("idle") for of_frame in kinds], np.uint32)
        return np.flatnonzero(workload == np.repeat(idle, sizes))
    is_idle = np.array([kind == "idle" for of_frame in kinds for kind in [*of_frame, ""]])
    lengths = np.array([len(of_frame) + 1 for of_frame in kinds])
    return np.flatnonzero(is_idle[workload + np.repeat(np.cumsum(lengths) - lengths, sizes)])


def _of_devices(devices: Sequence[Device]) -> tuple[list[int], list[int]]:
    """Energy and idle floors by component, uJ."""
    drawn, floors = [0, 0, 0, 0], [0, 0, 0, 0]
    for device in devices:
        component = COMPONENTS.index(component_of(device.component))
        drawn[component] += device.energy_uj
        floors[component] += device.idle_uj
    return drawn, floors


def check(checked: Checked) -> None:
    """Raises: Unsound naming what does not hold."""
    columns, workloads = checked.columns, checked.workloads
    _in_range(checked, "workload", 0, len(workloads))
    _in_range(checked, "holder", -1, len(workloads))
    _in_range(checked, "gpu_device", -1, len(checked.devices))
    workload = checked.column("workload")
    zeros = bytes(8 * workload.size)
    block = np.frombuffer(b"".join([columns[name] or zeros for name in ENERGIES]), "<u8")
    if int(block.max(initial=0)) > MAX_ROW_UJ:
        raise Unsound("sums", f"a row has more than {MAX_ROW_UJ} uJ in one window")
    block = block.reshape(len(COMPONENTS), workload.size)
    idle = np.array([w.kind == "idle" for w in workloads], np.bool_)[workload]
    drawn, floors = _of_devices(checked.devices)
    for component, name in enumerate(COMPONENTS):
        _must_equal(name, int(block[component].sum()), drawn[component])
        _must_equal(f"idle {name}", int(block[component][idle].sum()), floors[component])
    if columns["gpu_uj"] or columns["gpu_device"] or drawn[GPU]:
        _check_gpus(checked, block[GPU], idle)
    for name in ("cpu_ns", "gpu_ns"):
        if int(checked.column(name).max(initial=0)) > MAX_NS:
            raise Unsound("sums", f"a row has more than {MAX_NS} ns in one window")


def _in_range(checked: Checked, name: str, low: int, high: int) -> None:
    column = checked.column(name)
    if column.size and not (low <= int(column.min()) and int(column.max()) < high):
        raise Unsound("shape", f"rows.{name} holds an index outside {low}..{high - 1}")


def _check_gpus(checked: Checked, energy_uj: Column, idle: NDArray[np.bool_]) -> None:
    """Every GPU's rows sum to that GPU, and no other row holds GPU energy."""
    device = checked.column("gpu_device")
    if not device.size:
        device = np.full(energy_uj.size, -1, np.int32)
    devices = checked.devices
    is_gpu = [component_of(d.component) == "gpu" for d in devices]
    # Rows without a device have -1: their sum is the last.
    if not np.array([*is_gpu, True])[device].all():
        raise Unsound("shape", "rows.gpu_device names a device that is no GPU")
    uj, idle_uj = np.zeros((2, len(devices) + 1), np.uint64)
    np.add.at(uj, device, energy_uj)
    np.add.at(idle_uj, device[idle], energy_uj[idle])
    _must_equal("gpu_uj of rows without a device", int(uj[-1]), 0)
    for i, gpu in enumerate(devices):
        if is_gpu[i]:
            _must_equal(gpu.name, int(uj[i]), gpu.energy_uj)
            _must_equal(f"idle {gpu.name}", int(idle_uj[i]), gpu.idle_uj)


def _must_equal(what: str, rows_uj: int, devices_uj: int) -> None:
    if rows_uj != devices_uj:
        raise Unsound(
            "sums",
            f"{what}: rows sum to {rows_uj} uJ, devices to {devices_uj} uJ "
            f"({rows_uj - devices_uj:+d}); they must be equal to the microjoule",
        )


def component_of(name: str) -> str:
    """The component a device counts as: an unknown one is `other`."""
    return name if name in COMPONENTS else "other"
