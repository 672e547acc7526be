"""`joulegram check`: which sensors work here, which do not, why, and what to do about it."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from joulegram.agent import findings
from joulegram.agent.config import AgentConfig
from joulegram.agent.findings import (
    BESIDE,
    DENIED,
    FAILS,
    MISSING,
    MODELLED,
    WORKS,
    Finding,
)

HELP = "list every sensor of this node: works, missing or denied, why, and what to do"
TABLES = {"agent": AgentConfig}

# What works comes first, what this machine merely does not have comes last.
COLOURS = {
    WORKS: "green",
    BESIDE: "green",
    MODELLED: "yellow",
    DENIED: "yellow",
    FAILS: "red",
    MISSING: "dim",
}
STATE_WIDTH = max(map(len, COLOURS))


def run(agent: AgentConfig) -> int:
    """Print the page. Returns 0 when something can be metered or modelled, else 1."""
    console = Console(highlight=False)
    with console.status("asking every sensor ..."):
        energy = list(findings.energy(agent))
        owners = list(findings.owners(agent))
        way = list(findings.way(agent))
    width = max(len(finding.what) for finding in (*energy, *owners, *way))
    order = list(COLOURS)
    show(console, "Energy", sorted(energy, key=lambda f: order.index(f.state)), width)
    show(console, "Processes and names", owners, width)
    show(console, "Way to the collector", way, width)
    console.print("\n" + verdict(energy), soft_wrap=True)
    return 0 if any(f.state in (WORKS, MODELLED) for f in energy) else 1


def show(console: Console, heading: str, lines: Sequence[Finding], width: int) -> None:
    """One part of the page."""
    console.print(f"[bold]{heading}[/]")
    for line in lines:
        state = f"[{COLOURS[line.state]}]{line.state:<{STATE_WIDTH}}[/]"
        console.print(f"  {state}  {line.what:<{width}}  {escape(line.why)}", soft_wrap=True)
        if line.remedy:
            console.print(f"  {'':<{STATE_WIDTH}}  → {escape(line.remedy)}", soft_wrap=True)


def verdict(energy: Sequence[Finding]) -> str:
    """What all that means for this node's numbers."""
    works = {f.what.removeprefix("energy: ") for f in energy if f.state == WORKS}
    if any(f.state == MODELLED for f in energy):
        also = f" Measured all the same: {', '.join(sorted(works))}." if works else ""
        return (
            "No CPU counter can be read here: its watts come from the load model and are marked "
            f"modelled on every screen.{also}"
        )
    if works:
        return f"This node's energy is measured: {', '.join(sorted(works))}."
    return "Nothing can be metered here."
