"""Frames as an agent would send them, with integers chosen by a seed and sums that hold."""

import random
from collections.abc import Iterable, Sequence

import numpy as np

from joulegram.collector.checked import Checked
from joulegram.collector.packed import PackedFrame
from joulegram.v1.telemetry_pb2 import Device, Frame, Rows, Workload

WINDOW_MS = 10_000
START_MS = 1_790_000_100_000  # 2026-09-21, the start of a slot
NOW_MS = START_MS + 3_600_000
EPOCH = 0xE90C

SYSTEM, IDLE, JOB, WEB = range(4)


def frame(
    seq: int = 1,
    *,
    node: str = "n1",
    epoch: int = EPOCH,
    window: int | None = None,
    start_ms: int = START_MS,
    rows: int = 5,
    seed: int = 0,
    gpu: bool = False,
) -> Frame:
    """A whole frame of one window.

    Args:
        window: how many windows after `start_ms`; default: as many as `seq` says.
        rows: how many rows, the idle row among them; at least 1.
        gpu: with a GPU, a row of a process on it, and its idle row.
    """
    rng = random.Random(f"{seed} {node} {epoch} {seq}")
    workload = [IDLE] + [rng.choice((SYSTEM, JOB, WEB)) for _ in range(rows - 1)]
    cpu = [rng.randrange(10**7) for _ in range(rows)]
    dram = [rng.randrange(10**6) for _ in range(rows)]
    gpu_uj, gpu_device, holder = [0] * rows, [-1] * rows, [-1] * rows
    devices = [
        Device(name="cpu0", component="cpu", energy_uj=sum(cpu), idle_uj=cpu[0]),
        Device(name="dram0", component="dram", energy_uj=sum(dram), idle_uj=dram[0]),
    ]
    if gpu:
        devices.append(Device(name="gpu:a", component="gpu", energy_uj=5_000_003, idle_uj=2))
        workload += [JOB, IDLE]
        cpu, dram = [*cpu, 0, 0], [*dram, 0, 0]
        gpu_uj += [5_000_001, 2]
        gpu_device += [2, 2]
        holder += [-1, JOB]
    for device in devices:
        device.quality, device.coverage, device.raw_uj = "measured", 1.0, device.energy_uj
    n = len(workload)
    return Frame(
        node=node,
        epoch=epoch,
        seq=seq,
        window_start_ms=start_ms + WINDOW_MS * (seq - 1 if window is None else window),
        window_ms=WINDOW_MS,
        devices=devices,
        workloads=[
            Workload(scope=node, kind="system"),
            Workload(scope=node, kind="idle"),
            Workload(
                scope="cluster",
                kind="slurm",
                id="77",
                user="ada",
                name="train",
                reserved_cpus=4,
                attributes={"tier": "gold"},
            ),
            Workload(scope=node, kind="systemd", id="web.service"),
        ],
        rows=Rows(
            workload=np.array(workload, "<u4").tobytes(),
            pid=np.arange(n, dtype="<u4").tobytes(),
            start_ticks=np.arange(n, dtype="<u8").tobytes(),
            command=[f"c{i}" for i in range(n)],
            cpu_uj=np.array(cpu, "<u8").tobytes(),
            dram_uj=np.array(dram, "<u8").tobytes(),
            gpu_uj=np.array(gpu_uj, "<u8").tobytes() if gpu else b"",
            gpu_device=np.array(gpu_device, "<i4").tobytes() if gpu else b"",
            holder=np.array(holder, "<i4").tobytes() if gpu else b"",
            cpu_ns=np.arange(n, dtype="<u8").tobytes(),
        ),
        boot_id="boot",
    )


def energy_uj(frames: Iterable[Frame]) -> int:
    """What the devices of these frames drew."""
    return sum(device.energy_uj for frame in frames for device in frame.devices)


def identities(frames: Sequence[Frame]) -> list[tuple[str, int, int]]:
    """Sorted (node, epoch, seq)."""
    return sorted((f.node, f.epoch, f.seq) for f in frames)


def checked(*frames: Frame) -> list[Checked]:
    """Frames as the intake hands them on; whether they hold is the test's matter."""
    packed = [frame.SerializeToString() for frame in frames]
    return [Checked.of(PackedFrame.FromString(one), one) for one in packed]
