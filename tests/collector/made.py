"""Frames as an agent would send them, made by hand: each row says who drew how much."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from joulegram.v1.telemetry_pb2 import Device, Frame, Workload

WINDOW_MS = 10_000


@dataclass(frozen=True)
class Row:
    """What one process (or a remainder, pid 0) drew in the window, J."""

    workload: Workload
    cpu_j: float = 0.0
    dram_j: float = 0.0
    gpu_j: float = 0.0
    pid: int = 0
    command: str = ""
    start_ticks: int = 0
    gpu_device: int = -1


def workload(kind: str, id: str = "", **more: Any) -> Workload:
    return Workload(scope=more.pop("scope", "here"), kind=kind, id=id, **more)


IDLE = workload("idle")
SYSTEM = workload("system")


@dataclass
class Node:
    """Makes frames of one node whose sums hold."""

    name: str = "node1"
    epoch: int = 7
    seq: int = 0
    quality: str = "measured"
    coverage: float = 1.0
    more: dict[str, Any] = field(default_factory=dict)

    def frame(self, window_start_ms: int, rows: Sequence[Row], window_ms: int = WINDOW_MS) -> Frame:
        self.seq += 1
        workloads: list[Workload] = []
        for row in rows:
            if row.workload not in workloads:
                workloads.append(row.workload)
        frame = Frame(
            node=self.name,
            epoch=self.epoch,
            seq=self.seq,
            window_start_ms=window_start_ms,
            window_ms=window_ms,
            workloads=workloads,
            boot_id="boot",
            agent_version="test",
            sent_at_ms=window_start_ms + window_ms + 100,
            **self.more,
        )
        for name, component in (("cpu0", "cpu"), ("dram0", "dram"), ("gpu:0", "gpu")):
            energy_uj = sum(_uj(getattr(row, f"{component}_j")) for row in rows)
            if energy_uj or component == "cpu":
                idle_uj = sum(
                    _uj(getattr(row, f"{component}_j"))
                    for row in rows
                    if row.workload.kind == "idle"
                )
                frame.devices.append(
                    Device(
                        name=name,
                        component=component,
                        energy_uj=energy_uj,
                        idle_uj=idle_uj,
                        raw_uj=energy_uj,
                        quality=self.quality,
                        coverage=self.coverage,
                    )
                )
        packed = frame.rows
        packed.workload = _pack([workloads.index(row.workload) for row in rows], "<u4")
        packed.pid = _pack([row.pid for row in rows], "<u4")
        packed.start_ticks = _pack([row.start_ticks for row in rows], "<u8")
        packed.command.extend(row.command for row in rows)
        packed.cpu_uj = _pack([_uj(row.cpu_j) for row in rows], "<u8")
        if any(row.dram_j for row in rows):
            packed.dram_uj = _pack([_uj(row.dram_j) for row in rows], "<u8")
        if any(row.gpu_j for row in rows):
            gpu = [device.name for device in frame.devices].index("gpu:0")
            devices = [gpu if row.gpu_j and row.gpu_device < 0 else row.gpu_device for row in rows]
            packed.gpu_device = _pack(devices, "<i4")
            packed.gpu_uj = _pack([_uj(row.gpu_j) for row in rows], "<u8")
        return frame


def _uj(joules: float) -> int:
    return round(joules * 1e6)


def _pack(values: Sequence[int], dtype: str) -> bytes:
    return np.array(values, dtype).tobytes()
