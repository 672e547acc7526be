"""AMD and Intel GPUs: energy or power from their hwmon, users from fdinfo and KFD.

Reads  <sysfs>/class/drm/card*/device/{vendor,uevent,unique_id,gpu_busy_percent,drm/renderD*},
       its hwmon*/{name,energy*_{input,label},power1_{average,input,cap_max,rated_max,max}},
       in*_label; the users' files: clients.py, kfd.py
Format https://docs.kernel.org/gpu/amdgpu/thermal.html (power1_average, power1_input; uW)
       Documentation/ABI/testing/sysfs-driver-intel-{i915,xe}-hwmon (energy*_input; uJ)

xe counts the card as energy1 and the chip alone as energy2, told by their labels: the card is
what is metered. amdgpu has power only: the mean over a time it does not state, on some chips the
moment.

A GPU inside a CPU package is no device: its energy lies in the package's (rule 19). Intel's are
on the root bus (0000:00:02.0); AMD's APUs have a supply `vddnb` that no card has, share a KFD node
with CPU cores, or are MI300A, whose meter is the whole socket's.

Of ROCm processes, whose queues fdinfo does not time, the use is the share of compute units that
their waves fill at a look, for the time since the look before. Where the chip does not tell that,
those that have memory or queues on the GPU share its busy time equally, and the look says
`modelled`. Of a process with both engine time and occupancy the greater counts: they overlap.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.sensors.aside import Aside
from joulegram.agent.sensors.drm import kfd
from joulegram.agent.sensors.drm.clients import Clients
from joulegram.agent.sensors.drm.fdinfo import ADDRESS
from joulegram.agent.sensors.gpu import GpuLook, GpuOpen, GpuUse
from joulegram.agent.sensors.hwmon import line, optional, read_micro
from joulegram.agent.sensors.sensor import Sample
from joulegram.agent.textfile import is_there, matching

AMD, INTEL = "0x1002", "0x8086"
DRIVERS = {"amdgpu": AMD, "i915": INTEL, "xe": INTEL}
CARD = re.compile(r"card\d{1,4}")
HWMON = re.compile(r"hwmon\d{1,4}")
SLOT = re.compile(r"^PCI_SLOT_NAME=(.+)$", re.M)
MI300A = "0x74a0"
ENERGIES = ("card", "", "pkg")  # labels, best first
POWERS = ("power1_average", "power1_input")
LIMITS = ("power1_cap_max", "power1_rated_max", "power1_max")
MAX_UW = 10_000_000_000  # no card draws 10 kW
WITHIN_S = 0.2  # of a tick, for who computes


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU and where its files are."""

    name: str  # card1
    device: Path
    address: str  # PCI, 0000:03:00.0; its name where that is not told
    vendor: str
    unique_id: str  # hexadecimal digits; "": none
    meter: Path | None
    counts: bool  # the meter is an energy counter
    nodes: tuple[kfd.Node, ...]
    inside: str  # why its energy lies in a CPU package's; "": it does not

    @property
    def why_not(self) -> str:
        """Why it is no device; "" where it is one."""
        if self.inside:
            return f"inside a CPU package, whose energy holds its own: {self.inside}"
        return "" if self.meter else "its driver shows neither energy nor power"


