"""Whether a frame holds: its shape, its times, and that its rows sum to its devices exactly.

A frame that does not is refused with a reason (a short code) and a detail that names the thing
and the remedy. Nothing here depends on earlier frames.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulegram.collector.workloads import CONTROL, Workload, read_workloads
from joulegram.v1.telemetry_pb2 import Frame

Refusal: TypeAlias = tuple[str, str]  # reason, detail
Column: TypeAlias = NDArray[Any]

SLOT_MS = 300_000
CLOCK_SLACK_MS = 300_000
DAY_MS = 86_400_000

# Bounds, so that no sum in the ledger leaves UInt64 and no frame fills a machine.
MAX_ROWS = 100_000
MAX_WORKLOADS = 20_000
MAX_DEVICES = 1_024
MAX_UJ = 10**15  # one device, one frame: 1 GJ
MAX_ROW_UJ = 10**14  # one row, one frame: 100 MJ; MAX_ROWS of them fit in UInt64
MAX_NS = 10**18  # one row, one frame: 1e9 s of CPU
MAX_NAME = 255  # characters of a node's or device's name
MAX_COMMAND = 1_020  # characters; the kernel's own have 15, escaped 60

COMPONENTS = ("cpu", "dram", "gpu", "other")
GPU = COMPONENTS.index("gpu")

REASONS = ("shape", "sums", "node", "clock", "too_old", "conflict")


_WIDTHS = {
    "workload": "<u4",
    "pid": "<u4",
    "start_ticks": "<u8",
    "cpu_uj": "<u8",
    "dram_uj": "<u8",
    "gpu_device": "<i4",
    "gpu_uj": "<u8",
    "other_uj": "<u8",
    "cpu_ns": "<u8",
    "gpu_ns": "<u8",
    "holder": "<i4",
}

_BYTES = {name: int(width[2]) for name, width in _WIDTHS.items()}


class _Bad(Exception):
    """A frame that does not hold."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.refusal = reason, detail


def validate(frame: Frame, node: str, now_ms: int, raw_days: float) -> Refusal | None:
    """What is wrong with a frame, or None.

    Args:
        node: whom this stream speaks for.
        now_ms: our clock, ms since 1970 UTC.
        raw_days: how long rows are kept; an older window could not be recomputed.
    """
    try:
        _check_identity(frame, node)
        _check_times(frame, now_ms, raw_days)
        workloads = read_workloads(frame.SerializeToString(deterministic=True))
        _check_shape(frame, workloads)
        _check_sums(frame, workloads)
    except _Bad as bad:
        return bad.refusal
    return None


def _check_identity(frame: Frame, node: str) -> None:
    if not frame.node or len(frame.node) > MAX_NAME or CONTROL.search(frame.node):
        raise _Bad(
            "node",
            f"node must be 1 to {MAX_NAME} characters without control characters; "
            "set `node` in [agent]",
        )
    if frame.node != node:
        raise _Bad(
            "node",
            f"this stream speaks for node {node!r}, the frame is of {frame.node!r}; open a "
            "stream per node, and give each agent a state directory of its own",
        )
    for name in ("host_node", "boot_id", "agent_version"):
        text = getattr(frame, name)
        if len(text) > MAX_NAME or CONTROL.search(text):
            raise _Bad(
                "shape",
                f"{name} must be at most {MAX_NAME} characters without control characters",
            )
    if frame.host_node == frame.node:
        # Totals leave guests out, so its joules would be in nobody's.
        raise _Bad(
            "node",
            f"{frame.node!r} names itself as the host it runs on; leave host_node empty on a "
            "machine that is no guest",
        )
    if frame.epoch == 0 or frame.seq == 0:
        raise _Bad(
            "shape",
            "epoch and seq start at 1: epoch is 64 random bits per agent start, seq counts frames",
        )
    if frame.seq >= 2**63:
        raise _Bad("shape", "seq is out of range; it counts frames within an epoch")


