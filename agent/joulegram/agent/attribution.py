"""Who gets which microjoule of one window. Pure: device energies, idle floors, uses -> rows.

Every component's rows sum to its devices' energy exactly. Idle energy (floor x covered time) is
kept apart; active energy goes by share of use, pooled per node: no process is mapped to a
package. docs/method.md has the rules with their reasons.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

MEASURED, DERIVED, MODELLED = "measured", "derived", "modelled"


@dataclass(frozen=True, slots=True)
class Metered:
    """What one device's counter said of a window. `component` is cpu, dram or other."""

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
class Share:
    """One owner's energy in a window: a use, the idle floor, or what nobody used."""

    use: int  # index into the uses, or IDLE or NOBODY
    cpu_uj: int
    dram_uj: int
    other_uj: int


IDLE, NOBODY = -1, -2


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
    devices: Sequence[Metered], window_ms: int, cpu_ns: Sequence[int]
) -> tuple[list[Device], list[Share]]:
    """Share one window's energy out.

    Args:
        devices: all that was metered, at most one named `platform`, whose energy_uj is the
            platform's whole reading.
        window_ms: the window's length.
        cpu_ns: CPU time per owner, in a fixed order, each >= 0.
    Returns: the devices with their idle part, and the shares of every owner with any energy or
        use, in the owners' order, then idle, then nobody.
    """
    parts = [_with_idle(d, window_ms) for d in devices if d.component != "other"]
    columns = {
        component: _shares(
            sum(d.energy_uj - d.idle_uj for d in parts if d.component == component),
            sum(d.idle_uj for d in parts if d.component == component),
            cpu_ns,
        )
        for component in ("cpu", "dram")
    }
    below = [a + b for a, b in zip(columns["cpu"], columns["dram"], strict=True)]
    whole = next((d for d in devices if d.component == "other"), None)
    other = [0] * len(below)
    if whole is not None:
        platform = _platform(whole, parts)
        if sum(below):
            other = split_uj(platform.energy_uj, below)
        else:
            other[NOBODY] = platform.energy_uj
        parts.append(replace(platform, idle_uj=other[IDLE]))
    owners = [*range(len(cpu_ns)), NOBODY, IDLE]
    shares = [
        Share(owner, *energies)
        for owner, *energies in zip(owners, columns["cpu"], columns["dram"], other, strict=True)
    ]
    return parts, [s for s in shares if s.use >= 0 or s.cpu_uj or s.dram_uj or s.other_uj]


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
