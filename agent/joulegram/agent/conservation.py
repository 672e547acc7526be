"""The first law, checked in every frame before it goes anywhere."""

from joulegram.agent.errors import NotConserved
from joulegram.agent.frames import unpack
from joulegram.v1.telemetry_pb2 import Frame


def check(frame: Frame) -> None:
    """Rows sum to the devices' energy, idle rows to their idle energy, per component.

    Raises: NotConserved, naming component and both sums.
    """
    count = len(frame.rows.workload) // 4
    kinds = [frame.workloads[w].kind for w in unpack(frame, "workload", count)]
    for component in ("cpu", "dram", "other"):
        rows = unpack(frame, f"{component}_uj", count)
        idle_uj = sum(uj for uj, kind in zip(rows, kinds, strict=True) if kind == "idle")
        devices = [d for d in frame.devices if d.component == component]
        drawn_uj = sum(d.energy_uj for d in devices)
        if sum(rows) != drawn_uj or idle_uj != sum(d.idle_uj for d in devices):
            raise NotConserved(
                f"window {frame.window_start_ms}: the {component} rows hold {sum(rows)} uJ "
                f"({idle_uj} idle), its devices drew {drawn_uj} uJ. Please report this."
            )
