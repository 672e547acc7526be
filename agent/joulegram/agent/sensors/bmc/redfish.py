"""The node's power as its management controller says it over the network: Redfish.

Reads  /redfish/v1/ -> Systems, Chassis -> EnvironmentMetrics (PowerWatts, else EnergyJoules or
       EnergykWh between two answers); where a chassis has none, Power (PowerConsumedWatts)
Format DMTF DSP0268, "Redfish Data Model": Chassis, EnvironmentMetrics, Power (deprecated)

Which chassis are the node's: those that its ComputerSystem names, without any that other systems
or other chassis share (an enclosure, a rack). Where one contains another the outer one's reading
counts, since the inner one's is part of it. Whatever the controller says, `redfish_chassis` of
the configuration goes before.
"""

import math
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from joulegram.agent.clock import Clock
from joulegram.agent.errors import SensorFailed
from joulegram.agent.sensors.bmc.background import Background, Later, SlowPlatform
from joulegram.agent.sensors.bmc.redfish_client import ROOT, Access, NotThere, RedfishClient
from joulegram.agent.sensors.sensor import Sample

Get = Callable[[str], dict[str, Any]]
Document = Mapping[str, Any]

MAX_MEMBERS = 64  # of a collection; a node's controller has a handful
MAX_W = 100_000.0
J_PER_KWH = 3_600_000.0
LOOK_AGAIN_NS = 600_000_000_000  # a chassis may be added, or begin to measure
# What holds several nodes by its nature, and what a reading of a part is about.
SHARED_TYPES = ("Rack", "Pod", "Zone", "Row", "RackGroup")
OF_PARTS = ("CPU", "CPUSubsystem", "Memory", "MemorySubsystem", "GPU", "GPUSubsystem",
            "Accelerator", "Fan", "StorageDevice", "StorageSubsystem", "NetworkingDevice", "FPGA",
            "ASIC", "TPU")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """What one resource says: its power, else an energy that grows."""

    watts: float | None = None
    energy_j: float | None = None

    def __bool__(self) -> bool:
        return self.watts is not None or self.energy_j is not None


def environment(document: Document) -> Reading:
    """EnvironmentMetrics of a chassis."""
    watts = _power(_member(document, "PowerWatts", "Reading"))
    if watts is not None:
        return Reading(watts)
    joules = _number(_member(document, "EnergyJoules", "Reading"))
    kwh = _number(_member(document, "EnergykWh", "Reading"))
    if joules is None and kwh is not None:
        joules = kwh * J_PER_KWH
    return Reading(energy_j=joules)


def power(document: Document) -> Reading:
    """Power of a chassis: the control of the whole, not those of its processors and the like.

    Several supplies that are listed for themselves add up.
    """
    controls = [one for one in _list(document, "PowerControl") if isinstance(one, dict)]
    whole = [one for one in controls if one.get("PhysicalContext") not in OF_PARTS]
    found = [
        (one.get("PhysicalContext") == "PowerSupply", watts)
        for one in whole
        if (watts := _power(one.get("PowerConsumedWatts"))) is not None
    ]
    if not found:
        return Reading()
    if all(supply for supply, _ in found):
        return Reading(math.fsum(watts for _, watts in found))
    return Reading(next(watts for supply, watts in found if not supply))


READERS: Mapping[str, Callable[[Document], Reading]] = {
    "EnvironmentMetrics": environment,
    "Power": power,
}


@dataclass(frozen=True, slots=True)
class Meter:
    """A resource that says the power of one chassis."""

    path: str
    kind: str  # a key of READERS

    def read(self, get: Get) -> Reading:
        return READERS[self.kind](get(self.path))


