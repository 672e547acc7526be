"""The first law, checked in every frame before it goes anywhere."""

from collections.abc import Sequence

from joulegram.agent.errors import NotConserved
from joulegram.agent.frames import unpack
from joulegram.v1.telemetry_pb2 import Device, Frame


def check(frame: Frame) -> None:
    """Rows sum to the devices' energy, idle rows to their idle energy, per component.

    GPUs are checked each for itself, too.
    Raises: NotConserved, naming component or GPU and both sums.
    """
    count = len(frame.rows.workload) // 4
    kinds = [frame.workloads[w].kind for w in unpack(frame, "workload", count)]
    gpus = unpack(frame, "gpu_device", count)
    for component in ("cpu", "dram", "gpu", "other"):
        rows = unpack(frame, f"{component}_uj", count)
        devices = [(i, d) for i, d in enumerate(frame.devices) if d.component == component]
        _check(frame, component, rows, kinds, [device for _, device in devices])
        if component == "gpu":
            for index, device in devices:
                own = [uj if gpu == index else 0 for uj, gpu in zip(rows, gpus, strict=True)]
                _check(frame, device.name, own, kinds, [device])


def _check(
    frame: Frame, what: str, rows_uj: Sequence[int], kinds: Sequence[str], devices: Sequence[Device]
) -> None:
    idle_uj = sum(uj for uj, kind in zip(rows_uj, kinds, strict=True) if kind == "idle")
    drawn_uj = sum(device.energy_uj for device in devices)
    if sum(rows_uj) != drawn_uj or idle_uj != sum(device.idle_uj for device in devices):
        raise NotConserved(
            f"window {frame.window_start_ms}: the {what} rows hold {sum(rows_uj)} uJ "
            f"({idle_uj} idle), its devices drew {drawn_uj} uJ. Please report this."
        )
