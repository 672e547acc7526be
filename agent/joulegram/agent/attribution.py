"""Who gets which microjoule of one window. Pure: device energies, idle floors, uses -> rows.

Every component's rows sum to its devices' energy exactly, for GPUs per device. Idle energy (floor
x covered time) is kept apart; active energy goes by share of use: cpu, dram and other pooled per
node, since no process is mapped to a package; a GPU's by the use of that GPU. docs/method.md has
the rules with their reasons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

MEASURED, DERIVED, MODELLED = "measured", "derived", "modelled"


@dataclass(frozen=True, slots=True)
class Metered:
    """What one device's counter said of a window. `component` is cpu, dram, gpu or other."""

    name: str
    component: str
    energy_uj: int
    floor_uw: int  # idle floor; 0: none known
    quality: str
    coverage: float  # measured fraction of the window, 0..1
    late: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """What a frame says of a device: fields of joulegram.v1.Device."""

    name: str
    component: str
    energy_uj: int
    idle_uj: int
    raw_uj: int
    clamped: bool
    quality: str
    coverage: float
    late: bool


@dataclass(frozen=True, slots=True)
class GpuWork:
    """Who used one GPU in a window, and who held it.

    `uses` are (index into the uses, weight, busy ns), in the uses' order. `held` is in parts of
    WHOLE over the window, by holder (the caller's index of a workload).
    """

    uses: Sequence[tuple[int, int, int]] = ()
    held: Mapping[int, int] = field(default_factory=dict)
    modelled: bool = False  # the weights come from slices held, not from activity


@dataclass(frozen=True, slots=True)
class Share:
    """One owner's energy in a window: a use, the idle floor, or what nobody used."""

    use: int  # index into the uses, or IDLE or NOBODY
    cpu_uj: int
    dram_uj: int
    other_uj: int = 0
    gpu: int = -1  # index into the devices
    gpu_uj: int = 0
    gpu_ns: int = 0
    holder: int = -1  # of an idle row: who holds the GPU; -1: nobody

    @property
    def below_uj(self) -> int:
        """What it drew of the parts of the node, which `other` is shared by."""
        return self.cpu_uj + self.dram_uj + self.gpu_uj


IDLE, NOBODY = -1, -2
WHOLE = 1_000_000_000  # parts of a GPU...
ROUNDING = 1_000  # ...of which so few are what seven sevenths leave over, and held by all of them


def split_uj(energy_uj: int, weights: Sequence[int]) -> list[int]:
    """Split an energy in proportion to weights, to the last microjoule.

    Args:
        energy_uj: what to hand out, uJ, >= 0.
        weights: one per owner, each >= 0, at least one > 0; CPU time in ns, say.
    Returns: one energy per owner; they sum to `energy_uj` exactly.
    Raises: ValueError when a quantity is outside its range.
    Method: largest remainder (Hamilton); ties go to the owner that stands first.
    """
    total = sum(weights)
    if energy_uj < 0 or total <= 0 or min(weights) < 0:
        raise ValueError(f"out of range: {energy_uj=} {total=}")
    shares, remainders = [], []
    for weight in weights:
        share, remainder = divmod(energy_uj * weight, total)
        shares.append(share)
        remainders.append(remainder)
    left = energy_uj - sum(shares)
    for owner in sorted(range(len(shares)), key=lambda i: -remainders[i])[:left]:
        shares[owner] += 1
    return shares


def attribute(
    devices: Sequence[Metered],
    window_ms: int,
    cpu_ns: Sequence[int],
    gpus: Mapping[str, GpuWork] | None = None,
) -> tuple[list[Device], list[Share]]:
    """Share one window's energy out.

    Args:
        devices: all that was metered, at most one of component `other`, whose energy_uj is the
            platform's whole reading.
        window_ms: the window's length.
        cpu_ns: CPU time per owner, in a fixed order, each >= 0; 0 for who used a GPU alone.
        gpus: by the device's name; a GPU that is missing was neither used nor held.
    Returns: the devices with their idle part, and the shares: per use one, and one more for
        each further GPU that it used; then nobody's, then idle, where they have any energy.
        A held GPU has an idle share of its holder even at 0 uJ.
    """
    parts = [_with_idle(d, window_ms) for d in devices if d.component != "other"]
    whole = next((d for d in devices if d.component == "other"), None)
    platform = None if whole is None else _platform(whole, parts)
    cpu, dram = (
        _shares(
            sum(d.energy_uj - d.idle_uj for d in parts if d.component == component),
            sum(d.idle_uj for d in parts if d.component == component),
            cpu_ns,
        )
        for component in ("cpu", "dram")
    )
    shares = [Share(owner, cpu[owner], dram[owner]) for owner in range(len(cpu_ns))]
    rest = [Share(owner, cpu[owner], dram[owner]) for owner in (NOBODY, IDLE)]
    for index, part in enumerate(parts):
        if part.component == "gpu":
            work = (gpus or {}).get(part.name, GpuWork())
            parts[index], of_gpu = _share_gpu(part, index, work)
            for share in of_gpu:
                if share.use >= 0 and shares[share.use].gpu < 0:
                    row = shares[share.use]
                    shares[share.use] = replace(share, cpu_uj=row.cpu_uj, dram_uj=row.dram_uj)
                else:
                    rest.append(share)
    shares += sorted(rest, key=lambda share: (share.use < 0, share.use, share.gpu))
    if platform is not None:
        platform, shares = _share_rest(platform, shares)
        parts.append(platform)
    return parts, [s for s in shares if s.use >= 0 or s.holder >= 0 or s.below_uj or s.other_uj]