def meters(get: Get, hostname: str, wanted: Sequence[str] = ()) -> list[Meter]:
    """The resources that sum to the node's power; the rule is in this file's docstring.

    Args:
        hostname: tells the node's own system among several.
        wanted: Ids of chassis to sum, as configured.
    Raises: SensorFailed, SensorDenied; never an empty list.
    """
    root = get(ROOT)
    listed = _members(get, root, "Chassis")
    if wanted:
        ids = {path.rstrip("/").rpartition("/")[2]: path for path in listed}
        if unknown := [name for name in wanted if name not in ids]:
            raise SensorFailed(
                f"redfish_chassis names {', '.join(unknown)}; the controller's chassis are "
                f"{', '.join(ids) or 'none'}."
            )
        outermost = [(ids[name], get(ids[name])) for name in dict.fromkeys(wanted)]
        found = [(path, _meter(get, document)) for path, document in outermost]
        if dumb := [path for path, meter in found if meter is None]:
            raise SensorFailed(f"{', '.join(dumb)} of redfish_chassis says no power.")
        return [meter for _, meter in found if meter is not None]
    own, documents = _own(get, _system(get, root, hostname), listed)
    counted: dict[str, Meter] = {}
    for path in own:
        if not any(outer in counted for outer in _around(path, documents)):
            meter = _meter(get, documents[path])
            if meter is not None:
                counted[path] = meter
    if not counted:
        raise SensorFailed(
            "no chassis of this node says its power now. Name those that do, if any, in "
            f"redfish_chassis of [agent]; the controller has {_shown(listed)}."
        )
    return list(counted.values())


def _system(get: Get, root: Document, hostname: str) -> tuple[str, Document]:
    """(path, document) of the node's ComputerSystem; empty where the controller has none."""
    paths = _members(get, root, "Systems")
    documents = {path: get(path) for path in paths}
    if len(documents) > 1:
        short = hostname.partition(".")[0].lower()
        named = {
            path: document
            for path, document in documents.items()
            if str(document.get("HostName") or "").partition(".")[0].lower() == short
        }
        if len(named) != 1:
            raise SensorFailed(
                f"the controller serves {len(documents)} systems ({_shown(paths)}) and "
                f"{'several are' if named else 'none is'} called {hostname!r}. Name this node's "
                "chassis in redfish_chassis of [agent]."
            )
        documents = named
    return next(iter(documents.items()), ("", {}))


def _own(
    get: Get, system: tuple[str, Document], listed: Sequence[str]
) -> tuple[list[str], dict[str, Document]]:
    """The chassis of this node alone, outermost first, and every chassis that was looked at."""
    path, document = system
    named = [one for one in _links(document, "Chassis") if one in listed]
    # What contains what is only seen from all of them.
    looked_at = named if len(named) == 1 else listed
    documents: dict[str, Document] = {one: get(one) for one in looked_at}
    if not named and len(listed) > 1:
        named = [one for one in listed if path in _links(documents[one], "ComputerSystems")]
    candidates = named or listed[:1]
    own = [one for one in candidates if not _shared(documents[one], path, candidates)]
    return sorted(own, key=lambda one: len(_around(one, documents))), documents


def _shared(chassis: Document, system: str, candidates: Collection[str]) -> bool:
    """Whether other nodes' energy is in this chassis' reading."""
    if chassis.get("ChassisType") in SHARED_TYPES:
        return True
    others = set(_links(chassis, "ComputerSystems")) - {system}
    if len(others) > (0 if system else 1):
        return True
    inside = set(_links(chassis, "Contains")) - set(candidates)
    return chassis.get("ChassisType") == "Enclosure" and bool(inside)


def _around(path: str, documents: Mapping[str, Document]) -> list[str]:
    """The chassis that contain this one, the nearest first."""
    around: list[str] = []
    while path in documents:
        said = _link(_member(documents[path], "Links", "ContainedBy"))
        if not said:
            said = next((p for p in documents if path in _links(documents[p], "Contains")), "")
        if not said or said in around:  # a circle, which only nonsense draws
            break
        around.append(said)
        path = said
    return around


def _meter(get: Get, chassis: Document) -> Meter | None:
    """What says this chassis' power now, if anything."""
    trouble: SensorFailed | None = None
    for kind in READERS:
        path = _link(chassis.get(kind), as_said=True)
        if not path:
            continue
        meter = Meter(path, kind)
        try:
            if meter.read(get):
                return meter
        except NotThere:
            continue
        except Later:
            raise
        except SensorFailed as exc:  # the other one may do
            trouble = exc
    if trouble is not None:
        raise trouble
    return None