@dataclass(slots=True, eq=False)
class CardUsers:
    """What one card says beyond its energy."""

    card: Card
    sysfs: Path
    clients: Clients
    clock: Clock
    index: int | None  # None: another maker's GPU may have the same number
    _looked_ns: int | None = field(default=None, init=False)
    _aside: Aside = field(default_factory=lambda: Aside("KFD"), init=False)

    def names(self) -> Mapping[str, float]:
        card = self.card
        names = [card.name, card.address, card.address.removeprefix("0000:")]
        names += [path.name for path in matching(card.device, "drm/renderD*")]
        if card.unique_id:
            # ROCm's UUID, and its tools' way to print the number.
            names += [card.unique_id, f"GPU-{card.unique_id}", f"0x{card.unique_id}"]
        if self.index is not None:
            names.append(str(self.index))
        return dict.fromkeys(names, 1.0)

    def look(self) -> GpuLook:
        """Raises: OSError when procfs cannot be listed, SensorFailed while a driver hangs."""
        computing: Mapping[int, kfd.Compute] = {}
        if self.card.nodes:
            computing = self._aside.ask(lambda: _computing(self.sysfs, self.card.nodes), WITHIN_S)
        users = self.clients.users(self.card.address)
        now_ns = self.clock.mono_ns()
        elapsed_ns = now_ns - self._looked_ns if self._looked_ns is not None else 0
        self._looked_ns = now_ns
        used, opened = dict(users.used_ns), set(users.opened)
        modelled = False
        if computing:
            modelled = self._add_compute(used, computing, elapsed_ns)
            opened -= computing.keys()
            opened |= {pid for pid, compute in computing.items() if compute.open}
            opened |= {pid for pid in computing if used.get(pid)}
        return GpuLook(
            tuple(GpuUse(pid, min(ns, elapsed_ns), ns) for pid, ns in sorted(used.items()) if ns),
            tuple(GpuOpen(pid, "", 1.0) for pid in sorted(opened)),
            modelled,
        )

    def _add_compute(
        self, used: dict[int, int], computing: Mapping[int, kfd.Compute], elapsed_ns: int
    ) -> bool:
        """Add what KFD's processes did. Returns: whether some of it is modelled."""
        units = max(1, sum(node.units for node in self.card.nodes))
        untold = [p for p, c in computing.items() if c.occupied is None and c.open]
        for pid, compute in computing.items():
            busy_ns = elapsed_ns * min(compute.occupied or 0, units) // units
            used[pid] = max(used.get(pid, 0), busy_ns)
        percent = min(100, optional(self.card.device / "gpu_busy_percent")) if untold else 0
        for pid in untold:
            used[pid] = max(used.get(pid, 0), elapsed_ns * percent // (100 * len(untold)))
        return percent > 0 and elapsed_ns > 0


@dataclass(frozen=True, slots=True)
class CountedCard:
    """A GPU with an energy counter."""

    users: CardUsers
    path: Path
    device: str
    max_power_w: float
    component: str = field(default="gpu", init=False)
    range_uj: int = field(default=0, init=False)  # the drivers count on in 64 bits
    floor_w: float = field(default=0.0, init=False)
    quality: str = field(default="measured", init=False)

    def read_uj(self) -> int:
        """Raises: SensorDenied, SensorFailed."""
        return read_micro(self.path)

    def names(self) -> Mapping[str, float]:
        return self.users.names()

    def look(self) -> GpuLook:
        """Raises: OSError when procfs cannot be listed, SensorFailed while a driver hangs."""
        return self.users.look()


@dataclass(frozen=True, slots=True)
class SampledCard:
    """A GPU whose power alone can be read."""

    users: CardUsers
    path: Path
    device: str
    max_power_w: float
    component: str = field(default="gpu", init=False)
    averaged_s: float = field(default=0.0, init=False)  # the driver does not say
    floor_w: float = field(default=0.0, init=False)
    quality: str = field(default="derived", init=False)

    def sample(self) -> Sample:
        """Raises: SensorDenied, SensorFailed."""
        power_uw = read_micro(self.path)
        if power_uw > MAX_UW:
            raise SensorFailed(
                f"{self.path}: {power_uw / 1e6:g} W cannot be a card's power. Its driver may be in "
                "a reset; see the kernel log."
            )
        return Sample(power_uw, self.users.clock.mono_ns())

    def names(self) -> Mapping[str, float]:
        return self.users.names()

    def look(self) -> GpuLook:
        """Raises: OSError when procfs cannot be listed, SensorFailed while a driver hangs."""
        return self.users.look()


Gpu: TypeAlias = CountedCard | SampledCard


def find(sysfs: Path, procfs: Path, clock: Clock, clients: Clients | None = None) -> list[Gpu]:
    """Every AMD or Intel GPU that is a device of its own. None is an answer, not an error.

    Args:
        clients: the same at every call, so that GPUs found later share one look at processes.
    """
    found = cards(sysfs)
    metered = [card for card in found if not card.why_not]
    if clients is None:
        clients = Clients(procfs, clock)
    gpus: list[Gpu] = []
    for index, card in enumerate(metered):
        clients.want(card.address)
        number = index if _numbered(sysfs, metered) else None
        users = CardUsers(card, sysfs, clients, clock, number)
        if meter := card.meter:
            device = f"gpu:{card.unique_id or card.address}"
            limits = (optional(meter.parent / name) for name in LIMITS)
            max_power_w = next(filter(None, limits), 0) / 1e6
            make = CountedCard if card.counts else SampledCard
            gpus.append(make(users, meter, device, max_power_w))
    return gpus


def unmetered(sysfs: Path) -> list[tuple[str, str]]:
    """(card, why) of every AMD or Intel GPU that is no device, for a person to read."""
    return [(card.name, card.why_not) for card in cards(sysfs) if card.why_not]


def cards(sysfs: Path) -> list[Card]:
    """Every AMD or Intel GPU, each once, in the order of KFD, then of their addresses."""
    nodes = kfd.nodes(sysfs)
    found: dict[str, Card] = {}
    folders = _entries(sysfs / "class/drm", CARD)
    if not folders:  # what captured a tree, or a container, may leave out who draws
        folders = [h for h in _entries(sysfs / "class/hwmon", HWMON) if line(h / "name") in DRIVERS]
    for folder in sorted(folders, key=lambda path: (len(path.name), path.name)):
        card = _card(sysfs, folder, nodes)
        if card and card.address not in found:
            found[card.address] = card
    return _distinct(sorted(found.values(), key=lambda card: _order(card, nodes)))


def _entries(folder: Path, name: re.Pattern[str]) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in folder.iterdir() if name.fullmatch(path.name)]
    return []