def _check_times(frame: Frame, now_ms: int, raw_days: float) -> None:
    skew_ms = frame.sent_at_ms - now_ms
    if frame.sent_at_ms and abs(skew_ms) > CLOCK_SLACK_MS:
        raise _Bad("clock", _skew(frame.node, skew_ms))
    window_ms = frame.window_ms
    if window_ms == 0 or SLOT_MS % window_ms or window_ms % 1000:
        raise _Bad(
            "shape",
            f"window_ms is {window_ms}; it must be whole seconds that divide 300 s: set `window` "
            "in [agent] to 1, 2, 5, 10, 15, 30, 60, 150 or 300, say",
        )
    start_ms = frame.window_start_ms
    if start_ms <= 0 or start_ms % window_ms:
        raise _Bad(
            "shape",
            f"window_start_ms {start_ms} is not a multiple of window_ms {window_ms}; windows are "
            "aligned to UTC",
        )
    ahead_ms = start_ms + window_ms - now_ms
    if ahead_ms > CLOCK_SLACK_MS:
        raise _Bad("clock", "the window ends in the future: " + _skew(frame.node, ahead_ms))
    if ahead_ms < -raw_days * DAY_MS:
        raise _Bad(
            "too_old",
            f"the window ended {-ahead_ms / DAY_MS:.1f} days ago, rows are kept {raw_days:g} days "
            "and its slot can no longer be recomputed; raise `raw_days` in [collector] before "
            "sending it again",
        )


def _skew(node: str, skew_ms: int) -> str:
    way = "ahead of" if skew_ms > 0 else "behind"
    return (
        f"the clock of {node} is {abs(skew_ms) / 1000:.0f} s {way} the collector's (300 s are "
        "allowed); run NTP (chrony, systemd-timesyncd) on both"
    )


def _check_shape(frame: Frame, workloads: Sequence[Workload]) -> None:
    devices, rows = frame.devices, frame.rows
    n = len(rows.workload) // 4
    for what, count, limit in (
        ("rows", n, MAX_ROWS),
        ("devices", len(devices), MAX_DEVICES),
        ("workloads", len(workloads), MAX_WORKLOADS),
    ):
        if count > limit:
            raise _Bad(
                "shape",
                f"{count} {what}, at most {limit} fit in a frame; raise `fold_cores` in [agent]",
            )
    for name, width in _BYTES.items():
        have, want = len(getattr(rows, name)), n * width
        if have != want and (have or name == "workload"):
            raise _Bad("shape", f"rows.{name} has {have} bytes; {n} rows take {want}")
    command = rows.command
    if len(command) not in (0, n):
        raise _Bad("shape", f"rows.command has {len(command)} entries; there are {n} rows")
    if max(map(len, command), default=0) > MAX_COMMAND:
        longest = max(command, key=len)
        raise _Bad(
            "shape",
            f"a command of {len(longest)} characters, {longest[:80]!r}...: at most {MAX_COMMAND}; "
            "send the kernel's `comm`, never the arguments",
        )
    _check_devices(frame)
    _check_workloads(frame, workloads)
    _in_range(frame, "workload", 0, len(workloads))
    _in_range(frame, "holder", -1, len(workloads))
    _in_range(frame, "gpu_device", -1, len(devices))


def _in_range(frame: Frame, name: str, low: int, high: int) -> None:
    if not getattr(frame.rows, name):
        return
    column = _column(frame, name)
    if int(column.max()) >= high or (column.dtype.kind == "i" and int(column.min()) < low):
        raise _Bad("shape", f"rows.{name} holds an index outside {low}..{high - 1}")


def _check_devices(frame: Frame) -> None:
    names = set()
    for device in frame.devices:
        if not device.name or device.name in names:
            raise _Bad("shape", f"device name {device.name!r} is empty or comes twice")
        names.add(device.name)
        for text in (device.name, device.component, device.quality):
            if len(text) > MAX_NAME or CONTROL.search(text):
                raise _Bad(
                    "shape",
                    f"device {device.name[:80]!r}: its name, component and quality must be at "
                    f"most {MAX_NAME} characters without control characters",
                )
        if not 0.0 <= device.coverage <= 1.0:
            raise _Bad(
                "shape",
                f"device {device.name}: coverage {device.coverage} is no fraction of the window",
            )
        if device.energy_uj > MAX_UJ or device.raw_uj > MAX_UJ:
            raise _Bad(
                "sums",
                f"device {device.name}: {max(device.energy_uj, device.raw_uj)} uJ in one window "
                f"is beyond {MAX_UJ}; look for a counter reset in its sensor",
            )
        if device.idle_uj > device.energy_uj:
            raise _Bad(
                "sums",
                f"device {device.name}: idle_uj {device.idle_uj} exceeds energy_uj "
                f"{device.energy_uj}",
            )


