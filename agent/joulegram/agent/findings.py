"""Everything the agent reads, tried once: what works, what does not, why, and what to do."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from joulegram.agent.clock import SystemClock
from joulegram.agent.config import DOCKER_SOCKET, AgentConfig
from joulegram.agent.energy import AnySensor
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.floors import LEARN_MS, Floors
from joulegram.agent.machine import Kind, Machine, chosen, read
from joulegram.agent.owners.owners import Owners
from joulegram.agent.sensors.drm import cards
from joulegram.agent.sensors.load.model import LoadModel
from joulegram.agent.textfile import Torn, is_there, matching
from joulegram.agent.use.cgroups import Cgroups
from joulegram.agent.use.procfs import Processes, cpu_times

WORKS, MISSING, DENIED, FAILS, MODELLED = "works", "missing", "denied", "fails", "modelled"
BESIDE = "beside"  # it works, and is not counted, since another sensor is
PAUSE_S = 0.5  # between the two readings that show a counter's watts now
ANSWER_WITHIN_S = 3.0  # of those who are asked for names
LEARN_H = LEARN_MS / 3_600_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the page."""

    what: str
    state: str
    why: str
    remedy: str = ""


def energy(agent: AgentConfig) -> Iterator[Finding]:
    """Every kind of sensor, its devices, and their idle floors."""
    yield from _sysfs(agent.sysfs)
    clock = SystemClock()
    machine = Machine(agent, clock)
    floors = Floors.kept_in(agent.state, agent.node)
    try:
        found = [(kind, list(kind.find())) for kind in machine.kinds]
        every = [sensor for _, sensors in found for sensor in sensors]
        # The slow ones first: what a counter counts while they take their time is not watts now.
        before = {id(s): _try(s) for s in sorted(every, key=lambda s: not hasattr(s, "ask"))}
        counts = chosen(
            [sensors for _, sensors in found],
            machine.model,
            lambda sensor: isinstance(before[id(sensor)], SensorDenied),
        )
        counted = {id(sensor) for sensor in counts}
        by_device = {sensor.device for sensor in every if id(sensor) in counted}
        time.sleep(PAUSE_S if before else 0)
        for kind, sensors in found:
            if not sensors:
                yield from _none(kind)
            for sensor in sensors:
                finding = _sensor(kind, sensor, before[id(sensor)])
                if finding.state == WORKS and id(sensor) in counted:
                    yield _with_floor(finding, sensor, agent, floors)
                elif finding.state == WORKS and sensor.device in by_device:
                    yield Finding(
                        finding.what,
                        BESIDE,
                        f"{finding.why}; not counted, a better sensor of {sensor.device} is",
                    )
                else:
                    yield finding
        if id(machine.model) in counted:
            yield _model(agent, machine.model)
        yield from _unmetered(agent.sysfs, found)
    finally:
        machine.close()


def _sysfs(sysfs: Path) -> Iterator[Finding]:
    """Why nothing can be found there at all."""
    try:
        os.scandir(sysfs).close()
    except OSError as exc:
        state = DENIED if isinstance(exc, PermissionError) else MISSING
        yield Finding(
            "sysfs",
            state,
            f"{sysfs} cannot be listed: {exc.strerror}; whatever it has is not metered",
            "Mount sysfs, or set --sysfs to a folder that this user may enter.",
        )


def _none(kind: Kind) -> Iterator[Finding]:
    why, remedy = kind.why_none()
    if why:
        yield Finding(f"energy: {kind.name}", MISSING, why, remedy)


def _try(sensor: AnySensor) -> int | SensorDenied | SensorFailed:
    try:
        # Slow meters are asked once, in front of whoever waits for the page, and in this thread:
        # `sample` would begin another, beside it, with a session and a password of its own.
        if hasattr(sensor, "ask"):
            asked: int = sensor.ask().power_uw
            return asked
        return read(sensor)
    except (SensorDenied, SensorFailed) as exc:
        return exc
    except (OSError, Torn) as exc:
        return SensorFailed(str(exc))


def _sensor(kind: Kind, sensor: AnySensor, before: int | SensorDenied | SensorFailed) -> Finding:
    what = f"energy: {sensor.device}"
    after = before if hasattr(sensor, "ask") else _try(sensor)
    if isinstance(after, SensorDenied):
        return Finding(what, DENIED, f"{kind.name}: {after}")
    if isinstance(after, SensorFailed):
        return Finding(
            what, FAILS, f"{kind.name}: {after}", "The agent keeps trying; the kernel log may tell."
        )
    watts = ""
    if not hasattr(sensor, "read_uj"):
        watts = f", {after / 1e6:.1f} W now, integrated"
    elif isinstance(before, int) and after >= before:
        watts = f", {(after - before) / 1e6 / PAUSE_S:.1f} W now"
    return Finding(what, WORKS, f"{kind.name}{watts}")


def _with_floor(finding: Finding, sensor: AnySensor, agent: AgentConfig, floors: Floors) -> Finding:
    """What is known of the device's idle floor, and how."""
    device, remedy = sensor.device, ""
    if device in agent.idle_w:
        floor = f"idle floor {agent.idle_w[device]:g} W, configured"
    elif sensor.component == "other":
        return finding
    elif learnt_uw := floors.floor_uw(device):
        hours = floors.seen_h(device)
        floor = f"idle floor {learnt_uw / 1e6:.1f} W, learnt: lowest window mean of {hours:.0f} h"
    else:
        floor = f"no idle floor yet, learnt for {floors.seen_h(device):.1f} of {LEARN_H:g} h"
        key = f'"{device}"' if ":" in device else device  # TOML wants the quotes
        remedy = f"Know it already? Set agent.idle_w: {key} = WATTS. Until then idle is 0."
    return Finding(finding.what, finding.state, f"{finding.why}; {floor}", remedy)


