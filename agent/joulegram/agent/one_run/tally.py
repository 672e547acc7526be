"""Sums a run's frames: what was the run's, what the machine drew idle, and how it is known."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from joulegram.agent.attribution import DERIVED, MEASURED, MODELLED
from joulegram.agent.frames import unpack
from joulegram.agent.workloads import IDLE, Owner
from joulegram.v1.telemetry_pb2 import Frame

COMPONENTS = ("cpu", "dram", "gpu", "other")
QUALITIES = (MEASURED, DERIVED, MODELLED)  # best first


def worst(qualities: Iterable[str]) -> str:
    """The worst of some; "" of none."""
    return max(qualities, key=QUALITIES.index, default="")


@dataclass(slots=True)
class DeviceTally:
    """One device over the run."""

    component: str
    energy_uj: int = 0
    covered_ms: float = 0.0
    quality_uj: Counter[str] = field(default_factory=Counter)
    run_uj: int = 0  # of a GPU alone: what the run used...
    held_uj: int = 0  # ...and what it drew idle while the run held it
    clamped: bool = False


@dataclass(slots=True)
class Tally:
    """What all frames so far say of one owner."""

    owner: Owner
    run_uj: Counter[str] = field(default_factory=Counter)  # by component
    held_uj: Counter[str] = field(default_factory=Counter)  # idle of GPUs that the run held
    idle_uj: Counter[str] = field(default_factory=Counter)  # of the machine, held GPUs left out
    devices: dict[str, DeviceTally] = field(default_factory=dict)
    cpu_ns: int = 0
    gpu_ns: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    frames: int = 0

    def add(self, frame: Frame) -> None:
        """Count one frame."""
        self.frames += 1
        ours = {
            index
            for index, workload in enumerate(frame.workloads)
            if (workload.kind, workload.id) == (self.owner.kind, self.owner.id)
        }
        idle = {i for i, workload in enumerate(frame.workloads) if workload.kind == IDLE}
        for device in frame.devices:
            known = self.devices.setdefault(device.name, DeviceTally(device.component))
            known.energy_uj += device.energy_uj
            known.covered_ms += device.coverage * frame.window_ms
            known.quality_uj[device.quality] += device.energy_uj
            known.clamped |= device.clamped
        count = len(frame.rows.workload) // 4
        columns = {f"{c}_uj": unpack(frame, f"{c}_uj", count) for c in COMPONENTS}
        workloads = unpack(frame, "workload", count)
        holders = unpack(frame, "holder", count)
        gpus = unpack(frame, "gpu_device", count)
        cpu_ns, gpu_ns = unpack(frame, "cpu_ns", count), unpack(frame, "gpu_ns", count)
        for row, workload in enumerate(workloads):
            energies = {c: columns[f"{c}_uj"][row] for c in COMPONENTS}
            gpu = frame.devices[gpus[row]].name if gpus[row] >= 0 else ""
            if workload in ours:
                self.run_uj.update(energies)
                self.cpu_ns += cpu_ns[row]
                if gpu:
                    self.devices[gpu].run_uj += energies["gpu"]
                    self.gpu_ns[gpu] += gpu_ns[row]
            elif workload in idle and holders[row] in ours:
                self.held_uj.update(energies)
                self.devices[gpu].held_uj += energies["gpu"]
            elif workload in idle:
                self.idle_uj.update(energies)

    @property
    def total_uj(self) -> int:
        """The run's number: what it used, and the idle of GPUs that it held."""
        return self.run_uj.total() + self.held_uj.total()

    def of_component(self, component: str) -> dict[str, DeviceTally]:
        """Devices behind the run's number of a component: of GPUs, those that it used or held."""
        return {
            name: device
            for name, device in self.devices.items()
            if device.component == component
            and (component != "gpu" or device.run_uj or device.held_uj)
        }

    def quality(self, component: str) -> str:
        """The worst that went into a component's number; "" where nothing did."""
        return worst(q for d in self.of_component(component).values() for q in d.quality_uj)

    def coverage(self, component: str, elapsed_ms: float) -> float:
        """The least of its devices' measured fraction of the time."""
        devices = self.of_component(component).values()
        if elapsed_ms <= 0 or not devices:
            return 0.0
        return min(1.0, min(device.covered_ms for device in devices) / elapsed_ms)