@dataclass(slots=True)
class NodePower:
    """Sums the node's chassis, over one client."""

    client: RedfishClient
    clock: Clock
    wanted: Sequence[str] = ()
    hostname: str = field(default_factory=socket.gethostname)
    _meters: list[Meter] = field(default_factory=list, init=False)
    _looked_ns: int = field(default=0, init=False)
    _energies: dict[str, tuple[float, int]] = field(default_factory=dict, init=False)

    def ask(self) -> Sample | None:
        """One reading; None where energies have not moved since the last.

        Raises: SensorDenied, SensorFailed.
        """
        now_ns = self.clock.mono_ns()
        if not self._meters or now_ns - self._looked_ns > LOOK_AGAIN_NS:
            self._meters = meters(self.client.get, self.hostname, self.wanted)
            self._looked_ns = now_ns
        before_ns = self.clock.mono_ns()
        try:
            readings = {meter.path: meter.read(self.client.get) for meter in self._meters}
        except NotThere:
            self._meters = []  # look again
            raise
        # It was measured somewhere in between.
        at_ns = (before_ns + self.clock.mono_ns()) // 2
        sum_w = 0.0
        for path, reading in readings.items():
            watts = reading.watts
            if watts is None and reading.energy_j is not None:
                watts = self._mean_w(path, reading.energy_j, at_ns)
                if watts is None:
                    return None
            if watts is None:
                self._meters = []
                raise SensorFailed(
                    f"{path} says no power at this moment; the node's other chassis alone would "
                    "be too little. The agent asks again."
                )
            sum_w += watts
        return Sample(round(sum_w * 1e6), at_ns)

    def ask_until_it_moves(self) -> Sample:
        """One reading; blocks. Raises: SensorDenied, SensorFailed."""
        for wait_s in (0.0, 2.0, 8.0):
            self.clock.wait(threading.Event(), wait_s)
            if (sample := self.ask()) is not None:
                return sample
        raise SensorFailed("it tells an energy only, which has not moved for 10 s.")

    def _mean_w(self, path: str, energy_j: float, at_ns: int) -> float | None:
        """Mean power since the energy last moved."""
        before = self._energies.get(path)
        if before is not None and energy_j == before[0]:
            return None
        self._energies[path] = (energy_j, at_ns)
        if before is None or at_ns <= before[1]:
            return None
        return _power((energy_j - before[0]) / ((at_ns - before[1]) / 1e9))


def redfish_power(
    access: Access,
    clock: Clock,
    chassis: Sequence[str] = (),
    every_s: float = 5.0,
    stale_s: float = 30.0,
) -> SlowPlatform:
    """The platform's power over the network. The session with the controller ends with it."""
    node = NodePower(RedfishClient(access), clock, chassis)
    background = Background("Redfish", node.ask, clock, every_s, stale_s, node.client.close)
    return SlowPlatform(background, node.ask_until_it_moves)


def _members(get: Get, root: Document, name: str) -> list[str]:
    """Paths of a collection's members; none where the collection is missing."""
    path = _link(root.get(name))
    if not path:
        return []
    try:
        members = _list(get(path), "Members")
    except NotThere:
        return []
    return [link for one in members[:MAX_MEMBERS] if (link := _link(one))]


def _links(document: Document, name: str) -> list[str]:
    links = document.get("Links")
    found = _list(links, name) if isinstance(links, dict) else []
    return [link for one in found if (link := _link(one))]


def _link(value: Any, as_said: bool = False) -> str:
    """To compare, without a slash at its end, which some write and some do not."""
    path = value.get("@odata.id") if isinstance(value, dict) else None
    if not isinstance(path, str):
        return ""
    # Asked without its slash some controllers redirect: a second request each time.
    return path if as_said else path.rstrip("/")


def _list(document: Document, name: str) -> list[Any]:
    found = document.get(name)
    return found if isinstance(found, list) else []


def _member(document: Document, *names: str) -> Any:
    found: Any = document
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _number(value: Any) -> float | None:
    """A JSON number; neither null, nor a text, nor what no float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _power(value: Any) -> float | None:
    """Watts of a running node, W. Controllers that do not measure say 0."""
    watts = _number(value)
    return watts if watts is not None and 0 < watts <= MAX_W else None


def _shown(paths: Sequence[str]) -> str:
    names = [ascii(path.rpartition("/")[2])[1:-1][:40] for path in paths[:8]]
    return ", ".join(names) + (", ..." if len(paths) > 8 else "") or "none"
