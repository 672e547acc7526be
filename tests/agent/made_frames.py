"""Frames of a made-up node, whose rows sum to their devices as real ones do."""

import random
import struct

from joulegram.v1.telemetry_pb2 import Device, Frame, Rows, Workload

WINDOW_MS = 10_000
START_MS = 1_767_225_600_000  # 2026-01-01


def made_frame(
    seq: int, epoch: int = 1, node: str = "n1", processes: int = 40, workloads: int = 4
) -> Frame:
    """Frame `seq` of an epoch: the same arguments give the same bytes."""
    rng = random.Random(f"{epoch}/{seq}")
    workload = [*range(workloads), *(rng.randrange(workloads) for _ in range(processes))]
    count = len(workload)
    pid = [0] * workloads + [rng.randrange(1, 2**22) for _ in range(processes)]
    gpu_device = [-1] * workloads + [rng.choice((-1, 1, 2)) for _ in range(processes)]
    cpu = [rng.randrange(10**7) for _ in range(count)]
    gpu = [rng.randrange(10**8) if device >= 0 else 0 for device in gpu_device]
    per_gpu = {
        d: sum(uj for uj, of in zip(gpu, gpu_device, strict=True) if of == d) for d in (1, 2)
    }
    return Frame(
        node=node,
        epoch=epoch,
        seq=seq,
        window_start_ms=START_MS + seq * WINDOW_MS,
        window_ms=WINDOW_MS,
        devices=[
            Device(name="cpu0", component="cpu", energy_uj=sum(cpu), quality="measured"),
            Device(name="gpu:a", component="gpu", energy_uj=per_gpu[1], quality="measured"),
            Device(name="gpu:b", component="gpu", energy_uj=per_gpu[2], quality="measured"),
        ],
        workloads=[
            Workload(scope="c", kind="user", id=str(n), attributes={"a": "1", "b": "2"})
            for n in range(workloads)
        ],
        rows=Rows(
            workload=struct.pack(f"<{count}I", *workload),
            pid=struct.pack(f"<{count}I", *pid),
            start_ticks=struct.pack(f"<{count}Q", *pid),
            command=[f"cmd{n}" if n else "" for n in pid],
            cpu_uj=struct.pack(f"<{count}Q", *cpu),
            gpu_device=struct.pack(f"<{count}i", *gpu_device),
            gpu_uj=struct.pack(f"<{count}Q", *gpu),
            cpu_ns=struct.pack(f"<{count}Q", *cpu),
        ),
    )  # fmt: skip


def serialised(frame: Frame) -> bytes:
    return frame.SerializeToString(deterministic=True)
