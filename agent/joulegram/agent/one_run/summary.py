"""A run's result, on a terminal or in a log: a few lines a person can read and copy from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from joulegram.agent.attribution import MODELLED
from joulegram.agent.one_run.result import plain

LINES = {  # in energy_uj -> (shown as, the component that says quality and coverage)
    "cpu": ("cpu", "cpu"),
    "dram": ("memory", "dram"),
    "gpu": ("gpu", "gpu"),
    "gpu_held_idle": ("gpu, idle", "gpu"),
    "other": ("other", "other"),
    "machine_idle": ("idle", ""),
}
NOTES = {
    "gpu_held_idle": "held by the run, and counted",
    "other": "fans, disks, losses",
    "machine_idle": "what the machine drew at rest (--idle include)",
}
SCALES = ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ"))
SCALED_FROM = 10  # of the larger unit
SEEN_WHOLE = 0.995


def show(document: Mapping[str, Any], console: Console) -> None:
    """Write the summary."""
    for line in lines(document):
        # A terminal wraps; a log, and whoever copies from it, wants whole lines.
        console.print(line, soft_wrap=True)


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The summary, with rich's markup."""
    yield f"[bold]joulegram run[/]  {escape(_headline(document))}"
    rows = [*_energies(document), *_sums(document)]
    names, numbers = (max(len(row[n]) for row in rows) for n in (0, 1))
    for name, number, how in rows:
        bold, end = ("[bold]", "[/]") if name in ("total", "CO2e") else ("", "")
        yield f"  {bold}{name:<{names}}  {number:>{numbers}}{end}  {how}".rstrip()
    for line in _below(document):
        yield f"  [dim]{escape(line)}[/]"


def _headline(document: Mapping[str, Any]) -> str:
    ranks, all_ranks = document["ranks"], document.get("of_ranks") or 0
    of = f" of {all_ranks}" if all_ranks > ranks else ""
    several = f", {ranks}{of} ranks" if ranks > 1 or of else ""
    return (
        f"{document['command']} on {document['node']}{several}: "
        f"{_duration(document['duration_s'])}, {document['ended_how']}"
    )


def _energies(document: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    energy, qualities = document["energy_uj"], document["quality"]
    divisor, unit = _scale(energy["total"] / 1e6)
    for name, (label, component) in LINES.items():
        there = component in qualities or name == "machine_idle"
        if name in energy and there and (energy[name] or name != "gpu_held_idle"):
            yield label, _amount(energy[name], divisor, unit, energy["total"]), _how(document, name)


def _sums(document: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    total_uj, carbon = document["energy_uj"]["total"], document["carbon"]
    divisor, unit = _scale(total_uj / 1e6)
    total = _amount(total_uj, divisor, unit, total_uj)
    yield "total", total, f"{plain(carbon['kwh'])} kWh"
    grid = f"{carbon['g_per_kwh']:g} g/kWh, {carbon['zone_name']}'s mean of {carbon['year']}"
    yield "CO2e", f"{plain(carbon['grams_co2e'])} g", escape(f"{grid}; PUE {carbon['pue']:g}")


def _how(document: Mapping[str, Any], name: str) -> str:
    component = LINES[name][1]
    quality = document["quality"].get(component, "")
    parts = [f"[yellow]{MODELLED.upper()}[/]" if quality == MODELLED else quality]
    if component == "gpu" and name == "gpu":
        count = sum(1 for d in document["devices"] if d["run_uj"] or d["held_idle_uj"])
        parts.append(f"{count} GPU{'s' if count != 1 else ''}")
    coverage = document["coverage"].get(component, 1.0)
    if coverage < SEEN_WHOLE:
        parts.append(f"[yellow]{100 * coverage:.0f} % of the time[/]")
    return ", ".join(filter(None, [*parts, NOTES.get(name, "")]))


def _below(document: Mapping[str, Any]) -> Iterator[str]:
    idle_uj = sum(document["machine_idle_uj"].values())
    if idle_uj and "machine_idle" not in document["energy_uj"]:
        divisor, unit = _scale(idle_uj / 1e6)
        yield (
            f"Not included: {_amount(idle_uj, divisor, unit, idle_uj)} that the machine drew idle "
            "meanwhile (--idle include)."
        )
    carbon = document["carbon"]
    if carbon["zone"] == "WORLD":
        yield "No zone is set, so the world's average stands in. Set yours: --zone GB."
    yield f"Intensity: {carbon['source']}."
    yield from document["remarks"]
    missed = [f"{one['what']} ({one['why']})" for one in document["not_metered"]]
    yield f"Not metered: {'; '.join(missed)}."


def _scale(joules: float) -> tuple[float, str]:
    found = ((d, unit) for d, unit in SCALES if joules >= SCALED_FROM * d)
    return next(found, (1.0, "J"))


def _amount(energy_uj: int, divisor: float, unit: str, beside_uj: int) -> str:
    """With as many decimals as three digits of what stands beside it take."""
    beside = beside_uj / 1e6 / divisor
    decimals = 1 if beside >= 10 else 2 if beside >= 1 else 3
    return f"{energy_uj / 1e6 / divisor:,.{decimals}f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