def _check_workloads(frame: Frame, workloads: Sequence[Workload]) -> None:
    for workload in workloads:
        if workload.problem:
            raise _Bad("shape", f"workload {workload.id[:80]!r}: {workload.problem}")
        for device, _ in workload.reserved_devices:
            if device >= len(frame.devices):
                raise _Bad(
                    "shape",
                    f"workload {workload.id!r} reserves device {device} of {len(frame.devices)}",
                )


def _check_sums(frame: Frame, workloads: Sequence[Workload]) -> None:
    rows = frame.rows
    workload = _column(frame, "workload")
    zeros = bytes(8 * workload.size)
    # All columns as one block: a few calls of numpy a frame, not a few a column.
    packed = (rows.cpu_uj, rows.dram_uj, rows.gpu_uj, rows.other_uj)
    block = np.frombuffer(b"".join([column or zeros for column in packed]), "<u8")
    if int(block.max(initial=0)) > MAX_ROW_UJ:
        raise _Bad("sums", f"a row has more than {MAX_ROW_UJ} uJ in one window")
    block = block.reshape(len(COMPONENTS), workload.size)
    kinds = [w.kind for w in workloads]
    idle = (
        workload == kinds.index("idle") if kinds.count("idle") == 1 else _any_idle(kinds)[workload]
    )
    sums = block.sum(axis=1).tolist()
    of_idle = block[:, idle.nonzero()[0]].sum(axis=1).tolist()
    drawn, floors = [0, 0, 0, 0], [0, 0, 0, 0]
    for device in frame.devices:
        component = COMPONENTS.index(component_of(device.component))
        drawn[component] += device.energy_uj
        floors[component] += device.idle_uj
    for component, name in enumerate(COMPONENTS):
        _must_equal(name, sums[component], drawn[component])
        _must_equal(f"idle {name}", of_idle[component], floors[component])
    if rows.gpu_uj or rows.gpu_device or drawn[GPU]:
        _check_gpus(frame, block[GPU], idle)
    for times in (rows.cpu_ns, rows.gpu_ns):
        if times and int(np.frombuffer(times, "<u8").max()) > MAX_NS:
            raise _Bad("sums", f"a row has more than {MAX_NS} ns in one window")


def _any_idle(kinds: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([kind == "idle" for kind in kinds], np.bool_)


def _check_gpus(frame: Frame, energy_uj: Column, idle: NDArray[np.bool_]) -> None:
    """Every GPU's rows sum to that GPU, and no other row holds GPU energy."""
    device = _column(frame, "gpu_device")
    if not device.size:
        device = np.full(energy_uj.size, -1, np.int32)
    gpus = [i for i, d in enumerate(frame.devices) if component_of(d.component) == "gpu"]
    if not set(np.unique(device).tolist()) <= {-1, *gpus}:
        raise _Bad("shape", "rows.gpu_device names a device that is no GPU")
    for i in (-1, *gpus):
        here = device == i
        uj, idle_uj = int(energy_uj[here].sum()), int(energy_uj[here & idle].sum())
        if i < 0:
            _must_equal("gpu_uj of rows without a device", uj, 0)
        else:
            gpu = frame.devices[i]
            _must_equal(gpu.name, uj, gpu.energy_uj)
            _must_equal(f"idle {gpu.name}", idle_uj, gpu.idle_uj)


def _must_equal(what: str, rows_uj: int, devices_uj: int) -> None:
    if rows_uj != devices_uj:
        raise _Bad(
            "sums",
            f"{what}: rows sum to {rows_uj} uJ, devices to {devices_uj} uJ "
            f"({rows_uj - devices_uj:+d}); they must be equal to the microjoule",
        )


def component_of(name: str) -> str:
    """The component a device counts as: an unknown one is `other`."""
    return name if name in COMPONENTS else "other"


def _column(frame: Frame, name: str) -> Column:
    """A packed column in place; empty when every row has the default."""
    return np.frombuffer(getattr(frame.rows, name), _WIDTHS[name])
