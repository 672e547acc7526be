"""The node's power as its management controller says it over the network: Redfish.

Reads  /redfish/v1/ -> Systems, Chassis -> the first of these that says a chassis' power:
       EnvironmentMetrics: PowerWatts, else the growth of EnergyJoules or EnergykWh;
       the Sensor that its PowerWatts names as DataSourceUri;
       Power: PowerConsumedWatts, else AverageConsumedWatts over a minute, else PowerInputWatts of
       all PowerSupplies; PowerSubsystem -> PowerSupplies -> Metrics: InputPowerWatts of all
Format DMTF DSP0268, "Redfish Data Model": Chassis, EnvironmentMetrics, Sensor, PowerSubsystem,
       PowerSupply, PowerSupplyMetrics, Power (deprecated)

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
from joulegram.agent.sensors.bmc.redfish_readings import (
    GONE,
    READERS,
    Document,
    Reading,
    listed,
    member,
    running_w,
)
from joulegram.agent.sensors.sensor import Sample

Get = Callable[[str], dict[str, Any]]

MAX_MEMBERS = 64  # of a collection; a node's controller has a handful
MAX_SUPPLIES = 16  # each is a question of its own; more feed more than a node
LOOK_AGAIN_NS = 600_000_000_000  # a chassis may be added, or begin to measure
# Frames wait so long. What an energy grew by over a longer time would be compared with what the
# node's parts drew in the one window that it came with.
MAX_GROWTH_NS = 30_000_000_000
# What holds several nodes by its nature.
SHARED_TYPES = ("Rack", "Pod", "Zone", "Row", "RackGroup")


@dataclass(frozen=True, slots=True)
class Meter:
    """What says the power of one chassis: one resource, or one for each of its supplies."""

    paths: tuple[str, ...]
    kind: str  # a key of READERS

    def read(self, get: Get) -> Reading:
        return READERS[self.kind](*map(get, self.paths))


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
        said = _link(member(documents[path], "Links", "ContainedBy"))
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
        try:
            meter = Meter(_resources(get, chassis, kind), kind)
            if meter.paths and meter.read(get):
                return meter
        except NotThere:
            continue
        except Later:
            raise
        except SensorFailed as exc:  # the next one may do
            trouble = exc
    if trouble is not None:
        raise trouble
    return None


def _resources(get: Get, chassis: Document, kind: str) -> tuple[str, ...]:
    """Paths of what a reader reads; none where the chassis does not have it."""
    if kind == "PowerSupplyMetrics":
        return _metrics_of_supplies(get, chassis)
    path = _link(chassis.get("EnvironmentMetrics" if kind == "Sensor" else kind), as_said=True)
    if path and kind == "Sensor":
        path = member(get(path), "PowerWatts", "DataSourceUri")
    return (path,) if path and isinstance(path, str) else ()


def _metrics_of_supplies(get: Get, chassis: Document) -> tuple[str, ...]:
    """None where one supply has no metrics: the others alone would be too little."""
    subsystem = _link(chassis.get("PowerSubsystem"), as_said=True)
    members = _members(get, get(subsystem), "PowerSupplies") if subsystem else []
    if len(members) > MAX_SUPPLIES:
        return ()
    feeding = [one for one in map(get, members) if member(one, "Status", "State") not in GONE]
    paths = tuple(_link(one.get("Metrics"), as_said=True) for one in feeding)
    return paths if all(paths) else ()


@dataclass(slots=True)
class NodePower:
    """Sums the node's chassis, over one client."""

    client: RedfishClient
    clock: Clock
    wanted: Sequence[str] = ()
    hostname: str = field(default_factory=socket.gethostname)
    _meters: list[Meter] = field(default_factory=list, init=False)
    _looked_ns: int = field(default=0, init=False)
    _energies_j: dict[str, float] = field(default_factory=dict, init=False)
    _moved_ns: int = field(default=0, init=False)  # when they began as they are; counts sleep
    _began_ns: int = field(default=0, init=False)  # of the count that is told
    _began_j: float = field(default=0.0, init=False)

    def ask(self) -> Sample | None:
        """One reading; None where energies have not moved since the last, or are the first.

        Raises: SensorDenied, SensorFailed.
        """
        now_ns = self.clock.mono_ns()
        if not self._meters or now_ns - self._looked_ns > LOOK_AGAIN_NS:
            self._meters = meters(self.client.get, self.hostname, self.wanted)
            self._looked_ns = now_ns
        before_ns = self.clock.mono_ns()
        try:
            readings = {meter.paths[0]: meter.read(self.client.get) for meter in self._meters}
        except NotThere:
            self._meters = []  # look again
            raise
        # It was measured somewhere in between.
        at_ns = (before_ns + self.clock.mono_ns()) // 2
        watts = {path: one.watts for path, one in readings.items() if one.watts is not None}
        energies_j = {
            path: one.energy_j
            for path, one in readings.items()
            if one.watts is None and one.energy_j is not None
        }
        if silent := [path for path in readings if path not in watts and path not in energies_j]:
            self._meters = []
            raise SensorFailed(
                f"{silent[0]} says no power at this moment; the node's other chassis alone would "
                "be too little. The agent asks again."
            )
        sum_w = math.fsum(watts.values())
        if not energies_j:
            return Sample(round(sum_w * 1e6), at_ns)
        mean_w = self._mean_w(energies_j, at_ns)
        if mean_w is None:
            return None
        power_uw = round((sum_w + mean_w) * 1e6)
        if watts:
            return Sample(power_uw, at_ns)
        grown_j = math.fsum(energies_j.values()) - self._began_j
        return Sample(power_uw, at_ns, self._began_ns, round(grown_j * 1e6))

    def ask_until_it_moves(self) -> Sample:
        """One reading; blocks. Raises: SensorDenied, SensorFailed."""
        for wait_s in (0.0, 2.0, 8.0):
            self.clock.wait(threading.Event(), wait_s)
            if (sample := self.ask()) is not None:
                return sample
        raise SensorFailed("it tells an energy only, which has not moved for 10 s.")

    def _mean_w(self, energies_j: dict[str, float], at_ns: int) -> float | None:
        """Mean power since the energies last moved; None where they have not, or are the first.

        Raises: SensorFailed where it is not known, so that there is a gap.
        """
        before_j, now_ns = self._energies_j, at_ns + self.clock.asleep_ns()
        elapsed_ns = now_ns - self._moved_ns
        path = next(iter(energies_j))
        if energies_j == before_j:
            if elapsed_ns > MAX_GROWTH_NS:
                raise SensorFailed(
                    f"{path} tells an energy only, which has not moved for "
                    f"{MAX_GROWTH_NS // 10**9} s: too coarse to say when it was drawn."
                )
            return None
        self._energies_j, self._moved_ns = energies_j, now_ns
        watts = None
        if energies_j.keys() == before_j.keys() and 0 < elapsed_ns <= MAX_GROWTH_NS:
            grown_j = [energies_j[one] - before_j[one] for one in energies_j]
            watts = (
                running_w(math.fsum(grown_j) / (elapsed_ns / 1e9)) if min(grown_j) >= 0 else None
            )
        if watts is None:
            self._began_ns, self._began_j = at_ns, math.fsum(energies_j.values())
            if before_j:
                raise SensorFailed(f"{path}: its energy began again, or was not told for too long.")
        return watts


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
        members = listed(get(path), "Members")
    except NotThere:
        return []
    return [link for one in members[:MAX_MEMBERS] if (link := _link(one))]


def _links(document: Document, name: str) -> list[str]:
    links = document.get("Links")
    found = listed(links, name) if isinstance(links, dict) else []
    return [link for one in found if (link := _link(one))]


def _link(value: Any, as_said: bool = False) -> str:
    """To compare, without a slash at its end, which some write and some do not."""
    path = value.get("@odata.id") if isinstance(value, dict) else None
    if not isinstance(path, str):
        return ""
    # Asked without its slash some controllers redirect: a second request each time.
    return path if as_said else path.rstrip("/")


def _shown(paths: Sequence[str]) -> str:
    names = [ascii(path.rpartition("/")[2])[1:-1][:40] for path in paths[:8]]
    return ", ".join(names) + (", ..." if len(paths) > 8 else "") or "none"