def _card(sysfs: Path, folder: Path, nodes: Sequence[kfd.Node]) -> Card | None:
    device = folder / "device"
    vendor = line(device / "vendor") or DRIVERS.get(line(folder / "name"), "")
    if vendor not in (AMD, INTEL):
        return None
    # Without an address it can be metered still, and nobody be told to use it.
    address = _address(device) or folder.name
    unique = line(device / "unique_id").lower().removeprefix("0x")
    unique_id = unique if re.fullmatch("[0-9a-f]{1,32}", unique) and int(unique, 16) else ""
    own = tuple(node for node in nodes if vendor == AMD and _is(node, address, unique_id))
    meters = _meters(sysfs, device)
    inside = _inside(device, vendor, address, meters, own)
    meter, counts = _meter(meters)
    return Card(folder.name, device, address, vendor, unique_id, meter, counts, own, inside)


def _address(device: Path) -> str:
    """The card's PCI address; "" where nothing tells it."""
    uevent = ""
    with contextlib.suppress(OSError):
        uevent = (device / "uevent").read_text("ascii", "replace")
    told = SLOT.search(uevent)
    for address in (told[1] if told else "", device.resolve().name):
        if ADDRESS.fullmatch(address.lower()):
            return address.lower()
    return ""


def _is(node: kfd.Node, address: str, unique_id: str) -> bool:
    if unique_id and node.unique_id == int(unique_id, 16):
        return True
    return node.address.rpartition(".")[0] == address.rpartition(".")[0]


def _meters(sysfs: Path, device: Path) -> list[Path]:
    """The hwmon folders of the card itself, not of its tiles."""
    found = matching(device, "hwmon/hwmon*")
    if not found:
        own = device.resolve()
        paths = matching(sysfs, "class/hwmon/hwmon*")
        found = [path for path in paths if (path / "device").resolve() == own]
    return [path for path in found if line(path / "name") in DRIVERS]


def _meter(folders: Iterable[Path]) -> tuple[Path | None, bool]:
    """(file, whether it counts energy), the best that there is."""
    powers: list[Path] = []
    for folder in folders:
        energies = {
            line(folder / path.name.replace("_input", "_label")): path
            for path in reversed(matching(folder, "energy*_input"))
        }
        for label in ENERGIES:
            if label in energies:
                return energies[label], True
        powers += [path for name in POWERS if is_there(path := folder / name)]
    return next(filter(_answers, powers), powers[0] if powers else None), False


def _answers(path: Path) -> bool:
    try:
        read_micro(path)
    except (SensorDenied, SensorFailed):
        return False
    return True


def _inside(
    device: Path,
    vendor: str,
    address: str,
    meters: Iterable[Path],
    nodes: Iterable[kfd.Node],
) -> str:
    """Why the GPU lies inside a CPU package; "" where it does not."""
    if vendor == INTEL:
        return "an Intel GPU on the root bus" if address.startswith("0000:00:") else ""
    if any(node.with_cpu for node in nodes):
        return "an APU, as KFD lists it"
    if any(line(label) == "vddnb" for path in meters for label in matching(path, "in*_label")):
        return "an APU, by its supply vddnb"
    return "an MI300A, whose meter is its socket's" if line(device / "device") == MI300A else ""


def _numbered(sysfs: Path, metered: Iterable[Card]) -> bool:
    """Whether a bare number can mean nothing but one of these GPUs."""
    return len({card.vendor for card in metered}) == 1 and not is_there(sysfs / "module/nvidia")


def _order(card: Card, nodes: Sequence[kfd.Node]) -> tuple[int, str]:
    places = [place for place, node in enumerate(nodes) if node in card.nodes]
    return min(places, default=len(nodes)), card.address


def _distinct(found: Sequence[Card]) -> list[Card]:
    """A unique id that two cards share tells nothing: they go by their addresses."""
    shared = [card.unique_id for card in found]
    return [c if shared.count(c.unique_id) == 1 else replace(c, unique_id="") for c in found]


def _computing(sysfs: Path, nodes: Iterable[kfd.Node]) -> dict[int, kfd.Compute]:
    """What KFD's processes do on a whole GPU, all its partitions together."""
    found: dict[int, kfd.Compute] = {}
    for node in nodes:
        for pid, part in kfd.computing(sysfs, node.gpu_id).items():
            whole = found.get(pid, kfd.Compute(None, False))
            told = [n for n in (whole.occupied, part.occupied) if n is not None]
            found[pid] = kfd.Compute(sum(told) if told else None, whole.open or part.open)
    return found