def _share_gpu(gpu: Device, index: int, work: GpuWork) -> tuple[Device, list[Share]]:
    """Active energy by use; without any use it is the holders' idle, or nobody's."""
    active_uj, held = gpu.energy_uj - gpu.idle_uj, work.held
    unused_uj = 0
    shares = []
    if sum(weight for _, weight, _ in work.uses):
        energies = split_uj(active_uj, [weight for _, weight, _ in work.uses])
        for (use, _, busy_ns), uj in zip(work.uses, energies, strict=True):
            shares.append(Share(use, 0, 0, gpu=index, gpu_uj=uj, gpu_ns=busy_ns))
    elif sum(held.values()):
        unused_uj = active_uj
    else:
        shares.append(Share(NOBODY, 0, 0, gpu=index, gpu_uj=active_uj))
    # What nobody holds keeps its part of the floor; of what was drawn beyond it, unheld
    # slices drew nothing that is known.
    unheld = WHOLE - sum(held.values())
    floor = split_uj(gpu.idle_uj, [*held.values(), unheld if unheld > ROUNDING else 0])
    beyond = split_uj(unused_uj, list(held.values())) if unused_uj else [0] * len(held)
    for holder, floor_uj, beyond_uj in zip(held, floor, beyond, strict=False):
        uj = floor_uj + beyond_uj
        shares.append(Share(IDLE, 0, 0, gpu=index, gpu_uj=uj, holder=holder))
    shares.append(Share(IDLE, 0, 0, gpu=index, gpu_uj=floor[-1]))
    quality = MODELLED if work.modelled else gpu.quality
    return replace(gpu, idle_uj=gpu.idle_uj + unused_uj, quality=quality), shares


def _share_rest(platform: Device, shares: Sequence[Share]) -> tuple[Device, list[Share]]:
    """`other` by what each row drew of the node's parts, idle rows included."""
    below = [share.below_uj for share in shares]
    if sum(below):
        others = split_uj(platform.energy_uj, below)
    else:
        others = [platform.energy_uj if _is_nobodys(share) else 0 for share in shares]
    idle_uj = sum(uj for uj, share in zip(others, shares, strict=True) if share.use == IDLE)
    return replace(platform, idle_uj=idle_uj), [
        replace(share, other_uj=uj) if uj else share
        for share, uj in zip(shares, others, strict=True)
    ]


def _is_nobodys(share: Share) -> bool:
    """Whether it is the one row of what nobody used of cpu and dram."""
    return share.use == NOBODY and share.gpu < 0


def _shares(active_uj: int, idle_uj: int, cpu_ns: Sequence[int]) -> list[int]:
    """Energy per owner, then nobody's, then idle: list[NOBODY] and list[IDLE] find them."""
    if sum(cpu_ns):
        return [*split_uj(active_uj, cpu_ns), 0, idle_uj]
    return [*[0] * len(cpu_ns), active_uj, idle_uj]


def _with_idle(device: Metered, window_ms: int) -> Device:
    covered_us = round(device.coverage * window_ms * 1000)
    idle_uj = min(device.energy_uj, device.floor_uw * covered_us // 1_000_000)
    # dram's own counter is measured; its rows follow CPU time, which is not memory traffic.
    quality = DERIVED if device.component == "dram" and device.quality == MEASURED else None
    return Device(
        device.name,
        device.component,
        device.energy_uj,
        idle_uj,
        device.energy_uj,
        False,
        quality or device.quality,
        device.coverage,
        device.late,
    )


def _platform(whole: Metered, parts: Sequence[Device]) -> Device:
    """Fans, disks, losses: the platform's reading minus the rest, never below zero."""
    rest_uj = sum(part.energy_uj for part in parts)
    return Device(
        whole.name,
        whole.component,
        max(0, whole.energy_uj - rest_uj),
        0,
        whole.energy_uj,
        whole.coverage > 0 and whole.energy_uj < rest_uj,
        MODELLED if MODELLED in {whole.quality, *(p.quality for p in parts)} else DERIVED,
        min([whole.coverage, *(part.coverage for part in parts)]),
        whole.late,
    )
