"""A frame that was looked into once, so that nobody after it has to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from joulegram.collector.packed import PackedFrame
from joulegram.collector.workloads import Workload, read_workloads
from joulegram.v1.telemetry_pb2 import Device

Identity: TypeAlias = tuple[str, int, int]  # node, epoch, seq
Column: TypeAlias = NDArray[Any]

# The packed columns of a frame's rows.
WIDTHS: Mapping[str, np.dtype[Any]] = {
    "workload": np.dtype("<u4"),
    "pid": np.dtype("<u4"),
    "start_ticks": np.dtype("<u8"),
    "cpu_uj": np.dtype("<u8"),
    "dram_uj": np.dtype("<u8"),
    "gpu_device": np.dtype("<i4"),
    "gpu_uj": np.dtype("<u8"),
    "other_uj": np.dtype("<u8"),
    "cpu_ns": np.dtype("<u8"),
    "gpu_ns": np.dtype("<u8"),
    "holder": np.dtype("<i4"),
}


@dataclass(slots=True, eq=False)
class Checked:
    """A frame and what was read of it, once. validate.py makes those that hold."""

    frame: PackedFrame
    packed: bytes  # the frame as it came
    identity: Identity  # what makes a frame the same frame
    window_start_ms: int
    rows: int  # how many, the header not counted
    devices: Sequence[Device]
    workloads: Sequence[Workload]
    columns: Mapping[str, bytes]  # of WIDTHS; empty where every row has the default
    commands: Sequence[bytes]  # likewise; UTF-8

    @classmethod
    def of(cls, frame: PackedFrame, packed: bytes) -> "Checked":
        """Look into a frame, whether it holds or not."""
        rows: Any = frame.rows
        columns = {name: getattr(rows, name) for name in WIDTHS}
        return cls(
            frame,
            packed,
            (frame.node, frame.epoch, frame.seq),
            frame.window_start_ms,
            len(columns["workload"]) // WIDTHS["workload"].itemsize,
            list(frame.devices),
            read_workloads(frame),
            columns,
            rows.command[:],
        )

    def column(self, name: str) -> Column:
        """A packed column in place."""
        return np.frombuffer(self.columns[name], WIDTHS[name])
