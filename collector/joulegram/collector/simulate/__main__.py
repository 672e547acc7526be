"""`joulegram simulate`: a made-up site's energy, over the wire or straight into a ledger.

Every frame says `simulated`, and so does every answer that has one of them in it.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from joulegram.collector.simulate.cluster import rules
from joulegram.collector.simulate.fleet import Fleet, Plan
from joulegram.collector.simulate.options import SimulateOptions, plan_of
from joulegram.collector.simulate.send import Sender
from joulegram.collector.simulate.store import fill
from joulegram.collector.simulate.totals import Totals

HELP = "a made-up site: jobs, pods, people and their energy, for demos, dashboards and benches"
TABLES: dict[str, type] = {}
OPTIONS = SimulateOptions

MICROJOULES_PER_KWH = 3_600_000_000_000


def run(options: SimulateOptions) -> int:
    """Make the site and carry its frames; the exit status: 1 when frames were refused.

    Raises: BadSetting, NotSent, LedgerInUse, LedgerUnusable.
    """
    if options.rules:
        sys.stdout.write(rules())
        return 0
    plan = plan_of(options, time.time())
    console = Console(stderr=True)
    began_s = time.monotonic()
    fleet = Fleet(plan)
    reasons: dict[str, str] = {}
    with Progress(
        TextColumn("simulating {task.fields[nodes]} nodes"), BarColumn(),
        TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=plan.nodes * plan.windows, nodes=plan.nodes)

        def progress(windows: int) -> None:
            bar.advance(task, windows)

        def tell(text: str) -> None:
            console.print(f"joulegram simulate: {text}", markup=False, soft_wrap=True)

        if options.data:
            data = Path(options.data).expanduser().absolute()
            totals = fill(fleet, data, progress)
        else:
            sender = Sender(fleet, options.collector, options.speed, progress, tell)
            totals = asyncio.run(sender.run())
            reasons = sender.reasons
    _say(options, plan, totals, time.monotonic() - began_s)
    for reason, detail in reasons.items():
        console.print(f"refused ({reason}): {detail}", style="red", markup=False)
    return 1 if totals.refused else 0


def _say(options: SimulateOptions, plan: Plan, totals: Totals, took_s: float) -> None:
    since, until = (
        datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for s in (plan.since_s, plan.since_s + plan.length_s)
    )
    if options.json:
        answer = {
            "simulated": True, "since": since, "until": until, "window_s": plan.window_s,
            "nodes": plan.nodes, "seed": plan.seed, **totals.as_json(), "took_s": round(took_s, 3),
        }  # fmt: skip
        sys.stdout.write(json.dumps(answer) + "\n")
        return
    console = Console()
    console.print(
        f"[yellow]SIMULATED[/] {plan.nodes} nodes, {since} to {until}: {totals.frames:,} frames, "
        f"{totals.rows:,} rows in {took_s:.1f} s"
        + (f", {totals.refused:,} refused" if totals.refused else "")
    )
    table = Table("", "kWh", box=None)
    table.columns[1].justify = "right"
    for name, uj in (*totals.component_uj.items(), *totals.team_uj.items()):
        table.add_row(name, f"{uj / MICROJOULES_PER_KWH:,.3f}")
    table.add_row("all", f"{totals.energy_uj / MICROJOULES_PER_KWH:,.3f}")
    console.print(table)
