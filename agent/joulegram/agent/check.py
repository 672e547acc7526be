"""`joulegram check`: which sensors work here, which do not, why, and what to do about it."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from joulegram.agent.cgroups import Cgroups
from joulegram.agent.clock import SystemClock
from joulegram.agent.config import AgentConfig
from joulegram.agent.errors import SensorDenied, SensorFailed
from joulegram.agent.machine import sensors
from joulegram.agent.procfs import Processes, cpu_times
from joulegram.agent.sensors.model import TDP_W_PER_CPU, LoadModel
from joulegram.agent.sensors.powercap import RaplZone
from joulegram.agent.textfile import Torn

HELP = "list every sensor of this node: works, missing or denied, why, and what to do"
TABLES = {"agent": AgentConfig}

WORKS, MISSING, DENIED, FAILS, MODELLED = "works", "missing", "denied", "fails", "modelled"
COLOURS = {WORKS: "green", MISSING: "dim", DENIED: "yellow", FAILS: "red", MODELLED: "yellow"}
PAUSE_S = 0.5  # between the two readings that show a zone's watts now


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the page."""

    what: str
    state: str
    why: str
    remedy: str = ""


def run(agent: AgentConfig) -> int:
    """Print the page. Returns 0 when something can be metered or modelled, else 1."""
    findings = list(findings_of(agent))
    console = Console(highlight=False)
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        state = f"[{COLOURS[finding.state]}]{finding.state:<{len(MODELLED)}}[/]"
        console.print(f"{state}  {finding.what:<{width}}  {escape(finding.why)}", soft_wrap=True)
        if finding.remedy:
            console.print(f"{'':<{len(MODELLED)}}  → {escape(finding.remedy)}", soft_wrap=True)
    metered = [f for f in findings if f.state in (WORKS, MODELLED) and f.what.startswith("energy")]
    if any(f.state == WORKS for f in metered):
        console.print("\nThis node's energy is measured.")
    elif metered:
        console.print(
            "\nNo energy counter can be read here: watts come from the load model and are "
            "marked modelled on every screen."
        )
    else:
        console.print("\nNothing can be metered here.")
    return 0 if metered else 1


def findings_of(agent: AgentConfig) -> Iterator[Finding]:
    """Everything the agent reads, tried once."""
    yield from _energy(agent)
    yield from _unmetered(agent.sysfs)
    yield _processes(agent.procfs)
    yield _cgroups(agent)
    yield _state(agent.state.expanduser())
    yield _collector(agent.collector)


def _energy(agent: AgentConfig) -> Iterator[Finding]:
    zones = RaplZone.find(agent.sysfs)
    first = {zone.device: _try(zone) for zone in zones}
    time.sleep(PAUSE_S if zones else 0)
    for zone in zones:
        yield _zone(zone, first[zone.device], agent.idle_w.get(zone.device))
    if not zones:
        yield Finding(
            "energy: RAPL",
            MISSING,
            f"no zone in {agent.sysfs}/class/powercap",
            "On a physical Intel or AMD machine: modprobe intel_rapl_msr. In a VM there is none.",
        )
    models = sensors(agent.sysfs, agent.procfs, agent.tdp_w, SystemClock())
    for model in models:
        if isinstance(model, LoadModel):
            yield _model(agent, model)


def _try(zone: RaplZone) -> int | SensorDenied | SensorFailed:
    try:
        return zone.read_uj()
    except (SensorDenied, SensorFailed) as exc:
        return exc


def _zone(
    zone: RaplZone, before: int | SensorDenied | SensorFailed, floor_w: float | None
) -> Finding:
    what, after = f"energy: {zone.device}", _try(zone)
    if isinstance(after, SensorDenied):
        return Finding(
            what,
            DENIED,
            f"{zone.path}/energy_uj is for root only since Linux 5.10",
            "Run the agent as root, or give it CAP_DAC_READ_SEARCH.",
        )
    if isinstance(after, SensorFailed):
        return Finding(what, FAILS, str(after), "See the kernel log; the agent keeps trying.")
    watts = ""
    if isinstance(before, int) and after >= before:
        watts = f"{(after - before) / 1e6 / PAUSE_S:.1f} W now; "
    floor = f"idle floor {floor_w:g} W, configured" if floor_w is not None else "no idle floor"
    return Finding(
        what,
        WORKS,
        f"{watts}{floor}",
        "" if floor_w is not None else f"Set agent.idle_w.{zone.device} to show idle apart.",
    )


def _model(agent: AgentConfig, model: LoadModel) -> Finding:
    try:
        cpus = cpu_times(agent.procfs).cpus
    except (OSError, Torn) as exc:
        return Finding("energy: load model", FAILS, str(exc), "Mount procfs, or set --procfs.")
    if agent.tdp_w:
        known, remedy = f"TDP {agent.tdp_w:g} W, configured", ""
    else:
        known = f"TDP guessed as {cpus} CPUs x {TDP_W_PER_CPU} W"
        remedy = "Set agent.tdp_w to the packages' TDP (a VM: its share) for better numbers."
    why = f"cpu0 estimated from load, {known}; {model.watts(0, cpus):.1f} W idle, "
    return Finding(
        "energy: load model", MODELLED, why + f"{model.watts(1, cpus):.1f} W at full load", remedy
    )


def _unmetered(sysfs: Path) -> Iterator[Finding]:
    """Hardware that is there and draws power that this version cannot meter."""
    for card in sorted((sysfs / "class/drm").glob("card[0-9]*")):
        if "-" not in card.name and (card / "device/vendor").exists():
            yield Finding(
                f"gpu: {card.name}",
                MISSING,
                "a GPU is present; this version does not meter GPUs",
                "Its energy is in no number of this node.",
            )


def _processes(procfs: Path) -> Finding:
    try:
        processes = Processes(procfs)
        processes.scan(0, 0)
    except OSError as exc:
        return Finding("processes", FAILS, str(exc), "Mount procfs, or set --procfs.")
    if procfs == Path("/proc") and processes.get(1) is None:
        return Finding(
            "processes",
            DENIED,
            f"{len(processes)} visible; others are hidden (hidepid, or a container)",
            "Run the agent on the host, as root or in the group that hidepid's gid= names.",
        )
    return Finding("processes", WORKS, f"{len(processes)} readable in {procfs}")


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


def _state(directory: Path) -> Finding:
    there = directory
    while not there.exists() and there != there.parent:
        there = there.parent
    if os.access(there, os.W_OK | os.X_OK):
        return Finding("spool", WORKS, f"{directory} is writable")
    return Finding(
        "spool", DENIED, f"{directory} cannot be written", "Choose another with --state DIR."
    )


def _collector(address: str) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return Finding("collector", WORKS, f"{address} answers")
    except (OSError, ValueError) as exc:
        return Finding(
            "collector",
            MISSING,
            f"{address}: {exc}",
            "Start one (joulegram up), or set --collector HOST:PORT. Frames wait in the spool.",
        )
