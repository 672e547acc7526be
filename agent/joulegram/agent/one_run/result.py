"""A run's result as one JSON object: docs/one-run.md describes every field. Energy in uJ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from joulegram.agent import findings
from joulegram.agent.attribution import MODELLED
from joulegram.agent.findings import Finding
from joulegram.agent.one_run.tally import COMPONENTS, Tally, worst

FORMAT = "joulegram.run/1"
MICROJOULES_PER_KWH = 3_600_000_000_000
WHOLE = 0.98  # less coverage than this is said
# CPU time in files is cut to 10 ms per process and window.
SAME_SHARE, SAME_NS = 0.02, 100_000_000


def measured(
    tally: Tally,
    *,
    elapsed_ms: float,
    used_ns: int | None,
    left: int,
    ranks: int,
    node: str,
    troubles: Sequence[Finding],
    errors: Mapping[str, str],
    unknown_floors: Sequence[str],
    no_such_devices: Sequence[str] = (),
    failure: str = "",
) -> dict[str, Any]:
    """What was metered, and what was not.

    Args:
        used_ns: CPU time that the run is known to have used.
        left: processes of the run that are still there.
        troubles: what `joulegram check` would say of the sensors.
        errors: the last one of each device.
        unknown_floors: devices whose idle floor nobody knows.
        no_such_devices: configured floors of what this machine does not have.
        failure: why metering ended early; "".
    """
    energy = {c: tally.run_uj[c] for c in ("cpu", "dram", "gpu")}
    energy["gpu_held_idle"] = tally.held_uj["gpu"]
    energy["other"] = tally.run_uj["other"] + tally.held_uj["other"]
    there = [c for c in COMPONENTS if tally.of_component(c)]
    quality = {c: tally.quality(c) for c in there}
    coverage = {c: round(tally.coverage(c, elapsed_ms), 4) for c in there}
    return {
        "format": FORMAT,
        "node": node,
        "ranks": ranks,
        "metered_s": round(elapsed_ms / 1000, 3),
        "energy_uj": {**energy, "total": tally.total_uj},
        "machine_idle_uj": {c: tally.idle_uj[c] for c in COMPONENTS},
        "quality": quality | {"total": worst(quality.values())},
        "coverage": coverage,
        "devices": _devices(tally, elapsed_ms),
        "cpu_time_ns": {"used": used_ns, "metered": tally.cpu_ns},
        "left_running": left,
        "not_metered": [
            asdict(one) for one in _not_metered(tally, coverage, troubles, errors, failure)
        ],
        "remarks": [
            *_remarks(tally, used_ns, left, quality, troubles, unknown_floors),
            *(f"idle_w names {name}, which is no device here." for name in no_such_devices),
        ],
    }


def with_idle(document: dict[str, Any]) -> None:
    """Count what the machine drew idle meanwhile as the run's, too."""
    energy = document["energy_uj"]
    energy["machine_idle"] = sum(document["machine_idle_uj"].values())
    energy["total"] += energy["machine_idle"]


def carbon(total_uj: int, pue: float, intensity: Any) -> dict[str, Any]:
    """Operational emissions, location-based.

    Args:
        intensity: one zone's value of a year, as entry points of `joulegram.intensity` give it.
    """
    kwh = total_uj / MICROJOULES_PER_KWH
    return {
        "grams_co2e": kwh * pue * intensity.g_per_kwh,
        "kwh": kwh,
        "pue": pue,
        "g_per_kwh": intensity.g_per_kwh,
        "zone": intensity.zone,
        "zone_name": intensity.name,
        "year": intensity.year,
        "basis": intensity.basis,
        "quality": "fallback",  # a year's mean, not the hours in which the run ran
        "source": intensity.credit,
    }