def _model(agent: AgentConfig, model: LoadModel) -> Finding:
    try:
        cpus = cpu_times(agent.procfs).cpus
    except (OSError, Torn) as exc:
        return Finding("energy: load model", FAILS, str(exc), "Mount procfs, or set --procfs.")
    remedy = ""
    if not agent.tdp_w:
        remedy = "Set agent.tdp_w to the packages' TDP (a VM: its share) for better numbers."
    why = f"{model.device} estimated from load; {model.basis}; {model.watts(0, cpus):.1f} W idle, "
    return Finding(
        "energy: load model", MODELLED, why + f"{model.watts(1, cpus):.1f} W at full load", remedy
    )


def _unmetered(sysfs: Path, found: Sequence[tuple[Kind, list[AnySensor]]]) -> Iterator[Finding]:
    """Cards that are there and whose power is in no number."""
    known = {
        name.lower()
        for _, sensors in found
        for sensor in sensors
        if hasattr(sensor, "names")
        for name in sensor.names()
    }
    reasons = dict(cards.unmetered(sysfs))
    for card in matching(sysfs, "class/drm/card[0-9]*"):
        if "-" in card.name or not is_there(card / "device/vendor"):
            continue
        address = _address(card / "device/uevent")
        if not address or address.lower() not in known:
            at = f" at {address}" if address else ""
            why = reasons.get(card.name, "no driver that meters it")
            yield Finding(f"gpu: {card.name}", MISSING, f"a GPU{at} without a meter: {why}")


def _address(uevent: Path) -> str:
    try:
        lines = uevent.read_text(errors="replace")[:4096].splitlines()
    except OSError:
        return ""
    return next((x.partition("=")[2] for x in lines if x.startswith("PCI_SLOT_NAME=")), "")


def owners(agent: AgentConfig) -> Iterator[Finding]:
    """Processes, cgroups, and who knows the names behind them."""
    yield _processes(agent.procfs)
    yield _cgroups(agent)
    if agent.docker_socket == DOCKER_SOCKET and not is_there(Path(DOCKER_SOCKET)):
        agent = replace(agent, docker_socket="")  # nobody named it
    known = Owners.of(agent)
    try:
        yield from _sources(known)
    finally:
        known.close()


def _processes(procfs: Path) -> Finding:
    try:
        processes = Processes(procfs)
        processes.scan(0, 0)
    except OSError as exc:
        return Finding("processes", FAILS, str(exc), "Mount procfs, or set --procfs.")
    count = len(processes.all())
    if not count:
        return Finding(
            "processes",
            FAILS,
            f"none in {procfs}: all that is used is unattributed, or known by its cgroup alone",
            "Mount procfs there, or set --procfs to a folder that shows the machine's processes.",
        )
    if procfs == Path("/proc") and processes.get(1) is None:
        return Finding(
            "processes",
            DENIED,
            f"{count} visible; others are hidden (hidepid, or a container)",
            "Run the agent on the host, as root or in the group that hidepid's gid= names.",
        )
    return Finding("processes", WORKS, f"{count} readable in {procfs}")


def _cgroups(agent: AgentConfig) -> Finding:
    groups = Cgroups(agent.cgroupfs, SystemClock())
    groups.scan(0)
    if groups.count_anything:
        return Finding("cgroups", WORKS, f"{len(groups)} cgroups in {agent.cgroupfs}")
    return Finding(
        "cgroups",
        MISSING,
        f"no cgroup below the root of {agent.cgroupfs} counts CPU time",
        "Workloads are told apart by their processes alone; short-lived ones count with the "
        "process that waited for them. A systemd machine with cgroup v2 has the counters.",
    )


def _sources(known: Owners) -> Iterator[Finding]:
    """Each of those who know names, asked once."""
    for source in known.sources:
        source.asking.wake()
    deadline_s = time.monotonic() + ANSWER_WITHIN_S
    for source in known.sources:
        asking = source.asking
        while not (asking.trouble or asking.answers) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        what = f"names: {source.name}"
        if asking.answers:
            yield Finding(what, WORKS, "answers")
        else:
            why = asking.trouble or f"no answer within {ANSWER_WITHIN_S:g} s"
            yield Finding(what, FAILS, why, "Workloads keep their bare ids until it answers.")


def way(agent: AgentConfig) -> Iterator[Finding]:
    """The spool, and the collector behind it."""
    directory = agent.state.expanduser()
    there = directory
    while not os.path.exists(there) and there != there.parent:  # noqa: PTH110 - it never raises
        there = there.parent
    if os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        yield Finding("spool", WORKS, f"{directory} is writable")
    else:
        yield Finding(
            "spool", DENIED, f"{directory} cannot be written", "Choose another with --state DIR."
        )
    host, _, port = agent.collector.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            yield Finding("collector", WORKS, f"{agent.collector} answers")
    except (OSError, ValueError) as exc:
        yield Finding(
            "collector",
            MISSING,
            f"{agent.collector}: {exc}",
            "Start one (joulegram up), or set --collector HOST:PORT. Frames wait in the spool.",
        )