def plain(number: float, digits: int = 3) -> str:
    """A number in plain decimals with so many that matter: 0.000123, 1230."""
    if not number or not math.isfinite(number):
        return "0" if not number else str(number)
    rounded = float(f"{number:.{digits}g}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:.{places}f}"


def _devices(tally: Tally, elapsed_ms: float) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "component": device.component,
            "energy_uj": device.energy_uj,
            "run_uj": device.run_uj if device.component == "gpu" else None,
            "held_idle_uj": device.held_uj if device.component == "gpu" else None,
            "busy_ns": tally.gpu_ns.get(name, 0) if device.component == "gpu" else None,
            "quality": worst(device.quality_uj),
            "coverage": round(min(1.0, device.covered_ms / elapsed_ms), 4) if elapsed_ms else 0.0,
        }
        for name, device in sorted(tally.devices.items())
    ]


def _not_metered(
    tally: Tally,
    coverage: Mapping[str, float],
    troubles: Sequence[Finding],
    errors: Mapping[str, str],
    failure: str,
) -> list[Finding]:
    missing = findings.MISSING
    found = []
    if failure:
        found.append(Finding("all", findings.FAILS, failure))
    if "dram" not in coverage:
        found.append(Finding("memory", missing, "no counter of its energy can be read here"))
    found += _gpus(tally, troubles)
    if "other" not in coverage:
        found.append(
            Finding("fans, disks, power supply", missing, "no meter of the whole machine here")
        )
    found.append(Finding("network, storage", missing, "never metered"))
    for one in troubles:
        if one.state in (findings.DENIED, findings.FAILS):
            found.append(Finding(one.what.removeprefix("energy: "), one.state, one.why, one.remedy))
    for component, part in coverage.items():
        if part < WHOLE:
            names = tally.of_component(component)
            why = "; ".join(filter(None, (errors.get(name, "") for name in names)))
            share = f"{100 * (1 - part):.0f} % of the time"
            found.append(Finding(component, findings.FAILS, f"{share}: {why or 'no readings'}"))
    return found


def _gpus(tally: Tally, troubles: Sequence[Finding]) -> list[Finding]:
    """Cards that are there and unmetered, or why none is."""
    cards = [
        Finding("gpu", one.state, one.why, one.remedy)
        for one in troubles
        if one.what.startswith("gpu: ")
    ]
    if cards or any(device.component == "gpu" for device in tally.devices.values()):
        return cards
    why = [f.why for f in troubles if "GPU" in f.what and f.state == findings.MISSING and f.why]
    return [Finding("gpu", findings.MISSING, "none found" + (f": {why[0]}" if why else ""))]


def _remarks(
    tally: Tally,
    used_ns: int | None,
    left: int,
    quality: Mapping[str, str],
    troubles: Sequence[Finding],
    unknown_floors: Sequence[str],
) -> list[str]:
    found = []
    if quality.get("cpu") == MODELLED:
        denied = any(
            one.state == findings.DENIED and one.what.startswith("energy: cpu") for one in troubles
        )
        why = next((one.why for one in troubles if one.what == "energy: RAPL"), "")
        why = "its counter is for root alone" if denied else why or "no counter can be read"
        remedy = next((one.remedy for one in troubles if one.state == findings.MODELLED), "")
        found.append(f"cpu is MODELLED from load: {why}. {remedy}".rstrip())
    floors = [name for name in unknown_floors if name in tally.devices]
    if floors:
        found.append(
            f"The idle floor of {', '.join(floors)} is not known: what the machine draws at rest "
            f"is shared by use, too. Say it: --idle-w {floors[0]}=WATTS; an agent learns it."
        )
    if used_ns is not None:
        beyond_ns = used_ns - tally.cpu_ns
        if abs(beyond_ns) > max(SAME_SHARE * used_ns, SAME_NS):
            more = "more" if beyond_ns > 0 else "less"
            found.append(
                f"The run's processes used {abs(beyond_ns) / 1e9:.2f} s of CPU {more} than the "
                f"{tally.cpu_ns / 1e9:.2f} s that were metered."
            )
    if left:
        found.append(
            f"Of its processes {left} still ran at the end; what they use later is not metered."
        )
    if any(device.clamped for device in tally.devices.values()):
        found.append(
            "The whole machine's meter said less than its parts drew; `other` is cut at 0."
        )
    return found
